#pragma once
// Ternary matrices in GPU memory, as the tensor cores read them: 2 bits a weight, one copy for
// decoding, batches and prefill. A tile holds 16 outputs by 128 inputs in 512 bytes, 16 for each
// lane of a warp:
//
//   lane = 4 g + q, word 2 s + r, byte b, bits 2p .. 2p + 1:  t + 1 of output g + 8 r,
//   input 32 q + 8 p + 4 s + b        (g 0..7, q 0..3, s, r 0..1, b, p 0..3)
//
// So one 16-byte load a lane gives the first operands of four products 16 x 32, one for each p, by
// masking alone, and the codes of the other operand lie in natural order, 32 of them a lane. Tiles
// of one row of tiles follow each other; the rows of tiles of matrices that a stage of the network
// reads together take turns (i, f, g; the halves of the gate projection).
#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

inline constexpr idx kTileOutputs = 16;
inline constexpr idx kTileInputs = 128;
inline constexpr idx kTileBytes = 512;

constexpr idx row_tiles(idx out) {
  return (out + kTileOutputs - 1) / kTileOutputs;
}
constexpr idx input_tiles(idx in) {
  return (in + kTileInputs - 1) / kTileInputs;
}
// Of all tiles of a matrix (out, in).
constexpr idx tile_bytes(idx out, idx in) {
  return row_tiles(out) * input_tiles(in) * kTileBytes;
}

// Byte and shift within a tile of output o (0..15), input k (0..127).
struct TilePlace {
  idx byte;
  int shift;
};
constexpr TilePlace tile_place(idx o, idx k) {
  const idx lane = 4 * (o % 8) + k / 32;
  const idx word = 2 * (k % 8 / 4) + o / 8;
  return {lane * 16 + word * 4 + k % 4, static_cast<int>(2 * (k % 32 / 8))};
}

// One row of tiles: codes (rows <= 16, in) of -1, 0, 1, rows `stride` apart; missing outputs and
// inputs become zero weights. tiles: (input_tiles(in), kTileBytes), overwritten.
void pack_row_of_tiles(const std::int8_t* codes, idx rows, idx in, idx stride, std::uint8_t* tiles);

}  // namespace mmfree::cuda
