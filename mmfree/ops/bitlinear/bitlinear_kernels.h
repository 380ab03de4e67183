#pragma once
// Blocked loops shared by the vector variants. Each file that includes this first defines, in an anonymous namespace, a
// struct `Simd` with its register type and operations; everything here has internal linkage.
#include "mmfree/ops/bitlinear/bitlinear_variants.h"

namespace mmfree {
namespace {

// ---- int8 x ternary ----------------------------------------------------------------------------------------------

// kRows x kTiles accumulators stay in registers: one broadcast of 4 codes meets kTiles x 16 outputs.
template <int kRows, int kTiles>
inline void bitlinear_block(const BitlinearArgs& a, idx row, idx tile) {
  constexpr int kParts = Simd::kIntParts;  // registers that hold one tile's 16 sums
  typename Simd::Int acc[kRows][kTiles * kParts];
  for (int r = 0; r < kRows; ++r)
    for (int t = 0; t < kTiles * kParts; ++t) acc[r][t] = Simd::int_zero();
  const idx tile_size = a.groups * kTileOutputs * kTileInputs;
  const std::uint8_t* tiles = a.tiles + (tile - a.first_tile) * tile_size;
  const std::int8_t* q = a.q + row * a.q_stride;
  for (idx g = 0; g < a.groups; ++g) {
    typename Simd::Int w[kTiles * kParts];
#pragma GCC unroll 8
    for (int t = 0; t < kTiles * kParts; ++t)
      w[t] = Simd::load_bytes(tiles + (t / kParts) * tile_size + g * kTileOutputs * kTileInputs +
                              (t % kParts) * (kTileOutputs * kTileInputs / kParts));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const typename Simd::Int x = Simd::broadcast4(q + r * a.q_stride + g * kTileInputs);
#pragma GCC unroll 8
      for (int t = 0; t < kTiles * kParts; ++t) acc[r][t] = Simd::dot(acc[r][t], w[t], x);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int t = 0; t < kTiles; ++t) {
      const idx o = (tile + t) * kTileOutputs;
      const idx count = a.out - o < kTileOutputs ? a.out - o : kTileOutputs;
      const idx at = (row + r) * a.out + o;
      Simd::scale_and_store(&acc[r][t * kParts], a.x_sum[row + r], a.x_scale[row + r], a.w_scale,
                            a.residual == nullptr ? nullptr : a.residual + at, a.y + at, count);
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

// ---- float x int8 -------------------------------------------------------------------------------------------------

constexpr idx kSumBlock = 256;  // kGradBlock
constexpr idx kPanelColumns = 512;
constexpr idx kBlockRows = 144;  // a multiple of every variant's Simd::kGemmRows

// B block (S', N') to panels of kGemmColumns columns, as floats; columns past the end are zero.
inline void pack_b(const GradGemmArgs& a, idx s0, idx s_count, idx n0, idx n_count, float* out) {
  constexpr idx kColumns = Simd::kGemmColumns;
  for (idx n = 0; n < n_count; n += kColumns) {
    const idx width = n_count - n < kColumns ? n_count - n : kColumns;
    for (idx s = 0; s < s_count; ++s) {
      const std::int8_t* row = a.b + (s0 + s) * a.b_stride + n0 + n;
      if (width == kColumns) {
        for (idx j = 0; j < kColumns; ++j) out[j] = static_cast<float>(row[j]);
      } else {
        for (idx j = 0; j < kColumns; ++j) out[j] = j < width ? static_cast<float>(row[j]) : 0.0F;
      }
      out += kColumns;
    }
  }
}

// A block, row-major with a fixed row length (a_col == 1) or in groups of kGemmRows interleaved (a_row == 1): whichever copies
// contiguous memory.
inline void pack_a_rows(const GradGemmArgs& a, idx m0, idx m_count, idx s0, idx s_count,
                        float* out) {
  for (idx m = 0; m < m_count; ++m) {
    const float* row = a.a + (m0 + m) * a.a_row + s0;
    float* to = out + m * kSumBlock;
    if (a.s_scale == nullptr) {
      for (idx s = 0; s < s_count; ++s) to[s] = row[s] * a.factor;
    } else {
      for (idx s = 0; s < s_count; ++s) to[s] = row[s] * (a.factor * a.s_scale[s0 + s]);
    }
  }
}

inline void pack_a_columns(const GradGemmArgs& a, idx m0, idx m_count, idx s0, idx s_count,
                           float* out) {
  constexpr idx kRows = Simd::kGemmRows;
  for (idx m = 0; m < m_count; m += kRows) {
    const idx rows = m_count - m < kRows ? m_count - m : kRows;
    float* to = out + m * kSumBlock;
    for (idx s = 0; s < s_count; ++s) {
      const float* column = a.a + (s0 + s) * a.a_col + m0 + m;
      const float factor = a.s_scale == nullptr ? a.factor : a.factor * a.s_scale[s0 + s];
      if (rows == kRows) {
        for (idx j = 0; j < kRows; ++j) to[s * kRows + j] = column[j] * factor;
      } else {
        for (idx j = 0; j < rows; ++j) to[s * kRows + j] = column[j] * factor;
      }
    }
  }
}

// One kGemmRows x kGemmColumns tile of C. kRowMajor says how A was packed.
template <bool kRowMajor>
inline void gemm_tile(const float* a, const float* b, idx s_count, float* c, idx c_stride,
                      idx rows, idx columns, bool add) {
  constexpr int kRows = Simd::kGemmRows;
  constexpr int kParts = Simd::kGemmColumns / Simd::kFloats;
  typename Simd::Float acc[kRows][kParts];
  for (int r = 0; r < kRows; ++r)
    for (int j = 0; j < kParts; ++j) acc[r][j] = Simd::zero();
  for (idx s = 0; s < s_count; ++s) {
    typename Simd::Float bv[kParts];
#pragma GCC unroll 4
    for (int j = 0; j < kParts; ++j) bv[j] = Simd::load(b + s * Simd::kGemmColumns + j * Simd::kFloats);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const typename Simd::Float av =
          Simd::broadcast(kRowMajor ? a + r * kSumBlock + s : a + s * kRows + r);
#pragma GCC unroll 4
      for (int j = 0; j < kParts; ++j) acc[r][j] = Simd::fma(av, bv[j], acc[r][j]);
    }
  }
  if (rows == kRows && columns == Simd::kGemmColumns) {
    for (int r = 0; r < kRows; ++r) {
      for (int j = 0; j < kParts; ++j) {
        float* to = c + r * c_stride + j * Simd::kFloats;
        Simd::store(to, add ? Simd::add(Simd::load(to), acc[r][j]) : acc[r][j]);
      }
    }
    return;
  }
  float edge[kRows * Simd::kGemmColumns];
  for (int r = 0; r < kRows; ++r)
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
