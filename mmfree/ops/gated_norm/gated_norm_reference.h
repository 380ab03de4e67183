#pragma once
// The output gate in Real (float or double): o = rmsnorm(g; gain) * silu(h).
#include <vector>

#include "mmfree/core/types.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"

namespace mmfree::reference {

template <class Real>
void gated_norm(idx rows, idx width, const Real* g, const Real* h, const Real* gain, Same<Real> eps,
                Real* o) {
  rmsnorm(rows, width, g, gain, eps, o);
  for (idx i = 0; i < rows * width; ++i) o[i] *= silu(h[i]);
}

template <class Real>
void gated_norm_backward(idx rows, idx width, const Real* g, const Real* h, const Real* gain,
                         Same<Real> eps, const Real* d_o,
                         Real* dg,       // (R, M) overwritten
                         Real* dh,       // (R, M) overwritten
                         Real* dgain) {  // (M) accumulated
  const auto n = static_cast<std::size_t>(rows * width);
  std::vector<Real> normed(n), d_normed(n);
  rmsnorm(rows, width, g, gain, eps, normed.data());
  for (std::size_t i = 0; i < n; ++i) {
    d_normed[i] = d_o[i] * silu(h[i]);
    dh[i] = d_o[i] * normed[i] * silu_slope(h[i]);
    dg[i] = 0;
  }
  rmsnorm_backward(rows, width, g, gain, eps, d_normed.data(), dg, dgain);
}

}  // namespace mmfree::reference
