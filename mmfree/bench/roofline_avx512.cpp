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

namespace mmfree::avx512 {
const RooflineLoops roofline = {read_loop, read_ahead_loop, int8_loop, f32_loop};
}
