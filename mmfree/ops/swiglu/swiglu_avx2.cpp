#include "mmfree/ops/swiglu/swiglu_kernels.h"
#include "mmfree/ops/swiglu/swiglu_variants.h"

namespace mmfree::avx2 {

void swiglu_rows(idx width, const float* pq, float* z, idx begin, idx end) noexcept {
  forward_rows(width, pq, z, begin, end);
}

void swiglu_backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) noexcept {
  backward_rows(width, pq, dz, dpq, begin, end);
}

}  // namespace mmfree::avx2
