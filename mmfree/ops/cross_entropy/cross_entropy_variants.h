#pragma once
// Internal: the variants of cross_entropy, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"

namespace mmfree {

// Rows [begin, end).
using CrossEntropyRowsFn = void (*)(idx vocab, float* logits, const std::int32_t* labels,
                                    bool with_gradient, float grad_scale, float* nll, idx begin,
                                    idx end) noexcept;

namespace scalar {
void cross_entropy_rows(idx vocab, float* logits, const std::int32_t* labels, bool with_gradient,
                        float grad_scale, float* nll, idx begin, idx end) noexcept;
}  // namespace scalar
namespace avx2 {
void cross_entropy_rows(idx vocab, float* logits, const std::int32_t* labels, bool with_gradient,
                        float grad_scale, float* nll, idx begin, idx end) noexcept;
}  // namespace avx2
namespace avx512 {
void cross_entropy_rows(idx vocab, float* logits, const std::int32_t* labels, bool with_gradient,
                        float grad_scale, float* nll, idx begin, idx end) noexcept;
}  // namespace avx512

inline constexpr Variant<CrossEntropyRowsFn> cross_entropy_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::cross_entropy_rows},
    {Isa::avx2, avx2::cross_entropy_rows},
#endif
    {Isa::scalar, scalar::cross_entropy_rows}};

}  // namespace mmfree
