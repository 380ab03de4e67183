#pragma once
#include "mmfree/core/fastmath.h"

namespace mmfree {
namespace {

inline void forward_rows(idx width, const float* pq, float* z, idx begin, idx end) {
  for (idx r = begin; r < end; ++r) {
    const float* p = pq + r * 2 * width;
    const float* q = p + width;
    float* out = z + r * width;
#pragma GCC ivdep
    for (idx k = 0; k < width; ++k) out[k] = p[k] * sigmoid_f32(p[k]) * q[k];
  }
}

inline void backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) {
  for (idx r = begin; r < end; ++r) {
    const float* p = pq + r * 2 * width;
    const float* d = dz + r * width;
    float* dp = dpq + r * 2 * width;
#pragma GCC ivdep  // in place or apart: an element meets only itself
    for (idx k = 0; k < width; ++k) {
      const float x = p[k];
      const float gate = p[width + k];
      const float s = sigmoid_f32(x);
      const float silu = x * s;
      dp[k] = d[k] * gate * (s + silu * (1.0F - s));
      dp[width + k] = d[k] * silu;
    }
  }
}

}  // namespace
}  // namespace mmfree
