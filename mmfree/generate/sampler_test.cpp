#include "mmfree/generate/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

SamplerOptions plain() {
  return {.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0};
}

std::vector<std::int32_t> ids(const std::vector<float>& logits, const SamplerOptions& o,
                              const RecentTokens* recent = nullptr) {
  std::vector<Candidate> c;
  candidates(logits, o, recent, c);
  double sum = 0;
  std::vector<std::int32_t> result;
  for (const Candidate& t : c) {
    result.push_back(t.id);
    sum += t.probability;
  }
  EXPECT_NEAR(sum, 1.0, 1e-12);
  return result;
}

using Ids = std::vector<std::int32_t>;
// Probabilities 0.1, 0.4, 0.2, 0.3 at temperature 1.
const std::vector<float> kLogits = {std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F)};

TEST(Sampler, TemperatureZeroTakesTheFirstLargestLogit) {
  SamplerOptions o = plain();
  o.temperature = 0;
  std::vector<Candidate> scratch;
  const std::vector<float> tied = {1, 5, 5, 2};
  for (std::uint64_t draw = 0; draw < 50; ++draw)
    EXPECT_EQ(sample(tied, o, nullptr, draw, scratch), 1);
}

TEST(Sampler, WithoutFiltersEveryTokenIsACandidate) {
  EXPECT_EQ(ids(kLogits, plain()), (Ids{0, 1, 2, 3}));
  std::vector<Candidate> c;
  candidates(kLogits, plain(), nullptr, c);
  EXPECT_NEAR(c[1].probability, 0.4, 1e-7);
}

TEST(Sampler, TopKKeepsExactlyKAndTiesGoToTheLowerId) {
  SamplerOptions o = plain();
  o.top_k = 2;
  EXPECT_EQ(ids(kLogits, o), (Ids{1, 3}));
  EXPECT_EQ(ids({7, 7, 7, 7}, o), (Ids{0, 1}));
  o.top_k = 3;
  EXPECT_EQ(ids({1, 2, 1, 2, 1}, o), (Ids{1, 3, 0}));
}

TEST(Sampler, TopKBeyondTheVocabularyKeepsAll) {
  SamplerOptions o = plain();
  for (const idx k : {idx{4}, idx{5}, idx{1} << 40}) {
    o.top_k = k;
    EXPECT_EQ(ids(kLogits, o), (Ids{0, 1, 2, 3}));
  }
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  SamplerOptions o = plain();
  o.top_p = 0.5;  // 0.4 does not reach it, 0.4 + 0.3 does
  EXPECT_EQ(ids(kLogits, o), (Ids{1, 3}));
  o.top_p = 0.39;
  EXPECT_EQ(ids(kLogits, o), (Ids{1}));
  o.top_p = 0.95;
  EXPECT_EQ(ids(kLogits, o), (Ids{1, 3, 2, 0}));
}

TEST(Sampler, TopPZeroKeepsOneAndOneKeepsAll) {
  SamplerOptions o = plain();
  o.top_p = 0;
  EXPECT_EQ(ids(kLogits, o), (Ids{1}));
  EXPECT_EQ(ids({3, 3, 3}, o), (Ids{0}));
  o.top_p = 1;
  EXPECT_EQ(ids(kLogits, o).size(), 4U);
}

TEST(Sampler, MinPIsRelativeToTheLargest) {
  SamplerOptions o = plain();
  o.min_p = 0.6;  // of 0.4: 0.24
  EXPECT_EQ(ids(kLogits, o), (Ids{1, 3}));
  o.min_p = 1;
  EXPECT_EQ(ids(kLogits, o), (Ids{1}));
  EXPECT_EQ(ids({2, 1, 2}, o), (Ids{0, 2}));
  o.min_p = 0;
  EXPECT_EQ(ids(kLogits, o).size(), 4U);
}

TEST(Sampler, TopPLooksAtWhatTopKLeft) {
  SamplerOptions o = plain();
  o.top_k = 2;    // leaves 0.4 and 0.3, renormalised 0.571 and 0.429
  o.top_p = 0.5;  // so the first alone reaches it, which it would not have done before
  EXPECT_EQ(ids(kLogits, o), (Ids{1}));
}

