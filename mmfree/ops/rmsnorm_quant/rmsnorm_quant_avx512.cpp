// Three passes over a row that is in the first-level cache: both sums, the maxima of all
// projections, the codes of all projections. Left to the compiler, the plain loops take three times
// as long, most of it in the canonical sums.
#include "mmfree/core/fastmath_avx512.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_kernels.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_variants.h"

namespace mmfree {
namespace {

// RowNorm, 16 inputs at a time; 0 in other lanes.
template <bool kOuter>
struct WideRowNorm {
  const float* x;
  const float* outer;
  __m512 rstd0;
  __m512 rstd1;
  __m512 operator()(idx k, __mmask16 lanes) const {
    __m512 v = _mm512_maskz_loadu_ps(lanes, x + k);
    if constexpr (kOuter)
      v = _mm512_mul_ps(_mm512_mul_ps(v, rstd0), _mm512_maskz_loadu_ps(lanes, outer + k));
    return _mm512_mul_ps(v, rstd1);
  }
};

template <int P, class Row>
inline void wide_maxima(const Row& row, idx n, const float* const* gain, float* largest) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top[P];
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) top[p] = _mm512_setzero_si512();
  for (idx k = 0; k < n; k += 16) {
    const __mmask16 lanes = lanes_below(n, k);
    const __m512 v = row(k, lanes);
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const __m512 y = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, gain[p] + k));
      top[p] = _mm512_mask_max_epi32(top[p], lanes, top[p],
                                     _mm512_and_si512(_mm512_castps_si512(y), magnitude));
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p)
    largest[p] = __builtin_bit_cast(float, _mm512_reduce_max_epi32(top[p]));
}

template <int P, class Row>
inline void wide_codes(const Row& row, idx n, const float* const* gain, const float* scale,
                       std::int8_t* const* q, std::int32_t* sum) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);
  const __m512i below_half = _mm512_set1_epi32(0x3effffff);
  __m512i total[P];
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) total[p] = _mm512_setzero_si512();
  for (idx k = 0; k < n; k += 16) {
    const __mmask16 lanes = lanes_below(n, k);
    const __m512 v = row(k, lanes);
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const __m512 y = _mm512_mul_ps(_mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, gain[p] + k)),
                                     _mm512_set1_ps(scale[p]));
      // quantise(): 0xea takes below_half or (y and sign)
      const __m512i half =
          _mm512_ternarylogic_epi32(_mm512_castps_si512(y), sign, below_half, 0xea);
      const __m512i code =
          _mm512_maskz_cvttps_epi32(lanes, _mm512_add_ps(y, _mm512_castsi512_ps(half)));
      total[p] = _mm512_add_epi32(total[p], code);
      _mm512_mask_cvtepi32_storeu_epi8(q[p] + k, lanes, code);
    }
  }
#pragma GCC unroll 3
  for (int p = 0; p < P; ++p) sum[p] = _mm512_reduce_add_epi32(total[p]);
}

template <int P, bool kOuter>
inline void wide_row(const RmsnormQuant& a, idx r) {
  const idx n = a.width;
  const idx stride = code_stride(n);
  const float* x = a.x + r * n;
  const float* outer = a.outer;
  float sums[2];  // as in forward_row: of x^2 for the outer norm, of (x outer)^2
  canonical_sums<kOuter ? 2 : 1>(
      n,
      [=](idx k, __mmask16 lanes, __m512* t) {
        __m512 v = _mm512_maskz_loadu_ps(lanes, x + k);
        if constexpr (kOuter) {
          t[0] = _mm512_mul_ps(v, v);
          v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(lanes, outer + k));
        }
        t[kOuter ? 1 : 0] = _mm512_mul_ps(v, v);
      },
      sums);
  float rstd0 = 1.0F;
  float squares = sums[kOuter ? 1 : 0];
  if (kOuter) {
    rstd0 = reciprocal_rms(sums[0], n, a.outer_eps);
    if (a.outer_rstd != nullptr) a.outer_rstd[r] = rstd0;
    squares = squares * rstd0 * rstd0;
  }
  const float rstd1 = reciprocal_rms(squares, n, kInnerEps);
  if (a.inner_rstd != nullptr) a.inner_rstd[r] = rstd1;
  const float poison = squares - squares;
  const WideRowNorm<kOuter> row{x, outer, _mm512_set1_ps(rstd0), _mm512_set1_ps(rstd1)};
  float largest[P], scale[P];
  std::int8_t* q[P];
  std::int32_t sum[P];
  wide_maxima<P>(row, n, a.gain, largest);
  for (int p = 0; p < P; ++p) {
    const float top = largest[p] > 1e-5F ? largest[p] : 1e-5F;
    scale[p] = 127.0F / top;
    a.codes[p].scale[r] = top / 127.0F + poison;
    q[p] = a.codes[p].q + r * stride;
  }
  wide_codes<P>(row, n, a.gain, scale, q, sum);
  for (int p = 0; p < P; ++p) {
    a.codes[p].sum[r] = sum[p];
    for (idx k = n; k < stride; ++k) q[p][k] = 0;
  }
}

template <int P>
inline void wide_rows(const RmsnormQuant& a, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    if (a.outer != nullptr) {
      wide_row<P, true>(a, r);
    } else {
      wide_row<P, false>(a, r);
    }
  }
}

}  // namespace

namespace avx512 {

void rmsnorm_quant_rows(const RmsnormQuant& a, idx begin, idx end) noexcept {
  switch (a.projections) {
    case 1:
      return wide_rows<1>(a, begin, end);
    case 2:
      return wide_rows<2>(a, begin, end);
    default:
      return wide_rows<3>(a, begin, end);
  }
}

void rmsnorm_quant_backward_rows(const RmsnormQuantBackward& a, idx begin, idx end,
                                 float* partial) noexcept {
  backward_rows(a, begin, end, partial);
}

}  // namespace avx512
}  // namespace mmfree
