// The ARM variant: SDOT multiplies four bytes by four bytes into each of four 32-bit lanes, and
// takes its second operand's four bytes from one lane of a register, so 16 activation codes are one
// load for a whole step. Digits are brought down to 0..2. Base 3 is split by comparisons and costs
// three times as much as 2 bits, so model/layout.h measures.
#include <arm_neon.h>

#include "mmfree/ops/tile_product/tile_product_variants.h"

namespace mmfree {
namespace {

constexpr idx kPrefetchAhead = 4096;
constexpr int kVectors = 16;  // of 4 outputs in a step

// digit = v / power (0, 1, 2) and v = v mod power, for v < 3 * power.
inline uint8x16_t take_digit(uint8x16_t& v, std::uint8_t power) {
  const uint8x16_t one = vdupq_n_u8(power);
  const uint8x16_t above1 = vcgeq_u8(v, one);  // all ones: -1
  const uint8x16_t above2 = vcgeq_u8(v, vdupq_n_u8(static_cast<std::uint8_t>(2 * power)));
  v = vsubq_u8(v, vandq_u8(above1, one));
  v = vsubq_u8(v, vandq_u8(above2, one));
  return vsubq_u8(vdupq_n_u8(0), vaddq_u8(above1, above2));
}

template <int kDigits>
inline void split(uint8x16_t v, int8x16_t* digit) {
  if constexpr (kDigits == 5) {
    digit[4] = vreinterpretq_s8_u8(take_digit(v, 81));
    digit[3] = vreinterpretq_s8_u8(take_digit(v, 27));
    digit[2] = vreinterpretq_s8_u8(take_digit(v, 9));
    digit[1] = vreinterpretq_s8_u8(take_digit(v, 3));
    digit[0] = vreinterpretq_s8_u8(v);
  } else {
    const uint8x16_t three = vdupq_n_u8(3);
    digit[0] = vreinterpretq_s8_u8(vandq_u8(v, three));
    digit[1] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), three));
    digit[2] = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), three));
    digit[3] = vreinterpretq_s8_u8(vshrq_n_u8(v, 6));
  }
}

inline int8x16_t four_codes(const std::int8_t* q) {
  std::int32_t v;
  __builtin_memcpy(&v, q, sizeof v);
  return vreinterpretq_s8_s32(vdupq_n_s32(v));
}

// sums (kRows, 4 kCount) += kCount vectors of 4 outputs each, from `block`.
template <int kDigits, int kRows, int kCount>
inline void sums_of(const std::uint8_t* block, idx steps, const std::int8_t* q, idx q_stride,
                    std::int32_t* sums) {
  int32x4_t acc[kRows][kCount];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) acc[r][v] = vdupq_n_s32(0);
  for (idx s = 0; s < steps; ++s) {
    // The first 16 codes of each row as one register, the fifth plane's four apart.
    int8x16_t x[kRows], x4[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      x[r] = vld1q_s8(q + r * q_stride);
      x4[r] = kDigits == 5 ? four_codes(q + r * q_stride + 16) : x[r];
    }
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) {
      if (v % 4 == 0) __builtin_prefetch(block + 16 * v + kPrefetchAhead, 0, 3);
      int8x16_t digit[kDigits];
      split<kDigits>(vld1q_u8(block + 16 * v), digit);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        acc[r][v] = vdotq_laneq_s32(acc[r][v], digit[0], x[r], 0);
        acc[r][v] = vdotq_laneq_s32(acc[r][v], digit[1], x[r], 1);
        acc[r][v] = vdotq_laneq_s32(acc[r][v], digit[2], x[r], 2);
        acc[r][v] = vdotq_laneq_s32(acc[r][v], digit[3], x[r], 3);
        if constexpr (kDigits == 5) acc[r][v] = vdotq_s32(acc[r][v], digit[4], x4[r]);
      }
    }
    block += kStepBytes;
    q += 4 * kDigits;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kCount; ++v) vst1q_s32(sums + (r * kCount + v) * 4, acc[r][v]);
}

