#pragma once
// Blocked loops shared by the vector variants. Each file that includes this first defines, in an
// anonymous namespace, a struct `Simd` with its register type and operations; everything here has
// internal linkage.
#include "mmfree/ops/bitlinear/bitlinear_variants.h"

namespace mmfree {
namespace {

// Every loop over sums is unrolled by request: GCC 12 keeps an array in registers only if no loop
// over it is left when it decides, and a spilled sum halves the speed.

// ---- int8 x ternary
// ----------------------------------------------------------------------------------------------

// kRows x kTiles x 16 sums in registers: one broadcast of 4 codes meets kTiles x 16 outputs. The
// sums leave through memory, so that nothing but this loop competes for registers.
template <int kRows, int kTiles>
inline void bitlinear_sums(const std::uint8_t* tiles, idx tile_size, const std::int8_t* q,
                           idx q_stride, idx groups, std::int32_t* sums) {
  constexpr int kParts = Simd::kIntParts;  // registers that hold one tile's 16 sums
  constexpr int kWidth = kTiles * kParts;
  typename Simd::Int acc[kRows][kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < kWidth; ++t) acc[r][t] = Simd::int_zero();
  for (idx g = 0; g < groups; ++g) {
    typename Simd::Int w[kWidth];
#pragma GCC unroll 8
    for (int t = 0; t < kWidth; ++t)
      w[t] = Simd::load_bytes(tiles + (t / kParts) * tile_size + g * kTileOutputs * kTileInputs +
                              (t % kParts) * (kTileOutputs * kTileInputs / kParts));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Simd::Int x = Simd::broadcast4(q + r * q_stride + g * kTileInputs);
#pragma GCC unroll 8
      for (int t = 0; t < kWidth; ++t) acc[r][t] = Simd::dot(acc[r][t], w[t], x);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < kWidth; ++t)
      Simd::store_sums(sums + (r * kWidth + t) * (kTileOutputs / kParts), acc[r][t]);
}

template <int kRows, int kTiles>
inline void bitlinear_block(const BitlinearArgs& a, idx row, idx tile) {
  alignas(64) std::int32_t sums[kRows * kTiles * kTileOutputs];
  const idx tile_size = a.groups * kTileOutputs * kTileInputs;
  bitlinear_sums<kRows, kTiles>(a.tiles + (tile - a.first_tile) * tile_size, tile_size,
                                a.q + row * a.q_stride, a.q_stride, a.groups, sums);
  const idx o = tile * kTileOutputs;
  const idx count = a.out - o < kTiles * kTileOutputs ? a.out - o : kTiles * kTileOutputs;
  for (idx r = 0; r < kRows; ++r) {
    const std::int32_t* sum = sums + r * kTiles * kTileOutputs;
    const std::int32_t x_sum = a.x_sum[row + r];
    const float x_scale = a.x_scale[row + r];
    const float w_scale = a.w_scale;
    float* y = a.y + (row + r) * a.out + o;
    if (a.residual == nullptr) {
      for (idx k = 0; k < count; ++k) y[k] = static_cast<float>(sum[k] - x_sum) * x_scale * w_scale;
    } else {
      const float* residual = a.residual + (row + r) * a.out + o;
      for (idx k = 0; k < count; ++k)
        y[k] = residual[k] + static_cast<float>(sum[k] - x_sum) * x_scale * w_scale;
    }
  }
}

template <int kTiles>
inline void bitlinear_rows(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile) {
  idx r = row_begin;
  for (; r + Simd::kRows <= row_end; r += Simd::kRows)
    bitlinear_block<Simd::kRows, kTiles>(a, r, tile);
  for (; r + 2 <= row_end; r += 2) bitlinear_block<2, kTiles>(a, r, tile);
  for (; r < row_end; ++r) bitlinear_block<1, kTiles>(a, r, tile);
}

inline void bitlinear_loops(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                            idx tile_end) {
  idx t = tile_begin;
  for (; t + Simd::kTiles <= tile_end; t += Simd::kTiles)
    bitlinear_rows<Simd::kTiles>(a, row_begin, row_end, t);
  for (; t < tile_end; ++t) bitlinear_rows<1>(a, row_begin, row_end, t);
}

// ---- float x int8
// -------------------------------------------------------------------------------------------------

constexpr idx kSumBlock = 256;  // kGradBlock
constexpr idx kPanelColumns = 512;
constexpr idx kBlockRows = 144;  // a multiple of every variant's Simd::kGemmRows

// B block (S', N') to panels of kGemmColumns columns, as floats; columns past the end are zero.
inline void pack_b(const GradGemmArgs& a, idx s0, idx s_count, idx n0, idx n_count,
                   float* __restrict out) {
  constexpr idx kColumns = Simd::kGemmColumns;
  for (idx n = 0; n < n_count; n += kColumns) {
    const idx width = n_count - n < kColumns ? n_count - n : kColumns;
    for (idx s = 0; s < s_count; ++s) {
      const std::int8_t* __restrict row = a.b + (s0 + s) * a.b_stride + n0 + n;
      if (width == kColumns) {
        for (idx j = 0; j < kColumns; ++j) out[j] = static_cast<float>(row[j]);
      } else {
        for (idx j = 0; j < kColumns; ++j) out[j] = j < width ? static_cast<float>(row[j]) : 0.0F;
      }
      out += kColumns;
    }
  }
}

// A block, row-major with a fixed row length (a_col == 1) or in groups of kGemmRows interleaved
// (a_row == 1): whichever copies contiguous memory.
inline void pack_a_rows(const GradGemmArgs& a, idx m0, idx m_count, idx s0, idx s_count,
                        float* __restrict out) {
  for (idx m = 0; m < m_count; ++m) {
    const float* row = a.a + (m0 + m) * a.a_row + s0;
    float* __restrict to = out + m * kSumBlock;
    if (a.s_scale == nullptr) {
      for (idx s = 0; s < s_count; ++s) to[s] = row[s] * a.factor;
    } else {
      for (idx s = 0; s < s_count; ++s) to[s] = row[s] * (a.factor * a.s_scale[s0 + s]);
    }
  }
}

inline void pack_a_columns(const GradGemmArgs& a, idx m0, idx m_count, idx s0, idx s_count,
                           float* __restrict out) {
  constexpr idx kRows = Simd::kGemmRows;
  // Along the rows of memory: column by column each step would touch another cache line, often of
  // the same set.
  for (idx s = 0; s < s_count; ++s) {
    const float* __restrict row = a.a + (s0 + s) * a.a_col + m0;
    const float factor = a.s_scale == nullptr ? a.factor : a.factor * a.s_scale[s0 + s];
    float* to = out + s * kRows;
    idx m = 0;
    for (; m + kRows <= m_count; m += kRows)
      for (idx j = 0; j < kRows; ++j) to[m * kSumBlock + j] = row[m + j] * factor;
    for (idx j = 0; m + j < m_count; ++j) to[m * kSumBlock + j] = row[m + j] * factor;
  }
}

// One kGemmRows x kGemmColumns tile of C. kRowMajor says how A was packed.
template <bool kRowMajor>
inline void gemm_tile(const float* a, const float* b, idx s_count, float* c, idx c_stride, idx rows,
                      idx columns, bool add) {
  constexpr int kRows = Simd::kGemmRows;
  constexpr int kParts = Simd::kGemmColumns / Simd::kFloats;
  typename Simd::Float acc[kRows][kParts];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) acc[r][j] = Simd::zero();
  for (idx s = 0; s < s_count; ++s) {
    typename Simd::Float bv[kParts];
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j)
      bv[j] = Simd::load(b + s * Simd::kGemmColumns + j * Simd::kFloats);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename Simd::Float av =
          Simd::broadcast(kRowMajor ? a + r * kSumBlock + s : a + s * kRows + r);
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) acc[r][j] = Simd::fma(av, bv[j], acc[r][j]);
    }
  }
  if (rows == kRows && columns == Simd::kGemmColumns) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) {
        float* to = c + r * c_stride + j * Simd::kFloats;
        Simd::store(to, add ? Simd::add(Simd::load(to), acc[r][j]) : acc[r][j]);
      }
    }
    return;
  }
  float edge[kRows * Simd::kGemmColumns];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j)
      Simd::store(edge + r * Simd::kGemmColumns + j * Simd::kFloats, acc[r][j]);
  for (idx r = 0; r < rows; ++r) {
    for (idx j = 0; j < columns; ++j) {
      const float v = edge[r * Simd::kGemmColumns + j];
      c[r * c_stride + j] = add ? c[r * c_stride + j] + v : v;
    }
  }
}

