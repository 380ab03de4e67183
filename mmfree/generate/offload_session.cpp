#include "mmfree/generate/offload_session.h"

#include <fmt/core.h>

#include <algorithm>

#include "mmfree/core/error.h"

namespace mmfree {

OffloadSession::OffloadSession(const Ctx& ctx, GpuModel& gpu, const TiledModel& model)
    : ctx_(ctx),
      model_(&model),
      gpu_(gpu),
      state_(model.base.config),
      scratch_(model.base.config, prefill_rows(), kLogitRows, ctx.threads),
      residual_(scratch_.rows * model.base.config.hidden_size) {}

std::span<const float> OffloadSession::prefill(std::span<const std::int32_t> tokens) {
  ForwardCall call;
  call.tokens = tokens;
  forward(call);
  return {scratch_.logits.data(), static_cast<std::size_t>(model_->base.config.vocab_size)};
}

void OffloadSession::forward(const ForwardCall& call) {
  const auto total = static_cast<idx>(call.tokens.size());
  if (total == 0) fail(ErrorKind::usage, "no tokens were given, expected at least one");
  const idx chunk = call.logits == LogitRows::all ? kLogitRows : scratch_.rows;
  for (idx begin = 0; begin < total; begin += chunk) {
    const idx rows = std::min(chunk, total - begin);
    ForwardCall part = call;
    part.tokens =
        call.tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(rows));
    part.mask = call.mask == nullptr ? nullptr : call.mask + begin;
    if (call.logits == LogitRows::last && begin + rows < total) part.logits = LogitRows::none;
    part.residual = residual_.data();
    part.first_layer = gpu_.model().layers();
    if (call.sink)
      part.sink = [&](idx first, idx n, const float* logits) {
        call.sink(begin + first, n, logits);
      };
    gpu_.hidden(part.tokens, part.mask, residual_.data());
    mmfree::forward(ctx_, *model_, part, state_, scratch_);
  }
}

void OffloadSession::restart() {
  gpu_.restart();
  reset(state_);
}

SessionState OffloadSession::state() const {
  SessionState s(model_->base.config);
  std::copy(state_.h.begin(), state_.h.end(), s.h.begin());
  gpu_.read_state(s.h.data());
  return s;
}

void OffloadSession::restore(const SessionState& state, idx position) {
  if (state.layers != state_.layers || state.width != state_.width)
    fail(ErrorKind::usage, fmt::format("the state is {} x {}, expected {} x {}", state.layers,
                                       state.width, state_.layers, state_.width));
  std::copy(state.h.begin(), state.h.end(), state_.h.begin());
  gpu_.write_state(state.h.data(), position);
}

}  // namespace mmfree
