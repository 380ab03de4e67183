#pragma once
// Internal: the variants of mlgru, best first; the table drives both dispatch and tests.
#include "mmfree/core/cpu.h"
#include "mmfree/ops/mlgru/mlgru.h"

namespace mmfree {

// Channels [begin, end) of one sequence, all time steps.
using MlgruChannelsFn = void (*)(const Mlgru& a, idx sequence, idx begin, idx end) noexcept;
// Likewise; d_bound (M) gets this sequence's sum (overwritten).
using MlgruBackwardChannelsFn = void (*)(const MlgruBackward& a, idx sequence, idx begin, idx end,
                                         float* d_bound) noexcept;

namespace scalar {
void mlgru_channels(const Mlgru& a, idx sequence, idx begin, idx end) noexcept;
void mlgru_backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                             float* d_bound) noexcept;
}  // namespace scalar
namespace avx2 {
void mlgru_channels(const Mlgru& a, idx sequence, idx begin, idx end) noexcept;
void mlgru_backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                             float* d_bound) noexcept;
}  // namespace avx2
namespace avx512 {
void mlgru_channels(const Mlgru& a, idx sequence, idx begin, idx end) noexcept;
void mlgru_backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                             float* d_bound) noexcept;
}  // namespace avx512

inline constexpr Variant<MlgruChannelsFn> mlgru_channels_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::mlgru_channels},
    {Isa::avx2, avx2::mlgru_channels},
#endif
    {Isa::scalar, scalar::mlgru_channels}};
inline constexpr Variant<MlgruBackwardChannelsFn> mlgru_backward_channels_variants[] = {
#if defined(__x86_64__)
    {Isa::avx512, avx512::mlgru_backward_channels},
    {Isa::avx2, avx2::mlgru_backward_channels},
#endif
    {Isa::scalar, scalar::mlgru_backward_channels}};

}  // namespace mmfree
