#pragma once
// The token mixer's recurrence (MLGRU), element-wise over channels, sequential over time.
//
//   f = sigmoid(f_pre);  with a lower bound b: f = b + (1 - b) * f
//   i = silu(i_pre) * (1 - f) * mask
//   h_t = f_t * h_{t-1} + i_t
//
// Paper section 3.3.1; the lower bound is the reference's (spec 1.1). fp32 throughout.
#include <cstdint>

#include "mmfree/core/parallel.h"

namespace mmfree {

struct Mlgru {
  idx batch;                 // B
  idx length;                // T
  idx width;                 // M
  const float* i_pre;        // (B, T, M)
  const float* f_pre;        // (B, T, M)
  const float* lower_bound;  // (M) or null
  const std::uint8_t* mask;  // (B, T), 0 or 1, or null: all ones
  float* state;  // (B, M) h before the first token, overwritten with h after the last; null: starts
                 // at zero
  float* h;      // (B, T, M)
  idx pre_stride = 0;  // elements between rows of i_pre and of f_pre; 0: M
};
void mlgru(const Ctx& ctx, const Mlgru& a);

// State starts at zero (training). d_lower_bound is accumulated, the others are overwritten.
struct MlgruBackward {
  idx batch, length, width;
  const float* i_pre;        // (B, T, M)
  const float* f_pre;        // (B, T, M)
  const float* lower_bound;  // (M) or null
  const std::uint8_t* mask;  // (B, T) or null
  const float* h;            // (B, T, M) from the forward
  const float* dh;           // (B, T, M) gradient at h
  float* di_pre;             // (B, T, M)
  float* df_pre;             // (B, T, M)
  float* d_lower_bound;      // (M) or null
};
void mlgru_backward(const Ctx& ctx, const MlgruBackward& a);

}  // namespace mmfree
