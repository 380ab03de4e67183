#pragma once
// z = silu(p) * q in Real (float or double), [p | q] side by side in rows of 2F.
#include "mmfree/core/types.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"

namespace mmfree::reference {

template <class Real>
void swiglu(idx rows, idx width, const Real* pq, Real* z) {
  for (idx r = 0; r < rows; ++r)
    for (idx k = 0; k < width; ++k)
      z[r * width + k] = silu(pq[2 * r * width + k]) * pq[(2 * r + 1) * width + k];
}

template <class Real>
void swiglu_backward(idx rows, idx width, const Real* pq, const Real* dz, Real* dpq) {
  for (idx r = 0; r < rows; ++r)
    for (idx k = 0; k < width; ++k) {
      const Real p = pq[2 * r * width + k];
      const Real q = pq[(2 * r + 1) * width + k];
      const Real d = dz[r * width + k];
      dpq[2 * r * width + k] = d * q * silu_slope(p);
      dpq[(2 * r + 1) * width + k] = d * silu(p);
    }
}

}  // namespace mmfree::reference
