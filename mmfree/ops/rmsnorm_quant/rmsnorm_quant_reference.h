#pragma once
// The int8 quantisation of normalised activations. The fused op is `rmsnorm` (outer), `rmsnorm`
// (inner) and this, in a row.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mmfree/core/types.h"
#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"

namespace mmfree::reference {

// q = clamp(round(y * s), -128, 127), s = 127 / max(max|y|, 1e-5), halves away from zero. value = q
// / s.
template <class Real>
void quantize_activations(idx rows, idx width, const Real* y,
                          std::int8_t* q,  // (R, K), no padding
                          Real* s) {       // (R)
  for (idx r = 0; r < rows; ++r) {
    Real largest = 0;
    for (idx k = 0; k < width; ++k) largest = std::max(largest, std::abs(y[r * width + k]));
    s[r] = Real{127} / std::max(largest, static_cast<Real>(1e-5));
    for (idx k = 0; k < width; ++k) {
      const Real v = std::round(y[r * width + k] * s[r]);
      q[r * width + k] = static_cast<std::int8_t>(std::clamp(v, Real{-128}, Real{127}));
    }
  }
}

}  // namespace mmfree::reference
