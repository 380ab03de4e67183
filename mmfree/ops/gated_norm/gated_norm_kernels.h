#pragma once
#include "mmfree/core/fastmath.h"
#include "mmfree/ops/gated_norm/gated_norm.h"

namespace mmfree {
namespace {

inline float row_rstd(const float* g, idx width, float eps) {
  return reciprocal_rms(canonical_sum(width, [=](idx k) { return g[k] * g[k]; }), width, eps);
}

inline void forward_rows(const GatedNorm& a, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    const float* g = a.g + r * a.width;
    const float* h = a.h + r * a.width;
    float* o = a.o + r * a.width;
    const float rstd = row_rstd(g, a.width, a.eps);
#pragma GCC ivdep
    for (idx k = 0; k < a.width; ++k) o[k] = g[k] * rstd * a.gain[k] * (h[k] * sigmoid_f32(h[k]));
  }
}

inline void backward_rows(const GatedNormBackward& a, idx begin, idx end, float* partial) {
  const idx n = a.width;
  for (idx r = begin; r < end; ++r) {
    const float* g = a.g + r * n;
    const float* h = a.h + r * n;
    const float* d_o = a.d_o + r * n;
    float* dg = a.dg + r * n;
    float* dh = a.dh + r * n;
    const float rstd = row_rstd(g, n, a.eps);
#pragma GCC ivdep
    for (idx k = 0; k < n; ++k) {
      const float s = sigmoid_f32(h[k]);
      const float silu = h[k] * s;
      const float xhat = g[k] * rstd;
      dh[k] = d_o[k] * (xhat * a.gain[k]) * (s + silu * (1.0F - s));
      const float dn = d_o[k] * silu;
      partial[k] += dn * xhat;
      dg[k] = dn * a.gain[k];
    }
    const float mean =
        canonical_sum(n, [=](idx k) { return g[k] * rstd * dg[k]; }) / static_cast<float>(n);
#pragma GCC ivdep
    for (idx k = 0; k < n; ++k) dg[k] = (dg[k] - g[k] * rstd * mean) * rstd;
  }
}

}  // namespace
}  // namespace mmfree
