// Fixed-point arithmetic against double precision and plain definitions, over all inputs where that
// is possible.
#include "mmfree/hw/fixed.h"

#include <gtest/gtest.h>

#include <cmath>

#include "mmfree/core/rng.h"

namespace mmfree::hw {
namespace {

double value(Scalar s) {
  return std::ldexp(static_cast<double>(s.mantissa), s.exponent);
}
double exact_sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

constexpr int kActMax = (1 << (kActBits - 1)) - 1;
constexpr int kActMin = -kActMax - 1;

TEST(Fixed, SigmoidOverAllInputs) {
  double worst = 0;
  std::int32_t before = 0;
  for (int a = kActMin; a <= kActMax; ++a) {
    const std::int32_t y = sigmoid(a);
    const double x = std::ldexp(static_cast<double>(a), -kActFrac);
    worst = std::max(worst,
                     std::fabs(std::ldexp(static_cast<double>(y), -kSigFrac) - exact_sigmoid(x)));
    ASSERT_GE(y, before - 1) << a;  // segments may disagree by one unit where they meet
    ASSERT_TRUE(y >= 0 && y <= 1 << kSigFrac) << a;
    before = y;
    if (a > kActMin && a < 0) {
      ASSERT_EQ(y + sigmoid(-a), 1 << kSigFrac) << a;
    }
  }
  EXPECT_EQ(sigmoid(0), 1 << (kSigFrac - 1));
  EXPECT_LT(worst, std::ldexp(1.0, -14));
  RecordProperty("worst", std::to_string(worst));
  EXPECT_GT(worst, std::ldexp(1.0, -18));  // the measurement itself works
}

TEST(Fixed, SiluOverAllInputs) {
  double worst = 0;
  for (int a = kActMin; a <= kActMax; ++a) {
    const double x = std::ldexp(static_cast<double>(a), -kActFrac);
    const double error =
        std::fabs(std::ldexp(static_cast<double>(silu(a)), -kActFrac) - x * exact_sigmoid(x));
    worst = std::max(worst, error / std::max(1.0, std::fabs(x)));
  }
  EXPECT_LT(worst, 1.3e-4);
}

TEST(Fixed, TritsOfAllBytes) {
  for (int n = 0; n < 243; ++n) {
    std::int8_t t[5], back[5];
    for (int r = 4, v = n; r >= 0; --r, v /= 3) t[r] = static_cast<std::int8_t>(v % 3 - 1);
    decode_trits(encode_trits(t), back);
    for (int r = 0; r < 5; ++r) ASSERT_EQ(t[r], back[r]) << n;
  }
  const std::int8_t zeros[5] = {};
  EXPECT_EQ(encode_trits(zeros), kZeroTrits);
}

TEST(Fixed, ReciprocalsOfAllMantissas) {
  for (int m = 1 << 15; m < 1 << 16; ++m)
    for (int e = -3; e <= 2; ++e) {
      const Scalar s{static_cast<std::uint16_t>(m), static_cast<std::int16_t>(e)};
      const Scalar r = reciprocal127(s);
      ASSERT_GE(r.mantissa, 1 << 15);
      ASSERT_NEAR(value(r) * value(s) / 127, 1, 0x1p-15) << m;
      const Scalar q = reciprocal_sqrt(s);
      ASSERT_GE(q.mantissa, 1 << 15);
      ASSERT_NEAR(value(q) * value(q) * value(s), 1, 0x1p-14) << m << " " << e;
    }
  EXPECT_EQ(reciprocal127({}), Scalar{});
  EXPECT_EQ(reciprocal_sqrt({}), Scalar{});
}

TEST(Fixed, SquareRootIsTheFloor) {
  const auto check = [](std::uint64_t v) {
    const std::uint64_t r = isqrt(v);
    ASSERT_LE(r * r, v);
    ASSERT_GT((r + 1) * (r + 1), v);
  };
  for (std::uint64_t v = 0; v < 200000; ++v) check(v);
  for (std::uint64_t r = 1; r < 1 << 17; ++r) {
    check(r * r);
    check(r * r - 1);
  }
  check((std::uint64_t{1} << 34) - 1);
}

TEST(Fixed, ScalarsRoundToNearest) {
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const std::uint64_t v = random_bits(1, 0, i) >> (16 + i % 48);
    const Scalar s = scalar_from_uint(v);
    ASSERT_LE(std::fabs(value(s) - static_cast<double>(v)), static_cast<double>(v) * 0x1p-16) << v;
    const Scalar t = scalar_from_uint(random_bits(1, 1, i) >> (16 + i % 31));
    ASSERT_LE(std::fabs(value(multiply(s, t)) - value(s) * value(t)),
              value(s) * value(t) * 0x1p-16);
    ASSERT_TRUE(s.mantissa == 0 || s.mantissa >> 15 == 1);
  }
  EXPECT_EQ(scalar_from_uint(65535), (Scalar{65535, 0}));
  EXPECT_EQ(scalar_from_uint(131071), (Scalar{32768, 2}));  // the mantissa overflows when rounded
  EXPECT_EQ(multiply({}, {40000, 3}), Scalar{});
}

TEST(Fixed, ScalesClampAtBothEnds) {
  EXPECT_EQ(scale_from_scalar({32768, -60}, 13), (Scale{32768, 47}));
  EXPECT_EQ(scale_from_scalar({32768, -61}, 13), Scale{});
  EXPECT_EQ(scale_from_scalar({32768, -13}, 13), (Scale{32768, 0}));
  EXPECT_EQ(scale_from_scalar({32768, -12}, 13), (Scale{0xffff, 0}));
  EXPECT_EQ(apply_scale(3, {32768, 16}, 18), 2);    // 1.5 goes up
  EXPECT_EQ(apply_scale(-3, {32768, 16}, 18), -1);  // and so does -1.5
  EXPECT_EQ(apply_scale(1 << 22, {0xffff, 0}, 18), (1 << 17) - 1);
  EXPECT_EQ(apply_scale(-(1 << 22), {0xffff, 0}, 18), -(1 << 17));
}

TEST(Fixed, NormalisedVectorsUse15Bits) {
  for (int bits = 1; bits <= 31; ++bits) {
    const std::uint32_t top = static_cast<std::uint32_t>((std::uint64_t{1} << bits) - 1);
    const int shift = normal_shift(top);
    EXPECT_EQ(shift, bits - 15);
    const std::int32_t n = normalize(static_cast<std::int32_t>(top), shift);
    EXPECT_LE(n, 32767);
    EXPECT_GE(n, 16384);
    EXPECT_GE(normalize(static_cast<std::int32_t>(~top), shift), -32768);
  }
  EXPECT_EQ(normalize(0, normal_shift(0)), 0);
}

TEST(Fixed, CodesAreRoundedRatios) {
  for (std::uint64_t i = 0; i < 100000; ++i) {
    const std::int64_t max = 1 + static_cast<std::int64_t>(random_bits(2, 0, i) >> (34 + i % 30));
    const Scalar r = reciprocal127(scalar_from_uint(static_cast<std::uint64_t>(max)));
    const Scale s = scale_from_scalar(r, 0);
    const auto p = static_cast<std::int32_t>(
        std::lround((2 * random_uniform(2, 1, i) - 1) * static_cast<double>(max)));
    const double exact = 127.0 * p / static_cast<double>(max);
    ASSERT_LE(std::fabs(code(p, s) - exact), 0.5 + 127 * 0x1p-15) << p << " of " << max;
    ASSERT_EQ(code(static_cast<std::int32_t>(max), s), 127) << max;
    ASSERT_GE(code(static_cast<std::int32_t>(-max), s), -127) << max;
  }
  EXPECT_EQ(code(0, Scale{}), 0);
}

TEST(Fixed, StateUpdateFollowsTheFormula) {
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const auto pick = [&](std::uint64_t s, int bits) {
      return static_cast<std::int32_t>(static_cast<std::int64_t>(random_bits(3, s, i)) >>
                                       (64 - bits));
    };
    const std::int32_t h = pick(0, kHBits);
    const std::int32_t f = static_cast<std::int32_t>(random_bits(3, 1, i) % 32769);
    const std::int32_t a = pick(2, kActBits);
    const double fd = std::ldexp(static_cast<double>(f), -15);
    const double in = std::ldexp(static_cast<double>(silu(a)), -kActFrac);
    const double exact = fd * std::ldexp(static_cast<double>(h), -kHFrac) + (1 - fd) * in;
    ASSERT_NEAR(std::ldexp(static_cast<double>(update_state(h, f, a)), -kHFrac), exact,
                std::ldexp(0.5001, -kHFrac));
  }
  EXPECT_EQ(forget_gate(0, 0), 16384);
  EXPECT_EQ(forget_gate(kActMax, 32767), 32768);
  EXPECT_EQ(gated_value((1 << 23) - 1, kActMax), 0x7fffffff);
}

}  // namespace
}  // namespace mmfree::hw
