// The definition, digit by digit: the oracle of the other variants, and what runs elsewhere.
#include "mmfree/ops/tile_product/tile_product_variants.h"

namespace mmfree::scalar {

void tile_product(const TileProduct& a) noexcept {
  const TileMatrix& w = *a.w;
  const bool base3 = w.format == TileFormat::base3;
  const idx digits = tile_digits(w.format);
  const idx steps = tile_steps(w.format, w.in);
  const idx stride = code_stride(w.in);
  const std::uint8_t* block = w.blocks + a.block * w.block_stride;
  // (inputs, 64) codes t + 1
  for (idx s = 0; s < steps; ++s)
    for (idx lane = 0; lane < kBlockOutputs; ++lane)
      for (idx b = 0; b < 4; ++b) {
        unsigned v = block[s * kStepBytes + lane * 4 + b];
        for (idx p = 0; p < digits; ++p) {
          a.scratch[(s * 4 * digits + 4 * p + b) * kBlockOutputs + lane] =
              static_cast<std::uint8_t>(base3 ? v % 3 : v & 3U);
          v = base3 ? v / 3 : v >> 2;
        }
      }
  for (idx r = 0; r < a.rows; ++r) {
    std::int32_t sums[kBlockOutputs] = {};
    for (idx k = 0; k < w.in; ++k) {
      const std::int32_t q = a.x.q[r * stride + k];
      const std::uint8_t* t = a.scratch + k * kBlockOutputs;
      for (idx lane = 0; lane < kBlockOutputs; ++lane) sums[lane] += q * t[lane];
    }
    float* y = a.y + r * a.y_stride;
    for (idx lane = 0; lane < kBlockOutputs; ++lane) {
      const float v = static_cast<float>(sums[lane] - a.x.sum[r]) * a.x.scale[r] * w.scale;
      y[lane] = a.add ? y[lane] + v : v;
    }
  }
}

}  // namespace mmfree::scalar
