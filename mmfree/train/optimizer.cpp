#include "mmfree/train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "mmfree/ops/adamw/adamw.h"

namespace mmfree {
namespace {
constexpr idx kNormChunk = 1 << 14;  // fixed, so the order of additions is
constexpr idx kLanes = 8;            // independent sums: one would wait for each addition
}  // namespace

OptimizerState::OptimizerState(const Network& net) : m(net.values.size()), v(net.values.size()) {}

double grad_norm(const Ctx& ctx, const Network& net) {
  double sum = 0;
  for (const ParamInfo& p : net.table) {
    const float* g = net.grads.data() + p.offset;
    const idx n = p.size();
    const idx chunks = (n + kNormChunk - 1) / kNormChunk;
    std::vector<double> sums(static_cast<std::size_t>(chunks));
    parallel_for(ctx, chunks, 1, [&](idx begin, idx end) {
      for (idx c = begin; c < end; ++c) {
        double lane[kLanes] = {};
        const idx from = c * kNormChunk;
        const idx to = std::min(n, from + kNormChunk);
        for (idx i = from; i < to; ++i) {
          const double x = static_cast<double>(g[i]);
          lane[(i - from) % kLanes] += x * x;
        }
        double s = 0;
        for (const double x : lane) s += x;
        sums[static_cast<std::size_t>(c)] = s;
      }
    });
    for (const double s : sums) sum += s;
  }
  return std::sqrt(sum);
}

void optimizer_step(const Ctx& ctx, Network& net, OptimizerState& state, const OptimizerStep& s) {
  AdamW a{.lr = static_cast<float>(s.lr),
          .beta1 = static_cast<float>(s.beta1),
          .beta2 = static_cast<float>(s.beta2),
          .eps = static_cast<float>(s.eps),
          .grad_scale = static_cast<float>(s.grad_scale),
          .step = s.step};
  for (const ParamInfo& p : net.table) {
    a.decay = p.decay ? static_cast<float>(s.weight_decay) : 0.0F;
    adamw(ctx, a, p.size(), net.grads.data() + p.offset, net.values.data() + p.offset,
          state.m.data() + p.offset, state.v.data() + p.offset);
  }
}

}  // namespace mmfree
