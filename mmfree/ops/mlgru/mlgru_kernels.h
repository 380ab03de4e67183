#pragma once
// Source of all variants. Lanes run over channels, so each channel's chain of operations is the
// same in every variant.
#include "mmfree/core/fastmath.h"
#include "mmfree/ops/mlgru/mlgru.h"

namespace mmfree {
namespace {

inline void forward_channels(const Mlgru& a, idx sequence, idx begin, idx end) {
  const idx base = sequence * a.length * a.width;
  const idx pre_stride = a.pre_stride == 0 ? a.width : a.pre_stride;
  const float* bound = a.lower_bound;
  float* state = a.state == nullptr ? nullptr : a.state + sequence * a.width;
  for (idx t = 0; t < a.length; ++t) {
    const idx row = base + t * a.width;
    const idx pre = (sequence * a.length + t) * pre_stride;
    const float* i_pre = a.i_pre + pre;
    const float* f_pre = a.f_pre + pre;
    float* h = a.h + row;
    const float* before = t > 0 ? h - a.width : state;
    const float keep = a.mask == nullptr || a.mask[sequence * a.length + t] != 0 ? 1.0F : 0.0F;
#pragma GCC ivdep
    for (idx c = begin; c < end; ++c) {
      const float open = sigmoid_f32(f_pre[c]);
      const float f = bound == nullptr ? open : bound[c] + (1.0F - bound[c]) * open;
      const float i = i_pre[c] * sigmoid_f32(i_pre[c]) * (1.0F - f) * keep;
      h[c] = before == nullptr ? i : f * before[c] + i;
    }
  }
  if (state != nullptr && a.length > 0) {
    const float* last = a.h + base + (a.length - 1) * a.width;
    for (idx c = begin; c < end; ++c) state[c] = last[c];
  }
}

// Reverse time: delta_t = dh_t + f_{t+1} delta_{t+1};  di_t = delta_t;  df_t = delta_t h_{t-1} +
// (through i) .
inline void backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                              float* d_bound) {
  constexpr idx kBlock = 64;
  const idx base = sequence * a.length * a.width;
  for (idx c0 = begin; c0 < end; c0 += kBlock) {
    const idx n = end - c0 < kBlock ? end - c0 : kBlock;
    float carry[kBlock] = {};  // f_{t+1} * delta_{t+1}
    float sum[kBlock] = {};    // gradient of the lower bound
    for (idx t = a.length - 1; t >= 0; --t) {
      const idx row = base + t * a.width + c0;
      const float* i_pre = a.i_pre + row;
      const float* f_pre = a.f_pre + row;
      const float* dh = a.dh + row;
      const float* before = t > 0 ? a.h + row - a.width : nullptr;
      float* di_pre = a.di_pre + row;
      float* df_pre = a.df_pre + row;
      const float* bound = a.lower_bound == nullptr ? nullptr : a.lower_bound + c0;
      const float keep = a.mask == nullptr || a.mask[sequence * a.length + t] != 0 ? 1.0F : 0.0F;
#pragma GCC ivdep
      for (idx c = 0; c < n; ++c) {
        const float open = sigmoid_f32(f_pre[c]);
        const float b = bound == nullptr ? 0.0F : bound[c];
        const float f = bound == nullptr ? open : b + (1.0F - b) * open;
        const float s = sigmoid_f32(i_pre[c]);
        const float silu = i_pre[c] * s;
        const float delta = dh[c] + carry[c];
        const float di = delta * keep;
        const float df = delta * (before == nullptr ? 0.0F : before[c]) - di * silu;
        di_pre[c] = di * (1.0F - f) * (s + silu * (1.0F - s));
        df_pre[c] = df * (1.0F - b) * open * (1.0F - open);
        sum[c] += df * (1.0F - open);
        carry[c] = f * delta;
      }
    }
    if (d_bound != nullptr)
      for (idx c = 0; c < n; ++c) d_bound[c0 + c] = sum[c];
  }
}

}  // namespace
}  // namespace mmfree
