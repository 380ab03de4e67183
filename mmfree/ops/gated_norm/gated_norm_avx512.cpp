#include "mmfree/core/fastmath_avx512.h"
#include "mmfree/ops/gated_norm/gated_norm_kernels.h"
#include "mmfree/ops/gated_norm/gated_norm_variants.h"

namespace mmfree::avx512 {

void gated_norm_rows(const GatedNorm& a, idx begin, idx end) noexcept {
  for (idx r = begin; r < end; ++r) {
    const float* g = a.g + r * a.width;
    const float* h = a.h + r * a.width;
    float* o = a.o + r * a.width;
    float squares;
    canonical_sums<1>(
        a.width,
        [=](idx k, __mmask16 lanes, __m512* t) {
          const __m512 v = _mm512_maskz_loadu_ps(lanes, g + k);
          t[0] = _mm512_mul_ps(v, v);
        },
        &squares);
    const __m512 rstd = _mm512_set1_ps(reciprocal_rms(squares, a.width, a.eps));
    for (idx k = 0; k < a.width; k += 16) {
      const __mmask16 lanes = lanes_below(a.width, k);
      const __m512 x = _mm512_maskz_loadu_ps(lanes, h + k);
      const __m512 normed = _mm512_mul_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, g + k), rstd),
                                          _mm512_maskz_loadu_ps(lanes, a.gain + k));
      _mm512_mask_storeu_ps(o + k, lanes, _mm512_mul_ps(normed, _mm512_mul_ps(x, wide_sigmoid(x))));
    }
  }
}

void gated_norm_backward_rows(const GatedNormBackward& a, idx begin, idx end,
                              float* partial) noexcept {
  backward_rows(a, begin, end, partial);
}

}  // namespace mmfree::avx512
