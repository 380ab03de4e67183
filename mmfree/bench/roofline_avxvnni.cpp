#include <immintrin.h>

#define MMFREE_REG(v) "+x"(v)
namespace {
struct Simd {
  using Int = __m256i;
  using Float = __m256;
  static Int dot(Int sum, Int w, Int x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
  static Float fma(Float sum, Float w, Float x) { return _mm256_fmadd_ps(w, x, sum); }
};
}  // namespace

#include "mmfree/bench/roofline_kernels.h"

namespace mmfree::avxvnni {
const RooflineLoops roofline = {read_loop, read_ahead_loop, int8_loop, f32_loop};
}
