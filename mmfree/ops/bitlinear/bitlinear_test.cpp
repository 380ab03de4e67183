#include "mmfree/ops/bitlinear/bitlinear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "mmfree/ops/bitlinear/bitlinear_reference.h"
#include "mmfree/ops/bitlinear/bitlinear_variants.h"
#include "mmfree/ternary/pack.h"
#include "mmfree/ternary/quantize_variants.h"
#include "tests/support/bitlinear_layer.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

// Random int8 rows, all values from -127 to 127, with their scales and sums.
struct RandomCodes {
  RandomCodes(test::Random& random, idx rows, idx in)
      : q(codes(random, rows, in)), scale(scales(random, rows)), sum(sums(q.values(), rows, in)) {}

  static std::vector<std::int8_t> codes(test::Random& random, idx rows, idx in) {
    std::vector<std::int8_t> v(static_cast<std::size_t>(rows * code_stride(in)), 0);
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < in; ++k)
        v[static_cast<std::size_t>(r * code_stride(in) + k)] =
            static_cast<std::int8_t>(random.below(255) - 127);
    return v;
  }
  static std::vector<float> scales(test::Random& random, idx rows) {
    std::vector<float> v(static_cast<std::size_t>(rows));
    for (float& x : v) x = static_cast<float>(0.001 + random.uniform());
    return v;
  }
  static std::vector<std::int32_t> sums(const std::vector<std::int8_t>& q, idx rows, idx in) {
    std::vector<std::int32_t> v(static_cast<std::size_t>(rows), 0);
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < in; ++k)
        v[static_cast<std::size_t>(r)] += q[static_cast<std::size_t>(r * code_stride(in) + k)];
    return v;
  }
  CodeRows view() { return {q.data(), scale.data(), sum.data()}; }
  bool unchanged() const { return q.unchanged() && scale.unchanged() && sum.unchanged(); }

  Guarded<std::int8_t> q;
  Guarded<float> scale;
  Guarded<std::int32_t> sum;
};

TernaryWeights make_weights(const std::vector<std::int8_t>& codes, idx out, idx in, float scale) {
  TernaryWeights w;
  w.out = out;
  w.in = in;
  w.scale = scale;
  w.codes = Buffer<std::int8_t>(out * in);
  std::copy(codes.begin(), codes.end(), w.codes.data());
  w.tiles = Buffer<std::uint8_t>(tile_bytes(out, in));
  make_tiles(Ctx{1}, codes.data(), out, in, w.tiles.data());
  return w;
}

// The definition, one product after the other.
std::vector<float> naive(RandomCodes& x, idx rows, idx in, idx out,
                         const std::vector<std::int8_t>& t, float w_scale, const float* residual) {
  std::vector<float> y(static_cast<std::size_t>(rows * out));
  for (idx r = 0; r < rows; ++r)
    for (idx o = 0; o < out; ++o) {
      std::int32_t sum = 0;
      for (idx k = 0; k < in; ++k)
        sum += int{x.q[static_cast<std::size_t>(r * code_stride(in) + k)]} *
               int{t[static_cast<std::size_t>(o * in + k)]};
      const float v = static_cast<float>(sum) * x.scale[static_cast<std::size_t>(r)] * w_scale;
      const auto at = static_cast<std::size_t>(r * out + o);
      y[at] = residual == nullptr ? v : residual[at] + v;
    }
  return y;
}

constexpr idx kOutputs[] = {1, 5, 15, 16, 17, 31, 33, 64, 65, 100, 129};

