#include "mmfree/ops/swiglu/swiglu.h"

#include "mmfree/ops/swiglu/swiglu_variants.h"

namespace mmfree {

void swiglu(const Ctx& ctx, idx rows, idx width, const float* pq, float* z) {
  const SwigluRowsFn fn = pick(swiglu_rows_variants, active_isa());
  parallel_for(ctx, rows, 1, [&](idx begin, idx end) { fn(width, pq, z, begin, end); });
}

void swiglu_backward(const Ctx& ctx, idx rows, idx width, const float* pq, const float* dz,
                     float* dpq) {
  const SwigluBackwardRowsFn fn = pick(swiglu_backward_rows_variants, active_isa());
  parallel_for(ctx, rows, 1, [&](idx begin, idx end) { fn(width, pq, dz, dpq, begin, end); });
}

}  // namespace mmfree
