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

MMFREE_EVERYWHERE inline std::int32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_int(x);
#else
  return __builtin_bit_cast(std::int32_t, x);
#endif
}
MMFREE_EVERYWHERE inline float float_of(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// x limited to [-87, 88], as integers: floats of one sign are ordered like their bits. Written with
// float comparisons the compiler splits the loop by cases and evaluates the constant ones for all
// lanes, and multiplying by the tiny constant sigmoid(-88) costs a microcode assist in each: 10
// times the time. NaN becomes one of the limits.
MMFREE_EVERYWHERE inline float clamp_exponent(float x) {
  constexpr std::int32_t kHigh = 0x42b00000;   // 88.0F
  constexpr std::uint32_t kLow = 0xc2ae0000U;  // -87.0F; larger unsigned = more negative
  const std::int32_t bits = bits_of(x);
  const auto high = static_cast<std::uint32_t>(bits < kHigh ? bits : kHigh);
  return float_of(high < kLow ? high : kLow);
}

// e^x within 2 ulp for x in [-87, 88]; clamped outside (1.6e-38 and 1.7e38).
MMFREE_EVERYWHERE inline float exp_f32(float x) {
  x = clamp_exponent(x);
  // n = round(x / ln 2): adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
  const float shifted = x * 1.44269504088896341F + 12582912.0F;
  const std::int32_t n = bits_of(shifted) - 0x4b400000;
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
  return y * float_of(static_cast<std::uint32_t>(n + 127) << 23);
}

MMFREE_EVERYWHERE inline float sigmoid_f32(float x) {
  return 1.0F / (1.0F + exp_f32(-x));
}

// The canonical reduction: 512 interleaved partial sums, then a fixed tree, within groups of 32
// first. Many independent sums, because that is short on every machine: vector units keep them in
// the first-level cache, a GPU has a thread for each and a warp for each group.
constexpr idx kSumLanes = 512;
constexpr idx kSumGroup = 32;

template <int kHalf>
inline void fold(float* a) {
  for (int l = 0; l < kHalf; ++l) a[l] += a[l + kHalf];
  if constexpr (kHalf > 1) fold<kHalf / 2>(a);
}

// Sum over k of term(k), k in [0, n).
template <class F>
inline float canonical_sum(idx n, const F& term) {
  alignas(64) float acc[kSumLanes];
  const idx lanes = n < kSumLanes ? n : kSumLanes;
  const idx groups = (lanes + kSumGroup - 1) / kSumGroup;
  for (idx l = 0; l < lanes; ++l) acc[l] = term(l);
  for (idx l = lanes; l < groups * kSumGroup; ++l) acc[l] = 0;
  idx k = kSumLanes;
  for (; k + kSumLanes <= n; k += kSumLanes)
    for (idx l = 0; l < kSumLanes; ++l) acc[l] += term(k + l);
  for (idx l = 0; k + l < n; ++l) acc[l] += term(k + l);
  float top[kSumLanes / kSumGroup] = {};
  for (idx g = 0; g < groups; ++g) {
    fold<kSumGroup / 2>(acc + g * kSumGroup);
    top[g] = acc[g * kSumGroup];
  }
  fold<kSumLanes / kSumGroup / 2>(top);
  return top[0];
}

// Largest term(k), n >= 1. Compared as integers (bits reordered so that signed order is float
// order): that vectorises, and any order gives the same value. A positive NaN wins.
template <class F>
inline float canonical_max(idx n, const F& term) {
  std::int32_t largest = INT32_MIN;
  for (idx k = 0; k < n; ++k) {
    const std::int32_t bits = bits_of(term(k));
    const std::int32_t ordered = bits ^ ((bits >> 31) & 0x7fffffff);
    largest = ordered > largest ? ordered : largest;
  }
  return float_of(static_cast<std::uint32_t>(largest ^ ((largest >> 31) & 0x7fffffff)));
}

inline float reciprocal_rms(float sum_of_squares, idx n, float eps) {
  return 1.0F / __builtin_sqrtf(sum_of_squares / static_cast<float>(n) + eps);
}

}  // namespace
}  // namespace mmfree
