#pragma once
// The input side of BitLinear: norm(s) and int8 quantisation of activations in one pass over each
// row.
//
//   u = x * rstd0 * outer,        rstd0 = 1 / sqrt(mean(x^2) + outer_eps)      (u = x when outer is
//   null) for each projection p that reads u:
//     y = u * rstd1 * gain[p],    rstd1 = 1 / sqrt(mean(u^2) + kInnerEps)      (one statistic for
//     all p) s = 127 / max(max|y|, 1e-5) q = clamp(round(y * s), -128, 127), halves away from zero
//
// Sums run in the canonical order of core/fastmath.h, so every variant gives the same codes. Paper:
// Algorithm 1; the outer norm is the reference's attn_norm, mlp_norm or final norm.
#include <cstdint>

#include "mmfree/core/parallel.h"

namespace mmfree {

// Epsilon of the norm inside every BitLinear, whatever rms_norm_eps says: the reference's fused
// kernel has it fixed.
inline constexpr float kInnerEps = 1e-6F;

// Bytes between rows of codes: a multiple of 64, and room for whole groups of three steps of 20
// inputs (ternary/tiles.h), so that kernels may read whole vectors; the padding is zero.
constexpr idx code_stride(idx width) {
  return (width + 59 + 63) / 64 * 64;
}

// int8 rows with their scales: value ~ q * scale.
struct CodeRows {
  std::int8_t* q;     // (R, stride)
  float* scale;       // (R) max(max|y|, 1e-5) / 127
  std::int32_t* sum;  // (R) sum of q over the row
};

struct RmsnormQuant {
  idx rows;            // R
  idx width;           // K
  const float* x;      // (R, K)
  const float* outer;  // (K) or null
  float outer_eps;
  int projections;       // 1..3
  const float* gain[3];  // (K) each
  CodeRows codes[3];     // overwritten; stride code_stride(K)
  float* outer_rstd;     // (R) written if not null and outer is not null
  float* inner_rstd;     // (R) written if not null
};
void rmsnorm_quant(const Ctx& ctx, const RmsnormQuant& a);

// Straight-through backward: dy is the gradient at the quantised activations and passes to y
// unchanged (no clipping mask, no derivative of s); the norms are differentiated exactly. Spec: dx
// = (g - xhat * mean(xhat * g)) * rstd, g = dy * gain.
struct RmsnormQuantBackward {
  idx rows;
  idx width;
  const float* x;      // (R, K) as in the forward
  const float* outer;  // (K) or null
  int projections;
  const float* gain[3];     // (K) each
  const float* outer_rstd;  // (R), null when outer is null
  const float* inner_rstd;  // (R)
  const float* dy[3];       // (R, K) each
  float* dx;                // (R, K) accumulated (+=)
  float* douter;            // (K) accumulated, null when outer is null
  float* dgain[3];          // (K) accumulated
};
void rmsnorm_quant_backward(const Ctx& ctx, const RmsnormQuantBackward& a);

}  // namespace mmfree
