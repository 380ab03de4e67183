#pragma once
// Source of both 256-bit variants; each file defines `dot`: four bytes of 0..2 times four codes,
// added to a 32-bit lane. Digits are brought down to 0..2, so all planes share one sum a lane. Base
// 3 is split by comparisons and costs three times as much as 2 bits, so model/layout.h measures.
#include <immintrin.h>

#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {
namespace {

constexpr idx kPrefetchAhead = 6144;

inline __m256i load(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

inline __m256i broadcast4(const std::int8_t* p) {
  std::int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}

// digit = v / power (0, 1, 2) and v = v mod power, for v < 3 * power.
inline __m256i take_digit(__m256i& v, int power) {
  const __m256i one = _mm256_set1_epi8(static_cast<char>(power));
  const __m256i two = _mm256_set1_epi8(static_cast<char>(2 * power));
  const __m256i above1 = _mm256_cmpeq_epi8(_mm256_max_epu8(v, one), v);  // -1 where v >= power
  const __m256i above2 = _mm256_cmpeq_epi8(_mm256_max_epu8(v, two), v);
  v = _mm256_sub_epi8(v, _mm256_and_si256(above1, one));
  v = _mm256_sub_epi8(v, _mm256_and_si256(above2, one));
  return _mm256_sub_epi8(_mm256_setzero_si256(), _mm256_add_epi8(above1, above2));
}

template <int kDigits>
inline void split(__m256i v, __m256i* digit) {
  if constexpr (kDigits == 5) {
    digit[4] = take_digit(v, 81);
    digit[3] = take_digit(v, 27);
    digit[2] = take_digit(v, 9);
    digit[1] = take_digit(v, 3);
    digit[0] = v;
  } else {
    const __m256i three = _mm256_set1_epi8(3);
    digit[0] = _mm256_and_si256(v, three);
    digit[1] = _mm256_and_si256(_mm256_srli_epi16(v, 2), three);
    digit[2] = _mm256_and_si256(_mm256_srli_epi16(v, 4), three);
    digit[3] = _mm256_and_si256(_mm256_srli_epi16(v, 6), three);
  }
}

// kRows tokens x kHalves x 8 outputs. sums (kRows, kHalves, 8).
template <int kDigits, int kRows, int kHalves>
inline void sums_of(const std::uint8_t* block, idx steps, const std::int8_t* q, idx q_stride,
                    std::int32_t* sums) {
  __m256i acc[kRows][kHalves];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h) acc[r][h] = _mm256_setzero_si256();
  for (idx s = 0; s < steps; ++s) {
#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h) {
      _mm_prefetch(reinterpret_cast<const char*>(block + 32 * h + kPrefetchAhead), _MM_HINT_T0);
      __m256i digit[kDigits];
      split<kDigits>(load(block + 32 * h), digit);
#pragma GCC unroll 8
      for (int p = 0; p < kDigits; ++p)
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r)
          acc[r][h] = dot(acc[r][h], digit[p], broadcast4(q + r * q_stride + 4 * p));
    }
    block += kStepBytes;
    q += 4 * kDigits;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int h = 0; h < kHalves; ++h)
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + (r * kHalves + h) * 8), acc[r][h]);
}

// From unpacked codes (inputs / 4, 64 outputs, 4 inputs): kRows tokens x 16 outputs.
template <int kRows>
inline void unpacked_sums(const std::uint8_t* codes, idx quads, const std::int8_t* q, idx q_stride,
                          std::int32_t* sums) {
  __m256i acc[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int h = 0; h < 2; ++h) acc[r][h] = _mm256_setzero_si256();
  for (idx k = 0; k < quads; ++k) {
    const __m256i w0 = load(codes + k * 256);
    const __m256i w1 = load(codes + k * 256 + 32);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i x = broadcast4(q + r * q_stride + 4 * k);
      acc[r][0] = dot(acc[r][0], w0, x);
      acc[r][1] = dot(acc[r][1], w1, x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int h = 0; h < 2; ++h)
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + (r * 2 + h) * 8), acc[r][h]);
}

inline void store_outputs(const TileProduct& a, idx row, idx output, const std::int32_t* sums,
                          idx count) {
  const __m256i x_sum = _mm256_set1_epi32(a.x.sum[row]);
  const __m256 x_scale = _mm256_set1_ps(a.x.scale[row]);
  const __m256 w_scale = _mm256_set1_ps(a.w->scale);
  float* y = a.y + row * a.y_stride + output;
  for (idx j = 0; j < count; j += 8) {
    const __m256i sum = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums + j));
    const __m256 v = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, x_sum));
    const __m256 scaled = _mm256_mul_ps(_mm256_mul_ps(v, x_scale), w_scale);
    _mm256_storeu_ps(y + j, a.add ? _mm256_add_ps(_mm256_loadu_ps(y + j), scaled) : scaled);
  }
}

template <int kDigits, int kRows, int kHalves>
inline void few_rows(const TileProduct& a, idx row) {
  alignas(32) std::int32_t sums[kRows * kHalves * 8];
  const TileMatrix& w = *a.w;
  const idx stride = code_stride(w.in);
  for (int h = 0; h < 8; h += kHalves) {
    sums_of<kDigits, kRows, kHalves>(w.blocks + a.block * w.block_stride + 32 * h,
                                     tile_steps(w.format, w.in), a.x.q + row * stride, stride,
                                     sums);
    for (int r = 0; r < kRows; ++r)
      store_outputs(a, row + r, 8 * h, sums + r * kHalves * 8, kHalves * 8);
  }
}

template <int kRows>
inline void many_rows(const TileProduct& a, idx row) {
  alignas(32) std::int32_t sums[kRows * 16];
  const idx stride = code_stride(a.w->in);
  for (int g = 0; g < 4; ++g) {
    unpacked_sums<kRows>(a.scratch + 64 * g, (a.w->in + 3) / 4, a.x.q + row * stride, stride, sums);
    for (int r = 0; r < kRows; ++r) store_outputs(a, row + r, 16 * g, sums + r * 16, 16);
  }
}

template <int kDigits>
inline void product(const TileProduct& a) {
  if (a.rows == 0) return;
  if (a.rows == 1) return few_rows<kDigits, 1, 4>(a, 0);
  if (a.rows == 2) return few_rows<kDigits, 2, 2>(a, 0);
  const TileMatrix& w = *a.w;
  const idx steps = tile_steps(w.format, w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  for (idx s = 0; s < steps; ++s)
    for (int h = 0; h < 8; ++h) {
      __m256i digit[kDigits];
      split<kDigits>(load(block + s * kStepBytes + 32 * h), digit);
#pragma GCC unroll 8
      for (int p = 0; p < kDigits; ++p)
        _mm256_store_si256(reinterpret_cast<__m256i*>(a.scratch + (s * kDigits + p) * 256 + 32 * h),
                           digit[p]);
    }
  idx r = 0;
  for (; r + 4 <= a.rows; r += 4) many_rows<4>(a, r);
  for (; r < a.rows; ++r) many_rows<1>(a, r);
}

inline void tile_product_block(const TileProduct& a) {
  if (a.w->format == TileFormat::base3) {
    product<5>(a);
  } else {
    product<4>(a);
  }
}

}  // namespace
}  // namespace mmfree