inline void grad_gemm_loops(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) {
  constexpr idx kRows = Simd::kGemmRows;
  constexpr idx kColumns = Simd::kGemmColumns;
  const bool row_major = a.a_col == 1;
  float* b_panel = scratch;
  float* a_block = scratch + kSumBlock * kPanelColumns;
  for (idx s0 = 0; s0 < a.s; s0 += kSumBlock) {
    const idx s_count = a.s - s0 < kSumBlock ? a.s - s0 : kSumBlock;
    const bool add = a.accumulate || s0 > 0;
    for (idx n0 = 0; n0 < a.n; n0 += kPanelColumns) {
      const idx n_count = a.n - n0 < kPanelColumns ? a.n - n0 : kPanelColumns;
      pack_b(a, s0, s_count, n0, n_count, b_panel);
      for (idx m0 = m_begin; m0 < m_end; m0 += kBlockRows) {
        const idx m_count = m_end - m0 < kBlockRows ? m_end - m0 : kBlockRows;
        if (row_major) {
          pack_a_rows(a, m0, m_count, s0, s_count, a_block);
        } else {
          pack_a_columns(a, m0, m_count, s0, s_count, a_block);
        }
        for (idx n = 0; n < n_count; n += kColumns) {
          const idx columns = n_count - n < kColumns ? n_count - n : kColumns;
          for (idx m = 0; m < m_count; m += kRows) {
            const idx rows = m_count - m < kRows ? m_count - m : kRows;
            float* c = a.c + (m0 + m) * a.n + n0 + n;
            const float* b = b_panel + n * s_count;
            if (row_major) {
              gemm_tile<true>(a_block + m * kSumBlock, b, s_count, c, a.n, rows, columns, add);
            } else {
              gemm_tile<false>(a_block + m * kSumBlock, b, s_count, c, a.n, rows, columns, add);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mmfree
