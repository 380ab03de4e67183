#include "mmfree/ops/gated_norm/gated_norm.h"

#include "mmfree/ops/gated_norm/gated_norm_variants.h"
#include "mmfree/ops/row_sums.h"

namespace mmfree {

void gated_norm(const Ctx& ctx, const GatedNorm& a) {
  const GatedNormRowsFn fn = pick(gated_norm_rows_variants, active_isa());
  parallel_for(ctx, a.rows, 1, [&](idx begin, idx end) { fn(a, begin, end); });
}

void gated_norm_backward(const Ctx& ctx, const GatedNormBackward& a) {
  const GatedNormBackwardRowsFn fn = pick(gated_norm_backward_rows_variants, active_isa());
  float* const targets[1] = {a.dgain};
  sum_over_rows(ctx, a.rows, 1, a.width, targets,
                [&](idx begin, idx end, float* partial) { fn(a, begin, end, partial); });
}

}  // namespace mmfree
