#pragma once
// BitLinear as one layer in Real (float or double): inner norm, both quantisers, the product, and
// its straight-through gradient. The ops split this into rmsnorm_quant and the integer products.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "mmfree/core/types.h"
#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_reference.h"

namespace mmfree::reference {

// Returns scale = max(mean|w|, 1e-5); t = clamp(round(w * (1 / scale)), -1, 1), halves to even.
template <class Real>
Real ternarize(idx out, idx in, const Real* w, std::int8_t* t) {
  const idx n = out * in;
  // In double for float weights too: a plain float sum of 10^5 terms would be off by more than the
  // tests allow.
  double sum = 0;
  for (idx i = 0; i < n; ++i) sum += std::abs(static_cast<double>(w[i]));
  const Real mean = n > 0 ? static_cast<Real>(sum / static_cast<double>(n)) : Real{0};
  const Real scale = std::max(mean, static_cast<Real>(1e-5));
  const Real inverse = Real{1} / scale;
  for (idx i = 0; i < n; ++i) {
    const Real v = std::nearbyint(w[i] * inverse);  // the default rounding mode: half to even
    t[i] = static_cast<std::int8_t>(std::clamp(v, Real{-1}, Real{1}));
  }
  return scale;
}

// What the forward computes on its way; vectors are resized.
template <class Real>
struct Bitlinear {
  std::vector<Real> normed;    // (R, K) before quantisation
  std::vector<Real> rstd;      // (R)
  std::vector<std::int8_t> q;  // (R, K)
  std::vector<Real> s;         // (R) q / s = value
  std::vector<std::int8_t> t;  // (O, K)
  Real scale = 0;              // t * scale = weight
  std::vector<Real> x_hat;     // (R, K) the activations that are multiplied
  std::vector<Real> w_hat;     // (O, K) the weights that they are multiplied with
};

// y (R, O) = x_hat * w_hat^T, overwritten. If `frozen` is given, the quantisers are replaced by
// adding what they added there (x_hat = normed + (x_hat' - normed'), and so for weights w'): the
// smooth function whose gradient the straight-through rules give, for finite differences.
template <class Real>
void bitlinear(idx rows, idx in, idx out, const Real* x, const Real* gain, Same<Real> eps,
               const Real* w, Bitlinear<Real>& a, Real* y, const Bitlinear<Real>* frozen = nullptr,
               const Same<Real>* frozen_w = nullptr) {
  const auto n = static_cast<std::size_t>(rows * in);
  const auto m = static_cast<std::size_t>(out * in);
  a.normed.assign(n, 0);
  a.rstd.assign(static_cast<std::size_t>(rows), 0);
  a.q.assign(n, 0);
  a.s.assign(static_cast<std::size_t>(rows), 0);
  a.t.assign(m, 0);
  a.x_hat.assign(n, 0);
  a.w_hat.assign(m, 0);
  rmsnorm(rows, in, x, gain, eps, a.normed.data(), a.rstd.data());
  quantize_activations(rows, in, a.normed.data(), a.q.data(), a.s.data());
  a.scale = ternarize(out, in, w, a.t.data());
  for (std::size_t i = 0; i < n; ++i)
    a.x_hat[i] = frozen != nullptr
                     ? a.normed[i] + (frozen->x_hat[i] - frozen->normed[i])
                     : static_cast<Real>(a.q[i]) / a.s[i / static_cast<std::size_t>(in)];
  for (std::size_t i = 0; i < m; ++i)
    a.w_hat[i] = frozen != nullptr ? w[i] + (frozen->w_hat[i] - frozen_w[i])
                                   : static_cast<Real>(a.t[i]) * a.scale;
  for (idx r = 0; r < rows; ++r)
    for (idx o = 0; o < out; ++o) {
      Real sum = 0;
      for (idx k = 0; k < in; ++k)
        sum += a.x_hat[static_cast<std::size_t>(r * in + k)] *
               a.w_hat[static_cast<std::size_t>(o * in + k)];
      y[r * out + o] = sum;
    }
}

// The quantisers pass the gradient through: no mask where they clip, no derivative of their scales;
// the product is differentiated at the quantised operands, the norm exactly. All three results are
// accumulated.
template <class Real>
void bitlinear_backward(idx rows, idx in, idx out, const Real* x, const Real* gain, Same<Real> eps,
                        const Bitlinear<Real>& a, const Real* dy, Real* dx, Real* dw, Real* dgain) {
  std::vector<Real> d(static_cast<std::size_t>(rows * in), 0);
  for (idx r = 0; r < rows; ++r)
    for (idx o = 0; o < out; ++o) {
      const Real g = dy[r * out + o];
      for (idx k = 0; k < in; ++k) {
        d[static_cast<std::size_t>(r * in + k)] +=
            g * a.w_hat[static_cast<std::size_t>(o * in + k)];
        dw[o * in + k] += g * a.x_hat[static_cast<std::size_t>(r * in + k)];
      }
    }
  rmsnorm_backward(rows, in, x, gain, eps, d.data(), dx, dgain);
}

}  // namespace mmfree::reference
