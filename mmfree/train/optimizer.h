#pragma once
// AdamW over the parameter table: moments in the flat layout of the values, decay where the table
// says so.
#include "mmfree/model/matmulfree.h"

namespace mmfree {

struct OptimizerState {
  explicit OptimizerState(const Network& net);
  Buffer<float> m;  // first moments, the layout of net.values
  Buffer<float> v;  // second moments
};

struct OptimizerStep {
  double lr;
  double weight_decay;
  double beta1, beta2, eps;
  double grad_scale;  // clipping
  idx step;           // 1 for the first
};

// Euclidean norm of all gradients, summed in double over fixed chunks: the same bits for any number
// of threads.
double grad_norm(const Ctx& ctx, const Network& net);

// Updates net.values from net.grads; the caller ternarises afterwards.
void optimizer_step(const Ctx& ctx, Network& net, OptimizerState& state, const OptimizerStep& step);

}  // namespace mmfree
