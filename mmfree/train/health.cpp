#include "mmfree/train/health.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace mmfree {
namespace {

struct Counts {
  idx minus = 0, zero = 0, plus = 0, flips = 0;

  void add(const Counts& o) {
    minus += o.minus;
    zero += o.zero;
    plus += o.plus;
    flips += o.flips;
  }
  CodeShares shares() const {
    const double n = static_cast<double>(std::max<idx>(1, minus + zero + plus));
    return {static_cast<double>(minus) / n, static_cast<double>(zero) / n,
            static_cast<double>(plus) / n, static_cast<double>(flips) / n};
  }
};

// Counts one matrix against its baseline, then moves the baseline.
Counts count(const Buffer<std::int8_t>& codes, std::int8_t* baseline) {
  Counts c;
  for (idx i = 0; i < codes.size(); ++i) {
    const std::int8_t t = codes[i];
    c.minus += t < 0 ? 1 : 0;
    c.plus += t > 0 ? 1 : 0;
    c.flips += t != baseline[i] ? 1 : 0;
  }
  c.zero = codes.size() - c.minus - c.plus;
  std::memcpy(baseline, codes.data(), static_cast<std::size_t>(codes.size()));
  return c;
}

std::array<const TernaryWeights*, 6> matrices(const LayerTernary& l) {
  return {&l.i, &l.f, &l.g, &l.o, &l.gate, &l.down};
}

// Every ternary matrix, layer after layer, the head last.
std::vector<const TernaryWeights*> all_matrices(const Network& net) {
  std::vector<const TernaryWeights*> list;
  for (const LayerTernary& l : net.layers)
    for (const TernaryWeights* w : matrices(l)) list.push_back(w);
  list.push_back(&net.head);
  return list;
}

}  // namespace

void HealthMonitor::set_baseline(const Ctx& ctx, const Network& net, idx step) {
  report(ctx, net, {}, step);
}

Health HealthMonitor::report(const Ctx& ctx, const Network& net,
                             const std::vector<LayerSaturation>& saturation, idx step) {
  const std::vector<const TernaryWeights*> list = all_matrices(net);
  std::vector<idx> offset{0};
  for (const TernaryWeights* w : list) offset.push_back(offset.back() + w->codes.size());
  const bool has_baseline = baseline_.size() == offset.back();
  if (!has_baseline) baseline_ = Buffer<std::int8_t>(offset.back());

  const idx n = static_cast<idx>(list.size());
  std::vector<Counts> counts(list.size());
  parallel_for(ctx, n, 1, [&](idx begin, idx end) {
    for (idx i = begin; i < end; ++i) {
      const std::size_t k = static_cast<std::size_t>(i);
      counts[k] = count(list[k]->codes, baseline_.data() + offset[k]);
    }
  });

  Health h;
  h.flips_since_step = baseline_step_;
  Counts all;
  const auto shares = [&](const Counts& c) {
    CodeShares s = c.shares();
    if (!has_baseline) s.flips.reset();
    return s;
  };
  std::size_t next = 0;
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    Counts layer;
    for (std::size_t k = 0; k < 6; ++k) layer.add(counts[next++]);
    all.add(layer);
    h.layers.push_back({shares(layer), l < saturation.size() ? saturation[l] : LayerSaturation{}});
  }
  all.add(counts[next]);
  h.head = shares(counts[next]);
  h.all = shares(all);
  baseline_step_ = step;
  return h;
}

}  // namespace mmfree
