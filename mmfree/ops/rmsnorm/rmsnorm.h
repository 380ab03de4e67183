#pragma once
// y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps). The plain outer norm, for hidden states
// that are looked at; the network itself normalises inside rmsnorm_quant.
#include "mmfree/core/parallel.h"

namespace mmfree {

void rmsnorm(const Ctx& ctx, idx rows, idx width, const float* x,  // (R, K)
             const float* gain,                                    // (K)
             float eps, float* y);                                 // (R, K), may be x

}  // namespace mmfree
