#include "mmfree/model/tiled.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <vector>

#include "mmfree/model/matmulfree_infer.h"
#include "tests/support/compare.h"

namespace mmfree {
namespace {

using test::same_bits;

constexpr TileFormat kFormats[] = {TileFormat::two_bit, TileFormat::base3};

MatmulFreeConfig odd_config() {
  MatmulFreeConfig c;
  c.vocab_size = 70;
  c.hidden_size = 132;
  c.num_hidden_layers = 2;
  c.intermediate_size = 150;
  return c;
}

// Logits of all positions of one sequence 0, 1, 2, ...
std::vector<float> logits_of(const Ctx& ctx, const TiledModel& model, idx tokens) {
  const MatmulFreeConfig& c = model.base.config;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  InferScratch scratch(c, tokens, tokens, ctx.threads);
  SessionState state(c);
  ForwardCall call;
  call.tokens = ids;
  call.logits = LogitRows::all;
  forward(ctx, model, call, state, scratch);
  return {scratch.logits.begin(), scratch.logits.end()};
}

TEST(RandomModel, DependsOnConfigurationAndSeedOnly) {
  const MatmulFreeConfig c = odd_config();
  const Ctx one{1};
  const TiledModel model = random_model(one, c, 7, TileFormat::two_bit);
  const std::vector<float> expected = logits_of(one, model, 9);
  for (const TileFormat format : kFormats)
    for (const int threads : {1, 3}) {
      const Ctx ctx{threads};
      EXPECT_TRUE(same_bits(logits_of(ctx, random_model(ctx, c, 7, format), 9), expected));
      EXPECT_FALSE(same_bits(logits_of(ctx, random_model(ctx, c, 8, format), 9), expected));
    }
}

TEST(RandomModel, HoldsAThirdOfEachCodeAndNoMatrixTwice) {
  const TiledModel model = random_model(Ctx{1}, odd_config(), 7);
  std::map<int, idx> counts;
  for (const TileMatrix& w : {model.layers[0].i, model.layers[0].f, model.layers[1].down})
    for (idx o = 0; o < w.out; ++o)
      for (idx k = 0; k < w.in; ++k) ++counts[tile_code(w, o, k)];
  const double third = (132.0 * 132 * 2 + 132 * 150) / 3;  // 18.2 thousand, deviation 110
  for (const int code : {-1, 0, 1})
    EXPECT_NEAR(static_cast<double>(counts[code]), third, 700) << code;
  EXPECT_NE(0, std::memcmp(model.layers[0].i.blocks, model.layers[0].f.blocks, 64));
}

TEST(Layout, IsMeasuredForEveryWidthUnlessForced) {
  const MatmulFreeConfig c = odd_config();
  const Layout measured = measure_layout(Ctx{2}, c);
  std::vector<idx> widths;
  for (const WidthLayout& w : measured.widths) {
    widths.push_back(w.in);
    EXPECT_GT(w.base3_macs_per_s, 1e6);
    EXPECT_GT(w.two_bit_macs_per_s, 1e6);
    const double worth = measured.from_cache ? 1.0 : 1.25;
    EXPECT_EQ(w.format == TileFormat::two_bit, w.two_bit_macs_per_s > worth * w.base3_macs_per_s);
  }
  EXPECT_EQ(widths, (std::vector<idx>{132, c.mlp_width()}));
  EXPECT_GT(measured.seconds, 0);
  for (const TileFormat format : kFormats) {
    const TiledModel model = random_model(Ctx{1}, c, 7, format);
    for (const WidthLayout& w : model.layout.widths) EXPECT_EQ(w.format, format);
    EXPECT_EQ(model.layers[0].i.format, format);
    EXPECT_EQ(model.layers[1].down.format, format);
    EXPECT_EQ(model.head.format, format);
  }
}

// One width in each layout.
TEST(Layout, MayDifferByWidthAndKeepsTheBits) {
  const MatmulFreeConfig c = odd_config();
  Layout mixed = forced_layout(c, TileFormat::base3);
  mixed.widths[1].format = TileFormat::two_bit;
  ASSERT_EQ(mixed.widths[1].in, c.mlp_width());
  const Ctx one{1};
  const TiledModel model = random_model(one, c, 7, mixed);
  EXPECT_EQ(model.layers[0].i.format, TileFormat::base3);
  EXPECT_EQ(model.layers[0].down.format, TileFormat::two_bit);
  EXPECT_EQ(matrix_bytes(model), matrix_bytes(c, mixed));
  EXPECT_TRUE(same_bits(logits_of(one, model, 9),
                        logits_of(one, random_model(one, c, 7, TileFormat::two_bit), 9)));
}

}  // namespace
}  // namespace mmfree
