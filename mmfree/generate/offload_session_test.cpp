// The first blocks on the GPU and the others on the CPU give the CPU's bits, for any split.
#include "mmfree/generate/offload_session.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "mmfree/core/error.h"
#include "mmfree/generate/session.h"
#include "tests/support/compare.h"
#include "tests/support/random_model.h"
#include "tests/support/random_tensor.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

using test::same_bits;

constexpr Ctx kCtx{2};
constexpr idx kLayers = 4;

MatmulFreeConfig config() {
  MatmulFreeConfig c;
  c.vocab_size = 257;
  c.hidden_size = 200;
  c.num_hidden_layers = kLayers;
  c.num_heads = 1;
  c.intermediate_size = 328;
  return c;
}

std::vector<float> copy(std::span<const float> v) {
  return {v.begin(), v.end()};
}

class Offload : public ::testing::Test {
 protected:
  void SetUp() override {
    test::write_random_model(dir.path(), config());
    cpu = load_model(kCtx, dir.path());
    try {
      GpuModel probe(kCtx, load_packed(kCtx, dir.path()), 0);
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  test::TempDir dir;
  TiledModel cpu;
};

TEST_F(Offload, AnySplitGivesTheCpusBits) {
  const std::vector<std::int32_t> ids = test::Random(3).ids(40, 257);
  for (idx layers = 0; layers <= kLayers; ++layers) {
    SCOPED_TRACE(layers);
    Session whole(kCtx, cpu);
    GpuModel gpu(kCtx, load_packed(kCtx, dir.path()), layers);
    OffloadSession split(kCtx, gpu, cpu);
    EXPECT_TRUE(same_bits(copy(whole.prefill(ids)), copy(split.prefill(ids))));
    std::int32_t token = 5;
    for (int n = 0; n < 20; ++n) {
      const std::vector<float> expected = copy(whole.step(token));
      EXPECT_TRUE(same_bits(expected, copy(split.step(token)))) << n;
      token = static_cast<std::int32_t>(std::max_element(expected.begin(), expected.end()) -
                                        expected.begin());
    }
    EXPECT_EQ(split.position(), 60);
    const SessionState& a = whole.state();
    const SessionState b = split.state();
    EXPECT_TRUE(same_bits(copy({a.h.begin(), a.h.end()}), copy({b.h.begin(), b.h.end()})));
    // A state that the CPU made is gone on from.
    split.restart();
    split.restore(whole.state(), whole.position());
    EXPECT_TRUE(same_bits(copy(whole.step(1)), copy(split.step(1))));
  }
}

TEST_F(Offload, LogitsOfAllRowsAndAMask) {
  const std::vector<std::int32_t> ids = test::Random(4).ids(300, 257);
  std::vector<std::uint8_t> mask(300, 1);
  mask[0] = mask[1] = mask[200] = 0;
  const auto all = [&](const auto& run) {
    std::vector<float> logits;
    ForwardCall call;
    call.tokens = ids;
    call.mask = mask.data();
    call.logits = LogitRows::all;
    idx next = 0;
    call.sink = [&](idx first, idx rows, const float* values) {
      EXPECT_EQ(first, next);
      next += rows;
      logits.insert(logits.end(), values, values + rows * 257);
    };
    run(call);
    return logits;
  };
  const std::vector<float> expected = all([&](const ForwardCall& call) {
    InferScratch scratch(config(), kLogitRows, kLogitRows, kCtx.threads);
    SessionState state(config());
    forward(kCtx, cpu, call, state, scratch);
  });
  GpuModel gpu(kCtx, load_packed(kCtx, dir.path()), 2);
  OffloadSession split(kCtx, gpu, cpu);
  EXPECT_TRUE(same_bits(expected, all([&](const ForwardCall& call) { split.forward(call); })));
}

TEST_F(Offload, BadInputIsRefused) {
  GpuModel gpu(kCtx, load_packed(kCtx, dir.path()), 2);
  OffloadSession split(kCtx, gpu, cpu);
  EXPECT_THROW(split.step(257), Error);
  EXPECT_THROW(split.prefill({}), Error);
  EXPECT_EQ(split.position(), 0);
}

}  // namespace
}  // namespace mmfree
