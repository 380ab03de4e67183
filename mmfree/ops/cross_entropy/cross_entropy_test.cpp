#include "mmfree/ops/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "mmfree/ops/cross_entropy/cross_entropy_reference.h"
#include "mmfree/ops/cross_entropy/cross_entropy_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

// Every third label or so is the ignored one.
std::vector<std::int32_t> random_labels(test::Random& random, idx rows, idx vocab) {
  std::vector<std::int32_t> labels = random.ids(rows, vocab);
  for (std::int32_t& label : labels)
    if (random.below(3) == 0) label = kIgnoreLabel;
  return labels;
}

TEST(CrossEntropy, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  for (const idx vocab : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const std::vector<float> start = random.normals(rows * vocab, 5, -3);
      const Guarded<std::int32_t> labels(random_labels(random, rows, vocab));
      for (const bool with_gradient : {false, true}) {
        Guarded<float> logits0(start), nll0(rows);
        scalar::cross_entropy_rows(vocab, logits0.data(), labels.data(), with_gradient, 0.3F,
                                   nll0.data(), 0, rows);
        ASSERT_TRUE(with_gradient || logits0.unchanged());
        for (const auto& variant : cross_entropy_rows_variants) {
          if (!cpu_has(variant.isa)) continue;
          Guarded<float> logits(start), nll(rows);
          variant.fn(vocab, logits.data(), labels.data(), with_gradient, 0.3F, nll.data(), 0,
                     rows / 2);
          variant.fn(vocab, logits.data(), labels.data(), with_gradient, 0.3F, nll.data(), rows / 2,
                     rows);
          ASSERT_TRUE(test::same_bits(logits, logits0) && test::same_bits(nll, nll0))
              << isa_name(variant.isa) << " rows " << rows << " vocab " << vocab;
          ASSERT_TRUE(logits.intact() && nll.intact() && labels.unchanged());
        }
      }
    }
}

struct Result {
  std::vector<float> nll, dlogits;
};

Result run(int threads, idx rows, idx vocab, std::vector<float> logits,
           const std::vector<std::int32_t>& labels, float scale = 1) {
  std::vector<float> nll(static_cast<std::size_t>(rows));
  cross_entropy(Ctx{threads}, rows, vocab, logits.data(), labels.data(), true, scale, nll.data());
  return {nll, logits};
}

TEST(CrossEntropy, EqualsTheDoubleReferenceForAnyNumberOfThreads) {
  test::Random random(2);
  for (const idx vocab : {1, 2, 17, 259, 5000}) {
    const idx rows = 11;
    const auto logits = random.normals(rows * vocab, 4);
    const auto labels = random_labels(random, rows, vocab);
    std::vector<double> nll(static_cast<std::size_t>(rows)), dlogits(logits.size());
    reference::cross_entropy(rows, vocab, test::convert<double>(logits).data(), labels.data(),
                             kIgnoreLabel, 0.25F, dlogits.data(), nll.data());
    const Result one = run(1, rows, vocab, logits, labels, 0.25F);
    EXPECT_LT(test::max_abs_difference(one.nll, nll), 30 * test::float_tolerance(vocab));
    EXPECT_LT(test::relative_l2(one.dlogits, dlogits), test::float_tolerance(vocab));
    for (const int threads : {2, 3, 7}) {
      const Result many = run(threads, rows, vocab, logits, labels, 0.25F);
      EXPECT_TRUE(test::same_bits(many.nll, one.nll) && test::same_bits(many.dlogits, one.dlogits));
    }
    std::vector<float> untouched = logits, nll_only(static_cast<std::size_t>(rows));
    cross_entropy(Ctx{2}, rows, vocab, untouched.data(), labels.data(), false, 1, nll_only.data());
    EXPECT_TRUE(test::same_bits(untouched, logits)) << "no gradient was asked for";
    EXPECT_TRUE(test::same_bits(nll_only, one.nll));
  }
}

TEST(CrossEntropy, RowsThatAreIgnoredGiveZero) {
  const Result r = run(2, 2, 3, {1, 2, 3, 4, 5, 6}, {kIgnoreLabel, kIgnoreLabel});
  EXPECT_EQ(r.nll, std::vector<float>(2, 0.0F));
  EXPECT_EQ(r.dlogits, std::vector<float>(6, 0.0F));
}

TEST(CrossEntropy, AVocabularyOfOneIsCertain) {
  const Result r = run(1, 2, 1, {7, -1e4F}, {0, 0});
  EXPECT_EQ(r.nll, std::vector<float>(2, 0.0F));
  EXPECT_EQ(r.dlogits, std::vector<float>(2, 0.0F));
}

TEST(CrossEntropy, HugeLogitsNeitherOverflowNorLoseTheAnswer) {
  for (const float big : {1e4F, 1e30F}) {
    const Result r = run(1, 2, 4, {-big, big, 0, -big, -big, big, 0, -big}, {1, 0});
    EXPECT_EQ(r.nll[0], 0.0F);
    EXPECT_FLOAT_EQ(r.nll[1], 2 * big);
    EXPECT_LT(test::max_abs_difference(r.dlogits, std::vector<double>{0, 0, 0, 0, -1, 1, 0, 0}),
              1e-30);
  }
}

TEST(CrossEntropy, MinusInfinityIsProbabilityZeroWhereverItStands) {
  const float none = -std::numeric_limits<float>::infinity();
  for (const std::vector<float>& logits :
       {std::vector<float>{none, 1, 1}, {1, none, 1}, {1, 1, none}}) {
    const std::int32_t label = logits[0] == 1 ? 0 : 1;
    const Result r = run(1, 1, 3, logits, {label});
    EXPECT_FLOAT_EQ(r.nll[0], std::log(2.0F));
    std::vector<double> expected(3);
    for (std::size_t k = 0; k < 3; ++k)
      expected[k] = logits[k] == none ? 0 : static_cast<idx>(k) == label ? -0.5 : 0.5;
    EXPECT_LT(test::max_abs_difference(r.dlogits, expected), 1e-30);
  }
}

// NaN comes in whole rows: the scales of the head's activations and weights are shared by all
// logits of a position.
TEST(CrossEntropy, ARowOfNanGivesNan) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Result r = run(1, 2, 3, {nan, nan, nan, 1, 2, 3}, {1, 1});
  EXPECT_TRUE(std::isnan(r.nll[0]));
  EXPECT_TRUE(std::isfinite(r.nll[1]));
}

TEST(CrossEntropy, NothingHappensWithoutRows) {
  cross_entropy(Ctx{2}, 0, 5, nullptr, nullptr, true, 1, nullptr);
}

TEST(CrossEntropyReference, GradientFollowsFiniteDifferences) {
  test::Random random(3);
  const idx rows = 3, vocab = 5;
  auto logits = random.normals_f64(rows * vocab, 2);
  const std::vector<std::int32_t> labels{4, kIgnoreLabel, 0};
  std::vector<double> nll(3), dlogits(logits.size());
  reference::cross_entropy(rows, vocab, logits.data(), labels.data(), kIgnoreLabel, 0.7,
                           dlogits.data(), nll.data());
  const auto slope = test::central_differences(logits, [&] {
    reference::cross_entropy<double>(rows, vocab, logits.data(), labels.data(), kIgnoreLabel, 1,
                                     nullptr, nll.data());
    return 0.7 * (nll[0] + nll[1] + nll[2]);
  });
  EXPECT_LT(test::relative_l2(dlogits, slope), 1e-9);
}

}  // namespace
}  // namespace mmfree
