#pragma once
// Internal: the variants of rmsnorm_quant, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree {

// Rows [begin, end).
using RmsnormQuantRowsFn = void (*)(const RmsnormQuant& a, idx begin, idx end) noexcept;
// Rows [begin, end). partial: (projections + 1, K) sums of the gain gradients, added to; the outer
// gain's comes last.
using RmsnormQuantBackwardRowsFn = void (*)(const RmsnormQuantBackward& a, idx begin, idx end,
                                            float* partial) noexcept;

namespace scalar {
void rmsnorm_quant_rows(const RmsnormQuant& a, idx begin, idx end) noexcept;
void rmsnorm_quant_backward_rows(const RmsnormQuantBackward& a, idx begin, idx end,
                                 float* partial) noexcept;
}  // namespace scalar
namespace avx2 {
void rmsnorm_quant_rows(const RmsnormQuant& a, idx begin, idx end) noexcept;
void rmsnorm_quant_backward_rows(const RmsnormQuantBackward& a, idx begin, idx end,
                                 float* partial) noexcept;
}  // namespace avx2
namespace avx512 {
void rmsnorm_quant_rows(const RmsnormQuant& a, idx begin, idx end) noexcept;
void rmsnorm_quant_backward_rows(const RmsnormQuantBackward& a, idx begin, idx end,
                                 float* partial) noexcept;
}  // namespace avx512

inline constexpr Variant<RmsnormQuantRowsFn> rmsnorm_quant_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::rmsnorm_quant_rows},
    {Isa::avx2, avx2::rmsnorm_quant_rows},
#endif
    {Isa::scalar, scalar::rmsnorm_quant_rows}};
inline constexpr Variant<RmsnormQuantBackwardRowsFn> rmsnorm_quant_backward_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::rmsnorm_quant_backward_rows},
    {Isa::avx2, avx2::rmsnorm_quant_backward_rows},
#endif
    {Isa::scalar, scalar::rmsnorm_quant_backward_rows}};

}  // namespace mmfree
