#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_variants.h"
#include "mmfree/ops/row_sums.h"

namespace mmfree {

void rmsnorm_quant(const Ctx& ctx, const RmsnormQuant& a) {
  const RmsnormQuantRowsFn fn = pick(rmsnorm_quant_rows_variants, active_isa());
  parallel_for(ctx, a.rows, 1, [&](idx begin, idx end) { fn(a, begin, end); });
}

void rmsnorm_quant_backward(const Ctx& ctx, const RmsnormQuantBackward& a) {
  const RmsnormQuantBackwardRowsFn fn = pick(rmsnorm_quant_backward_rows_variants, active_isa());
  float* targets[4] = {};
  for (int p = 0; p < a.projections; ++p) targets[p] = a.dgain[p];
  targets[a.projections] = a.douter;
  sum_over_rows(ctx, a.rows, a.projections + 1, a.width, targets,
                [&](idx begin, idx end, float* partial) { fn(a, begin, end, partial); });
}

}  // namespace mmfree
