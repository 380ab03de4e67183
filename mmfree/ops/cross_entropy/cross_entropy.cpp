#include "mmfree/ops/cross_entropy/cross_entropy.h"

#include "mmfree/ops/cross_entropy/cross_entropy_variants.h"

namespace mmfree {

void cross_entropy(const Ctx& ctx, idx rows, idx vocab, float* logits, const std::int32_t* labels,
                   bool with_gradient, float grad_scale, float* nll) {
  const CrossEntropyRowsFn fn = pick(cross_entropy_rows_variants, active_isa());
  parallel_for(ctx, rows, 1, [&](idx begin, idx end) {
    fn(vocab, logits, labels, with_gradient, grad_scale, nll, begin, end);
  });
}

}  // namespace mmfree
