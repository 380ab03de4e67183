#include "mmfree/ops/tile_product/tile_product.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "mmfree/ops/tile_product/tile_product_variants.h"
#include "tests/support/compare.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"

namespace mmfree {
namespace {

using test::Guarded;

constexpr TileFormat kFormats[] = {TileFormat::two_bit, TileFormat::base3};

struct Case {
  Case(test::Random& random, TileFormat f, idx n_rows, idx n_in, idx n_out)
      : Case(f, n_rows, n_in, n_out, random.trits(n_out * n_in), make_codes(random, n_rows, n_in)) {
    for (float& s : scale) s = static_cast<float>(0.001 + random.uniform());
  }
  Case(TileFormat f, idx n_rows, idx n_in, idx n_out, std::vector<std::int8_t> trits,
       std::vector<std::int8_t> values)
      : format(f),
        rows(n_rows),
        in(n_in),
        out(n_out),
        t(std::move(trits)),
        codes(std::move(values)),
        q(codes),
        blocks(pack()) {
    std::vector<float> scales;
    std::vector<std::int32_t> totals;
    for (idx r = 0; r < rows; ++r) {
      scales.push_back(0.25F);
      std::int32_t total = 0;
      for (idx k = 0; k < in; ++k)
        total += codes[static_cast<std::size_t>(r * code_stride(in) + k)];
      totals.push_back(total);
    }
    scale = scales;
    sum = totals;
    w = {out, in, format, 0.037F, blocks.data(), tile_block_bytes(format, in)};
  }

  // All values, the two ends often: sums as large as they can be.
  static std::vector<std::int8_t> make_codes(test::Random& random, idx rows, idx in) {
    std::vector<std::int8_t> v(static_cast<std::size_t>(rows * code_stride(in)), 0);
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < in; ++k) {
        const auto any = static_cast<int>(random.below(255)) - 127;
        const auto kind = random.below(4);
        v[static_cast<std::size_t>(r * code_stride(in) + k)] =
            static_cast<std::int8_t>(kind == 0   ? 127
                                     : kind == 1 ? -127
                                                 : any);
      }
    return v;
  }
  std::vector<std::uint8_t> pack() const {
    const idx bytes = tile_block_bytes(format, in);
    std::vector<std::uint8_t> b(static_cast<std::size_t>(tile_blocks(out) * bytes), 0xff);
    const std::vector<std::int8_t> zeros(static_cast<std::size_t>(in), 0);
    for (idx o = 0; o < tile_blocks(out) * kBlockOutputs; ++o)
      pack_tile_lane(format, o < out ? t.data() + o * in : zeros.data(), in, o % kBlockOutputs,
                     b.data() + o / kBlockOutputs * bytes);
    return b;
  }

  // y (rows, 64) of one block by definition.
  std::vector<float> expected(idx block) const {
    std::vector<float> y;
    for (idx r = 0; r < rows; ++r)
      for (idx o = block * kBlockOutputs; o < (block + 1) * kBlockOutputs; ++o) {
        std::int32_t total = 0;
        for (idx k = 0; o < out && k < in; ++k)
          total += int{codes[static_cast<std::size_t>(r * code_stride(in) + k)]} *
                   int{t[static_cast<std::size_t>(o * in + k)]};
        y.push_back(static_cast<float>(total) * scale[static_cast<std::size_t>(r)] * 0.037F);
      }
    return y;
  }

  TileFormat format;
  idx rows, in, out;
  std::vector<std::int8_t> t, codes;
  Guarded<std::int8_t> q;
  Guarded<std::uint8_t> blocks;
  std::vector<float> scale;
  std::vector<std::int32_t> sum;
  TileMatrix w;
};

void check_all_variants(Case& c) {
  Guarded<std::uint8_t> scratch(tile_scratch_bytes(c.in));
  for (idx block = 0; block < tile_blocks(c.out); ++block) {
    std::vector<float> expected = c.expected(block);
    if (block % 2 == 1)  // added to what is there
      for (float& v : expected) v = 3.5F + v;
    for (const auto& variant : tile_product_variants) {
      if (!cpu_has(variant.isa)) continue;
      Guarded<float> y(c.rows * kBlockOutputs);
      std::fill_n(y.data(), y.size(), 3.5F);
      variant.fn({.w = &c.w,
                  .block = block,
                  .rows = c.rows,
                  .x = {c.q.data(), c.scale.data(), c.sum.data()},
                  .y = y.data(),
                  .y_stride = kBlockOutputs,
                  .add = block % 2 == 1,
                  .scratch = scratch.data()});
      ASSERT_TRUE(test::same_bits(y, expected))
          << isa_name(variant.isa) << " " << tile_format_name(c.format) << " R " << c.rows << " K "
          << c.in << " O " << c.out << " block " << block;
      ASSERT_TRUE(y.intact() && scratch.intact());
    }
  }
  ASSERT_TRUE(c.q.unchanged() && c.blocks.unchanged());
}

TEST(Tiles, HoldEveryCodeAndNothingElse) {
  test::Random random(3);
  for (const TileFormat f : kFormats)
    for (const idx in : {1, 3, 4, 15, 16, 17, 19, 20, 21, 40, 79, 256, 1100}) {
      Case c(random, f, 0, in, 70);
      for (idx o = 0; o < 128; ++o)
        for (idx k = 0; k < in; ++k)
          ASSERT_EQ(tile_code(c.w, o, k), o < 70 ? c.t[static_cast<std::size_t>(o * in + k)] : 0);
    }
}

TEST(TileProduct, EveryVariantEqualsTheDefinitionForEveryWidth) {
  test::Random random(1);
  for (const TileFormat f : kFormats)
    for (idx in = 1; in <= 1100; ++in) {
      const idx rows = in <= 120 ? in % 21 : (in % 7 == 0 ? in % 20 : 1 + in % 5);
      Case c(random, f, rows, in, in % 3 == 0 ? 64 : 1 + in % 130);
      check_all_variants(c);
      if (HasFatalFailure()) return;
    }
}

TEST(TileProduct, TakesAnyNumberOfTokens) {
  test::Random random(2);
  for (const TileFormat f : kFormats)
    for (idx rows = 0; rows <= 66; ++rows) {
      Case c(random, f, rows, 203, 100);
      check_all_variants(c);
      if (HasFatalFailure()) return;
    }
}

// Seams of the kernels for many tokens: chunks of tokens, pieces of inputs.
TEST(TileProduct, TakesManyTokensOfManyInputs) {
  test::Random random(4);
  for (const TileFormat f : kFormats)
    for (const idx rows : {95, 256, 257, 290, 545})
      for (const idx in : {639, 640, 641, 1300}) {
        Case c(random, f, rows, in, 64);
        check_all_variants(c);
        if (HasFatalFailure()) return;
      }
}

TEST(TileProduct, LargestSumsDoNotOverflow) {
  for (const TileFormat f : kFormats)
    for (const std::int8_t code : {std::int8_t{127}, std::int8_t{-127}, std::int8_t{-128}}) {
      std::vector<std::int8_t> codes(static_cast<std::size_t>(code_stride(kMaxTileInputs)), 0);
      std::fill_n(codes.begin(), kMaxTileInputs, code);
      Case c(f, 1, kMaxTileInputs, 1, std::vector<std::int8_t>(kMaxTileInputs, 1), codes);
      check_all_variants(c);
    }
}

TEST(TileProduct, TheForcedVariantIsUsed) {
  EXPECT_EQ(tile_product(), pick(tile_product_variants, active_isa()));
}

}  // namespace
}  // namespace mmfree
