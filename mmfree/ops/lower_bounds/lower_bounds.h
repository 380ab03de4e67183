#pragma once
// Lower bounds of the forget gate from their raw parameter (spec 1.1):
//   s = softmax of raw over layers;  bound[l] = s[1] + ... + s[l];  bound[0] = 0
#include "mmfree/core/types.h"

namespace mmfree {

void lower_bounds(idx layers, idx width, const float* raw,  // (L, D)
                  float* bound);                            // (L, D)

void lower_bounds_backward(idx layers, idx width, const float* raw,  // (L, D)
                           const float* dbound,                      // (L, D)
                           float* draw);                             // (L, D) accumulated

}  // namespace mmfree
