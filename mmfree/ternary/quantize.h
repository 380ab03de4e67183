#pragma once
// The weight quantiser: latent float weights to codes {-1, 0, +1} and one scale a tensor (paper
// Algorithm 1, spec 2.1).
//
//   scale = max(mean|W|, 1e-5);  code = clamp(round(W * (1 / scale)), -1, 1), halves to even
//
// The mean is summed in double in a fixed order, so codes and scale never depend on threads or
// instruction set.
#include <cstdint>

#include "mmfree/core/parallel.h"

namespace mmfree {

// Returns the scale; codes (n). If a weight is not finite the scale is not finite either (callers
// that read files refuse it).
float ternary_quantize(const Ctx& ctx, const float* w, idx n, std::int8_t* codes);

}  // namespace mmfree
