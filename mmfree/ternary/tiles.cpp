#include "mmfree/ternary/tiles.h"

#include <cstring>

namespace mmfree {
namespace {

// Four codes at once, as bytes 0, 1, 2: no carry leaves a byte because its top bit is handled
// apart.
std::uint32_t four_digits(const std::int8_t* codes) {
  std::uint32_t v;
  std::memcpy(&v, codes, sizeof v);
  return ((v & 0x7f7f7f7fU) + 0x01010101U) ^ (v & 0x80808080U);
}

// Digit planes of one step to the four bytes of a lane, all bytes at once: they never exceed 242.
std::uint32_t combine(TileFormat f, const std::int8_t* codes) {
  if (f == TileFormat::two_bit)
    return four_digits(codes) | four_digits(codes + 4) << 2 | four_digits(codes + 8) << 4 |
           four_digits(codes + 12) << 6;
  std::uint32_t v = four_digits(codes + 16);
  for (int p = 3; p >= 0; --p) v = v * 3 + four_digits(codes + 4 * p);
  return v;
}

}  // namespace

void pack_tile_lane(TileFormat f, const std::int8_t* codes, idx in, idx lane, std::uint8_t* block) {
  const idx step = 4 * tile_digits(f);
  std::uint8_t* to = block + lane * 4;
  idx k = 0;
  for (; k + step <= in; k += step, to += kStepBytes) {
    const std::uint32_t v = combine(f, codes + k);
    std::memcpy(to, &v, sizeof v);
  }
  if (k == in) return;
  std::int8_t tail[20] = {};
  std::memcpy(tail, codes + k, static_cast<std::size_t>(in - k));
  const std::uint32_t v = combine(f, tail);
  std::memcpy(to, &v, sizeof v);
}

std::int8_t tile_code(const TileMatrix& w, idx o, idx k) {
  const idx digits = tile_digits(w.format);
  const idx step = k / (4 * digits);
  const idx plane = k % (4 * digits) / 4;
  int byte = w.blocks[o / kBlockOutputs * w.block_stride + step * kStepBytes +
                      o % kBlockOutputs * 4 + k % 4];
  if (w.format == TileFormat::two_bit) return static_cast<std::int8_t>((byte >> 2 * plane & 3) - 1);
  for (idx p = 0; p < plane; ++p) byte /= 3;
  return static_cast<std::int8_t>(byte % 3 - 1);
}

}  // namespace mmfree
