#pragma once
// How well a model predicts a text: docs/evaluation.md states the rule.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "mmfree/core/parallel.h"
#include "mmfree/core/progress.h"
#include "mmfree/model/tiled.h"
#include "mmfree/tokenizer/tokenizer.h"

namespace mmfree {

struct TextScore {
  double nll = 0;           // nats, summed over all tokens of the text
  idx tokens = 0;           // tokens that were predicted
  std::uint64_t bytes = 0;  // of the text
  double seconds = 0;       // in the network
  double bits_per_byte() const;
  double perplexity() const;  // per token
  double tokens_per_second() const;
};

// The text's tokens are predicted one after the other, the first one from BOS. window == 0: the
// state is carried through the whole text; otherwise it is reset before every `window`-th input
// token. Constant memory; progress in bytes of text. An empty text or a model without BOS token is
// a usage Error.
TextScore score_text(const Ctx& ctx, const TiledModel& model, const Tokenizer& tokenizer,
                     std::string_view text, idx window, const Progress& progress = {});

// The same with any network: `logits` continues its sequence by the tokens, after forgetting
// everything if `restart`, and writes the logits (tokens, V).
using LogitsFunction =
    std::function<void(std::span<const std::int32_t> tokens, bool restart, float* logits)>;
TextScore score_text(const Ctx& ctx, const MatmulFreeConfig& config, const std::string& model_name,
                     const LogitsFunction& logits, const Tokenizer& tokenizer,
                     std::string_view text, idx window, const Progress& progress = {});

}  // namespace mmfree
