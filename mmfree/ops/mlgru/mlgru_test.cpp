#include "mmfree/ops/mlgru/mlgru.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "mmfree/ops/mlgru/mlgru_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

std::vector<float> random_bounds(test::Random& random, idx n) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = static_cast<float>(random.uniform());
  return v;
}

std::vector<std::uint8_t> random_mask(test::Random& random, idx n) {
  std::vector<std::uint8_t> v(static_cast<std::size_t>(n));
  for (std::uint8_t& x : v) x = random.below(3) > 0 ? 1 : 0;
  return v;
}

TEST(Mlgru, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  int turn = 0;
  for (const idx width : test::seam_widths())
    for (const auto& [batch, length] : {std::pair<idx, idx>{1, 0}, {1, 1}, {2, 3}, {1, 9}}) {
      const idx n = batch * length * width;
      const Guarded<float> i(random.normals(n, 2)), f(random.normals(n, 2)),
          bound(random_bounds(random, width)), dh(random.normals(n));
      const Guarded<std::uint8_t> mask(random_mask(random, batch * length));
      const std::vector<float> state = random.normals(batch * width);
      // All eight combinations of bound, mask and state come by in turn.
      const bool with_bound = (turn & 1) != 0, with_mask = (turn & 2) != 0,
                 with_state = (turn & 4) != 0;
      ++turn;
      const auto run = [&](MlgruChannelsFn forward, MlgruBackwardChannelsFn backward, idx cut,
                           Guarded<float>& h, Guarded<float>& s, Guarded<float>& di,
                           Guarded<float>& df, Guarded<float>& db) {
        const Mlgru a{batch,
                      length,
                      width,
                      i.data(),
                      f.data(),
                      with_bound ? bound.data() : nullptr,
                      with_mask ? mask.data() : nullptr,
                      with_state ? s.data() : nullptr,
                      h.data()};
        for (idx b = 0; b < batch; ++b) {
          forward(a, b, 0, cut);
          forward(a, b, cut, width);
        }
        const MlgruBackward g{batch,
                              length,
                              width,
                              i.data(),
                              f.data(),
                              with_bound ? bound.data() : nullptr,
                              with_mask ? mask.data() : nullptr,
                              h.data(),
                              dh.data(),
                              di.data(),
                              df.data(),
                              nullptr};
        for (idx b = 0; b < batch; ++b) {
          backward(g, b, 0, cut, with_bound ? db.data() + b * width : nullptr);
          backward(g, b, cut, width, with_bound ? db.data() + b * width : nullptr);
        }
      };
      Guarded<float> h0(n), s0(state), di0(n), df0(n), db0(batch * width);
      run(scalar::mlgru_channels, scalar::mlgru_backward_channels, width, h0, s0, di0, df0, db0);
      for (std::size_t v = 0; v < std::size(mlgru_channels_variants); ++v) {
        const Isa isa = mlgru_channels_variants[v].isa;
        if (!cpu_has(isa)) continue;
        Guarded<float> h(n), s(state), di(n), df(n), db(batch * width);
        run(mlgru_channels_variants[v].fn, mlgru_backward_channels_variants[v].fn, width / 2, h, s,
            di, df, db);
        ASSERT_TRUE(test::same_bits(h, h0) && test::same_bits(s, s0) && test::same_bits(di, di0) &&
                    test::same_bits(df, df0) && test::same_bits(db, db0))
            << isa_name(isa) << " B " << batch << " T " << length << " M " << width;
        ASSERT_TRUE(h.intact() && s.intact() && di.intact() && df.intact() && db.intact());
        ASSERT_TRUE(i.unchanged() && f.unchanged() && bound.unchanged() && mask.unchanged() &&
                    dh.unchanged() && (with_state || s.unchanged()));
      }
    }
}

struct Case {
  idx batch, length, width;
  std::vector<float> i, f, bound, dh, state;
  std::vector<std::uint8_t> mask;

  Case(idx b, idx t, idx m, std::uint64_t stream) : batch(b), length(t), width(m) {
    test::Random random(stream);
    i = random.normals(b * t * m, 2);
    f = random.normals(b * t * m, 1.5, 0.5);
    dh = random.normals(b * t * m);
    state = random.normals(b * m);
    bound = random_bounds(random, m);
    mask = random_mask(random, b * t);
  }
};

