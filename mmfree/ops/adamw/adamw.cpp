#include "mmfree/ops/adamw/adamw.h"

#include <cmath>

#include "mmfree/core/error.h"
#include "mmfree/ops/adamw/adamw_variants.h"

namespace mmfree {
namespace {
constexpr idx kGrain =
    4096;  // elements a thread takes at least: below this, starting it costs more
}

void adamw(const Ctx& ctx, const AdamW& a, idx n, const float* g, float* w, float* m, float* v) {
  MMFREE_ASSERT(a.step >= 1);
  const double lr = static_cast<double>(a.lr);
  const double beta1 = static_cast<double>(a.beta1);
  const double beta2 = static_cast<double>(a.beta2);
  const double t = static_cast<double>(a.step);
  const AdamWArgs args{
      .grad_scale = a.grad_scale,
      .keep = static_cast<float>(1.0 - lr * static_cast<double>(a.decay)),
      .beta1 = a.beta1,
      .one_less_beta1 = static_cast<float>(1.0 - beta1),
      .beta2 = a.beta2,
      .one_less_beta2 = static_cast<float>(1.0 - beta2),
      .root_correction = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, t))),
      .eps = a.eps,
      .step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, t))),
      .g = g,
      .w = w,
      .m = m,
      .v = v,
  };
  const AdamWFn loop = pick(adamw_variants, active_isa());
  parallel_for(ctx, n, kGrain, [&](idx begin, idx end) { loop(args, begin, end); });
}

}  // namespace mmfree