TEST(Bitlinear, EveryVariantEqualsTheDefinitionBitForBitAndStaysInBounds) {
  test::Random random(1);
  std::size_t turn = 0;
  for (const idx in : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const idx out = kOutputs[turn % std::size(kOutputs)];
      const bool with_residual = turn % 2 == 0;
      ++turn;
      RandomCodes x(random, rows, in);
      const std::vector<std::int8_t> t = random.trits(out * in);
      Guarded<std::uint8_t> tiles(
          std::vector<std::uint8_t>(static_cast<std::size_t>(tile_bytes(out, in)), 1));
      make_tiles(Ctx{1}, t.data(), out, in, tiles.data());
      ASSERT_TRUE(tiles.intact());
      const Guarded<float> residual(random.normals(rows * out, 100));
      const float* added = with_residual ? residual.data() : nullptr;
      const std::vector<float> expected = naive(x, rows, in, out, t, 0.037F, added);
      const idx tile_count = (out + 15) / 16;
      for (const auto& variant : bitlinear_variants) {
        if (!cpu_has(variant.isa)) continue;
        const auto args = [&](const float* plus, float* y) {
          return BitlinearArgs{
              x.q.data(), code_stride(in), x.scale.data(), x.sum.data(), tiles.data(),
              0,          (in + 3) / 4,    0.037F,         out,          plus,
              y};
        };
        Guarded<float> y(rows * out);
        variant.fn(args(added, y.data()), 0, rows, 0, tile_count);
        ASSERT_TRUE(test::same_bits(y, expected))
            << isa_name(variant.isa) << " R " << rows << " K " << in << " O " << out;
        // In pieces of rows and tiles, and onto the residual itself.
        Guarded<float> pieces(residual.values());
        const float* onto = with_residual ? pieces.data() : nullptr;
        for (const auto& [r0, r1] : {std::pair{idx{0}, rows / 3}, std::pair{rows / 3, rows}})
          for (idx tile = 0; tile < tile_count; tile += 3)
            variant.fn(args(onto, pieces.data()), r0, r1, tile, std::min(tile + 3, tile_count));
        ASSERT_TRUE(test::same_bits(pieces, expected)) << isa_name(variant.isa) << " in pieces";
        ASSERT_TRUE(y.intact() && pieces.intact() && x.unchanged() && residual.unchanged());
      }
    }
}

TEST(Bitlinear, LargestSumsDoNotOverflow) {
  // 127 * 4096 needs more than 16 bits, as do its partial sums in any order.
  const idx in = 4096, out = 17;
  for (const int sign : {1, -1}) {
    std::vector<std::int8_t> q(static_cast<std::size_t>(in), static_cast<std::int8_t>(127 * sign));
    float scale = 1;
    std::int32_t sum = static_cast<std::int32_t>(127 * sign * in);
    const CodeRows x{q.data(), &scale, &sum};
    for (const int t : {1, -1}) {
      const TernaryWeights w = make_weights(
          std::vector<std::int8_t>(static_cast<std::size_t>(out * in), static_cast<std::int8_t>(t)),
          out, in, 1);
      for (const auto& variant : bitlinear_variants) {
        if (!cpu_has(variant.isa)) continue;
        std::vector<float> y(static_cast<std::size_t>(out));
        variant.fn({x.q, in, x.scale, x.sum, w.tiles.data(), 0, in / 4, 1, out, nullptr, y.data()},
                   0, 1, 0, 2);
        EXPECT_EQ(y, std::vector<float>(y.size(), static_cast<float>(127 * sign * t * in)));
      }
    }
  }
}

TEST(Bitlinear, IsTheSameForAnyNumberOfThreads) {
  test::Random random(2);
  for (const auto& [rows, in, out] :
       {std::tuple<idx, idx, idx>{1, 100, 333}, {13, 64, 77}, {100, 33, 40}}) {
    RandomCodes x(random, rows, in);
    const std::vector<std::int8_t> t = random.trits(out * in);
    const std::vector<float> residual = random.normals(rows * out);
    const std::vector<float> expected = naive(x, rows, in, out, t, 0.5F, residual.data());
    const TernaryWeights w = make_weights(t, out, in, 0.5F);
    for (const int threads : {1, 2, 3, 7}) {
      std::vector<float> y = residual;
      bitlinear(Ctx{threads}, rows, x.view(), w, y.data(), y.data());
      EXPECT_TRUE(test::same_bits(y, expected)) << threads << " threads";
      std::vector<std::uint8_t> tiles(static_cast<std::size_t>(tile_bytes(out, in)));
      make_tiles(Ctx{threads}, t.data(), out, in, tiles.data());
      for (idx o = 0; o < out; ++o)
        for (idx k = 0; k < in; ++k) {
          const idx at = ((o / 16 * ((in + 3) / 4) + k / 4) * 16 + o % 16) * 4 + k % 4;
          ASSERT_EQ(int{tiles[static_cast<std::size_t>(at)]},
                    t[static_cast<std::size_t>(o * in + k)] + 1);
        }
    }
  }
}

