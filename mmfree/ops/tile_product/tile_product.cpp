#include "mmfree/ops/tile_product/tile_product.h"

#include <unistd.h>

#include "mmfree/ops/tile_product/tile_product_variants.h"

namespace mmfree {
namespace {

// The last-level cache; 0 where the system does not tell.
idx cache_bytes() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return bytes > 0 ? bytes : 0;
#else
  return 0;
#endif
}

}  // namespace

TileProductFn tile_product() {
  return pick(tile_product_variants, active_isa());
}

TileFormat preferred_tile_format(idx two_bit_bytes) {
  // Without 512-bit vectors unpacking base 3 takes longer than reading 2 bits from memory. With
  // them it is as fast as memory, so it pays as soon as weights come from there: beyond half of the
  // last cache, which others use too.
  if (active_isa() < Isa::avx512) return TileFormat::two_bit;
  return two_bit_bytes <= cache_bytes() / 2 ? TileFormat::two_bit : TileFormat::base3;
}

}  // namespace mmfree
