#include <immintrin.h>

namespace {
// Pairs sum to at most 2 * 2 * 128 = 512: the saturating 16-bit step is exact.
inline __m256i dot(__m256i sum, __m256i w, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(w, x);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
}  // namespace

#include "mmfree/ops/tile_product/tile_product_avx2.h"
#include "mmfree/ops/tile_product/tile_product_variants.h"

void mmfree::avx2::tile_product(const TileProduct& a) noexcept {
  tile_product_block(a);
}
