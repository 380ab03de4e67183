#include "mmfree/hw/fixed_session.h"

#include <fmt/core.h>

#include <cmath>

#include "mmfree/core/error.h"

namespace mmfree::hw {

FixedSession::FixedSession(const Ctx& ctx, const PackedModel& model)
    : model_(lower_model(ctx, model)),
      network_(ctx, model_),
      state_(static_cast<std::size_t>(model_.layers_count * model_.m)),
      logits_(static_cast<std::size_t>(model_.vocab)) {}

std::span<const float> FixedSession::prefill(std::span<const std::int32_t> tokens) {
  if (tokens.empty()) fail(ErrorKind::usage, "no tokens were given, expected at least one");
  for (std::size_t t = 0; t < tokens.size(); ++t)
    if (tokens[t] < 0 || tokens[t] >= model_.vocab)
      fail(ErrorKind::usage,
           fmt::format("token at position {} is {}, expected 0..{} (the vocabulary of {})", t,
                       tokens[t], model_.vocab - 1, model_.name));
  for (std::size_t t = 0; t < tokens.size(); ++t)
    network_.step(tokens[t], state_, t + 1 == tokens.size());
  position_ += static_cast<idx>(tokens.size());
  for (std::size_t v = 0; v < logits_.size(); ++v)
    logits_[v] = std::ldexp(static_cast<float>(network_.logit(v)), -kLogitFrac);
  return logits_;
}

std::int32_t FixedSession::draw(Sampling s) const {
  s.position = static_cast<std::uint32_t>(position_);
  return network_.draw(s);
}

void FixedSession::restart() {
  std::fill(state_.begin(), state_.end(), 0);
  position_ = 0;
}

}  // namespace mmfree::hw
