#pragma once
// Source of all variants: plain loops over rows, compiled once per instruction set. Values are recomputed from x in each
// pass over a row instead of being stored: the row is in the first-level cache and multiplications are free there.
#include "mmfree/core/fastmath.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree {
namespace {

inline std::int32_t quantise(float v) {
  // Clamping first gives the same code as clamping last, and keeps the conversion defined for any input.
  v = v <= 127.0F ? v : 127.0F;
  v = v >= -128.0F ? v : -128.0F;
  const auto n = static_cast<std::int32_t>(v);
  const float rest = v - static_cast<float>(n);
  return n + (rest >= 0.5F ? 1 : 0) - (rest <= -0.5F ? 1 : 0);
}

template <class U>
inline void quantise_projections(const RmsnormQuant& a, idx r, const U& u) {
  const float sum = canonical_sum(a.width, [&](idx k) { return u(k) * u(k); });
  const float rstd = reciprocal_rms(sum, a.width, kInnerEps);
  if (a.inner_rstd != nullptr) a.inner_rstd[r] = rstd;
  const idx stride = code_stride(a.width);
  for (int p = 0; p < a.projections; ++p) {
    const float* gain = a.gain[p];
    const auto y = [&](idx k) { return u(k) * rstd * gain[k]; };
    float largest = canonical_max(a.width, 0.0F, [&](idx k) {
      const float v = y(k);
      return v < 0 ? -v : v;
    });
    largest = largest > 1e-5F ? largest : 1e-5F;
    const float scale = 127.0F / largest;
    std::int8_t* q = a.codes[p].q + r * stride;
    std::int32_t total = 0;
    for (idx k = 0; k < a.width; ++k) {
      const std::int32_t code = quantise(y(k) * scale);
      q[k] = static_cast<std::int8_t>(code);
      total += code;
    }
    for (idx k = a.width; k < stride; ++k) q[k] = 0;
    a.codes[p].scale[r] = largest / 127.0F;
    a.codes[p].sum[r] = total;
  }
}

inline void forward_rows(const RmsnormQuant& a, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    const float* x = a.x + r * a.width;
    if (a.outer == nullptr) {
      quantise_projections(a, r, [x](idx k) { return x[k]; });
      continue;
    }
    const float sum = canonical_sum(a.width, [&](idx k) { return x[k] * x[k]; });
    const float rstd = reciprocal_rms(sum, a.width, a.outer_eps);
    if (a.outer_rstd != nullptr) a.outer_rstd[r] = rstd;
    const float* outer = a.outer;
    quantise_projections(a, r, [=](idx k) { return x[k] * rstd * outer[k]; });
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
    for (idx k = 0; k < n; ++k) sum[k] += dy[p][k] * xhat(k);
  }
  float* dx = a.dx + r * n;
  if (!kOuter) {
    for (idx k = 0; k < n; ++k) dx[k] += du(k);
    return;
  }
  const float c0 = canonical_sum(n, [&](idx k) { return x0(k) * (du(k) * outer[k]); }) / width;
  float* sum = partial + P * n;
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
    case 1: return backward_rows_of<1>(a, begin, end, partial);
    case 2: return backward_rows_of<2>(a, begin, end, partial);
    default: return backward_rows_of<3>(a, begin, end, partial);
  }
}

}  // namespace
}  // namespace mmfree