TEST(Sampler, TemperatureComesBeforeTopP) {
  SamplerOptions o = plain();
  o.top_p = 0.5;
  o.temperature = 0.25;  // the fourth power: the largest has about 0.72
  EXPECT_EQ(ids(kLogits, o), (Ids{1}));
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogits) {
  RecentTokens recent(3, 0);
  recent.push(0);
  recent.push(1);
  SamplerOptions o = plain();
  o.repetition_penalty = 2;
  std::vector<Candidate> c;
  candidates(std::vector<float>{4, -4, 4}, o, &recent, c);
  EXPECT_EQ(c[0].logit, 2);
  EXPECT_EQ(c[1].logit, -8);
  EXPECT_EQ(c[2].logit, 4);
}

TEST(Sampler, TokensLeaveTheRepetitionWindow) {
  RecentTokens recent(5, 2);
  for (const std::int32_t t : {3, 3, 4}) recent.push(t);
  EXPECT_TRUE(recent.contains(3));
  EXPECT_TRUE(recent.contains(4));
  recent.push(0);
  EXPECT_FALSE(recent.contains(3));
  EXPECT_TRUE(recent.contains(4));
  EXPECT_TRUE(recent.contains(0));
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  std::vector<Candidate> scratch;
  for (const double top_p : {1.0, 0.999999}) {  // unsorted and sorted candidates
    SamplerOptions o = plain();
    o.top_p = top_p;
    o.seed = 7;
    std::array<int, 4> hits{};
    constexpr int kDraws = 100000;
    for (std::uint64_t d = 0; d < kDraws; ++d)
      ++hits[static_cast<std::size_t>(sample(kLogits, o, nullptr, d, scratch))];
    const std::array<double, 4> expected = {0.1, 0.4, 0.2, 0.3};
    for (std::size_t v = 0; v < 4; ++v)  // 6 standard deviations
      EXPECT_NEAR(hits[v] / double{kDraws}, expected[v],
                  6 * std::sqrt(expected[v] * (1 - expected[v]) / kDraws));
  }
}

TEST(Sampler, IsAFunctionOfSeedAndDraw) {
  std::vector<Candidate> scratch;
  std::vector<float> logits(1000);
  for (std::size_t v = 0; v < logits.size(); ++v) logits[v] = static_cast<float>(v % 17) * 0.1F;
  SamplerOptions o = plain();
  std::vector<std::int32_t> first, again, other;
  for (std::uint64_t d = 0; d < 40; ++d) first.push_back(sample(logits, o, nullptr, d, scratch));
  for (std::uint64_t d = 0; d < 40; ++d) again.push_back(sample(logits, o, nullptr, d, scratch));
  o.seed = 1;
  for (std::uint64_t d = 0; d < 40; ++d) other.push_back(sample(logits, o, nullptr, d, scratch));
  EXPECT_EQ(first, again);
  EXPECT_NE(first, other);
}

TEST(Sampler, TinyTemperatureAndHugeLogitsAreGreedy) {
  SamplerOptions o = plain();
  o.temperature = 1e-300;
  EXPECT_EQ(ids({-3e38F, 3e38F, 1}, o), (Ids{1}));
  o.temperature = 1e-320;
  EXPECT_EQ(ids({1, 3e38F, 3e38F}, o), (Ids{1}));
}

TEST(Sampler, NonFiniteLogitsAreANumericError) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::vector<Candidate> scratch;
    try {
      sample(std::vector<float>{1, bad}, plain(), nullptr, 0, scratch);
      FAIL() << "accepted " << bad;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::numeric);
    }
  }
}

TEST(Sampler, OptionsOutsideTheirRangesAreUsageErrors) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<SamplerOptions> wrong = {{.temperature = -0.1},
                                             {.temperature = nan},
                                             {.top_k = -1},
                                             {.top_p = 1.1},
                                             {.top_p = -0.1},
                                             {.top_p = nan},
                                             {.min_p = 1.5},
                                             {.min_p = nan},
                                             {.repetition_penalty = 0},
                                             {.repetition_penalty = nan},
                                             {.repetition_window = -1}};
  for (const SamplerOptions& o : wrong) {
    try {
      validate(o);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::usage);
    }
  }
  EXPECT_NO_THROW(validate(SamplerOptions{}));
}

}  // namespace
}  // namespace mmfree
