#pragma once
// Source of all variants: plain loops over rows, compiled once per instruction set. Values are
// recomputed from x in each pass over a row instead of being stored: the row is in the first-level
// cache and multiplications are free there.
#include "mmfree/core/fastmath.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree {
namespace {

// round(v), halves away from zero, for |v| <= 127 and a rounding error: the scale makes sure of
// that, so there is nothing to clamp (a clamp would only be jumped around and keep the loop from
// vectorising). A row that is not finite gets codes without meaning and a scale that is not finite
// either, which makes its outputs NaN.
inline std::int32_t quantise(float v) {
  const auto whole = static_cast<std::int32_t>(v);
  // Twice the remainder, exact, towards zero: 1 from a half up, -1 from minus a half down.
  const auto rest = static_cast<std::int32_t>(2.0F * (v - static_cast<float>(whole)));
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(whole) +
                                   static_cast<std::uint32_t>(rest));
}

// One row of one projection: y = x * rstd0 * outer * rstd1 * gain (no outer norm: x * rstd1 *
// gain).
struct RowNorm {
  const float* x;
  const float* outer;
  float rstd0;
  const float* gain;
  float rstd1;
};

template <bool kOuter>
inline float normed(const RowNorm& a, idx k) {
  const float u = kOuter ? a.x[k] * a.rstd0 * a.outer[k] : a.x[k];
  return u * a.rstd1 * a.gain[k];
}

// q[k] = round(y * scale); returns the sum of the codes. The restrict matters: stores through int8*
// may alias anything.
template <bool kOuter>
inline std::int32_t quantise_row(const RowNorm row, idx n, float scale, std::int8_t* __restrict q) {
  std::int32_t total = 0;
  for (idx k = 0; k < n; ++k) {
    const std::int32_t code = quantise(normed<kOuter>(row, k) * scale);
    q[k] = static_cast<std::int8_t>(code);
    total += code;
  }
  return total;
}

template <bool kOuter>
inline void forward_row(const RmsnormQuant& a, idx r) {
  const idx n = a.width;
  const idx stride = code_stride(n);
  const float* x = a.x + r * n;
  const float* outer = a.outer;
  float rstd0 = 1.0F;
  if (kOuter) {
    rstd0 = reciprocal_rms(canonical_sum(n, [=](idx k) { return x[k] * x[k]; }), n, a.outer_eps);
    if (a.outer_rstd != nullptr) a.outer_rstd[r] = rstd0;
  }
  const float squares = canonical_sum(n, [=](idx k) {
    const float u = kOuter ? x[k] * rstd0 * outer[k] : x[k];
    return u * u;
  });
  const float rstd1 = reciprocal_rms(squares, n, kInnerEps);
  if (a.inner_rstd != nullptr) a.inner_rstd[r] = rstd1;
  const float poison =
      squares - squares;  // 0; NaN if the row is not finite, which the maximum below would hide
  for (int p = 0; p < a.projections; ++p) {
    const RowNorm row{x, outer, rstd0, a.gain[p], rstd1};
    float largest =
        canonical_max(n, [=](idx k) { return __builtin_fabsf(normed<kOuter>(row, k)); });
    largest = largest > 1e-5F ? largest : 1e-5F;
    std::int8_t* q = a.codes[p].q + r * stride;
    a.codes[p].sum[r] = quantise_row<kOuter>(row, n, 127.0F / largest, q);
    a.codes[p].scale[r] = largest / 127.0F + poison;
    for (idx k = n; k < stride; ++k) q[k] = 0;
  }
}

inline void forward_rows(const RmsnormQuant& a, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    if (a.outer != nullptr) {
      forward_row<true>(a, r);
    } else {
      forward_row<false>(a, r);
    }
  }
}

template <int P, bool kOuter>
inline void backward_row(const RmsnormQuantBackward& a, idx r, float* partial) {
  const idx n = a.width;
  const float* x = a.x + r * n;
  const float* outer = a.outer;
  const float rstd0 = kOuter ? a.outer_rstd[r] : 1.0F;
  const float rstd1 = a.inner_rstd[r];
  const float* dy[P];
  const float* gain[P];
  for (int p = 0; p < P; ++p) {
    dy[p] = a.dy[p] + r * n;
    gain[p] = a.gain[p];
  }
  const auto x0 = [=](idx k) { return kOuter ? x[k] * rstd0 : x[k]; };
  const auto xhat = [&](idx k) { return (kOuter ? x0(k) * outer[k] : x0(k)) * rstd1; };
  const auto g = [&](idx k) {
    float s = dy[0][k] * gain[0][k];
    for (int p = 1; p < P; ++p) s += dy[p][k] * gain[p][k];
    return s;
  };
  const float width = static_cast<float>(n);
  const float c1 = canonical_sum(n, [&](idx k) { return xhat(k) * g(k); }) / width;
  const auto du = [&](idx k) { return (g(k) - xhat(k) * c1) * rstd1; };
  for (int p = 0; p < P; ++p) {
    float* sum = partial + p * n;
#pragma GCC ivdep  // the buffers are apart; with this many, the compiler gives up checking
    for (idx k = 0; k < n; ++k) sum[k] += dy[p][k] * xhat(k);
  }
  float* dx = a.dx + r * n;
  if (!kOuter) {
#pragma GCC ivdep
    for (idx k = 0; k < n; ++k) dx[k] += du(k);
    return;
  }
  const float c0 = canonical_sum(n, [&](idx k) { return x0(k) * (du(k) * outer[k]); }) / width;
  float* sum = partial + P * n;
#pragma GCC ivdep
  for (idx k = 0; k < n; ++k) {
    const float d = du(k);
    sum[k] += d * x0(k);
    dx[k] += (d * outer[k] - x0(k) * c0) * rstd0;
  }
}

template <int P>
inline void backward_rows_of(const RmsnormQuantBackward& a, idx begin, idx end, float* partial) {
  for (idx r = begin; r < end; ++r) {
    if (a.outer != nullptr) {
      backward_row<P, true>(a, r, partial);
    } else {
      backward_row<P, false>(a, r, partial);
    }
  }
}

inline void backward_rows(const RmsnormQuantBackward& a, idx begin, idx end, float* partial) {
  switch (a.projections) {
    case 1:
      return backward_rows_of<1>(a, begin, end, partial);
    case 2:
      return backward_rows_of<2>(a, begin, end, partial);
    default:
      return backward_rows_of<3>(a, begin, end, partial);
  }
}

}  // namespace
}  // namespace mmfree
