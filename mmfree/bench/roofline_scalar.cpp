#if defined(__x86_64__)
#define MMFREE_REG(v) "+x"(v)
#elif defined(__aarch64__)
#define MMFREE_REG(v) "+w"(v)
#else
#define MMFREE_REG(v) "+m"(v)
#endif

namespace {
// Vectors of the compiler, 16 bytes: what the build's baseline has.
struct Simd {
  using Int = long long __attribute__((vector_size(16), may_alias));
  using Bytes = signed char __attribute__((vector_size(16)));
  using Float = float __attribute__((vector_size(16)));
  static Int dot(Int sum, Int w, Int x) {
    return sum + reinterpret_cast<Int>(reinterpret_cast<Bytes>(w) * reinterpret_cast<Bytes>(x));
  }
  static Float fma(Float sum, Float w, Float x) { return sum + w * x; }
};
}  // namespace

#include "mmfree/bench/roofline_kernels.h"

namespace mmfree::scalar {
const RooflineLoops roofline = {read_loop, read_ahead_loop, int8_loop, f32_loop};
}
