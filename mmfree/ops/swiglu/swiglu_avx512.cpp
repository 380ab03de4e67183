#include "mmfree/core/fastmath_avx512.h"
#include "mmfree/ops/swiglu/swiglu_kernels.h"
#include "mmfree/ops/swiglu/swiglu_variants.h"

namespace mmfree::avx512 {

void swiglu_rows(idx width, const float* pq, float* z, idx begin, idx end) noexcept {
  for (idx r = begin; r < end; ++r) {
    const float* p = pq + r * 2 * width;
    const float* q = p + width;
    float* out = z + r * width;
    for (idx k = 0; k < width; k += 16) {
      const __mmask16 lanes = lanes_below(width, k);
      const __m512 x = _mm512_maskz_loadu_ps(lanes, p + k);
      const __m512 y =
          _mm512_mul_ps(_mm512_mul_ps(x, wide_sigmoid(x)), _mm512_maskz_loadu_ps(lanes, q + k));
      _mm512_mask_storeu_ps(out + k, lanes, y);
    }
  }
}

void swiglu_backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) noexcept {
  backward_rows(width, pq, dz, dpq, begin, end);
}

}  // namespace mmfree::avx512
