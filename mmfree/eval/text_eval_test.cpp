#include "mmfree/eval/text_eval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "mmfree/core/error.h"
#include "mmfree/model/convert.h"
#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/model/weights.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

constexpr Ctx kOne{1};

std::string sample_text(int sentences) {
  const char* const words[] = {"the", "cat", "sat", "on",           "a",
                               "mat", "and", "saw", "w\xC3\xB6rds", "42"};
  std::string text;
  std::uint64_t x = 9;
  for (int s = 0; s < sentences; ++s) {
    for (int w = 0; w < 8; ++w) {
      x = x * 6364136223846793005ULL + 1442695040888963407ULL;
      text += std::string(w > 0 ? " " : "") + words[(x >> 33) % 10];
    }
    text += ".\n";
  }
  return text;
}

class TextEval : public testing::Test {
 protected:
  void SetUp() override {
    bool given = false;
    const std::string text = sample_text(200);
    const TextSource source = [&](std::string& t) {
      if (given) return false;
      t = text;
      return given = true;
    };
    const std::string bytes = train_tokenizer(source, {.vocab_size = 300});
    MatmulFreeConfig c;
    c.vocab_size = 300;
    c.hidden_size = 64;
    c.num_hidden_layers = 2;
    c.intermediate_size = 96;
    Network net(c);
    initialize_params(net.table, c, 1, net.values.data());
    save_network(net, dir_.path() / "run");
    write_file_atomically(dir_.path() / "run" / "tokenizer.model", bytes);
    tokenizer_.emplace(Tokenizer::from_bytes(bytes, "test"));
    model_ = load_model(kOne, dir_.path() / "run");
  }

  // The rule written down again: windows one by one, the loss in double.
  double expected_nll(std::string_view text, std::size_t window) const {
    std::vector<std::int32_t> ids = {1};
    const std::vector<std::int32_t> rest = tokenizer_->encode(text);
    ids.insert(ids.end(), rest.begin(), rest.end());
    double nll = 0;
    for (std::size_t begin = 0; begin + 1 < ids.size(); begin += window) {
      const std::size_t n = std::min(window, ids.size() - 1 - begin);
      InferScratch scratch(model_.base.config, 3, 3, 1);
      SessionState state(model_.base.config);
      ForwardCall call;
      call.tokens = std::span(ids).subspan(begin, n);
      call.logits = LogitRows::all;
      call.sink = [&](idx first, idx rows, const float* logits) {
        for (idx r = 0; r < rows; ++r, logits += model_.base.config.vocab_size) {
          double sum = 0;
          for (idx v = 0; v < model_.base.config.vocab_size; ++v)
            sum += std::exp(static_cast<double>(logits[v]));
          const std::int32_t label = ids[begin + static_cast<std::size_t>(first + r) + 1];
          nll += std::log(sum) - static_cast<double>(logits[label]);
        }
      };
      forward(kOne, model_, call, state, scratch);
    }
    return nll;
  }

  test::TempDir dir_;
  std::optional<Tokenizer> tokenizer_;
  TiledModel model_;
};

TEST_F(TextEval, FollowsTheStatedRule) {
  const std::string text = sample_text(20);
  const idx tokens = static_cast<idx>(tokenizer_->encode(text).size());
  for (const idx window : {idx{0}, idx{1}, idx{7}, idx{64}, idx{100}, tokens, tokens + 5}) {
    const TextScore score = score_text(kOne, model_, *tokenizer_, text, window);
    const double nll =
        expected_nll(text, window == 0 ? text.size() + 1 : static_cast<std::size_t>(window));
    EXPECT_EQ(score.tokens, tokens) << window;
    EXPECT_EQ(score.bytes, text.size());
    EXPECT_NEAR(score.nll, nll, 1e-6 * nll) << window;
    EXPECT_DOUBLE_EQ(score.bits_per_byte(),
                     score.nll / std::numbers::ln2 / static_cast<double>(text.size()));
    EXPECT_DOUBLE_EQ(score.perplexity(), std::exp(score.nll / static_cast<double>(tokens)));
  }
}

TEST_F(TextEval, PartsAndThreadsChangeNothing) {
  const std::string text = sample_text(6000);  // several parts of 64 KiB
  ASSERT_GT(tokenizer_->split(text, std::size_t{64} << 10).size(), 2U);
  const TextScore one = score_text(kOne, model_, *tokenizer_, text, 0);
  EXPECT_EQ(one.tokens, static_cast<idx>(tokenizer_->encode(text).size()));
  std::uint64_t last = 0;
  const TextScore two = score_text(Ctx{2}, model_, *tokenizer_, text, 0,
                                   [&](std::string_view, std::uint64_t done, std::uint64_t total) {
                                     EXPECT_GE(done, last);
                                     EXPECT_EQ(total, text.size());
                                     last = done;
                                   });
  EXPECT_EQ(one.nll, two.nll);
  EXPECT_EQ(last, text.size());
}

TEST_F(TextEval, DirectoryAndGgufAgreeExactly) {
  const std::string text = sample_text(30);
  const double expected = score_text(kOne, model_, *tokenizer_, text, 0).nll;
  for (const StoredWeights w : {StoredWeights::tq1_0, StoredWeights::tq2_0}) {
    write_gguf(kOne, open_latent(dir_.path() / "run"), dir_.path() / "m.gguf",
               {.weights = w, .overwrite = true});
    const TiledModel gguf = load_model(kOne, dir_.path() / "m.gguf");
    EXPECT_EQ(gguf.base.sentencepiece, model_.base.sentencepiece);
    EXPECT_EQ(score_text(kOne, gguf, *tokenizer_, text, 0).nll, expected);
  }
}

TEST_F(TextEval, RefusesEmptyTextAndForeignTokenizers) {
  EXPECT_THROW(score_text(kOne, model_, *tokenizer_, "", 0), Error);
  EXPECT_THROW(score_text(kOne, model_, *tokenizer_, "a", -1), Error);
  model_.base.config.vocab_size = 299;
  EXPECT_THROW(score_text(kOne, model_, *tokenizer_, "a", 0), Error);
}

}  // namespace
}  // namespace mmfree
