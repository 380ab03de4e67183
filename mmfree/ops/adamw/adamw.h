#pragma once
// One AdamW step with decoupled weight decay (Loshchilov & Hutter), in torch.optim.AdamW's order of
// operations:
//   w -= lr * decay * w;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   w -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps)
#include "mmfree/core/parallel.h"

namespace mmfree {

struct AdamW {
  float lr;
  float beta1 = 0.9F;
  float beta2 = 0.95F;
  float eps = 1e-8F;
  float decay = 0;       // 0 for parameters outside the decay group
  float grad_scale = 1;  // gradients are multiplied by this first (clipping)
  idx step;              // 1 for the first step
};
void adamw(const Ctx& ctx, const AdamW& a, idx n, const float* g, float* w, float* m, float* v);

}  // namespace mmfree
