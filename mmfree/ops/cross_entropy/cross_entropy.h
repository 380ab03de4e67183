#pragma once
// Negative log likelihood of labels under softmax(logits), and its gradient in place of the logits.
//
//   nll[r] = logsumexp(logits[r]) - logits[r, label[r]]          0 for an ignored row (label
//   kIgnoreLabel) logits[r] := (softmax(logits[r]) - onehot(label[r])) * grad_scale      0 for an
//   ignored row
#include <cstdint>

#include "mmfree/core/parallel.h"

namespace mmfree {

inline constexpr std::int32_t kIgnoreLabel = -100;

void cross_entropy(const Ctx& ctx, idx rows, idx vocab,
                   float* logits,  // (R, V); replaced by the gradient when with_gradient
                   const std::int32_t* labels,  // (R)
                   bool with_gradient, float grad_scale,
                   float* nll);  // (R) nats

}  // namespace mmfree
