#pragma once
// The recurrence in Real (float or double): the linear scan, and the gates around it.
#include <cmath>
#include <cstdint>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree::reference {

template <class Real>
Real sigmoid(Real x) {
  return Real{1} / (Real{1} + std::exp(-x));
}

template <class Real>
Real silu(Real x) {
  return x / (Real{1} + std::exp(-x));
}

template <class Real>
Real silu_slope(Real x) {
  const Real s = sigmoid(x);
  return s * (Real{1} + x * (Real{1} - s));
}

// h_t = f_t * h_{t-1} + i_t. i, f, h (B, T, M); initial (B, M) or null: zero.
template <class Real>
void scan(idx batch, idx length, idx width, const Real* i, const Real* f, const Real* initial,
          Real* h) {
  for (idx b = 0; b < batch; ++b)
    for (idx m = 0; m < width; ++m) {
      Real state = initial != nullptr ? initial[b * width + m] : Real{0};
      for (idx t = 0; t < length; ++t) {
        const idx at = (b * length + t) * width + m;
        state = f[at] * state + i[at];
        h[at] = state;
      }
    }
}

// Backward in time: di_t = dh_t + f_{t+1} * di_{t+1}; df_t = di_t * h_{t-1}. No gradient to the
// initial state.
template <class Real>
void scan_backward(idx batch, idx length, idx width, const Real* f, const Real* initial,
                   const Real* h, const Real* dh,
                   Real* di,    // (B, T, M) overwritten
                   Real* df) {  // (B, T, M) overwritten
  for (idx b = 0; b < batch; ++b)
    for (idx m = 0; m < width; ++m) {
      Real carried = 0;
      for (idx t = length - 1; t >= 0; --t) {
        const idx at = (b * length + t) * width + m;
        const Real before = t > 0                ? h[at - width]
                            : initial != nullptr ? initial[b * width + m]
                                                 : Real{0};
        di[at] = dh[at] + carried;
        df[at] = di[at] * before;
        carried = f[at] * di[at];
      }
    }
}

// f = sigmoid(f_pre), bounded below; i = silu(i_pre) * (1 - f) * mask. lower_bound (M) or null,
// mask (B, T) or null.
template <class Real>
void mlgru_gates(idx batch, idx length, idx width, const Real* i_pre, const Real* f_pre,
                 const Real* lower_bound, const std::uint8_t* mask, Real* i, Real* f) {
  for (idx row = 0; row < batch * length; ++row)
    for (idx m = 0; m < width; ++m) {
      const idx at = row * width + m;
      f[at] = sigmoid(f_pre[at]);
      if (lower_bound != nullptr) f[at] = lower_bound[m] + (Real{1} - lower_bound[m]) * f[at];
      i[at] = silu(i_pre[at]) * (Real{1} - f[at]);
      if (mask != nullptr) i[at] *= static_cast<Real>(mask[row]);
    }
}

// state (B, M) is read as the initial state and overwritten with the final one; null: starts at
// zero.
template <class Real>
void mlgru(idx batch, idx length, idx width, const Real* i_pre, const Real* f_pre,
           const Real* lower_bound, const std::uint8_t* mask, Real* state, Real* h) {
  const auto n = static_cast<std::size_t>(batch * length * width);
  std::vector<Real> i(n), f(n);
  mlgru_gates(batch, length, width, i_pre, f_pre, lower_bound, mask, i.data(), f.data());
  scan(batch, length, width, i.data(), f.data(), static_cast<const Real*>(state), h);
  if (state != nullptr && length > 0)
    for (idx b = 0; b < batch; ++b)
      for (idx m = 0; m < width; ++m) state[b * width + m] = h[((b + 1) * length - 1) * width + m];
}

// The state starts at zero. d_lower_bound (M) is accumulated if not null.
template <class Real>
void mlgru_backward(idx batch, idx length, idx width, const Real* i_pre, const Real* f_pre,
                    const Real* lower_bound, const std::uint8_t* mask, const Real* h,
                    const Real* dh,
                    Real* di_pre,  // (B, T, M) overwritten
                    Real* df_pre,  // (B, T, M) overwritten
                    Real* d_lower_bound) {
  const auto n = static_cast<std::size_t>(batch * length * width);
  std::vector<Real> i(n), f(n), di(n), df(n);
  mlgru_gates(batch, length, width, i_pre, f_pre, lower_bound, mask, i.data(), f.data());
  scan_backward(batch, length, width, f.data(), static_cast<const Real*>(nullptr), h, dh, di.data(),
                df.data());
  for (idx row = 0; row < batch * length; ++row)
    for (idx m = 0; m < width; ++m) {
      const idx at = row * width + m;
      const auto u = static_cast<std::size_t>(at);
      const Real open = mask != nullptr ? static_cast<Real>(mask[row]) : Real{1};
      const Real d_i = di[u] * open;
      const Real d_f = df[u] - d_i * silu(i_pre[at]);  // f also enters through 1 - f
      const Real s = sigmoid(f_pre[at]);
      const Real b = lower_bound != nullptr ? lower_bound[m] : Real{0};
      di_pre[at] = d_i * (Real{1} - f[u]) * silu_slope(i_pre[at]);
      df_pre[at] = d_f * (Real{1} - b) * s * (Real{1} - s);
      if (d_lower_bound != nullptr) d_lower_bound[m] += d_f * (Real{1} - s);
    }
}

}  // namespace mmfree::reference
