#pragma once
// BitLinear's product: int8 activations times ternary weights, exact in int32, and its two backward
// products.
//
//   y[r, o] = float(sum_k q[r, k] * t[o, k]) * x_scale[r] * w_scale (+ residual[r, o])
//   dx[r, k] = sum_o dy[r, o] * w_scale * t[o, k]              gradient at the quantised
//   activations dw[o, k] += sum_r dy[r, o] * (x_scale[r] * q[r, k])        straight through to the
//   latent weight
//
// |sum| <= 127 * K < 2^31 for K <= 2^24. The two scalings are done one after the other, in this
// order. Backward sums are float32, fused multiply-adds in ascending order within blocks of
// kGradBlock terms, blocks added in ascending order: the same bits for every variant and thread
// count. Paper section 3.2; spec 2.1, 2.2, 2.4.
#include <cstdint>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"
#include "mmfree/ternary/formats.h"

namespace mmfree {

inline constexpr idx kGradBlock = 256;

// Ternary weights as training and prefill use them: the codes row by row, and the same codes in
// tiles of 16 outputs x 4 inputs that one vector instruction consumes. Tile bytes hold t + 1 (0, 1,
// 2).
struct TernaryWeights {
  idx out = 0;                 // O
  idx in = 0;                  // K
  float scale = 0;             // max(mean|W|, 1e-5)
  Buffer<std::int8_t> codes;   // (O, K)
  Buffer<std::uint8_t> tiles;  // (ceil(O/16), ceil(K/4), 16, 4)
};

// Quantises latent weights (O, K): scale = max(mean|W|, 1e-5), t = clamp(round(W / scale), -1, 1),
// halves to even.
void ternarize(const Ctx& ctx, const float* w, idx out, idx in, TernaryWeights& result);
void make_tiles(const Ctx& ctx, const std::int8_t* codes, idx out, idx in, std::uint8_t* tiles);
constexpr idx tile_bytes(idx out, idx in) {
  return (out + 15) / 16 * 16 * ((in + 3) / 4 * 4);
}

// y (R, O), contiguous; residual (R, O) or null, may be y itself.
void bitlinear(const Ctx& ctx, idx rows, const CodeRows& x, const TernaryWeights& w,
               const float* residual, float* y);

// The same numbers, bit for bit, from packed rows in a file's format (ternary/formats.h).
struct PackedMatrix {
  idx out = 0;  // O
  idx in = 0;   // K
  TernaryFormat format = TernaryFormat::i8;
  float scale = 0;                  // the exact scale, not the blocks' fp16
  const std::byte* rows = nullptr;  // (O, ternary_row_bytes(format, K))
};
void bitlinear_packed(const Ctx& ctx, idx rows, const CodeRows& x, const PackedMatrix& w,
                      const float* residual, float* y);

// dx (R, K) is overwritten; dy (R, O).
void bitlinear_backward_input(const Ctx& ctx, idx rows, const float* dy, const TernaryWeights& w,
                              float* dx);
// dw (O, K) is accumulated.
void bitlinear_backward_weight(const Ctx& ctx, idx rows, const float* dy, idx out,
                               const CodeRows& x, idx in, float* dw);

}  // namespace mmfree
