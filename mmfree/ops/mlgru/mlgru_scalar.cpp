#include "mmfree/ops/mlgru/mlgru_kernels.h"
#include "mmfree/ops/mlgru/mlgru_variants.h"

namespace mmfree::scalar {

void mlgru_channels(const Mlgru& a, idx sequence, idx begin, idx end) noexcept {
  forward_channels(a, sequence, begin, end);
}

void mlgru_backward_channels(const MlgruBackward& a, idx sequence, idx begin, idx end,
                             float* d_bound) noexcept {
  backward_channels(a, sequence, begin, end, d_bound);
}

}  // namespace mmfree::scalar
