#pragma once
// BitLinear's product from tiles (ternary/tiles.h), for inference: one token, a few, or many.
//
//   y[r, j] = float(sum_k q[r, k] * t[o, k]) * x_scale[r] * w_scale,   o = 64 * block + j
//
// The integers are exact, the two scalings are done one after the other in this order: the same
// bits as ops/bitlinear for every variant. Single-threaded; the caller deals blocks to threads and
// does at once what follows the product (gates, residual), while the 64 outputs are in the cache.
#include <cstdint>

#include "mmfree/core/types.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"
#include "mmfree/ternary/tiles.h"

namespace mmfree {

struct TileProduct {
  const TileMatrix* w;
  idx block;
  idx rows;  // R
  CodeRows x;
  float* y;  // (R, 64), rows y_stride apart; outputs past O are written too (sums of zeros)
  idx y_stride;
  bool add;               // y += the product (a residual) instead of y = the product
  std::uint8_t* scratch;  // tile_scratch_bytes(K), 64-byte aligned
  // The caller reads on from `end` at `next`: weights that a kernel asks for ahead of their use
  // come from there, so that the memory does not pause between two matrices. Null: nothing is
  // known.
  const std::uint8_t* end = nullptr;
  const std::uint8_t* next = nullptr;
  // Bytes beyond kTileAhead that the caller has asked for already: kernels go on behind them.
  idx lead = 0;
};
// How far ahead of their use kernels ask for weights.
inline constexpr idx kTileAhead = 20480;

// Bytes of unpacked codes of one block.
constexpr idx tile_scratch_bytes(idx in) {
  return (in + 19) / 20 * 20 * kBlockOutputs + 4 * kBlockOutputs * 4;
}

using TileProductFn = void (*)(const TileProduct& a) noexcept;
// The variant for this machine (core/cpu.h).
TileProductFn tile_product();

}  // namespace mmfree
