#include "mmfree/ops/gated_norm/gated_norm_kernels.h"
#include "mmfree/ops/gated_norm/gated_norm_variants.h"

namespace mmfree::avx2 {

void gated_norm_rows(const GatedNorm& a, idx begin, idx end) noexcept {
  forward_rows(a, begin, end);
}

void gated_norm_backward_rows(const GatedNormBackward& a, idx begin, idx end,
                              float* partial) noexcept {
  backward_rows(a, begin, end, partial);
}

}  // namespace mmfree::avx2
