#pragma once
// The plain norm and its gradient in Real (float or double), one loop after the other: what the
// tests compare with.
#include <cmath>
#include <type_traits>

#include "mmfree/core/types.h"

namespace mmfree::reference {

// A parameter that takes its type from the others.
template <class Real>
using Same = std::type_identity_t<Real>;

// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps); rstd (R) or null.
template <class Real>
void rmsnorm(idx rows, idx width, const Real* x, const Real* gain, Same<Real> eps, Real* y,
             Same<Real>* rstd = nullptr) {
  for (idx r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    Real sum = 0;
    for (idx k = 0; k < width; ++k) sum += in[k] * in[k];
    const Real s = Real{1} / std::sqrt(sum / static_cast<Real>(width) + eps);
    for (idx k = 0; k < width; ++k) y[r * width + k] = in[k] * s * gain[k];
    if (rstd != nullptr) rstd[r] = s;
  }
}

// dx = (g - xhat * mean(xhat * g)) * rstd with g = dy * gain; dgain += sum over rows of dy * xhat.
template <class Real>
void rmsnorm_backward(idx rows, idx width, const Real* x, const Real* gain, Same<Real> eps,
                      const Real* dy,
                      Real* dx,       // (R, K) accumulated
                      Real* dgain) {  // (K) accumulated
  for (idx r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    const Real* d = dy + r * width;
    Real sum = 0;
    for (idx k = 0; k < width; ++k) sum += in[k] * in[k];
    const Real s = Real{1} / std::sqrt(sum / static_cast<Real>(width) + eps);
    Real dot = 0;
    for (idx k = 0; k < width; ++k) dot += in[k] * s * (d[k] * gain[k]);
    const Real mean = dot / static_cast<Real>(width);
    for (idx k = 0; k < width; ++k) {
      const Real unit = in[k] * s;
      dx[r * width + k] += (d[k] * gain[k] - unit * mean) * s;
      dgain[k] += d[k] * unit;
    }
  }
}

}  // namespace mmfree::reference
