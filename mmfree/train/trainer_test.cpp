// The parts of a training step on a small network; whole runs are in tests/e2e.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mmfree/core/file.h"
#include "mmfree/core/rng.h"
#include "mmfree/train/checkpoint.h"
#include "mmfree/train/data.h"
#include "mmfree/train/health.h"
#include "mmfree/train/optimizer.h"
#include "mmfree/train/validation.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

MatmulFreeConfig small_config(idx vocab = 300) {
  MatmulFreeConfig c;
  c.vocab_size = vocab;
  c.hidden_size = 32;
  c.num_hidden_layers = 2;
  c.intermediate_size = 48;
  return c;
}

Network small_network(idx vocab = 300) {
  Network net(small_config(vocab));
  initialize_params(net.table, net.config, 5, net.values.data());
  ternarize_weights(Ctx{2}, net);
  return net;
}

void random_gradients(Network& net) {
  if (net.grads.empty()) net.grads = Buffer<float>(net.values.size());
  for (const ParamInfo& p : net.table)
    for (idx i = p.offset; i < p.offset + p.size(); ++i)
      net.grads[i] = static_cast<float>(random_normal(2, 0, static_cast<std::uint64_t>(i)));
}

TEST(Optimizer, TheNormIsEuclideanAndDoesNotDependOnThreads) {
  Network net = small_network();
  random_gradients(net);
  long double sum = 0;
  for (const ParamInfo& p : net.table)
    for (idx i = p.offset; i < p.offset + p.size(); ++i)
      sum += static_cast<long double>(net.grads[i]) * static_cast<long double>(net.grads[i]);
  const double one = grad_norm(Ctx{1}, net);
  EXPECT_NEAR(one, static_cast<double>(std::sqrt(sum)), 1e-12 * one);
  EXPECT_EQ(grad_norm(Ctx{3}, net), one);
}

TEST(Optimizer, DecayReachesTernaryMatricesOnly) {
  Network net = small_network();
  if (net.grads.empty())
    net.grads = Buffer<float>(net.values.size());  // zeros: only decay moves weights
  const std::vector<float> before(net.values.begin(), net.values.end());
  OptimizerState state(net);
  optimizer_step(Ctx{2}, net, state,
                 {.lr = 0.5,
                  .weight_decay = 0.5,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .grad_scale = 1,
                  .step = 1});
  for (const ParamInfo& p : net.table)
    for (idx i = p.offset; i < p.offset + p.size(); ++i)
      ASSERT_EQ(net.values[i], (p.ternary ? 0.75F : 1.0F) * before[static_cast<std::size_t>(i)])
          << p.name;
}

TEST(Health, CountsCodesAndFlipsSinceTheBaseline) {
  Network net = small_network();
  HealthMonitor monitor;
  EXPECT_FALSE(monitor.report(Ctx{2}, net, activation_saturation(net), 3)
                   .all.flips);  // nothing to compare with
  TernaryWeights& w = net.layers[1].o;
  const idx flips = 10;
  for (idx i = 0; i < flips; ++i) w.codes[i] = w.codes[i] == 0 ? 1 : 0;
  const Health h = monitor.report(Ctx{2}, net, activation_saturation(net), 5);
  EXPECT_EQ(h.flips_since_step, 3);
  ASSERT_EQ(h.layers.size(), 2U);
  EXPECT_EQ(h.layers[0].codes.flips, 0.0);
  const double layer_codes = 4 * 32 * 32 + 3 * 48 * 32;
  EXPECT_DOUBLE_EQ(*h.layers[1].codes.flips, static_cast<double>(flips) / layer_codes);
  for (const CodeShares& s : {h.all, h.head, h.layers[0].codes}) {
    EXPECT_DOUBLE_EQ(s.minus + s.zero + s.plus, 1.0);
    EXPECT_GT(s.zero, 0.2);
    EXPECT_LT(s.zero, 0.45);
  }
  EXPECT_EQ(monitor.report(Ctx{1}, net, activation_saturation(net), 7).all.flips,
            0.0);  // the baseline moved
}

