#include "mmfree/ops/cross_entropy/cross_entropy_kernels.h"
#include "mmfree/ops/cross_entropy/cross_entropy_variants.h"

namespace mmfree::scalar {

void cross_entropy_rows(idx vocab, float* logits, const std::int32_t* labels, bool with_gradient,
                        float grad_scale, float* nll, idx begin, idx end) noexcept {
  forward_rows(vocab, logits, labels, with_gradient, grad_scale, nll, begin, end);
}

}  // namespace mmfree::scalar
