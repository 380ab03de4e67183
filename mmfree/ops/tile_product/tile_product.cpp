#include "mmfree/ops/tile_product/tile_product.h"

#include "mmfree/ops/tile_product/tile_product_variants.h"

namespace mmfree {
TileProductFn tile_product() {
  return pick(tile_product_variants, active_isa());
}

}  // namespace mmfree