TEST(BitlinearPacked, EveryFormatEqualsTheUnpackedProductBitForBit) {
  test::Random random(3);
  for (const TernaryFormat format : {TernaryFormat::i8, TernaryFormat::tq1_0, TernaryFormat::tq2_0})
    for (const idx in : {1, 63, 100, 256, 512, 768}) {
      if (!ternary_format_allows(format, in)) continue;
      for (const auto& [rows, out] :
           {std::pair<idx, idx>{0, 3}, {1, 1}, {1, 100}, {2, 16}, {5, 65}, {17, 33}, {40, 130}}) {
        RandomCodes x(random, rows, in);
        const std::vector<std::int8_t> t = random.trits(out * in);
        const auto row_bytes = static_cast<idx>(ternary_row_bytes(format, in));
        Guarded<std::byte> packed(
            std::vector<std::byte>(static_cast<std::size_t>(out * row_bytes)));
        for (idx o = 0; o < out; ++o)
          pack_row(format, t.data() + o * in, in, 0x2345, packed.data() + o * row_bytes);
        const std::vector<float> residual = random.normals(rows * out);
        const TernaryWeights w = make_weights(t, out, in, 0.0123F);
        std::vector<float> expected(residual.size());
        bitlinear(Ctx{1}, rows, x.view(), w, residual.data(), expected.data());
        for (const int threads : {1, 2, 3, 7}) {
          Guarded<float> y(rows * out);
          bitlinear_packed(Ctx{threads}, rows, x.view(), {out, in, format, 0.0123F, packed.data()},
                           residual.data(), y.data());
          ASSERT_TRUE(test::same_bits(y, expected) && y.intact())
              << ternary_format_name(format) << " R " << rows << " K " << in << " O " << out << ", "
              << threads << " threads";
        }
        std::vector<float> bare(expected.size()), bare_packed(expected.size());
        bitlinear(Ctx{1}, rows, x.view(), w, nullptr, bare.data());
        bitlinear_packed(Ctx{2}, rows, x.view(), {out, in, format, 0.0123F, packed.data()}, nullptr,
                         bare_packed.data());
        ASSERT_TRUE(test::same_bits(bare_packed, bare));
      }
    }
}

TEST(BitlinearBackward, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(4);
  constexpr idx kSums[] = {1, 2, 17, 255, 256, 257, 600};
  constexpr idx kRows[] = {1, 5, 6, 11, 12, 13, 25, 150};
  std::size_t turn = 0;
  for (const idx n : test::seam_widths()) {
    // Both layouts of A, with and without scales of the summed rows, overwriting and accumulating.
    const idx s = kSums[turn % std::size(kSums)], m = kRows[turn % std::size(kRows)];
    const bool transposed = turn % 2 == 0, scaled = turn / 2 % 2 == 0,
               accumulate = turn / 4 % 2 == 0;
    ++turn;
    const Guarded<float> a(random.normals(m * s)), scale(random.normals(s));
    const idx stride = scaled ? code_stride(n) : n;
    const Guarded<std::int8_t> b(random.trits(s * stride));
    const std::vector<float> start = random.normals(m * n);
    const auto args = [&](float* c) {
      return GradGemmArgs{n,
                          s,
                          a.data(),
                          transposed ? 1 : s,
                          transposed ? m : 1,
                          0.3F,
                          scaled ? scale.data() : nullptr,
                          b.data(),
                          stride,
                          c,
                          accumulate};
    };
    Guarded<float> expected(start);
    scalar::grad_gemm(args(expected.data()), 0, m, nullptr);
    for (const auto& variant : grad_gemm_variants) {
      if (!cpu_has(variant.isa)) continue;
      for (const idx cut : {idx{0}, m / 2}) {
        Guarded<float> c(start), scratch(kGradScratch);
        variant.fn(args(c.data()), 0, cut, scratch.data());
        variant.fn(args(c.data()), cut, m, scratch.data());
        ASSERT_TRUE(test::same_bits(c, expected))
            << isa_name(variant.isa) << " M " << m << " N " << n << " S " << s << " cut " << cut;
        ASSERT_TRUE(c.intact() && scratch.intact() && a.unchanged() && b.unchanged() &&
                    scale.unchanged());
      }
    }
  }
}

