#include "mmfree/ops/tile_product/tile_product_avx512.h"

#include "mmfree/ops/tile_product/tile_product_variants.h"

void mmfree::avx512::tile_product(const TileProduct& a) noexcept {
  tile_product_block(a);
}
