#pragma once
// Internal: the variants of the roofline's loops, best first.
#include <cstdint>

#include "mmfree/core/cpu.h"
#include "mmfree/core/types.h"

namespace mmfree {

struct RooflineLoops {
  // All of `bytes`, a multiple of 256: plain loads, and with prefetches.
  std::uint64_t (*read)(const std::uint8_t* p, idx bytes) noexcept;
  std::uint64_t (*read_ahead)(const std::uint8_t* p, idx bytes) noexcept;
  // The given number of rounds of independent operations; each returns the operations of a round.
  double (*int8)(idx rounds) noexcept;
  double (*f32)(idx rounds) noexcept;
};

namespace scalar {
extern const RooflineLoops roofline;
}
namespace neon {
extern const RooflineLoops roofline;
}
namespace avx2 {
extern const RooflineLoops roofline;
}
namespace avxvnni {
extern const RooflineLoops roofline;
}
namespace avx512 {
extern const RooflineLoops roofline;
}
namespace amx {
extern const RooflineLoops roofline;
}

inline constexpr Variant<const RooflineLoops*> roofline_variants[] = {
#if defined(__x86_64__)
    {Isa::amx, &amx::roofline},
    {Isa::avx512, &avx512::roofline},
    {Isa::avxvnni, &avxvnni::roofline},
    {Isa::avx2, &avx2::roofline},
#elif defined(__aarch64__)
    {Isa::neon, &neon::roofline},
#endif
    {Isa::scalar, &scalar::roofline}};

}  // namespace mmfree
