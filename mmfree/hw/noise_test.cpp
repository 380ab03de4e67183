// Gumbel noise and the draws that it gives, against double precision, known answers of the
// generator and softmax probabilities.
#include "mmfree/hw/noise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree::hw {
namespace {

// Known answers that the generator's authors publish for 13 rounds.
TEST(Noise, BitsAreThreefry) {
  EXPECT_EQ(noise_bits(0, 0, 0), 0x9d1c5ec6U);
  EXPECT_EQ(noise_bits(~std::uint64_t{0}, 0xffffffffU, 0xffffffffU), 0xfd36d048U);
  EXPECT_EQ(noise_bits(0x0370734413198a2eU, 0x85a308d3U, 0x243f6a88U), 0xba3e4725U);
}

// -ln(-ln u) for u = (bits + 1/2) / 2^32, without loss near 1.
double exact(std::uint32_t bits) {
  const double above = std::ldexp(static_cast<double>(~bits) + 0.5, -32);  // 1 - u
  return above < 0.5 ? -std::log(-std::log1p(-above))
                     : -std::log(-std::log(std::ldexp(static_cast<double>(bits) + 0.5, -32)));
}

// All 2^32 inputs: the noise is the same for all bits that share side, octave, segment and inside,
// and the exact one grows with the bits, so the ends of each such range are its worst.
TEST(Noise, ErrorOverAllInputs) {
  double worst = 0;
  std::int32_t least = 0, largest = 0;
  std::uint64_t covered = 0;
  for (unsigned side = 0; side < 2; ++side)
    for (int octave = 0; octave < 32; ++octave) {
      // Distances w with this octave: 2 w + 1 in [2^(31 - octave), 2^(32 - octave)).
      const std::uint64_t first = octave == 31 ? 0 : std::uint64_t{1} << (30 - octave);
      const std::uint64_t count = octave == 31 ? 1 : first;
      const std::uint64_t step =
          std::max<std::uint64_t>(1, count >> (kNoiseSegBits + kNoiseInsideBits));
      for (std::uint64_t w = first; w < first + count; w += step) {
        const auto bits = [&](std::uint64_t d) {
          return side == 0 ? ~static_cast<std::uint32_t>(d) : static_cast<std::uint32_t>(d);
        };
        const std::int32_t noise = gumbel_noise(bits(w));
        ASSERT_EQ(noise, gumbel_noise(bits(w + step - 1)));
        ASSERT_EQ(noise, gumbel_noise(bits(w + step / 2)));
        const double value = std::ldexp(static_cast<double>(noise), -kNoiseFrac);
        worst = std::max(worst, std::fabs(value - exact(bits(w))));
        worst = std::max(worst, std::fabs(value - exact(bits(w + step - 1))));
        least = std::min(least, noise);
        largest = std::max(largest, noise);
        covered += step;
      }
    }
  EXPECT_EQ(covered, std::uint64_t{1} << 32);
  RecordProperty("worst", std::to_string(worst));
  EXPECT_LT(worst, std::ldexp(1.0, -11));
  EXPECT_GT(worst, std::ldexp(1.0, -14));  // the measurement itself works
  EXPECT_GT(largest, 22 << kNoiseFrac);
  EXPECT_LT(least, -3 << kNoiseFrac);
  EXPECT_LT(largest, 1 << (kNoiseBits - 1));
}

// The RTL's table is this one, entry by entry: simulations hardly ever see the far octaves.
TEST(Noise, TheRomHoldsTheTable) {
  std::ifstream rom(MMF_NOISE_ROM);
  std::size_t entries = 0;
  for (std::string line; std::getline(rom, line);) {
    unsigned address = 0, width = 0;
    unsigned long word = 0;
    if (std::sscanf(line.c_str(), " 10'd%u: data_q <= %u'h%lx;", &address, &width, &word) != 3)
      continue;
    ASSERT_EQ(address, entries);
    ASSERT_EQ(width, kNoiseBits + kNoiseSlopeBits);
    const auto value = static_cast<std::int32_t>(word >> kNoiseSlopeBits << (32 - kNoiseBits)) >>
                       (32 - kNoiseBits);
    ASSERT_EQ(value, kNoiseTable[entries].value) << address;
    ASSERT_EQ(word & ((1UL << kNoiseSlopeBits) - 1),
              static_cast<unsigned long>(kNoiseTable[entries].slope))
        << address;
    ++entries;
  }
  EXPECT_EQ(entries, std::size(kNoiseTable));
}

// 99.9 % quantile of chi-square with n degrees of freedom (Wilson and Hilferty).
double chi_square_limit(double n) {
  const double a = 2 / (9 * n);
  return n * std::pow(1 - a + 3.0902 * std::sqrt(a), 3);
}

struct Draws {
  double chi_square;
  double degrees;
};

// Draws from logits (Q15.16 after the scale) at a temperature, against softmax.
Draws draw(const std::vector<std::int32_t>& sums, double temperature, std::uint64_t seed, int n,
           double claimed_temperature) {
  Sampling s = sampling(temperature, seed);
  // Sums count in 1/64: scale 2^-6 / temperature, with the logits' fraction bits.
  const Scale scale =
      scale_from_scalar(multiply({1U << 15, -15 - 6}, s.inverse_temperature), kLogitFrac);
  std::vector<int> count(sums.size());
  for (int k = 0; k < n; ++k) {
    s.position = static_cast<std::uint32_t>(k);
    std::size_t best = 0;
    std::int64_t largest = 0;
    for (std::size_t r = 0; r < sums.size(); ++r) {
      const std::int64_t key = sample_key(sums[r], scale, s, static_cast<std::uint32_t>(r));
      if (r == 0 || key > largest) {
        largest = key;
        best = r;
      }
    }
    ++count[best];
  }
  std::vector<double> p(sums.size());
  double total = 0;
  for (std::size_t r = 0; r < sums.size(); ++r)
    total += p[r] = std::exp(static_cast<double>(sums[r]) / 64 / claimed_temperature);
  Draws d{0, -1};
  double rest = 0, rest_count = 0;  // rows with few expected draws count together
  for (std::size_t r = 0; r < sums.size(); ++r) {
    const double expected = p[r] / total * n;
    if (expected < 8) {
      rest += expected;
      rest_count += count[r];
      continue;
    }
    d.chi_square += (count[r] - expected) * (count[r] - expected) / expected;
    ++d.degrees;
  }
  if (rest >= 8) {
    d.chi_square += (rest_count - rest) * (rest_count - rest) / rest;
    ++d.degrees;
  }
  return d;
}

TEST(Noise, DrawsFollowSoftmax) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    std::vector<std::int32_t> sums(40);
    for (std::size_t r = 0; r < sums.size(); ++r)
      sums[r] = static_cast<std::int32_t>(random_bits(seed, 1, r) % 640) - 320;  // -5 .. 5
    for (const double temperature : {0.5, 1.0, 1.7}) {
      const Draws d = draw(sums, temperature, seed << 40 | seed, 20000, temperature);
      EXPECT_GT(d.degrees, 4);
      EXPECT_LT(d.chi_square, chi_square_limit(d.degrees)) << seed << " " << temperature;
      // A temperature that is 10 % off would be seen.
      const Draws off = draw(sums, temperature, seed << 40 | seed, 20000, temperature * 1.1);
      EXPECT_GT(off.chi_square, chi_square_limit(off.degrees)) << seed << " " << temperature;
    }
  }
}

TEST(Noise, TemperaturesHaveARange) {
  EXPECT_EQ(sampling(0, 5).inverse_temperature, Scalar{});
  EXPECT_EQ(sampling(1, 5).inverse_temperature, (Scalar{1U << 15, -15}));
  EXPECT_EQ(sampling(0.8, 5).inverse_temperature, (Scalar{40960, -15}));
  EXPECT_EQ(sample_key(-77, {}, sampling(0, 5), 3), -77);  // no noise without temperature
  for (const double bad : {-1.0, 0.03, 1025.0, std::nan("")}) EXPECT_THROW(sampling(bad, 0), Error);
}

}  // namespace
}  // namespace mmfree::hw