// From unpacked codes (inputs / 4, 64 outputs, 4 inputs): kRows tokens x 16 outputs.
template <int kRows>
inline void unpacked_sums(const std::uint8_t* codes, idx quads, const std::int8_t* q, idx q_stride,
                          std::int32_t* sums) {
  int32x4_t acc[kRows][4];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < 4; ++v) acc[r][v] = vdupq_n_s32(0);
  for (idx k = 0; k < quads; ++k) {
    int8x16_t w[4];
#pragma GCC unroll 16
    for (int v = 0; v < 4; ++v) w[v] = vreinterpretq_s8_u8(vld1q_u8(codes + k * 256 + 16 * v));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const int8x16_t x = four_codes(q + r * q_stride + 4 * k);
#pragma GCC unroll 16
      for (int v = 0; v < 4; ++v) acc[r][v] = vdotq_s32(acc[r][v], w[v], x);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < 4; ++v) vst1q_s32(sums + (r * 4 + v) * 4, acc[r][v]);
}

inline void store_outputs(const TileProduct& a, idx row, idx output, const std::int32_t* sums,
                          idx count) {
  const int32x4_t x_sum = vdupq_n_s32(a.x.sum[row]);
  float* y = a.y + row * a.y_stride + output;
  for (idx j = 0; j < count; j += 4) {
    const float32x4_t v = vcvtq_f32_s32(vsubq_s32(vld1q_s32(sums + j), x_sum));
    const float32x4_t scaled = vmulq_n_f32(vmulq_n_f32(v, a.x.scale[row]), a.w->scale);
    vst1q_f32(y + j, a.add ? vaddq_f32(vld1q_f32(y + j), scaled) : scaled);
  }
}

template <int kDigits, int kRows, int kCount>
inline void few_rows(const TileProduct& a) {
  std::int32_t sums[kRows * kCount * 4];
  const TileMatrix& w = *a.w;
  for (int v = 0; v < kVectors; v += kCount) {
    sums_of<kDigits, kRows, kCount>(w.blocks + a.block * w.block_stride + 16 * v,
                                    tile_steps(w.format, w.in), a.x.q, code_stride(w.in), sums);
    for (int r = 0; r < kRows; ++r) store_outputs(a, r, 4 * v, sums + r * kCount * 4, kCount * 4);
  }
}

template <int kRows>
inline void many_rows(const TileProduct& a, idx row) {
  std::int32_t sums[kRows * 16];
  const idx stride = code_stride(a.w->in);
  for (int g = 0; g < 4; ++g) {
    unpacked_sums<kRows>(a.scratch + 64 * g, (a.w->in + 3) / 4, a.x.q + row * stride, stride, sums);
    for (int r = 0; r < kRows; ++r) store_outputs(a, row + r, 16 * g, sums + r * 16, 16);
  }
}

template <int kDigits>
inline void product(const TileProduct& a) {
  if (a.rows == 0) return;
  if (a.rows == 1) return few_rows<kDigits, 1, 16>(a);
  if (a.rows == 2) return few_rows<kDigits, 2, 8>(a);
  const TileMatrix& w = *a.w;
  const idx steps = tile_steps(w.format, w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  for (idx s = 0; s < steps; ++s)
    for (int v = 0; v < kVectors; ++v) {
      int8x16_t digit[kDigits];
      split<kDigits>(vld1q_u8(block + s * kStepBytes + 16 * v), digit);
      for (int p = 0; p < kDigits; ++p)
        vst1q_u8(a.scratch + (s * kDigits + p) * 256 + 16 * v, vreinterpretq_u8_s8(digit[p]));
    }
  idx r = 0;
  for (; r + 4 <= a.rows; r += 4) many_rows<4>(a, r);
  for (; r < a.rows; ++r) many_rows<1>(a, r);
}

}  // namespace

void neon::tile_product(const TileProduct& a) noexcept {
  if (a.w->format == TileFormat::base3) {
    product<5>(a);
  } else {
    product<4>(a);
  }
}

}  // namespace mmfree
