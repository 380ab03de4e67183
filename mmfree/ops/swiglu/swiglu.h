#pragma once
// The channel mixer's gate: z = silu(p) * q with [p | q] side by side in one row (paper
// section 3.3.2).
#include "mmfree/core/parallel.h"

namespace mmfree {

void swiglu(const Ctx& ctx, idx rows, idx width, const float* pq,  // (R, 2F)
            float* z);                                             // (R, F)

// dpq may be pq itself.
void swiglu_backward(const Ctx& ctx, idx rows, idx width, const float* pq,  // (R, 2F)
                     const float* dz,                                       // (R, F)
                     float* dpq);                                           // (R, 2F) overwritten

}  // namespace mmfree
