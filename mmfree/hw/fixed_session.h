#pragma once
// One conversation with the integer-only network (--numerics fixed): what generate/session.h is for
// the default numerics. Logits are the accelerator's Q15.16 integers turned into floats for
// samplers and losses.
#include <cstdint>
#include <span>
#include <vector>

#include "mmfree/hw/fixed_network.h"

namespace mmfree::hw {

class FixedSession {
 public:
  // The model must outlive the session. Throws a config Error if the accelerator cannot run it.
  FixedSession(const Ctx& ctx, const PackedModel& model);
  FixedSession(const FixedSession&) = delete;  // the network points into the object
  FixedSession& operator=(const FixedSession&) = delete;

  // Feeds tokens and returns the logits (V) after the last one, valid until the next call. Ids
  // outside the vocabulary and empty input are usage Errors that leave the session as it was.
  std::span<const float> prefill(std::span<const std::int32_t> tokens);
  std::span<const float> step(std::int32_t token) { return prefill({&token, 1}); }

  // The token that the head draws after the last one fed; `s`'s position is filled in. Only after
  // prefill or step.
  std::int32_t draw(Sampling s) const;

  void restart();
  idx position() const { return position_; }
  const FixedNetwork& network() const { return network_; }

 private:
  FixedModel model_;
  FixedNetwork network_;
  std::vector<std::int32_t> state_;  // (L, M)
  std::vector<float> logits_;        // (V)
  idx position_ = 0;
};

}  // namespace mmfree::hw
