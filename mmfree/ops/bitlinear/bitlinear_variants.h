#pragma once
// Internal: the variants of BitLinear's products, best first.
#include "mmfree/core/cpu.h"
#include "mmfree/core/types.h"

namespace mmfree {

inline constexpr idx kTileOutputs = 16;  // outputs in a tile
inline constexpr idx kTileInputs = 4;    // consecutive inputs that one 32-bit lane holds

// y (R, O) = codes x tiles. Works on rows [row_begin, row_end) and tiles [tile_begin, tile_end).
struct BitlinearArgs {
  const std::int8_t* q;  // (R, q_stride), zero from K up to the stride
  idx q_stride;
  const float* x_scale;       // (R)
  const std::int32_t* x_sum;  // (R)
  const std::uint8_t* tiles;  // tile `first_tile` starts here; (tiles, groups, 16, 4) bytes t + 1
  idx first_tile;
  idx groups;  // ceil(K / 4)
  float w_scale;
  idx out;                // O
  const float* residual;  // (R, O) or null
  float* y;               // (R, O)
};
using BitlinearFn = void (*)(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                             idx tile_end) noexcept;

// C (M, N) = or += A (M, S) x B (S, N), B int8 codes. A(m, s) = a[m * a_row + s * a_col] * factor *
// (s_scale ? s_scale[s] : 1). Exactly one of a_row, a_col is 1. Works on rows [m_begin, m_end) of
// C.
struct GradGemmArgs {
  idx n;  // N
  idx s;  // S, the summed extent
  const float* a;
  idx a_row, a_col;
  float factor;
  const float* s_scale;  // (S) or null
  const std::int8_t* b;  // (S, b_stride)
  idx b_stride;
  float* c;  // (M, N)
  bool accumulate;
};
using GradGemmFn = void (*)(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept;

// Floats of scratch that a variant of GradGemmFn may use.
inline constexpr idx kGradScratch = idx{256} * 512 + idx{144} * 256;

namespace scalar {
void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept;
void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept;
}  // namespace scalar
namespace avx2 {
void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept;
void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept;
}  // namespace avx2
namespace avx512 {
void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept;
void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* scratch) noexcept;
}  // namespace avx512

inline constexpr Variant<BitlinearFn> bitlinear_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::bitlinear_tiles},
    {Isa::avx2, avx2::bitlinear_tiles},
#endif
    {Isa::scalar, scalar::bitlinear_tiles}};
inline constexpr Variant<GradGemmFn> grad_gemm_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::grad_gemm},
    {Isa::avx2, avx2::grad_gemm},
#endif
    {Isa::scalar, scalar::grad_gemm}};

}  // namespace mmfree
