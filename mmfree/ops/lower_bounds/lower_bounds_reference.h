#pragma once
// Lower bounds of the forget gate in Real (float or double).
#include <algorithm>
#include <cmath>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree::reference {

// bound[l] = s[1] + ... + s[l], s = softmax of raw over layers. raw, bound (L, D).
template <class Real>
void lower_bounds(idx layers, idx width, const Real* raw, Real* bound) {
  for (idx d = 0; d < width; ++d) {
    Real largest = raw[d];
    for (idx l = 1; l < layers; ++l) largest = std::max(largest, raw[l * width + d]);
    Real sum = 0;
    for (idx l = 0; l < layers; ++l) sum += std::exp(raw[l * width + d] - largest);
    Real total = 0;
    for (idx l = 0; l < layers; ++l) {
      if (l > 0) total += std::exp(raw[l * width + d] - largest) / sum;
      bound[l * width + d] = total;
    }
  }
}

// s[l] enters bound[l], bound[l + 1], ... (l >= 1), so ds[l] is the sum of dbound from l on; then
// the softmax. draw (L, D) is accumulated.
template <class Real>
void lower_bounds_backward(idx layers, idx width, const Real* raw, const Real* dbound, Real* draw) {
  const auto n = static_cast<std::size_t>(layers);
  for (idx d = 0; d < width; ++d) {
    std::vector<Real> s(n, 0), ds(n, 0);
    Real largest = raw[d];
    for (idx l = 1; l < layers; ++l) largest = std::max(largest, raw[l * width + d]);
    Real sum = 0;
    for (std::size_t l = 0; l < n; ++l) {
      s[l] = std::exp(raw[static_cast<idx>(l) * width + d] - largest);
      sum += s[l];
    }
    for (std::size_t l = 0; l < n; ++l) s[l] /= sum;
    for (idx l = 1; l < layers; ++l)
      for (idx k = 1; k <= l; ++k) ds[static_cast<std::size_t>(k)] += dbound[l * width + d];
    Real dot = 0;
    for (std::size_t l = 0; l < n; ++l) dot += s[l] * ds[l];
    for (std::size_t l = 0; l < n; ++l)
      draw[static_cast<idx>(l) * width + d] += s[l] * (ds[l] - dot);
  }
}

}  // namespace mmfree::reference