TEST(Mlgru, EqualsTheDoubleReferenceForAnyNumberOfThreads) {
  for (const auto& [batch, length, width] :
       {std::tuple<idx, idx, idx>{1, 1, 1}, {3, 7, 5}, {2, 33, 100}, {1, 300, 64}, {5, 4, 201}})
    for (const bool gates : {false, true}) {
      const Case c(batch, length, width, 2);
      const float* bound = gates ? c.bound.data() : nullptr;
      const std::uint8_t* mask = gates ? c.mask.data() : nullptr;
      const auto bound64 = test::convert<double>(c.bound), i64 = test::convert<double>(c.i),
                 f64 = test::convert<double>(c.f), dh64 = test::convert<double>(c.dh);
      std::vector<double> state64 = test::convert<double>(c.state);
      std::vector<double> h64(c.i.size()), hz64(c.i.size()), di64(c.i.size()), df64(c.i.size()),
          db64(c.bound.size());
      reference::mlgru(batch, length, width, i64.data(), f64.data(),
                       gates ? bound64.data() : nullptr, mask, state64.data(), h64.data());
      reference::mlgru<double>(batch, length, width, i64.data(), f64.data(),
                               gates ? bound64.data() : nullptr, mask, nullptr, hz64.data());
      reference::mlgru_backward(batch, length, width, i64.data(), f64.data(),
                                gates ? bound64.data() : nullptr, mask, hz64.data(), dh64.data(),
                                di64.data(), df64.data(), gates ? db64.data() : nullptr);
      std::vector<float> h_one, di_one, df_one, db_one;
      for (const int threads : {1, 2, 3, 7}) {
        std::vector<float> h(c.i.size()), hz(c.i.size()), di(c.i.size()), df(c.i.size()),
            db(c.bound.size()), state = c.state;
        mlgru(Ctx{threads},
              {batch, length, width, c.i.data(), c.f.data(), bound, mask, state.data(), h.data()});
        mlgru(Ctx{threads},
              {batch, length, width, c.i.data(), c.f.data(), bound, mask, nullptr, hz.data()});
        mlgru_backward(Ctx{threads},
                       {batch, length, width, c.i.data(), c.f.data(), bound, mask, hz.data(),
                        c.dh.data(), di.data(), df.data(), gates ? db.data() : nullptr});
        // 1 - f magnifies the rounding of an f near 1, and such an f damps earlier errors little.
        const double tolerance = 8 * test::float_tolerance(1);
        EXPECT_LT(test::relative_l2(h, h64), tolerance);
        EXPECT_LT(test::relative_l2(state, state64), tolerance);
        EXPECT_LT(test::relative_l2(hz, hz64), tolerance);
        EXPECT_LT(test::relative_l2(di, di64), tolerance);
        EXPECT_LT(test::relative_l2(df, df64), tolerance);
        EXPECT_LT(test::relative_l2(db, db64), tolerance);
        if (threads == 1) {
          h_one = h, di_one = di, df_one = df, db_one = db;
        }
        EXPECT_TRUE(test::same_bits(h, h_one) && test::same_bits(di, di_one) &&
                    test::same_bits(df, df_one) && test::same_bits(db, db_one))
            << threads << " threads";
      }
    }
}

TEST(Mlgru, PiecesWithACarriedStateEqualTheWholeBitForBit) {
  const Case c(3, 29, 37, 3);
  const auto row = [&](idx b, idx t) {
    return static_cast<std::size_t>((b * c.length + t) * c.width);
  };
  std::vector<float> whole(c.i.size()), whole_state = c.state;
  mlgru(Ctx{1}, {c.batch, c.length, c.width, c.i.data(), c.f.data(), c.bound.data(), c.mask.data(),
                 whole_state.data(), whole.data()});
  for (const idx piece : {1, 2, 10, 28}) {
    std::vector<float> h(c.i.size()), state = c.state;
    for (idx t = 0; t < c.length; t += piece) {
      const idx length = std::min(piece, c.length - t);
      for (idx b = 0; b < c.batch; ++b)
        mlgru(Ctx{2},
              {1, length, c.width, c.i.data() + row(b, t), c.f.data() + row(b, t), c.bound.data(),
               c.mask.data() + b * c.length + t, state.data() + b * c.width, h.data() + row(b, t)});
    }
    EXPECT_TRUE(test::same_bits(h, whole)) << "pieces of " << piece;
    EXPECT_TRUE(test::same_bits(state, whole_state)) << "pieces of " << piece;
  }
}

