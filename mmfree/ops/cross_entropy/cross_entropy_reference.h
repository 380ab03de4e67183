#pragma once
// Negative log likelihood and its gradient in Real (float or double).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "mmfree/core/types.h"

namespace mmfree::reference {

// nll (R), zero for rows whose label is `ignored`; dlogits (R, V) = (softmax - onehot) *
// grad_scale, or null.
template <class Real>
void cross_entropy(idx rows, idx vocab, const Real* logits, const std::int32_t* labels,
                   std::int32_t ignored, std::type_identity_t<Real> grad_scale, Real* dlogits,
                   Real* nll) {
  for (idx r = 0; r < rows; ++r) {
    const Real* l = logits + r * vocab;
    const bool counted = labels[r] != ignored;
    const Real largest = *std::max_element(l, l + vocab);
    Real sum = 0;
    for (idx v = 0; v < vocab; ++v) sum += std::exp(l[v] - largest);
    nll[r] = counted ? largest - l[labels[r]] + std::log(sum) : Real{0};
    if (dlogits == nullptr) continue;
    for (idx v = 0; v < vocab; ++v) {
      const Real p = std::exp(l[v] - largest) / sum;
      dlogits[r * vocab + v] =
          counted ? (p - (v == labels[r] ? Real{1} : Real{0})) * grad_scale : Real{0};
    }
  }
}

}  // namespace mmfree::reference
