#pragma once
// Internal: the variants of the weight quantiser's two passes, best first.
#include "mmfree/core/cpu.h"
#include "mmfree/core/types.h"

namespace mmfree {

// Sum of |w| over n weights, in double: 16 interleaved partial sums, then a fixed tree.
using AbsSumFn = double (*)(const float* w, idx n) noexcept;
// codes[k] = clamp(round(w[k] * inverse), -1, 1).
using TernaryCodesFn = void (*)(const float* w, idx n, float inverse, std::int8_t* codes) noexcept;

namespace scalar {
double abs_sum(const float* w, idx n) noexcept;
void ternary_codes(const float* w, idx n, float inverse, std::int8_t* codes) noexcept;
}  // namespace scalar
namespace avx2 {
double abs_sum(const float* w, idx n) noexcept;
void ternary_codes(const float* w, idx n, float inverse, std::int8_t* codes) noexcept;
}  // namespace avx2
namespace avx512 {
double abs_sum(const float* w, idx n) noexcept;
void ternary_codes(const float* w, idx n, float inverse, std::int8_t* codes) noexcept;
}  // namespace avx512

inline constexpr Variant<AbsSumFn> abs_sum_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::abs_sum},
    {Isa::avx2, avx2::abs_sum},
#endif
    {Isa::scalar, scalar::abs_sum}};
inline constexpr Variant<TernaryCodesFn> ternary_codes_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::ternary_codes},
    {Isa::avx2, avx2::ternary_codes},
#endif
    {Isa::scalar, scalar::ternary_codes}};

}  // namespace mmfree