class WithData : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (std::uint64_t i = 0; i < 4000; ++i) {
      static constexpr const char* kWords[] = {"ein ", "Vogel ",  "flog ",        "über ",
                                               "das ", "Haus.\n", "<|endoftext|>"};
      text += kWords[random_bits(3, 0, i) % 7];
    }
    write_file_atomically(dir_.path() / "text.txt", text);
    PrepareOptions prepare;
    prepare.files = {dir_.path() / "text.txt"};
    prepare.out = dir_.path() / "data";
    prepare.vocab_size = 300;
    prepare.val_fraction = 0.3;
    prepare_data(prepare, [](std::string_view, std::uint64_t, std::uint64_t) {});
  }
  test::TempDir dir_;
};

TEST_F(WithData, ValidationOfTheWholeSplitCountsAllItsBytes) {
  const TokenData data(dir_.path() / "data");
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  const ValidationSet all(data, tokenizer, 16, idx{1} << 40);
  EXPECT_EQ(all.tokens(), data.val().size() - 1);
  EXPECT_EQ(all.text_bytes(), data.val().text_bytes());
  const ValidationSet some(data, tokenizer, 16, 160);
  EXPECT_EQ(some.tokens(), 160);
  EXPECT_LT(some.text_bytes(), all.text_bytes());
}

TEST_F(WithData, AnUntrainedNetworkCostsAboutTheLogarithmOfTheVocabulary) {
  const TokenData data(dir_.path() / "data");
  const Tokenizer tokenizer = Tokenizer::load(data.tokenizer_path());
  const ValidationSet set(data, tokenizer, 16, 640);
  Network net = small_network(data.vocab_size());
  const Validation v =
      set.measure([&](const TokenBatch& b) { return forward_loss(Ctx{2}, net, b); }, 3);
  EXPECT_NEAR(v.loss, std::log(static_cast<double>(data.vocab_size())), 1.0);
  EXPECT_DOUBLE_EQ(v.bits_per_byte, v.loss / std::log(2.0) * static_cast<double>(set.tokens()) /
                                        static_cast<double>(set.text_bytes()));
  const Validation other =
      set.measure([&](const TokenBatch& b) { return forward_loss(Ctx{1}, net, b); },
                  40);  // other micro-batches: the sum's last bits may differ
  EXPECT_NEAR(other.loss, v.loss, 1e-12);
}

TEST(Checkpoint, WhatIsSavedComesBackToTheSameBits) {
  test::TempDir dir;
  make_directories(dir.path() / "trainer" / "checkpoints");
  Network net = small_network();
  random_gradients(net);
  OptimizerState state(net);
  const OptimizerStep step{.lr = 0.01,
                           .weight_decay = 0.1,
                           .beta1 = 0.9,
                           .beta2 = 0.95,
                           .eps = 1e-8,
                           .grad_scale = 1,
                           .step = 1};
  optimizer_step(Ctx{2}, net, state, step);
  save_checkpoint(dir.path(), net, state,
                  {.step = 1, .tokens = 64, .elapsed_s = 1.0 / 3, .val_bits_per_byte = {}}, 2);
  const Checkpoint c = list_checkpoints(dir.path()).at(0);
  const RunState back = load_run_state(c);
  EXPECT_EQ(back.tokens, 64);
  EXPECT_EQ(back.elapsed_s, 1.0 / 3);
  EXPECT_FALSE(back.val_bits_per_byte);
  OptimizerState loaded(net);
  load_optimizer(c, net, loaded);
  const std::size_t bytes = static_cast<std::size_t>(state.m.size()) * sizeof(float);
  EXPECT_EQ(std::memcmp(loaded.m.data(), state.m.data(), bytes), 0);
  EXPECT_EQ(std::memcmp(loaded.v.data(), state.v.data(), bytes), 0);
}

TEST(Checkpoint, AFolderThatIsNotCompleteIsNotListedAndRemoved) {
  test::TempDir dir;
  const auto checkpoints = dir.path() / "trainer" / "checkpoints";
  make_directories(checkpoints / "step-00000007.tmp");
  make_directories(checkpoints / "step-00000005");
  make_directories(checkpoints / "notes.tmp");  // not ours
  write_file_atomically(dir.path() / "model.safetensors.tmp", "half");
  ASSERT_EQ(list_checkpoints(dir.path()).size(), 1U);
  EXPECT_EQ(list_checkpoints(dir.path())[0].step, 5);
  remove_leftovers(dir.path());
  EXPECT_FALSE(std::filesystem::exists(checkpoints / "step-00000007.tmp"));
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "model.safetensors.tmp"));
  EXPECT_TRUE(std::filesystem::exists(checkpoints / "notes.tmp"));
}

}  // namespace
}  // namespace mmfree
