#include "mmfree/generate/session.h"

#include <fmt/core.h>

#include <algorithm>

#include "mmfree/core/error.h"

namespace mmfree {

Session::Session(const Ctx& ctx, const TiledModel& model)
    : ctx_(ctx),
      model_(&model),
      state_(model.base.config),
      scratch_(model.base.config, prefill_rows(), 1, ctx.threads) {}

std::span<const float> Session::prefill(std::span<const std::int32_t> tokens) {
  const idx vocab = model_->base.config.vocab_size;
  if (tokens.empty()) fail(ErrorKind::usage, "no tokens were given, expected at least one");
  for (std::size_t t = 0; t < tokens.size(); ++t)
    if (tokens[t] < 0 || tokens[t] >= vocab)
      fail(ErrorKind::usage,
           fmt::format("token at position {} is {}, expected 0..{} (the vocabulary of {})", t,
                       tokens[t], vocab - 1, model_->base.path));
  ForwardCall call;
  call.tokens = tokens;
  forward(ctx_, *model_, call, state_, scratch_);
  position_ += static_cast<idx>(tokens.size());
  return {scratch_.logits.data(), static_cast<std::size_t>(vocab)};
}

void Session::restart() {
  reset(state_);
  position_ = 0;
}

void Session::restore(const SessionState& state, idx position) {
  if (state.layers != state_.layers || state.width != state_.width)
    fail(ErrorKind::usage, fmt::format("the state is {} x {}, expected {} x {}", state.layers,
                                       state.width, state_.layers, state_.width));
  std::copy(state.h.begin(), state.h.end(), state_.h.begin());
  position_ = position;
}

}  // namespace mmfree
