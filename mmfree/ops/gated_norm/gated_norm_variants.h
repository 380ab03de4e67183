#pragma once
// Internal: the variants of gated_norm, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/gated_norm/gated_norm.h"

namespace mmfree {

// Rows [begin, end).
using GatedNormRowsFn = void (*)(const GatedNorm& a, idx begin, idx end) noexcept;
// Rows [begin, end); partial (M) gets the gain gradient of these rows, added to.
using GatedNormBackwardRowsFn = void (*)(const GatedNormBackward& a, idx begin, idx end,
                                         float* partial) noexcept;

namespace scalar {
void gated_norm_rows(const GatedNorm& a, idx begin, idx end) noexcept;
void gated_norm_backward_rows(const GatedNormBackward& a, idx begin, idx end,
                              float* partial) noexcept;
}  // namespace scalar
namespace avx2 {
void gated_norm_rows(const GatedNorm& a, idx begin, idx end) noexcept;
void gated_norm_backward_rows(const GatedNormBackward& a, idx begin, idx end,
                              float* partial) noexcept;
}  // namespace avx2
namespace avx512 {
void gated_norm_rows(const GatedNorm& a, idx begin, idx end) noexcept;
void gated_norm_backward_rows(const GatedNormBackward& a, idx begin, idx end,
                              float* partial) noexcept;
}  // namespace avx512

inline constexpr Variant<GatedNormRowsFn> gated_norm_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::gated_norm_rows},
    {Isa::avx2, avx2::gated_norm_rows},
#endif
    {Isa::scalar, scalar::gated_norm_rows}};
inline constexpr Variant<GatedNormBackwardRowsFn> gated_norm_backward_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::gated_norm_backward_rows},
    {Isa::avx2, avx2::gated_norm_backward_rows},
#endif
    {Isa::scalar, scalar::gated_norm_backward_rows}};

}  // namespace mmfree
