#pragma once
// The mixer's output gate: o = rmsnorm(g; gain, eps) * h * sigmoid(h). The gate projection g is
// normalised and the recurrence's output h passes through SiLU, not the other way round (spec 1.4).
#include "mmfree/core/parallel.h"

namespace mmfree {

struct GatedNorm {
  idx rows;           // R
  idx width;          // M
  const float* g;     // (R, M)
  const float* h;     // (R, M)
  const float* gain;  // (M)
  float eps;
  float* o;  // (R, M)
};
void gated_norm(const Ctx& ctx, const GatedNorm& a);

struct GatedNormBackward {
  idx rows, width;
  const float* g;     // (R, M)
  const float* h;     // (R, M)
  const float* gain;  // (M)
  float eps;
  const float* d_o;  // (R, M)
  float* dg;         // (R, M) overwritten
  float* dh;         // (R, M) overwritten
  float* dgain;      // (M) accumulated
};
void gated_norm_backward(const Ctx& ctx, const GatedNormBackward& a);

}  // namespace mmfree
