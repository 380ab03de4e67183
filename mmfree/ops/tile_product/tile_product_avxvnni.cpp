#include <immintrin.h>

namespace {
inline __m256i dot(__m256i sum, __m256i w, __m256i x) {
  return _mm256_dpbusd_avx_epi32(sum, w, x);
}
}  // namespace

#include "mmfree/ops/tile_product/tile_product_avx2.h"
#include "mmfree/ops/tile_product/tile_product_variants.h"

void mmfree::avxvnni::tile_product(const TileProduct& a) noexcept {
  tile_product_block(a);
}
