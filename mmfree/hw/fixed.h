#pragma once
// Fixed-point arithmetic of the accelerator, bit for bit: what the integer model of the network,
// the instruction-set simulator and the RTL compute. Integers only. Rounding is half up everywhere:
// (v + 2^(s-1)) >> s, arithmetic shift.
//
// Why int8 codes need no root: BitLinear's q = round(127 y / max|y|) does not depend on the norm's
// scale, so the norm only enters the scalar that multiplies the row sums (docs/hardware.md,
// "Numbers").
#include <algorithm>
#include <bit>
#include <cstdint>

namespace mmfree::hw {

#define MMF_NUMBER(Name, NAME, value, meaning) inline constexpr int k##Name = value;
#include "mmfree/hw/numbers.def"
#undef MMF_NUMBER

static_assert(kSegBits + kSegFrac == kActBits - 1);
static_assert(std::int64_t{128} * kMaxK < std::int64_t{1} << (kAccBits - 1));

// v >> s with round half up; s in 0..62.
constexpr std::int64_t round_shift(std::int64_t v, int s) {
  return s == 0 ? v : (v + (std::int64_t{1} << (s - 1))) >> s;
}

// Bits needed to write v; 0 for 0.
constexpr int bit_length(std::uint64_t v) {
  return static_cast<int>(std::bit_width(v));
}

// v clamped to a signed number of `bits`.
constexpr std::int64_t saturate(std::int64_t v, int bits) {
  const std::int64_t high = (std::int64_t{1} << (bits - 1)) - 1;
  return v > high ? high : v < -high - 1 ? -high - 1 : v;
}

// ---- scalars

// mantissa * 2^exponent; the mantissa is 0 (then the exponent is 0 too) or has its top bit set.
struct Scalar {
  std::uint16_t mantissa = 0;
  std::int16_t exponent = 0;
  friend bool operator==(const Scalar&, const Scalar&) = default;
};

// Nearest scalar of an unsigned integer below 2^48.
constexpr Scalar scalar_from_uint(std::uint64_t v) {
  if (v == 0) return {};
  const int bits = bit_length(v);
  if (bits <= kMantBits)
    return {static_cast<std::uint16_t>(v << (kMantBits - bits)),
            static_cast<std::int16_t>(bits - kMantBits)};
  const int shift = bits - kMantBits;
  const std::uint64_t m = (v + (std::uint64_t{1} << (shift - 1))) >> shift;
  if (m >> kMantBits != 0) return {1U << (kMantBits - 1), static_cast<std::int16_t>(shift + 1)};
  return {static_cast<std::uint16_t>(m), static_cast<std::int16_t>(shift)};
}

constexpr std::int16_t clamp_exponent(int e) {
  return static_cast<std::int16_t>(std::clamp(e, -1024, 1023));
}

// a * b, rounded to nearest.
constexpr Scalar multiply(Scalar a, Scalar b) {
  if (a.mantissa == 0 || b.mantissa == 0) return {};
  const std::uint32_t p = std::uint32_t{a.mantissa} * b.mantissa;  // [2^30, 2^32)
  const int shift = p >> 31 != 0 ? 16 : 15;
  const std::uint64_t m = (std::uint64_t{p} + (std::uint64_t{1} << (shift - 1))) >> shift;
  const int e = a.exponent + b.exponent + shift;
  if (m >> kMantBits != 0) return {1U << (kMantBits - 1), clamp_exponent(e + 1)};
  return {static_cast<std::uint16_t>(m), clamp_exponent(e)};
}

// 127 / a by one division, rounded down; 0 for 0.
constexpr Scalar reciprocal127(Scalar a) {
  if (a.mantissa == 0) return {};
  const std::uint32_t q = (std::uint32_t{127} << 25) / a.mantissa;  // [65024, 130048]
  const int over = q >> kMantBits != 0 ? 1 : 0;
  return {static_cast<std::uint16_t>(q >> over), clamp_exponent(-25 - a.exponent + over)};
}

// floor(sqrt(v)), one bit of the result a step: v below 2^34.
constexpr std::uint32_t isqrt(std::uint64_t v) {
  std::uint64_t root = 0, rest = 0;
  for (int i = 16; i >= 0; --i) {
    rest = (rest << 2) | ((v >> (2 * i)) & 3U);
    const std::uint64_t trial = (root << 2) | 1U;
    root <<= 1;
    if (rest >= trial) {
      rest -= trial;
      root |= 1U;
    }
  }
  return static_cast<std::uint32_t>(root);
}

// 1 / sqrt(a): floor(sqrt(floor(2^48 / m))) with the exponent made even; 0 for 0.
constexpr Scalar reciprocal_sqrt(Scalar a) {
  if (a.mantissa == 0) return {};
  const int odd = a.exponent & 1;
  const std::uint64_t m = std::uint64_t{a.mantissa} << odd;        // [2^15, 2^17)
  const std::uint32_t root = isqrt((std::uint64_t{1} << 48) / m);  // (2^15.5, 2^16.5]
  const int over = root >> kMantBits != 0 ? 1 : 0;
  return {static_cast<std::uint16_t>(root >> over),
          clamp_exponent(-24 - (a.exponent - odd) / 2 + over)};
}

// How row sums become numbers of a given format: (v * mantissa) >> shift, rounded.
struct Scale {
  std::uint16_t mantissa = 0;
  std::uint8_t shift = 0;  // 0..kMaxShift
  friend bool operator==(const Scale&, const Scale&) = default;
};

// The scale that multiplies by a * 2^frac. Too small: 0. Too large for the format: the largest
// there is.
constexpr Scale scale_from_scalar(Scalar a, int frac) {
  const int shift = -(a.exponent + frac);
  if (a.mantissa == 0 || shift > kMaxShift) return {};
  if (shift < 0) return {0xffff, 0};
  return {a.mantissa, static_cast<std::uint8_t>(shift)};
}

constexpr std::int64_t apply_scale(std::int64_t v, Scale s, int bits) {
  return saturate(round_shift(v * s.mantissa, s.shift), bits);
}

// ---- vectors to codes

// The shift that brings a vector's largest magnitude to 15 bits; `bits` is the OR of v ^ (v >> 31)
// over its elements. Positive: to the right.
constexpr int normal_shift(std::uint32_t bits) {
  return bits == 0 ? 0 : bit_length(bits) - (kNormBits - 1);
}

constexpr std::int32_t normalize(std::int32_t v, int shift) {
  if (shift <= 0) return static_cast<std::int32_t>(static_cast<std::uint32_t>(v) << -shift);
  return static_cast<std::int32_t>(saturate(round_shift(v, shift), kNormBits));
}

// What is squared for the norm: the gained element, or (raw) the element itself.
constexpr std::int32_t squared_term(std::int32_t normal, std::int32_t gain, bool raw) {
  return raw ? normal
             : static_cast<std::int32_t>(
                   saturate(round_shift(std::int64_t{normal} * gain, kSquareShift), kNormBits));
}

// round(127 p / max|p|) with r = reciprocal127 of the maximum.
constexpr std::int8_t code(std::int32_t product, Scale r) {
  return static_cast<std::int8_t>(apply_scale(product, r, kCodeBits));
}

// ---- gates

struct SigmoidSegment {
  std::uint16_t value;  // (sigmoid - 1/2) * 2^17 where the segment starts
  std::uint16_t slope;  // growth over the segment
};
extern const SigmoidSegment kSigmoidTable[1 << kSegBits];

// act Q4.13 -> 0..2^15. sigmoid(-x) = 1 - sigmoid(x); error below 2^-14 (proved over all inputs by
// fixed_test).
inline std::int32_t sigmoid(std::int32_t act) {
  const std::int32_t magnitude = std::min(act < 0 ? -act : act, (1 << (kActBits - 1)) - 1);
  const SigmoidSegment s = kSigmoidTable[magnitude >> kSegFrac];
  const std::int32_t inside = magnitude & ((1 << kSegFrac) - 1);
  const std::int32_t fine = s.value + ((s.slope * inside + (1 << (kSegFrac - 1))) >> kSegFrac);
  const std::int32_t y = (1 << (kSigFrac - 1)) + ((fine + (1 << (kSegExtra - 1))) >> kSegExtra);
  return act < 0 ? (1 << kSigFrac) - y : y;
}

// act * sigmoid(act), Q4.13.
inline std::int32_t silu(std::int32_t act) {
  return static_cast<std::int32_t>(round_shift(std::int64_t{act} * sigmoid(act), kSigFrac));
}

// Forget gate: bound + (1 - bound) * sigmoid(act), all 0..2^15.
inline std::int32_t forget_gate(std::int32_t act, std::int32_t bound) {
  return bound + static_cast<std::int32_t>(
                     round_shift(std::int64_t{(1 << kSigFrac) - bound} * sigmoid(act), kSigFrac));
}

// State update f h + (1 - f) SiLU(act), one rounding at the end.
inline std::int32_t update_state(std::int32_t h, std::int32_t f, std::int32_t act) {
  const std::int64_t input = std::int64_t{silu(act)} * ((1 << kSigFrac) - f) << (kHFrac - kActFrac);
  return static_cast<std::int32_t>(
      saturate(round_shift(std::int64_t{h} * f + input, kSigFrac), kHBits));
}

// The state as a gate's input.
inline std::int32_t state_as_act(std::int32_t h) {
  return static_cast<std::int32_t>(saturate(round_shift(h, kHFrac - kActFrac), kActBits));
}

// Row sum times a SiLU: an element of Z.
inline std::int32_t gated_value(std::int32_t sum, std::int32_t swish) {
  return static_cast<std::int32_t>(
      saturate(round_shift(std::int64_t{sum} * swish, kGateShift), kVecBits));
}

// ---- trits

// Five trits of a byte, row 0 first: the byte is n * 256 / 243 rounded up, n in base 3 with digits
// t + 1.
constexpr std::uint8_t encode_trits(const std::int8_t* t) {
  unsigned n = 0;
  for (int r = 0; r < kRows; ++r) n = 3 * n + static_cast<unsigned>(t[r] + 1);
  return static_cast<std::uint8_t>((n * 256 + 242) / 243);
}
constexpr void decode_trits(std::uint8_t byte, std::int8_t* t) {
  unsigned rest = byte;
  for (int r = 0; r < kRows; ++r) {
    rest *= 3;
    t[r] = static_cast<std::int8_t>(static_cast<int>(rest >> 8) - 1);
    rest &= 255U;
  }
}

}  // namespace mmfree::hw
