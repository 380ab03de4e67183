#pragma once
// Training health: what the ternary codes and the int8 activations do, which the loss alone does
// not show. docs/training.md explains how to read it.
#include <optional>
#include <vector>

#include "mmfree/model/matmulfree.h"

namespace mmfree {

// Shares of the codes of all BitLinear weights of one layer.
struct CodeShares {
  double minus = 0, zero = 0, plus = 0;
  std::optional<double> flips;  // codes that differ from the baseline's; none without a baseline
};

struct LayerHealth {
  CodeShares codes;
  LayerSaturation saturation;  // of the last forward
};

struct Health {
  idx flips_since_step = 0;  // the step of the baseline
  std::vector<LayerHealth> layers;
  CodeShares head;
  CodeShares all;  // over every ternary weight
};

// Keeps a copy of all codes (one byte a weight) to count flips against.
class HealthMonitor {
 public:
  // The baseline: the network's codes as they are now.
  void set_baseline(const Ctx& ctx, const Network& net, idx step);
  // Measures, then makes the current codes the baseline. saturation: one a layer, of the last
  // forward, or empty.
  Health report(const Ctx& ctx, const Network& net, const std::vector<LayerSaturation>& saturation,
                idx step);

 private:
  Buffer<std::int8_t> baseline_;
  idx baseline_step_ = 0;
};

}  // namespace mmfree
