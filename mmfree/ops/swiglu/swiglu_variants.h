#pragma once
// Internal: the variants of swiglu, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/swiglu/swiglu.h"

namespace mmfree {

// Rows [begin, end).
using SwigluRowsFn = void (*)(idx width, const float* pq, float* z, idx begin, idx end) noexcept;
// Rows [begin, end).
using SwigluBackwardRowsFn = void (*)(idx width, const float* pq, const float* dz, float* dpq,
                                      idx begin, idx end) noexcept;

namespace scalar {
void swiglu_rows(idx width, const float* pq, float* z, idx begin, idx end) noexcept;
void swiglu_backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) noexcept;
}  // namespace scalar
namespace avx2 {
void swiglu_rows(idx width, const float* pq, float* z, idx begin, idx end) noexcept;
void swiglu_backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) noexcept;
}  // namespace avx2
namespace avx512 {
void swiglu_rows(idx width, const float* pq, float* z, idx begin, idx end) noexcept;
void swiglu_backward_rows(idx width, const float* pq, const float* dz, float* dpq, idx begin,
                          idx end) noexcept;
}  // namespace avx512

inline constexpr Variant<SwigluRowsFn> swiglu_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::swiglu_rows},
    {Isa::avx2, avx2::swiglu_rows},
#endif
    {Isa::scalar, scalar::swiglu_rows}};
inline constexpr Variant<SwigluBackwardRowsFn> swiglu_backward_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::swiglu_backward_rows},
    {Isa::avx2, avx2::swiglu_backward_rows},
#endif
    {Isa::scalar, scalar::swiglu_backward_rows}};

}  // namespace mmfree