TEST(BitlinearBackward, EqualsTheDoubleReferenceForAnyNumberOfThreads) {
  test::Random random(5);
  for (const auto& [rows, in, out] : {std::tuple<idx, idx, idx>{1, 1, 1},
                                      {3, 5, 7},
                                      {70, 100, 33},
                                      {300, 65, 20},
                                      {20, 600, 300}}) {
    RandomCodes x(random, rows, in);
    const std::vector<std::int8_t> t = random.trits(out * in);
    const TernaryWeights w = make_weights(t, out, in, 0.02F);
    const std::vector<float> dy = random.normals(rows * out), start = random.normals(out * in);
    // dx = dy * W, dw = dy^T * X with the quantised operands.
    std::vector<double> dx(static_cast<std::size_t>(rows * in)), dw(start.begin(), start.end());
    for (idx r = 0; r < rows; ++r)
      for (idx o = 0; o < out; ++o)
        for (idx k = 0; k < in; ++k) {
          const double d = dy[static_cast<std::size_t>(r * out + o)];
          const auto at_w = static_cast<std::size_t>(o * in + k);
          dx[static_cast<std::size_t>(r * in + k)] += d * static_cast<double>(w.scale) * t[at_w];
          dw[at_w] += d * static_cast<double>(x.scale[static_cast<std::size_t>(r)]) *
                      x.q[static_cast<std::size_t>(r * code_stride(in) + k)];
        }
    std::vector<float> dx_one, dw_one;
    for (const int threads : {1, 2, 3, 7}) {
      Guarded<float> dx32(rows * in), dw32(start);
      bitlinear_backward_input(Ctx{threads}, rows, dy.data(), w, dx32.data());
      bitlinear_backward_weight(Ctx{threads}, rows, dy.data(), out, x.view(), in, dw32.data());
      // Blocks of 256 roundings, each at most 2^-24 of a partial sum that grows as its root.
      EXPECT_LT(test::relative_l2(dx32, dx), 2e-6) << rows << " " << in << " " << out;
      EXPECT_LT(test::relative_l2(dw32, dw), 2e-6) << rows << " " << in << " " << out;
      EXPECT_TRUE(dx32.intact() && dw32.intact() && x.unchanged());
      if (threads == 1) {
        dx_one = dx32.values(), dw_one = dw32.values();
      }
      EXPECT_TRUE(test::same_bits(dx32, dx_one) && test::same_bits(dw32, dw_one))
          << threads << " threads";
    }
  }
}

TEST(BitlinearBackward, NoRowsLeaveTheGradientAlone) {
  test::Random random(6);
  const TernaryWeights w = make_weights(random.trits(12), 3, 4, 1);
  std::vector<float> dw(12, 2.0F);
  const CodeRows none{nullptr, nullptr, nullptr};
  bitlinear(Ctx{2}, 0, none, w, nullptr, nullptr);
  bitlinear_backward_input(Ctx{2}, 0, nullptr, w, nullptr);
  bitlinear_backward_weight(Ctx{2}, 0, nullptr, 3, none, 4, dw.data());
  EXPECT_EQ(dw, std::vector<float>(12, 2.0F));
}

TEST(Ternarize, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(7);
  for (const idx n : test::seam_widths()) {
    const Guarded<float> w(random.normals(n));
    const double sum = scalar::abs_sum(w.data(), n);
    Guarded<std::int8_t> expected(n);
    scalar::ternary_codes(w.data(), n, 1.3F, expected.data());
    for (std::size_t v = 0; v < std::size(abs_sum_variants); ++v) {
      if (!cpu_has(abs_sum_variants[v].isa)) continue;
      Guarded<std::int8_t> codes(n);
      ternary_codes_variants[v].fn(w.data(), n, 1.3F, codes.data());
      ASSERT_EQ(abs_sum_variants[v].fn(w.data(), n), sum) << isa_name(abs_sum_variants[v].isa);
      ASSERT_TRUE(test::same_bits(codes, expected)) << isa_name(abs_sum_variants[v].isa);
      ASSERT_TRUE(codes.intact() && w.unchanged());
    }
  }
}

