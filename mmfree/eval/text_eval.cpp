#include "mmfree/eval/text_eval.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numbers>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"

namespace mmfree {
namespace {

// Text is encoded in parts of about this size, so that memory does not depend on its length.
constexpr std::size_t kPartBytes = std::size_t{64} << 10;

// Gives the inputs and labels to the network in chunks that never straddle a window.
class Scorer {
 public:
  Scorer(const Ctx& ctx, const LogitsFunction& logits, idx vocab, idx window)
      : ctx_(ctx), logits_(logits), vocab_(vocab), window_(window), rows_(kLogitRows * vocab) {}

  // The next input token and the token that follows it.
  void add(std::int32_t input, std::int32_t label) {
    inputs_.push_back(input);
    labels_.push_back(label);
    const bool window_ends =
        window_ > 0 && (seen_ + static_cast<idx>(inputs_.size())) % window_ == 0;
    if (static_cast<idx>(inputs_.size()) == kLogitRows || window_ends) flush();
  }

  void flush() {
    if (inputs_.empty()) return;
    const auto start = std::chrono::steady_clock::now();
    logits_(inputs_, seen_ == 0 || (window_ > 0 && seen_ % window_ == 0), rows_.data());
    const auto rows = static_cast<idx>(inputs_.size());
    std::array<float, kLogitRows> nll{};
    cross_entropy(ctx_, rows, vocab_, rows_.data(), labels_.data(), /*with_gradient=*/false,
                  /*grad_scale=*/1, nll.data());
    for (idx r = 0; r < rows; ++r) {
      const float value = nll[static_cast<std::size_t>(r)];
      if (!std::isfinite(value))
        fail(ErrorKind::numeric,
             fmt::format("the loss of token {} is {}, expected a finite number", seen_ + r, value));
      score_.nll += static_cast<double>(value);
    }
    seen_ += rows;
    score_.tokens += rows;
    score_.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    inputs_.clear();
    labels_.clear();
  }

  TextScore& score() { return score_; }

 private:
  const Ctx& ctx_;
  const LogitsFunction& logits_;
  idx vocab_;
  idx window_;
  Buffer<float> rows_;  // (kLogitRows, V)
  std::vector<std::int32_t> inputs_, labels_;
  idx seen_ = 0;
  TextScore score_;
};

}  // namespace

double TextScore::bits_per_byte() const {
  return nll / std::numbers::ln2 / static_cast<double>(bytes);
}
double TextScore::perplexity() const {
  return std::exp(nll / static_cast<double>(tokens));
}
double TextScore::tokens_per_second() const {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

TextScore score_text(const Ctx& ctx, const TiledModel& model, const Tokenizer& tokenizer,
                     std::string_view text, idx window, const Progress& progress) {
  const MatmulFreeConfig& config = model.base.config;
  SessionState state(config);
  InferScratch scratch(config, kLogitRows, kLogitRows, ctx.threads);
  const LogitsFunction network = [&](std::span<const std::int32_t> tokens, bool restart,
                                     float* logits) {
    if (restart) reset(state);
    ForwardCall call;
    call.tokens = tokens;
    call.logits = LogitRows::all;
    call.sink = [&](idx first, idx rows, const float* y) {
      std::copy_n(y, rows * config.vocab_size, logits + first * config.vocab_size);
    };
    forward(ctx, model, call, state, scratch);
  };
  return score_text(ctx, config, model.base.path, network, tokenizer, text, window, progress);
}

TextScore score_text(const Ctx& ctx, const MatmulFreeConfig& config, const std::string& model_name,
                     const LogitsFunction& logits, const Tokenizer& tokenizer,
                     std::string_view text, idx window, const Progress& progress) {
  if (text.empty()) fail(ErrorKind::usage, "the text is empty, expected at least one byte");
  if (window < 0)
    fail(ErrorKind::usage, fmt::format("window is {}, expected 0 (none) or more", window));
  if (!config.bos_token_id)
    fail(ErrorKind::usage,
         fmt::format("{}: the model has no BOS token to predict the first token from", model_name));
  if (tokenizer.vocab_size() > config.vocab_size)
    fail(ErrorKind::config,
         fmt::format(
             "{}: the tokenizer has {} tokens, the model {}; expected no more than the model",
             model_name, tokenizer.vocab_size(), config.vocab_size));
  Scorer scorer(ctx, logits, config.vocab_size, window);
  std::int32_t previous = static_cast<std::int32_t>(*config.bos_token_id);
  std::uint64_t done = 0;
  for (const std::string_view part : tokenizer.split(text, kPartBytes)) {
    for (const std::int32_t token : tokenizer.encode(part)) {
      scorer.add(previous, token);
      previous = token;
    }
    done += part.size() + 1;  // and the space that the cut took
    if (progress) progress("bytes", std::min<std::uint64_t>(done, text.size()), text.size());
  }
  scorer.flush();
  TextScore& score = scorer.score();
  score.bytes = text.size();
  if (score.tokens == 0) fail(ErrorKind::usage, "the text has no tokens, expected at least one");
  return score;
}

}  // namespace mmfree
