#pragma once
// One AdamW step in Real (float or double), as adamw.h states it.
#include <cmath>

#include "mmfree/core/types.h"

namespace mmfree::reference {

template <class Real>
struct AdamW {
  Real lr, beta1, beta2, eps, decay, grad_scale;
  idx step;  // 1 for the first step
};

template <class Real>
void adamw(const AdamW<Real>& a, idx n, const Real* g, Real* w, Real* m, Real* v) {
  const Real first = Real{1} - std::pow(a.beta1, static_cast<Real>(a.step));
  const Real second = Real{1} - std::pow(a.beta2, static_cast<Real>(a.step));
  for (idx i = 0; i < n; ++i) {
    const Real d = g[i] * a.grad_scale;
    w[i] -= a.lr * a.decay * w[i];
    m[i] = a.beta1 * m[i] + (Real{1} - a.beta1) * d;
    v[i] = a.beta2 * v[i] + (Real{1} - a.beta2) * d * d;
    w[i] -= a.lr * (m[i] / first) / (std::sqrt(v[i]) / std::sqrt(second) + a.eps);
  }
}

}  // namespace mmfree::reference
