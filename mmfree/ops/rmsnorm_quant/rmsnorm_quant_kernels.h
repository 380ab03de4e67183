#pragma once
// Source of all variants: plain loops over rows, compiled once per instruction set. Values are
// recomputed from x in each pass over a row instead of being stored: the row is in the first-level
// cache and multiplications are free there. One pass finds the maxima of all projections.
#include "mmfree/core/fastmath.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree {
namespace {

// round(v), halves away from zero, for |v| <= 127 and a rounding error: the scale makes sure of
// that, so there is nothing to clamp (a clamp would only be jumped around and keep the loop from
// vectorising). Adding the largest float below a half and cutting is exact there; a half itself
// would round the float before 0.5 up. A row that is not finite gets codes without meaning and a
// scale that is not finite either, which makes its outputs NaN.
inline std::int32_t quantise(float v) {
  constexpr std::uint32_t kBelowHalf = 0x3effffff;
  const std::uint32_t sign = __builtin_bit_cast(std::uint32_t, v) & 0x80000000U;
  return static_cast<std::int32_t>(v + __builtin_bit_cast(float, kBelowHalf | sign));
}

// u * rstd1 of one row, what all projections share: x * rstd0 * outer * rstd1 (no outer norm:
// x * rstd1).
template <bool kOuter>
struct RowNorm {
  const float* x;
  const float* outer;
  float rstd0;
  float rstd1;
  float operator()(idx k) const { return (kOuter ? x[k] * rstd0 * outer[k] : x[k]) * rstd1; }
};

// largest[p] = max |row(k) * gain[p][k]|, compared as integers: floats of one sign are ordered like
// their bits.
template <int P, class Row>
inline void row_maxima(const Row row, idx n, const float* const* gain, float* largest) {
  const float* g[P];
  std::int32_t top[P] = {};
  for (int p = 0; p < P; ++p) g[p] = gain[p];
  for (idx k = 0; k < n; ++k) {
    const float v = row(k);
    for (int p = 0; p < P; ++p) {
      const std::int32_t bits = __builtin_bit_cast(std::int32_t, v * g[p][k]) & 0x7fffffff;
      top[p] = bits > top[p] ? bits : top[p];
    }
  }
  for (int p = 0; p < P; ++p) largest[p] = __builtin_bit_cast(float, top[p]);
}

// q[k] = round(row(k) * gain[k] * scale); returns the sum of the codes. The restrict matters:
// stores through int8* may alias anything.
template <class Row>
inline std::int32_t quantise_row(const Row row, idx n, const float* gain, float scale,
                                 std::int8_t* __restrict q) {
  std::int32_t total = 0;
  for (idx k = 0; k < n; ++k) {
    const std::int32_t code = quantise(row(k) * gain[k] * scale);
    q[k] = static_cast<std::int8_t>(code);
    total += code;
  }
  return total;
}

template <int P, bool kOuter>
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
  // sum u^2 = rstd0^2 sum (x outer)^2, which need not wait for rstd0.
  float squares = canonical_sum(n, [=](idx k) {
    const float v = kOuter ? x[k] * outer[k] : x[k];
    return v * v;
  });
  if (kOuter) squares = squares * rstd0 * rstd0;
  const float rstd1 = reciprocal_rms(squares, n, kInnerEps);
  if (a.inner_rstd != nullptr) a.inner_rstd[r] = rstd1;
  const float poison =
      squares - squares;  // 0; NaN if the row is not finite, which the maximum below would hide
  const RowNorm<kOuter> row{x, outer, rstd0, rstd1};
  float largest[P];
  row_maxima<P>(row, n, a.gain, largest);
  for (int p = 0; p < P; ++p) {
    const float top = largest[p] > 1e-5F ? largest[p] : 1e-5F;
    std::int8_t* q = a.codes[p].q + r * stride;
    a.codes[p].sum[r] = quantise_row(row, n, a.gain[p], 127.0F / top, q);
    a.codes[p].scale[r] = top / 127.0F + poison;
    for (idx k = n; k < stride; ++k) q[k] = 0;
  }
}

template <int P>
inline void forward_rows_of(const RmsnormQuant& a, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    if (a.outer != nullptr) {
      forward_row<P, true>(a, r);
    } else {
      forward_row<P, false>(a, r);
    }
  }
}

inline void forward_rows(const RmsnormQuant& a, idx begin, idx end) {
  switch (a.projections) {
    case 1:
      return forward_rows_of<1>(a, begin, end);
    case 2:
      return forward_rows_of<2>(a, begin, end);
    default:
      return forward_rows_of<3>(a, begin, end);
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
