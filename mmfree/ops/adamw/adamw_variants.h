#pragma once
// Internal: the loop of one AdamW step for each instruction set.
#include <cstdint>

#include "mmfree/core/cpu.h"

namespace mmfree {

// Everything that depends on the step alone, rounded to float once.
struct AdamWArgs {
  float grad_scale;
  float keep;  // 1 - lr * decay
  float beta1, one_less_beta1;
  float beta2, one_less_beta2;
  float root_correction;  // sqrt(1 - beta2^t)
  float eps;
  float step_size;  // lr / (1 - beta1^t)
  const float* g;   // (n)
  float* w;         // (n)
  float* m;         // (n)
  float* v;         // (n)
};

using AdamWFn = void (*)(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept;

namespace scalar {
void adamw(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept;
}
#if defined(__x86_64__)
namespace avx2 {
void adamw(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept;
}
namespace avx512 {
void adamw(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept;
}
#endif

inline constexpr Variant<AdamWFn> adamw_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::adamw},
    {Isa::avx2, avx2::adamw},
#endif
    {Isa::scalar, scalar::adamw},
};

}  // namespace mmfree
