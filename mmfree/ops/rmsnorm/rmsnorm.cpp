#include "mmfree/ops/rmsnorm/rmsnorm.h"

#include "mmfree/ops/rmsnorm/rmsnorm_variants.h"

namespace mmfree {

void rmsnorm(const Ctx& ctx, idx rows, idx width, const float* x, const float* gain, float eps,
             float* y) {
  const RmsnormRowsFn fn = pick(rmsnorm_rows_variants, active_isa());
  parallel_for(ctx, rows, 1, [&](idx begin, idx end) { fn(width, x, gain, eps, y, begin, end); });
}

}  // namespace mmfree
