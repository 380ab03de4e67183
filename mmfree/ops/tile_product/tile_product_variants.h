#pragma once
// Internal: the variants of tile_product, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {

namespace scalar {
void tile_product(const TileProduct& a) noexcept;
}
namespace neon {
void tile_product(const TileProduct& a) noexcept;
}
namespace avx2 {
void tile_product(const TileProduct& a) noexcept;
}
namespace avxvnni {
void tile_product(const TileProduct& a) noexcept;
}
namespace avx512 {
void tile_product(const TileProduct& a) noexcept;
}
namespace avx512vbmi {
void tile_product(const TileProduct& a) noexcept;
}
namespace amx {
void tile_product(const TileProduct& a) noexcept;
}

inline constexpr Variant<TileProductFn> tile_product_variants[] = {
#if defined(__x86_64__)
    {Isa::amx, amx::tile_product},       {Isa::avx512vbmi, avx512vbmi::tile_product},
    {Isa::avx512, avx512::tile_product}, {Isa::avxvnni, avxvnni::tile_product},
    {Isa::avx2, avx2::tile_product},
#elif defined(__aarch64__)
    {Isa::neon, neon::tile_product},
#endif
    {Isa::scalar, scalar::tile_product}};

}  // namespace mmfree
