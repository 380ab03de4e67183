#include "mmfree/ops/rmsnorm/rmsnorm_kernels.h"
#include "mmfree/ops/rmsnorm/rmsnorm_variants.h"

namespace mmfree::avx512 {

void rmsnorm_rows(idx width, const float* x, const float* gain, float eps, float* y, idx begin,
                  idx end) noexcept {
  forward_rows(width, x, gain, eps, y, begin, end);
}

}  // namespace mmfree::avx512
