#pragma once
// Elementary functions for kernels that are compiled once per instruction set: internal linkage,
// branch-free, and built from single IEEE operations, so that every variant gives the same bits,
// and so does a GPU whose compiler is told not to contract (-fmad=false). Do not include this
// outside ops/*_kernels.h and the inference kernels of mmfree/cuda.
#include "mmfree/core/types.h"

#ifdef __CUDACC__
#define MMFREE_EVERYWHERE __host__ __device__
#else
#define MMFREE_EVERYWHERE
#endif

namespace mmfree {
namespace {

// x limited to [-87, 88], as integers: floats of one sign are ordered like their bits. Written with
// float comparisons the compiler splits the loop by cases and evaluates the constant ones for all
// lanes, and multiplying by the tiny constant sigmoid(-88) costs a microcode assist in each: 10
// times the time. NaN becomes one of the limits.
MMFREE_EVERYWHERE inline float clamp_exponent(float x) {
  constexpr std::int32_t kHigh = 0x42b00000;   // 88.0F
  constexpr std::uint32_t kLow = 0xc2ae0000U;  // -87.0F; larger unsigned = more negative
  const auto bits = __builtin_bit_cast(std::int32_t, x);
  const auto high = static_cast<std::uint32_t>(bits < kHigh ? bits : kHigh);
  return __builtin_bit_cast(float, high < kLow ? high : kLow);
}

// e^x within 2 ulp for x in [-87, 88]; clamped outside (1.6e-38 and 1.7e38).
MMFREE_EVERYWHERE inline float exp_f32(float x) {
  x = clamp_exponent(x);
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
  const float shifted = x * 1.44269504088896341F + 12582912.0F;
  const std::int32_t n = __builtin_bit_cast(std::int32_t, shifted) - 0x4b400000;
  const float r = shifted - 12582912.0F;
  // ln 2 in two parts, the first with few bits so that its product with r is exact.
  float f = x - r * 0.693359375F;
  f = f + r * 2.12194440e-4F;
  // Minimax polynomial for (e^f - 1 - f) / f^2 on [-ln2/2, ln2/2].
  float p = 1.9875691500e-4F;
  p = p * f + 1.3981999507e-3F;
  p = p * f + 8.3334519073e-3F;
  p = p * f + 4.1665795894e-2F;
  p = p * f + 1.6666665459e-1F;
  p = p * f + 5.0000001201e-1F;
  const float y = p * (f * f) + f + 1.0F;
  return y * __builtin_bit_cast(float, (n + 127) << 23);
}

MMFREE_EVERYWHERE inline float sigmoid_f32(float x) {
  return 1.0F / (1.0F + exp_f32(-x));
}

// The canonical reduction, made for many processors at once: each chunk of 128 terms is summed in
// 16 interleaved parts, the chunks' parts are added in order, a fixed tree joins the 16.
constexpr int kLanes = 16;
constexpr idx kSumChunk = 128;

inline float sum_lanes(const float* a) {
  float s[kLanes / 2];
  for (int l = 0; l < 8; ++l) s[l] = a[l] + a[l + 8];
  for (int l = 0; l < 4; ++l) s[l] = s[l] + s[l + 4];
  for (int l = 0; l < 2; ++l) s[l] = s[l] + s[l + 2];
  return s[0] + s[1];
}

// Sum over k of term(k), k in [0, n).
template <class F>
inline float canonical_sum(idx n, const F& term) {
  float total[kLanes] = {};
  idx k = 0;
  for (; k + kSumChunk <= n; k += kSumChunk) {
    float acc[kLanes] = {};
    for (idx j = k; j < k + kSumChunk; j += kLanes)
      for (int l = 0; l < kLanes; ++l) acc[l] += term(j + l);
    for (int l = 0; l < kLanes; ++l) total[l] += acc[l];
  }
  if (k < n) {
    float acc[kLanes] = {};
    for (; k + kLanes <= n; k += kLanes)
      for (int l = 0; l < kLanes; ++l) acc[l] += term(k + l);
    for (int l = 0; k + l < n; ++l) acc[l] += term(k + l);
    for (int l = 0; l < kLanes; ++l) total[l] += acc[l];
  }
  return sum_lanes(total);
}

// Largest term(k), n >= 1. Compared as integers (bits reordered so that signed order is float
// order): that vectorises, and any order gives the same value. A positive NaN wins.
template <class F>
inline float canonical_max(idx n, const F& term) {
  std::int32_t largest = INT32_MIN;
  for (idx k = 0; k < n; ++k) {
    const auto bits = __builtin_bit_cast(std::int32_t, term(k));
    const std::int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    largest = ordered > largest ? ordered : largest;
  }
  return __builtin_bit_cast(float, largest ^ ((largest >> 31) & 0x7fffffff));
}

inline float reciprocal_rms(float sum_of_squares, idx n, float eps) {
  return 1.0F / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

}  // namespace
}  // namespace mmfree
