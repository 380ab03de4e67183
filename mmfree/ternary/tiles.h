#pragma once
// Ternary matrices as the inference kernels read them: made at load from rows of codes, never
// stored in files.
//
// A block holds 64 outputs; blocks follow each other at a fixed stride. Within a block one step
// covers 4 P inputs (P digits a byte) in 256 contiguous bytes, one stream for the whole block:
//
//   block  = (steps, 4 groups, 16 outputs, 4 bytes)
//   byte b of output o in step s holds the inputs  s * 4P + 4p + b,  p = 0 .. P-1
//
//   two_bit, P = 4 (2 bits a weight):    byte = sum over p of (t + 1) << 2p
//   base3,   P = 5 (1.6 bits a weight):  byte = sum over p of (t + 1) * 3^p
//
// So the four bytes of a 32-bit lane are four neighbouring inputs of one output in each digit
// plane: one broadcast of four activation codes meets 16 outputs, and no lane is ever summed with
// another. Outputs and inputs past the end hold t = 0; activations there are zero (code_stride).
#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree {

enum class TileFormat { two_bit, base3 };

inline constexpr idx kBlockOutputs = 64;
inline constexpr idx kStepBytes = 256;

// Sums of planes are kept scaled by up to 64 in 32 bits: 64 * 2 * 128 * K < 2^31.
inline constexpr idx kMaxTileInputs = 65536;

constexpr const char* tile_format_name(TileFormat f) {
  return f == TileFormat::base3 ? "base3" : "two_bit";
}
constexpr idx tile_digits(TileFormat f) {
  return f == TileFormat::base3 ? 5 : 4;
}
constexpr idx tile_steps(TileFormat f, idx in) {
  return (in + 4 * tile_digits(f) - 1) / (4 * tile_digits(f));
}
constexpr idx tile_block_bytes(TileFormat f, idx in) {
  return tile_steps(f, in) * kStepBytes;
}
constexpr idx tile_blocks(idx out) {
  return (out + kBlockOutputs - 1) / kBlockOutputs;
}

// A matrix (O, K) whose block b starts at blocks + b * block_stride.
struct TileMatrix {
  idx out = 0;  // O
  idx in = 0;   // K
  TileFormat format = TileFormat::two_bit;
  float scale = 0;
  const std::uint8_t* blocks = nullptr;
  idx block_stride = 0;  // bytes
};

// Writes one output of a block: `codes` (K) of -1, 0, 1 into lane 0..63. Every byte of the lane is
// written.
void pack_tile_lane(TileFormat f, const std::int8_t* codes, idx in, idx lane, std::uint8_t* block);

// The code of output `o`, input `k`.
std::int8_t tile_code(const TileMatrix& w, idx o, idx k);

}  // namespace mmfree
