#include "mmfree/core/fastmath_avx512.h"
#include "mmfree/ops/mlgru/mlgru_kernels.h"
#include "mmfree/ops/mlgru/mlgru_variants.h"

namespace mmfree::avx512 {

// As forward_channels, but 16 channels go through all of time before the next: their state and
// bounds stay in registers.
void mlgru_channels(const Mlgru& a, idx sequence, idx begin, idx end) noexcept {
  const idx pre_stride = a.pre_stride == 0 ? a.width : a.pre_stride;
  const __m512 one = _mm512_set1_ps(1.0F);
  for (idx c = begin; c < end; c += 16) {
    const __mmask16 lanes = lanes_below(end, c);
    float* state = a.state == nullptr ? nullptr : a.state + sequence * a.width + c;
    __m512 before = state == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(lanes, state);
    const bool bounded = a.lower_bound != nullptr;
    const __m512 bound =
        bounded ? _mm512_maskz_loadu_ps(lanes, a.lower_bound + c) : _mm512_setzero_ps();
    const __m512 room = _mm512_sub_ps(one, bound);
    for (idx t = 0; t < a.length; ++t) {
      const idx row = sequence * a.length + t;
      const float keep = a.mask == nullptr || a.mask[row] != 0 ? 1.0F : 0.0F;
      const __m512 i_pre = _mm512_maskz_loadu_ps(lanes, a.i_pre + row * pre_stride + c);
      __m512 f = wide_sigmoid(_mm512_maskz_loadu_ps(lanes, a.f_pre + row * pre_stride + c));
      if (bounded) f = _mm512_add_ps(bound, _mm512_mul_ps(room, f));
      __m512 h = _mm512_mul_ps(
          _mm512_mul_ps(_mm512_mul_ps(i_pre, wide_sigmoid(i_pre)), _mm512_sub_ps(one, f)),
          _mm512_set1_ps(keep));
      if (t > 0 || state != nullptr) h = _mm512_add_ps(_mm512_mul_ps(f, before), h);
      _mm512_mask_storeu_ps(a.h + row * a.width + c, lanes, h);
      before = h;
    }
    if (state != nullptr && a.length > 0) _mm512_mask_storeu_ps(state, lanes, before);
  }
}

void mlgru_backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                             float* d_bound) noexcept {
  backward_channels(a, sequence, begin, end, d_bound);
}

}  // namespace mmfree::avx512
