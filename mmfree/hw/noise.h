#pragma once
// Sampling on the accelerator: the next token is the row with the largest scaled logit + Gumbel
// noise, which draws rows with their softmax probabilities and needs neither sums nor sorting. The
// noise is a function of seed, position and row alone, in integers, so the integer network, the
// simulator and the RTL draw the same tokens.
#include <cstdint>

#include "mmfree/hw/fixed.h"

namespace mmfree::hw {

// What a stream draws one token with.
struct Sampling {
  Scalar inverse_temperature;  // 0: the likeliest token, no noise
  std::uint64_t seed = 0;
  std::uint32_t position = 0;  // tokens that the sequence has had so far
};

// Uniform 32 bits for a row: the first word of Threefry-2x32 with 13 rounds (Salmon et al. 2011),
// key seed, counter {row, position}. Additions, rotations and exclusive ors only.
constexpr std::uint32_t noise_bits(std::uint64_t seed, std::uint32_t position, std::uint32_t row) {
  constexpr int kRotations[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  const auto k0 = static_cast<std::uint32_t>(seed);
  const auto k1 = static_cast<std::uint32_t>(seed >> 32);
  const std::uint32_t key[3] = {k0, k1, 0x1bd11bdaU ^ k0 ^ k1};
  std::uint32_t x0 = row + k0, x1 = position + k1;
  for (unsigned r = 0; r < kNoiseRounds; ++r) {
    x0 += x1;
    x1 = std::rotl(x1, kRotations[r % 8]) ^ x0;
    if (r % 4 == 3) {
      const unsigned n = r / 4 + 1;
      x0 += key[n % 3];
      x1 += key[(n + 1) % 3] + n;
    }
  }
  return x0;
}

struct NoiseSegment {
  std::int32_t value;  // where the segment starts
  std::int32_t slope;  // magnitude of the change over it
};
// [side][octave][segment], see gumbel_noise.
extern const NoiseSegment kNoiseTable[2 * 32 << kNoiseSegBits];

// -ln(-ln u) for u = (bits + 1/2) / 2^32, kNoiseFrac fraction bits; error below 2^-11 (proved over
// all inputs by noise_test). Octaves are of the distance from the nearer end of (0, 1), where the
// noise has its tails.
inline std::int32_t gumbel_noise(std::uint32_t bits) {
  const std::uint32_t high = bits >> 31;  // side 0: u near 1 and large noise
  const std::uint32_t w = high != 0 ? ~bits : bits;
  const std::uint32_t z = w << 1 | 1U;  // the distance is z / 2^33
  const int octave = std::countl_zero(z);
  const std::uint32_t m = z << octave;  // top bit set
  const auto segment =
      static_cast<std::size_t>(m >> (31 - kNoiseSegBits)) & ((std::size_t{1} << kNoiseSegBits) - 1);
  const auto inside = static_cast<std::int32_t>(m >> (31 - kNoiseSegBits - kNoiseInsideBits) &
                                                ((1U << kNoiseInsideBits) - 1));
  const std::size_t side = 1 - high;
  const NoiseSegment s =
      kNoiseTable[((side * 32 + static_cast<std::size_t>(octave)) << kNoiseSegBits) + segment];
  const std::int32_t change =
      (s.slope * inside + (1 << (kNoiseInsideBits - 1))) >> kNoiseInsideBits;
  return side == 0 ? s.value - change : s.value + change;
}

// What rows are compared by. `scale` turns a row sum into logit / temperature, Q15.16.
inline std::int64_t sample_key(std::int32_t sum, Scale scale, const Sampling& s,
                               std::uint32_t row) {
  if (s.inverse_temperature.mantissa == 0) return sum;
  const std::int64_t noise = gumbel_noise(noise_bits(s.seed, s.position, row));
  return apply_scale(sum, scale, 32) + noise * (1 << (kLogitFrac - kNoiseFrac));
}

// Least and largest temperature other than 0; below it, logits of 1000 would saturate.
inline constexpr double kMinTemperature = 1.0 / 32, kMaxTemperature = 1024;
// Sampling for a temperature; a usage Error if it is neither 0 nor in the range above. The only use
// of a float, before anything runs.
Sampling sampling(double temperature, std::uint64_t seed);

}  // namespace mmfree::hw
