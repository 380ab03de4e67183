#include <immintrin.h>

#define MMFREE_REG(v) "+x"(v)
namespace {
struct Simd {
  using Int = __m256i;
  using Float = __m256;
  static Int dot(Int sum, Int w, Int x) {
    const __m256i pairs = _mm256_maddubs_epi16(w, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static Float fma(Float sum, Float w, Float x) { return _mm256_fmadd_ps(w, x, sum); }
};
}  // namespace

#include "mmfree/bench/roofline_kernels.h"

namespace mmfree::avx2 {
const RooflineLoops roofline = {read_loop, read_ahead_loop, int8_loop, f32_loop};
}