TEST(Ternarize, EqualsTheReferenceForAnyNumberOfThreads) {
  test::Random random(8);
  for (const auto& [out, in] : {std::pair<idx, idx>{1, 1}, {3, 5}, {40, 30}, {200, 333}}) {
    const std::vector<float> w = random.normals(out * in, 0.02);
    std::vector<std::int8_t> codes(w.size());
    const double scale =
        reference::ternarize(out, in, test::convert<double>(w).data(), codes.data());
    for (const int threads : {1, 2, 3, 7}) {
      TernaryWeights t;
      ternarize(Ctx{threads}, w.data(), out, in, t);
      EXPECT_NEAR(static_cast<double>(t.scale), scale, scale * 1e-7);
      EXPECT_EQ(t.out, out);
      EXPECT_EQ(t.in, in);
      // A code may differ only where the double value is within a rounding of its tie.
      for (std::size_t i = 0; i < w.size(); ++i) {
        if (t.codes[static_cast<idx>(i)] == codes[i]) continue;
        EXPECT_NEAR(std::abs(static_cast<double>(w[i])) / scale, 0.5, 1e-6);
      }
      Buffer<std::uint8_t> tiles(tile_bytes(out, in));
      make_tiles(Ctx{1}, t.codes.data(), out, in, tiles.data());
      EXPECT_TRUE(std::equal(tiles.begin(), tiles.end(), t.tiles.begin()));
    }
  }
}

TEST(Ternarize, TiesGoToEvenAndLargeWeightsToOne) {
  // mean |w| = 1, so the halves are exact ties.
  const std::vector<float> w{0.5F, -0.5F, 1.5F, -1.5F, 0.25F, -0.25F, 0.75F, -2.75F};
  TernaryWeights t;
  ternarize(Ctx{1}, w.data(), 2, 4, t);
  EXPECT_EQ(t.scale, 1.0F);
  EXPECT_EQ(std::vector<int>(t.codes.begin(), t.codes.end()),
            (std::vector<int>{0, 0, 1, -1, 0, 0, 1, -1}));
}

TEST(Ternarize, WeightsOfZeroUseTheFloorOfTheScale) {
  const std::vector<float> zero(6, 0.0F);
  TernaryWeights t;
  ternarize(Ctx{1}, zero.data(), 2, 3, t);
  EXPECT_EQ(t.scale, 1e-5F);
  EXPECT_EQ(std::vector<int>(t.codes.begin(), t.codes.end()), std::vector<int>(6, 0));
}

TEST(Ternarize, ReusesItsBuffersForOtherShapes) {
  test::Random random(9);
  TernaryWeights t;
  for (const auto& [out, in] : {std::pair<idx, idx>{17, 9}, {9, 17}, {3, 51}, {17, 9}}) {
    const std::vector<float> w = random.normals(out * in);
    ternarize(Ctx{1}, w.data(), out, in, t);
    TernaryWeights fresh;
    ternarize(Ctx{1}, w.data(), out, in, fresh);
    EXPECT_TRUE(std::equal(t.tiles.begin(), t.tiles.end(), fresh.tiles.begin(), fresh.tiles.end()));
    EXPECT_TRUE(std::equal(t.codes.begin(), t.codes.end(), fresh.codes.begin(), fresh.codes.end()));
  }
}

TEST(BitlinearLayer, EqualsTheDoubleReferenceOnOddShapes) {
  test::Random random(10);
  for (const auto& [rows, in, out] :
       {std::tuple<idx, idx, idx>{1, 3, 1}, {7, 33, 19}, {70, 100, 50}, {5, 344, 129}}) {
    const std::vector<float> x = random.normals(rows * in, 2), gain = random.normals(in, 0.3, 1),
                             w = random.normals(out * in, 0.05), dy = random.normals(rows * out);
    const auto x64 = test::convert<double>(x), gain64 = test::convert<double>(gain),
               w64 = test::convert<double>(w), dy64 = test::convert<double>(dy);
    const test::BitlinearLayer layer(Ctx{2}, rows, in, out, x, gain, w, dy);
    reference::Bitlinear<double> a;
    std::vector<double> y(layer.y.size());
    reference::bitlinear(rows, in, out, x64.data(), gain64.data(), kInnerEps, w64.data(), a,
                         y.data());
    // With the codes of the op: a value near a tie may round either way, which is not what this
    // test is about.
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < in; ++k)
        a.x_hat[static_cast<std::size_t>(r * in + k)] =
            layer.q[static_cast<std::size_t>(r * code_stride(in) + k)] /
            a.s[static_cast<std::size_t>(r)];
    for (std::size_t i = 0; i < a.w_hat.size(); ++i)
      a.w_hat[i] = layer.t.codes[static_cast<idx>(i)] * a.scale;
    for (idx r = 0; r < rows; ++r)
      for (idx o = 0; o < out; ++o) {
        double sum = 0;
        for (idx k = 0; k < in; ++k)
          sum += a.x_hat[static_cast<std::size_t>(r * in + k)] *
                 a.w_hat[static_cast<std::size_t>(o * in + k)];
        y[static_cast<std::size_t>(r * out + o)] = sum;
      }
    std::vector<double> dx(x.size()), dw(w.size()), dgain(gain.size());
    reference::bitlinear_backward(rows, in, out, x64.data(), gain64.data(), kInnerEps, a,
                                  dy64.data(), dx.data(), dw.data(), dgain.data());
    EXPECT_LT(test::relative_l2(layer.y, y), 2e-6) << rows << " " << in << " " << out;
    EXPECT_LT(test::relative_l2(layer.dw, dw), 2e-6) << rows << " " << in << " " << out;
    EXPECT_LT(test::relative_l2(layer.dx, dx), 4e-6) << rows << " " << in << " " << out;
    EXPECT_LT(test::relative_l2(layer.dgain, dgain), 4e-6) << rows << " " << in << " " << out;
  }
}

