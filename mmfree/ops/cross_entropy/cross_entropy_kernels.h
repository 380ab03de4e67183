#pragma once
#include <math.h>

#include "mmfree/core/fastmath.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"

namespace mmfree {
namespace {

inline void forward_rows(idx vocab, float* logits, const std::int32_t* labels, bool with_gradient,
                         float grad_scale, float* nll, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    float* x = logits + r * vocab;
    const std::int32_t label = labels[r];
    if (label == kIgnoreLabel) {
      nll[r] = 0;
      if (with_gradient)
        for (idx k = 0; k < vocab; ++k) x[k] = 0;
      continue;
    }
    const float largest = canonical_max(vocab, [=](idx k) { return x[k]; });
    const float target = x[label];
    float sum = 0;
    if (with_gradient) {
      for (idx k = 0; k < vocab; ++k) x[k] = exp_f32(x[k] - largest);
      sum = canonical_sum(vocab, [=](idx k) { return x[k]; });
      const float factor = grad_scale / sum;
      for (idx k = 0; k < vocab; ++k) x[k] *= factor;
      x[label] -= grad_scale;
    } else {
      sum = canonical_sum(vocab, [=](idx k) { return exp_f32(x[k] - largest); });
    }
    nll[r] = static_cast<float>(::log(static_cast<double>(sum)) +
                                (static_cast<double>(largest) - static_cast<double>(target)));
  }
}

}  // namespace
}  // namespace mmfree
