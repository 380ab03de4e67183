#include "mmfree/ops/adamw/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "mmfree/core/rng.h"
#include "mmfree/ops/adamw/adamw_variants.h"

namespace mmfree {
namespace {

float gradient(idx step, idx i) {
  const double x =
      random_normal(7, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(i));
  return static_cast<float>(x * std::pow(10.0, static_cast<double>(i % 9) - 6.0));
}

std::vector<float> start(idx n) {
  std::vector<float> w(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(random_normal(1, 0, i));
  return w;
}

struct State {
  explicit State(idx n) : w(start(n)), m(static_cast<std::size_t>(n)), v(m.size()), g(m.size()) {}
  std::vector<float> w, m, v, g;

  void step(const Ctx& ctx, AdamW a, idx t) {
    for (std::size_t i = 0; i < g.size(); ++i) g[i] = gradient(t, static_cast<idx>(i));
    a.step = t;
    adamw(ctx, a, static_cast<idx>(g.size()), g.data(), w.data(), m.data(), v.data());
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// torch.optim.AdamW's recurrence, in double.
struct Reference {
  double w, m = 0, v = 0;
  void step(const AdamW& a, double g, double t) {
    const double b1 = static_cast<double>(a.beta1), b2 = static_cast<double>(a.beta2);
    const double lr = static_cast<double>(a.lr);
    g *= static_cast<double>(a.grad_scale);
    w -= lr * static_cast<double>(a.decay) * w;
    m = b1 * m + (1 - b1) * g;
    v = b2 * v + (1 - b2) * g * g;
    const double denominator =
        std::sqrt(v) / std::sqrt(1 - std::pow(b2, t)) + static_cast<double>(a.eps);
    w -= lr / (1 - std::pow(b1, t)) * m / denominator;
  }
};

TEST(AdamW, TwentyStepsFollowTheDoublePrecisionRecurrence) {
  const idx n = 1000;
  for (const float decay : {0.0F, 0.1F}) {
    const AdamW a{.lr = 2e-3F, .decay = decay, .grad_scale = 0.37F, .step = 1};
    State s(n);
    std::vector<Reference> reference;
    for (const float w : s.w) reference.push_back({static_cast<double>(w)});
    for (idx t = 1; t <= 20; ++t) {
      s.step(Ctx{2}, a, t);
      for (std::size_t i = 0; i < reference.size(); ++i)
        reference[i].step(a, static_cast<double>(gradient(t, static_cast<idx>(i))),
                          static_cast<double>(t));
    }
    // 20 updates of at most ~lr, each rounded to float at |w| < 4.
    for (std::size_t i = 0; i < reference.size(); ++i)
      ASSERT_NEAR(static_cast<double>(s.w[i]), reference[i].w, 4e-6) << "element " << i;
  }
}

TEST(AdamW, TheFirstStepMovesEachWeightByTheLearningRate) {
  std::vector<float> w{1.0F, 1.0F}, m(2), v(2);
  const std::vector<float> g{5.0F, -0.01F};
  adamw(Ctx{1}, {.lr = 0.125F, .eps = 0, .step = 1}, 2, g.data(), w.data(), m.data(), v.data());
  EXPECT_NEAR(w[0], 0.875F, 1e-6F);
  EXPECT_NEAR(w[1], 1.125F, 1e-6F);
}

TEST(AdamW, DecayShrinksAWeightWithoutGradient) {
  std::vector<float> w{2.0F}, m(1), v(1);
  const float g = 0;
  adamw(Ctx{1}, {.lr = 0.5F, .decay = 0.5F, .step = 1}, 1, &g, w.data(), m.data(), v.data());
  EXPECT_EQ(w[0], 1.5F);
}

TEST(AdamW, ThreadsDoNotChangeTheBits) {
  const idx n = 4096 * 5 + 13;
  const AdamW a{.lr = 1e-2F, .decay = 0.1F, .grad_scale = 0.9F, .step = 1};
  State one(n), three(n);
  for (idx t = 1; t <= 5; ++t) {
    one.step(Ctx{1}, a, t);
    three.step(Ctx{3}, a, t);
  }
  EXPECT_TRUE(same_bits(one.w, three.w) && same_bits(one.m, three.m) && same_bits(one.v, three.v));
}

TEST(AdamW, EveryVariantEqualsScalarBitForBit) {
  for (const auto& variant : adamw_variants) {
    if (!cpu_has(variant.isa)) continue;
    for (const idx n : {0, 1, 7, 16, 33, 1000}) {
      State expected(n), got(n);
      for (idx t = 1; t <= 5; ++t)
        for (State* s : {&expected, &got}) {
          for (idx i = 0; i < n; ++i) s->g[static_cast<std::size_t>(i)] = gradient(t, i);
          const AdamWArgs args{0.7F,        0.9999F,     0.9F,       0.1F,  0.95F,
                               0.05F,       0.3F,        1e-8F,      1e-2F, s->g.data(),
                               s->w.data(), s->m.data(), s->v.data()};
          (s == &expected ? scalar::adamw : variant.fn)(args, 0, n);
        }
      EXPECT_TRUE(same_bits(expected.w, got.w) && same_bits(expected.m, got.m) &&
                  same_bits(expected.v, got.v))
          << isa_name(variant.isa) << " n " << n;
    }
  }
}

}  // namespace
}  // namespace mmfree
