#pragma once
// The canonical sum of core/fastmath.h by AVX-512, bit for bit: the compiler keeps its 512 partial
// sums in memory and folds them almost one by one. Include only in files of that instruction set.
#include <immintrin.h>

#include "mmfree/core/fastmath.h"

namespace mmfree {
namespace {

// The lanes of 16 that lie below n, for elements [k, k + 16).
inline __mmask16 lanes_below(idx n, idx k) {
  return n - k >= 16
             ? __mmask16{0xffff}
             : static_cast<__mmask16>((1U << (n > k ? static_cast<unsigned>(n - k) : 0U)) - 1U);
}

// The 512 partial sums to one, in the order of canonical_sum: the groups' trees side by side, a
// level halving the number of registers.
inline float fold_lanes(const float* acc) {
  __m512 v[16];
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g)
    v[g] = _mm512_add_ps(_mm512_load_ps(acc + 32 * g), _mm512_load_ps(acc + 32 * g + 16));
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                         _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    v[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x88),
                         _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xdd));
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i)
    v[i] = _mm512_add_ps(_mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0x44),
                         _mm512_shuffle_ps(v[2 * i], v[2 * i + 1], 0xee));
  __m512 top =
      _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
  // Group 4 j + b is in lane 4 b + j.
  top = _mm512_permutexvar_ps(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), top);
  top = _mm512_add_ps(top, _mm512_shuffle_f32x4(top, top, 0xee));
  top = _mm512_add_ps(top, _mm512_shuffle_f32x4(top, top, 0x55));
  top = _mm512_add_ps(top, _mm512_permute_ps(top, 0xee));
  top = _mm512_add_ps(top, _mm512_permute_ps(top, 0x55));
  return _mm512_cvtss_f32(top);
}

// kSums canonical sums over k in [0, n) in one pass. terms(k, lanes, t) sets t[0 .. kSums) to the
// terms of [k, k + 16), +0 in other lanes.
template <int kSums, class F>
inline void canonical_sums(idx n, const F& terms, float* sums) {
  alignas(64) float acc[kSums][kSumLanes];
  for (idx l = 0; l < kSumLanes; l += 16) {
    __m512 a[kSums], t[kSums];
    terms(l, lanes_below(n, l), a);
    for (idx k = l + kSumLanes; k < n; k += kSumLanes) {
      const __mmask16 lanes = lanes_below(n, k);
      terms(k, lanes, t);
#pragma GCC unroll 2
      for (int s = 0; s < kSums; ++s) a[s] = _mm512_mask_add_ps(a[s], lanes, a[s], t[s]);
    }
#pragma GCC unroll 2
    for (int s = 0; s < kSums; ++s) _mm512_store_ps(acc[s] + l, a[s]);
  }
  for (int s = 0; s < kSums; ++s) sums[s] = fold_lanes(acc[s]);
}

// exp_f32, the same operations.
inline __m512 wide_exp(__m512 x) {
  const __m512i bits = _mm512_min_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x42b00000));
  x = _mm512_castsi512_ps(_mm512_min_epu32(bits, _mm512_set1_epi32(static_cast<int>(0xc2ae0000U))));
  const __m512 magic = _mm512_set1_ps(12582912.0F);
  const __m512 shifted =
      _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341F)), magic);
  const __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000));
  const __m512 r = _mm512_sub_ps(shifted, magic);
  __m512 f = _mm512_sub_ps(x, _mm512_mul_ps(r, _mm512_set1_ps(0.693359375F)));
  f = _mm512_add_ps(f, _mm512_mul_ps(r, _mm512_set1_ps(2.12194440e-4F)));
  __m512 p = _mm512_set1_ps(1.9875691500e-4F);
  for (const float c :
       {1.3981999507e-3F, 8.3334519073e-3F, 4.1665795894e-2F, 1.6666665459e-1F, 5.0000001201e-1F})
    p = _mm512_add_ps(_mm512_mul_ps(p, f), _mm512_set1_ps(c));
  const __m512 y =
      _mm512_add_ps(_mm512_add_ps(_mm512_mul_ps(p, _mm512_mul_ps(f, f)), f), _mm512_set1_ps(1.0F));
  return _mm512_mul_ps(
      y, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)));
}

// sigmoid_f32 with the division's bits but without the division, which takes 16 clocks: two steps
// of Newton's method with fused operations end at the correctly rounded quotient. A divisor whose
// fraction is all ones gets there only from above, hence its last bit is set in between. All floats
// were tried; the test of swiglu tries every 61st.
inline __m512 wide_sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0F);
  const __m512 minus_x =
      _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN)));
  const __m512 b = _mm512_add_ps(one, wide_exp(minus_x));
  __m512 y = _mm512_rcp14_ps(b);
  y = _mm512_fmadd_ps(y, _mm512_fnmadd_ps(b, y, one), y);
  const __mmask16 ones = _mm512_cmpeq_epi32_mask(
      _mm512_or_si512(_mm512_castps_si512(b), _mm512_set1_epi32(static_cast<int>(0xff800000U))),
      _mm512_set1_epi32(-1));
  const __m512i bits = _mm512_castps_si512(y);
  y = _mm512_castsi512_ps(_mm512_mask_or_epi32(bits, ones, bits, _mm512_set1_epi32(1)));
  return _mm512_fmadd_ps(y, _mm512_fnmadd_ps(b, y, one), y);
}

}  // namespace
}  // namespace mmfree