TEST(Mlgru, LeftPaddingLeavesTheStateAtZero) {
  Case c(1, 12, 20, 4);
  for (std::size_t t = 0; t < 12; ++t) c.mask[t] = t >= 5 ? 1 : 0;
  std::vector<float> padded(c.i.size()), bare(7 * 20);
  mlgru(Ctx{1},
        {1, 12, 20, c.i.data(), c.f.data(), c.bound.data(), c.mask.data(), nullptr, padded.data()});
  mlgru(Ctx{1}, {1, 7, 20, c.i.data() + 100, c.f.data() + 100, c.bound.data(), nullptr, nullptr,
                 bare.data()});
  EXPECT_EQ(std::vector<float>(padded.begin(), padded.begin() + 100),
            std::vector<float>(100, 0.0F));
  EXPECT_EQ(std::vector<float>(padded.begin() + 100, padded.end()), bare);
}

TEST(Mlgru, ThreeStepsWorkedOutByHand) {
  const std::vector<float> i{1, -0.5F, 2}, f{0.2F, -1, 1.5F};
  const float bound = 0.25F;
  std::vector<float> h(3);
  mlgru(Ctx{1}, {1, 3, 1, i.data(), f.data(), nullptr, nullptr, nullptr, h.data()});
  EXPECT_LT(test::max_abs_difference(h, std::vector<double>{0.32909772, -0.04949416, 0.28089457}),
            1e-7);
  mlgru(Ctx{1}, {1, 3, 1, i.data(), f.data(), &bound, nullptr, nullptr, h.data()});
  EXPECT_LT(test::max_abs_difference(h, std::vector<double>{0.24682329, 0.00798995, 0.24791657}),
            1e-7);
}

TEST(Mlgru, BoundGradientIsAccumulated) {
  const Case c(2, 5, 3, 5);
  std::vector<float> h(c.i.size()), di(c.i.size()), df(c.i.size()), once(3), twice(3);
  mlgru(Ctx{1}, {2, 5, 3, c.i.data(), c.f.data(), c.bound.data(), nullptr, nullptr, h.data()});
  const auto run = [&](std::vector<float>& db) {
    mlgru_backward(Ctx{1}, {2, 5, 3, c.i.data(), c.f.data(), c.bound.data(), nullptr, h.data(),
                            c.dh.data(), di.data(), df.data(), db.data()});
  };
  run(once), run(twice), run(twice);
  for (std::size_t k = 0; k < 3; ++k) {
    EXPECT_NE(once[k], 0.0F);
    EXPECT_FLOAT_EQ(twice[k], 2 * once[k]);
  }
}

TEST(Mlgru, AnEmptySequenceKeepsTheState) {
  std::vector<float> state{1, 2, 3};
  mlgru(Ctx{2}, {1, 0, 3, nullptr, nullptr, nullptr, nullptr, state.data(), nullptr});
  EXPECT_EQ(state, (std::vector<float>{1, 2, 3}));
  std::vector<float> db(3, 5.0F);
  mlgru_backward(Ctx{2}, {0, 4, 3, nullptr, nullptr, db.data(), nullptr, nullptr, nullptr, nullptr,
                          nullptr, db.data()});
  EXPECT_EQ(db, std::vector<float>(3, 5.0F));
}

TEST(MlgruReference, GradientFollowsFiniteDifferences) {
  const Case c(2, 6, 3, 6);
  auto i = test::convert<double>(c.i), f = test::convert<double>(c.f),
       bound = test::convert<double>(c.bound);
  const auto dh = test::convert<double>(c.dh);
  for (const bool gates : {false, true}) {
    const std::uint8_t* mask = gates ? c.mask.data() : nullptr;
    double* b = gates ? bound.data() : nullptr;
    std::vector<double> h(i.size()), di(i.size()), df(i.size()), db(bound.size());
    const auto value = [&] {
      reference::mlgru<double>(2, 6, 3, i.data(), f.data(), b, mask, nullptr, h.data());
      return test::dot(h, dh);
    };
    value();
    reference::mlgru_backward<double>(2, 6, 3, i.data(), f.data(), b, mask, h.data(), dh.data(),
                                      di.data(), df.data(), gates ? db.data() : nullptr);
    EXPECT_LT(test::relative_l2(di, test::central_differences(i, value)), 1e-9);
    EXPECT_LT(test::relative_l2(df, test::central_differences(f, value)), 1e-9);
    if (gates) {
      EXPECT_LT(test::relative_l2(db, test::central_differences(bound, value)), 1e-9);
    }
  }
}

}  // namespace
}  // namespace mmfree
