// The plain reference: what every other variant must equal bit for bit.
#include <math.h>

#include "mmfree/ops/bitlinear/bitlinear_variants.h"

namespace mmfree::scalar {
namespace {
constexpr idx kBlock = 256;  // kGradBlock: terms summed before they are added to the result
}

void bitlinear_tiles(const BitlinearArgs& a, idx row_begin, idx row_end, idx tile_begin,
                     idx tile_end) noexcept {
  const idx tile_size = a.groups * kTileOutputs * kTileInputs;
  for (idx r = row_begin; r < row_end; ++r) {
    const std::int8_t* q = a.q + r * a.q_stride;
    for (idx o = tile_begin * kTileOutputs; o < tile_end * kTileOutputs && o < a.out; ++o) {
      const std::uint8_t* tile = a.tiles + (o / kTileOutputs - a.first_tile) * tile_size;
      const idx lane = o % kTileOutputs * kTileInputs;
      std::int32_t sum = 0;
      for (idx g = 0; g < a.groups; ++g) {
        const std::uint8_t* t = tile + g * kTileOutputs * kTileInputs + lane;
        for (idx j = 0; j < kTileInputs; ++j) sum += int{t[j]} * int{q[g * kTileInputs + j]};
      }
      const float y = static_cast<float>(sum - a.x_sum[r]) * a.x_scale[r] * a.w_scale;
      const idx at = r * a.out + o;
      a.y[at] = a.residual == nullptr ? y : a.residual[at] + y;
    }
  }
}

void grad_gemm(const GradGemmArgs& a, idx m_begin, idx m_end, float* /*scratch*/) noexcept {
  for (idx m = m_begin; m < m_end; ++m) {
    for (idx n = 0; n < a.n; ++n) {
      float total = a.accumulate ? a.c[m * a.n + n] : 0.0F;
      for (idx s0 = 0; s0 < a.s; s0 += kBlock) {
        float sum = 0;
        for (idx s = s0; s < a.s && s < s0 + kBlock; ++s) {
          const float factor = a.s_scale == nullptr ? a.factor : a.factor * a.s_scale[s];
          const float left = a.a[m * a.a_row + s * a.a_col] * factor;
          sum = fmaf(left, static_cast<float>(a.b[s * a.b_stride + n]), sum);
        }
        total = s0 == 0 && !a.accumulate ? sum : total + sum;
      }
      a.c[m * a.n + n] = total;
    }
  }
}

}  // namespace mmfree::scalar
