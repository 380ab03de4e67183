#include <arm_neon.h>

#define MMFREE_REG(v) "+w"(v)
namespace {
struct Simd {
  using Int = int32x4_t;
  using Float = float32x4_t;
  static Int dot(Int sum, Int w, Int x) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
  }
  static Float fma(Float sum, Float w, Float x) { return vfmaq_f32(sum, w, x); }
};
}  // namespace

#include "mmfree/bench/roofline_kernels.h"

namespace mmfree::neon {
const RooflineLoops roofline = {read_loop, read_ahead_loop, int8_loop, f32_loop};
}
