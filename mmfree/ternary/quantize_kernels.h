#pragma once
#include "mmfree/core/types.h"

namespace mmfree {
namespace {

inline double sum_magnitudes(const float* w, idx n) {
  constexpr idx kLanes = 16;
  double acc[kLanes] = {};
  const idx whole = n / kLanes * kLanes;
  for (idx k = 0; k < whole; k += kLanes)
    for (idx l = 0; l < kLanes; ++l) acc[l] += static_cast<double>(__builtin_fabsf(w[k + l]));
  for (idx k = whole; k < n; ++k) acc[k - whole] += static_cast<double>(__builtin_fabsf(w[k]));
  for (idx half = kLanes / 2; half > 0; half /= 2)
    for (idx l = 0; l < half; ++l) acc[l] += acc[l + half];
  return acc[0];
}

inline void round_to_codes(const float* w, idx n, float inverse, std::int8_t* codes) {
  for (idx k = 0; k < n; ++k) {
    const float v = w[k] * inverse;
    // Rounding half to even leaves zero up to and including a half; all beyond is clamped to one.
    codes[k] = static_cast<std::int8_t>((v > 0.5F ? 1 : 0) - (v < -0.5F ? 1 : 0));
  }
}

}  // namespace
}  // namespace mmfree
