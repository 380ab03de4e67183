#pragma once
#include "mmfree/core/fastmath.h"

namespace mmfree {
namespace {

inline void forward_rows(idx width, const float* x, const float* gain, float eps, float* y,
                         idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    const float* row = x + r * width;
    const float sum = canonical_sum(width, [&](idx k) { return row[k] * row[k]; });
    const float rstd = reciprocal_rms(sum, width, eps);
    for (idx k = 0; k < width; ++k) y[r * width + k] = row[k] * rstd * gain[k];
  }
}

}  // namespace
}  // namespace mmfree
