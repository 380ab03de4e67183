#pragma once
// Internal: the variants of rmsnorm, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/rmsnorm/rmsnorm.h"

namespace mmfree {

// Rows [begin, end).
using RmsnormRowsFn = void (*)(idx width, const float* x, const float* gain, float eps, float* y,
                               idx begin, idx end) noexcept;

namespace scalar {
void rmsnorm_rows(idx width, const float* x, const float* gain, float eps, float* y, idx begin,
                  idx end) noexcept;
}  // namespace scalar
namespace avx2 {
void rmsnorm_rows(idx width, const float* x, const float* gain, float eps, float* y, idx begin,
                  idx end) noexcept;
}  // namespace avx2
namespace avx512 {
void rmsnorm_rows(idx width, const float* x, const float* gain, float eps, float* y, idx begin,
                  idx end) noexcept;
}  // namespace avx512

inline constexpr Variant<RmsnormRowsFn> rmsnorm_rows_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::rmsnorm_rows},
    {Isa::avx2, avx2::rmsnorm_rows},
#endif
    {Isa::scalar, scalar::rmsnorm_rows}};

}  // namespace mmfree
