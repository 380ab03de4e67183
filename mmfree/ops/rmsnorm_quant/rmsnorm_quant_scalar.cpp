#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_kernels.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_variants.h"

namespace mmfree::scalar {

void rmsnorm_quant_rows(const RmsnormQuant& a, idx begin, idx end) noexcept {
  forward_rows(a, begin, end);
}

void rmsnorm_quant_backward_rows(const RmsnormQuantBackward& a, idx begin, idx end,
                                 float* partial) noexcept {
  backward_rows(a, begin, end, partial);
}

}  // namespace mmfree::scalar
