// The source of every variant: element-wise, so the compiler vectorises it for the flags of the
// including file, and each operation rounds on its own, so all variants give the same bits.
// Included once per variant; internal linkage.
#include <cstdint>

#include "mmfree/ops/adamw/adamw_variants.h"

namespace mmfree {
namespace {

inline void adamw_loop(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept {
  const float* __restrict g_in = a.g;
  float* __restrict w = a.w;
  float* __restrict m = a.m;
  float* __restrict v = a.v;
  const AdamWArgs c = a;  // a copy in registers: stores through w cannot alias it
  for (std::int64_t i = begin; i < end; ++i) {
    const float g = g_in[i] * c.grad_scale;
    const float kept = w[i] * c.keep;
    const float mi = c.beta1 * m[i] + c.one_less_beta1 * g;
    const float vi = c.beta2 * v[i] + c.one_less_beta2 * g * g;
    const float denominator = __builtin_sqrtf(vi) / c.root_correction + c.eps;
    m[i] = mi;
    v[i] = vi;
    w[i] = kept - c.step_size * (mi / denominator);
  }
}

}  // namespace
}  // namespace mmfree