TEST(BitlinearLayer, FollowsTheNumbersWorkedOutInTheSpecification) {
  const std::vector<float> x{0.5F, -1.25F, 2, 0.1F}, gain{1, 0.5F, 1, 2}, dy{1, -2},
      w{0.03F, -0.01F, 0.002F, -0.04F, -0.02F, 0.015F, 0, 0.05F};
  const test::BitlinearLayer layer(Ctx{1}, 1, 4, 2, x, gain, w, dy);
  EXPECT_EQ(std::vector<int>(layer.q.begin(), layer.q.begin() + 4),
            (std::vector<int>{32, -40, 127, 13}));
  EXPECT_EQ(std::vector<int>(layer.t.codes.begin(), layer.t.codes.end()),
            (std::vector<int>{1, 0, 0, -1, -1, 1, 0, 1}));
  const auto near = [](const std::vector<float>& got, const std::vector<double>& expected) {
    return test::max_abs_difference(got, expected) < 1e-7;
  };
  EXPECT_TRUE(near(layer.y, {0.00517704, -0.01607607}));
  EXPECT_TRUE(near(layer.dx, {0.04871215, -0.00931601, -0.01277792, -0.10445216}));
  EXPECT_TRUE(near(layer.dgain, {0.02595332, 0.04325553, 0, -0.00519066}));
  // Rows y and -2 y of the quantised activations: larger numbers than the others.
  const std::vector<double> dw{0.41768738,  -0.52210922, 1.65769678,  0.16968550,
                               -0.83537476, 1.04421844,  -3.31539356, -0.33937100};
  EXPECT_LT(test::relative_l2(layer.dw, dw), 1e-7);
}

// The straight-through gradient is the gradient of the function in which each quantiser adds a
// constant.
TEST(BitlinearReference, StraightThroughGradientFollowsFiniteDifferences) {
  test::Random random(11);
  const idx rows = 3, in = 6, out = 4;
  auto x = random.normals_f64(rows * in), gain = random.normals_f64(in, 0.3, 1),
       w = random.normals_f64(out * in);
  const auto dy = random.normals_f64(rows * out);
  const std::vector<double> w0 = w;
  std::vector<double> y(dy.size()), dx(x.size()), dw(w.size()), dgain(gain.size());
  reference::Bitlinear<double> at, moved;
  reference::bitlinear(rows, in, out, x.data(), gain.data(), 0.1, w.data(), at, y.data());
  reference::bitlinear_backward(rows, in, out, x.data(), gain.data(), 0.1, at, dy.data(), dx.data(),
                                dw.data(), dgain.data());
  const auto value = [&] {
    reference::bitlinear(rows, in, out, x.data(), gain.data(), 0.1, w.data(), moved, y.data(), &at,
                         w0.data());
    return test::dot(y, dy);
  };
  EXPECT_LT(test::relative_l2(dx, test::central_differences(x, value)), 1e-9);
  EXPECT_LT(test::relative_l2(dw, test::central_differences(w, value)), 1e-9);
  EXPECT_LT(test::relative_l2(dgain, test::central_differences(gain, value)), 1e-9);
}

}  // namespace
}  // namespace mmfree
