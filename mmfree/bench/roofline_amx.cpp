#include <immintrin.h>

#define MMFREE_REG(v) "+v"(v)
namespace {
struct Simd {
  using Int = __m512i;
  using Float = __m512;
  static Int dot(Int sum, Int w, Int x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static Float fma(Float sum, Float w, Float x) { return _mm512_fmadd_ps(w, x, sum); }
};
}  // namespace

#include "mmfree/bench/roofline_kernels.h"

namespace mmfree {
namespace {

struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four independent sums hide the latency of the one unit.
double tile_loop(idx rounds) noexcept {
  const TileShapes shapes;
  asm volatile("ldtilecfg %0" ::"m"(shapes));
  for (idx i = 0; i < rounds; ++i)
    asm volatile(
        "tdpbsud %tmm6, %tmm4, %tmm0\n\t"
        "tdpbsud %tmm7, %tmm4, %tmm1\n\t"
        "tdpbsud %tmm6, %tmm5, %tmm2\n\t"
        "tdpbsud %tmm7, %tmm5, %tmm3");
  asm volatile("tilerelease");
  return 4 * 2.0 * 16 * 16 * 64;
}

}  // namespace
}  // namespace mmfree

namespace mmfree::amx {
const RooflineLoops roofline = {read_loop, read_ahead_loop, tile_loop, f32_loop};
}
