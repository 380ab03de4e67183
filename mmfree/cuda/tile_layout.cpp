#include "mmfree/cuda/tile_layout.h"

#include <algorithm>
#include <cstring>

namespace mmfree::cuda {

void pack_row_of_tiles(const std::int8_t* codes, idx rows, idx in, idx stride,
                       std::uint8_t* tiles) {
  constexpr int kZeros = 0x55;  // t + 1 = 1 in all four places
  std::memset(tiles, kZeros, static_cast<std::size_t>(input_tiles(in) * kTileBytes));
  for (idx o = 0; o < rows; ++o)
    for (idx k = 0; k < in; ++k) {
      const TilePlace at = tile_place(o, k % kTileInputs);
      // 1 -> t + 1: flips 01 to 00 or 10.
      const int t = codes[o * stride + k];
      const int flip = t == 0 ? 0 : t > 0 ? 3 : 1;
      std::uint8_t& byte = tiles[k / kTileInputs * kTileBytes + at.byte];
      byte = static_cast<std::uint8_t>(byte ^ flip << at.shift);
    }
}

}  // namespace mmfree::cuda
