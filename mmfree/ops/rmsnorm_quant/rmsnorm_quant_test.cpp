#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_reference.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

constexpr float kOuterEps = 1e-5F;

struct Inputs {
  Inputs(test::Random& random, idx rows, idx width, double x_size = 3, double outer_size = 1)
      : x(random.normals(rows * width, x_size)),
        outer(random.normals(width, 0.3 * outer_size, outer_size)),
        gain{Guarded<float>(random.normals(width, 0.3, 1)),
             Guarded<float>(random.normals(width, 0.3, 1)),
             Guarded<float>(random.normals(width, 0.3, 1))},
        dy{Guarded<float>(random.normals(rows * width)),
           Guarded<float>(random.normals(rows * width)),
           Guarded<float>(random.normals(rows * width))} {}

  bool unchanged() const {
    bool same = x.unchanged() && outer.unchanged();
    for (int p = 0; p < 3; ++p) same = same && gain[p].unchanged() && dy[p].unchanged();
    return same;
  }

  const Guarded<float> x, outer;
  const Guarded<float> gain[3], dy[3];
};

struct Outputs {
  Outputs(idx rows, idx width)
      : q{Guarded<std::int8_t>(rows * code_stride(width)),
          Guarded<std::int8_t>(rows * code_stride(width)),
          Guarded<std::int8_t>(rows * code_stride(width))},
        scale{Guarded<float>(rows), Guarded<float>(rows), Guarded<float>(rows)},
        sum{Guarded<std::int32_t>(rows), Guarded<std::int32_t>(rows), Guarded<std::int32_t>(rows)},
        outer_rstd(rows),
        inner_rstd(rows),
        dx(std::vector<float>(static_cast<std::size_t>(rows * width), 0.5F)),
        dgains(std::vector<float>(static_cast<std::size_t>(4 * width), 0.25F)) {}

  RmsnormQuant forward(const Inputs& in, idx rows, idx width, int projections, bool with_outer) {
    RmsnormQuant a{};
    a.rows = rows;
    a.width = width;
    a.x = in.x.data();
    a.outer = with_outer ? in.outer.data() : nullptr;
    a.outer_eps = kOuterEps;
    a.projections = projections;
    for (int p = 0; p < projections; ++p) {
      a.gain[p] = in.gain[p].data();
      a.codes[p] = {q[p].data(), scale[p].data(), sum[p].data()};
    }
    a.outer_rstd = outer_rstd.data();
    a.inner_rstd = inner_rstd.data();
    return a;
  }

  RmsnormQuantBackward backward(const Inputs& in, idx rows, idx width, int projections,
                                bool with_outer) {
    RmsnormQuantBackward b{};
    b.rows = rows;
    b.width = width;
    b.x = in.x.data();
    b.outer = with_outer ? in.outer.data() : nullptr;
    b.projections = projections;
    for (int p = 0; p < projections; ++p) {
      b.gain[p] = in.gain[p].data();
      b.dy[p] = in.dy[p].data();
      b.dgain[p] = dgains.data() + p * width;
    }
    b.outer_rstd = with_outer ? outer_rstd.data() : nullptr;
    b.inner_rstd = inner_rstd.data();
    b.dx = dx.data();
    b.douter = with_outer ? dgains.data() + projections * width : nullptr;
    return b;
  }

  bool equals(const Outputs& o) const {
    bool same = test::same_bits(outer_rstd, o.outer_rstd) &&
                test::same_bits(inner_rstd, o.inner_rstd) && test::same_bits(dx, o.dx) &&
                test::same_bits(dgains, o.dgains);
    for (int p = 0; p < 3; ++p)
      same = same && test::same_bits(q[p], o.q[p]) && test::same_bits(scale[p], o.scale[p]) &&
             test::same_bits(sum[p], o.sum[p]);
    return same;
  }

  bool intact() const {
    bool all = outer_rstd.intact() && inner_rstd.intact() && dx.intact() && dgains.intact();
    for (int p = 0; p < 3; ++p) all = all && q[p].intact() && scale[p].intact() && sum[p].intact();
    return all;
  }

  Guarded<std::int8_t> q[3];
  Guarded<float> scale[3];
  Guarded<std::int32_t> sum[3];
  Guarded<float> outer_rstd, inner_rstd, dx, dgains;
};

TEST(RmsnormQuant, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  int turn = 0;
  for (const idx width : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const int projections = turn % 3 + 1;
      const bool with_outer = turn / 3 % 2 == 0;
      ++turn;
      const Inputs in(random, rows, width);
      Outputs expected(rows, width);
      scalar::rmsnorm_quant_rows(expected.forward(in, rows, width, projections, with_outer), 0,
                                 rows);
      scalar::rmsnorm_quant_backward_rows(
          expected.backward(in, rows, width, projections, with_outer), 0, rows,
          expected.dgains.data());
      for (std::size_t v = 0; v < std::size(rmsnorm_quant_rows_variants); ++v) {
        const Isa isa = rmsnorm_quant_rows_variants[v].isa;
        if (!cpu_has(isa)) continue;
        Outputs got(rows, width);
        for (const auto& [begin, end] : {std::pair{idx{0}, rows / 3}, std::pair{rows / 3, rows}}) {
          rmsnorm_quant_rows_variants[v].fn(got.forward(in, rows, width, projections, with_outer),
                                            begin, end);
          rmsnorm_quant_backward_rows_variants[v].fn(
              got.backward(in, rows, width, projections, with_outer), begin, end,
              got.dgains.data());
        }
        ASSERT_TRUE(got.equals(expected))
            << isa_name(isa) << " rows " << rows << " width " << width;
        ASSERT_TRUE(got.intact() && in.unchanged()) << isa_name(isa);
      }
      for (int p = 0; p < projections; ++p)
        for (idx r = 0; r < rows; ++r) {
          const std::int8_t* q = expected.q[p].data() + r * code_stride(width);
          std::int32_t sum = 0;
          for (idx k = 0; k < width; ++k) sum += q[k];
          ASSERT_EQ(expected.sum[p][static_cast<std::size_t>(r)], sum);
          for (idx k = width; k < code_stride(width); ++k) ASSERT_EQ(q[k], 0) << "padding";
        }
    }
}

// The unfused reference of everything that the fused op computes.
struct Reference {
  std::vector<double> u, normed[3], dx, douter, dgain[3];

  Reference(const Inputs& in, idx rows, idx width, int projections, bool with_outer) {
    const auto x = test::convert<double>(in.x.values());
    const auto outer = test::convert<double>(in.outer.values());
    u = x;
    if (with_outer) reference::rmsnorm(rows, width, x.data(), outer.data(), kOuterEps, u.data());
    std::vector<double> du(x.size());
    for (int p = 0; p < projections; ++p) {
      const auto gain = test::convert<double>(in.gain[p].values());
      normed[p].resize(x.size());
      dgain[p].resize(gain.size());
      reference::rmsnorm(rows, width, u.data(), gain.data(), kInnerEps, normed[p].data());
      reference::rmsnorm_backward(rows, width, u.data(), gain.data(), kInnerEps,
                                  test::convert<double>(in.dy[p].values()).data(), du.data(),
                                  dgain[p].data());
    }
    dx.assign(x.size(), 0);
    douter.assign(outer.size(), 0);
    if (with_outer)
      reference::rmsnorm_backward(rows, width, x.data(), outer.data(), kOuterEps, du.data(),
                                  dx.data(), douter.data());
    else
      dx = du;
  }
};

TEST(RmsnormQuant, EqualsTheUnfusedDoubleReferenceForAnyNumberOfThreads) {
  test::Random random(2);
  for (const idx width : {2, 3, 17, 64, 100, 344, 1100})
    for (const int projections : {1, 2, 3})
      for (const bool with_outer : {false, true}) {
        const idx rows = 70;  // more than one chunk of the summation over rows
        const Inputs in(random, rows, width);
        const Reference expected(in, rows, width, projections, with_outer);
        const double tolerance = 2 * test::float_tolerance(width);
        std::optional<Outputs> one;
        for (const int threads : {1, 2, 3, 7}) {
          Outputs got(rows, width);
          rmsnorm_quant(Ctx{threads}, got.forward(in, rows, width, projections, with_outer));
          rmsnorm_quant_backward(Ctx{threads},
                                 got.backward(in, rows, width, projections, with_outer));
          if (threads == 1) {
            one.emplace(rows, width);
            rmsnorm_quant(Ctx{1}, one->forward(in, rows, width, projections, with_outer));
            rmsnorm_quant_backward(Ctx{1}, one->backward(in, rows, width, projections, with_outer));
          }
          EXPECT_TRUE(got.equals(*one)) << threads << " threads";
          EXPECT_TRUE(got.intact() && in.unchanged());
        }
        std::vector<double> dx(one->dx.begin(), one->dx.end());
        for (double& v : dx) v -= 0.5;  // what was there before
        EXPECT_LT(test::relative_l2(dx, expected.dx), 4 * tolerance + 1e-6) << "width " << width;
        const auto gain_gradient = [&](int which) {
          std::vector<double> v(one->dgains.begin() + which * width,
                                one->dgains.begin() + (which + 1) * width);
          for (double& g : v) g -= 0.25;
          return v;
        };
        if (with_outer) {
          EXPECT_LT(test::relative_l2(gain_gradient(projections), expected.douter), 1e-5)
              << "width " << width;
        }
        for (int p = 0; p < projections; ++p) {
          EXPECT_LT(test::relative_l2(gain_gradient(p), expected.dgain[p]), 2e-6)
              << "width " << width;
          for (idx r = 0; r < rows; ++r) {
            double largest = 1e-5;
            for (idx k = 0; k < width; ++k)
              largest = std::max(
                  largest, std::abs(expected.normed[p][static_cast<std::size_t>(r * width + k)]));
            EXPECT_NEAR(static_cast<double>(one->scale[p][static_cast<std::size_t>(r)]),
                        largest / 127, largest / 127 * tolerance);
            for (idx k = 0; k < width; ++k) {
              const double exact =
                  expected.normed[p][static_cast<std::size_t>(r * width + k)] * 127 / largest;
              const double code = one->q[p][static_cast<std::size_t>(r * code_stride(width) + k)];
              ASSERT_LE(std::abs(code - exact), 0.5 + 127 * tolerance)
                  << "row " << r << " element " << k << " of " << width;
            }
          }
        }
      }
}

// Of two norms in a row the second undoes the first's scale, so the first one's mean term in the
// gradient is all but zero unless the epsilons weigh something: inputs whose mean square is near
// the outer epsilon, gains that make the inner input so.
TEST(RmsnormQuant, GradientsKeepBothEpsilons) {
  test::Random random(3);
  const idx rows = 20, width = 37;
  const Inputs in(random, rows, width, 3e-3, 1e-3);
  const Reference expected(in, rows, width, 3, true);
  Outputs got(rows, width);
  rmsnorm_quant(Ctx{1}, got.forward(in, rows, width, 3, true));
  std::fill(got.dx.data(), got.dx.data() + got.dx.size(), 0.0F);
  std::fill(got.dgains.data(), got.dgains.data() + got.dgains.size(), 0.0F);
  rmsnorm_quant_backward(Ctx{1}, got.backward(in, rows, width, 3, true));
  EXPECT_LT(test::relative_l2(got.dx, expected.dx), 2e-6);
  const std::vector<float> douter(got.dgains.begin() + 3 * width, got.dgains.end());
  EXPECT_LT(test::relative_l2(douter, expected.douter), 2e-6);
}

TEST(RmsnormQuant, TiesGoAwayFromZero) {
  // The mean square is 4096 exactly, so y = x / 64, s = 32 and y s = x / 2: every odd x is a tie.
  const std::vector<float> x{254, 1, -3, 5, -7, 9, -11, 13, -1, 3, -5, 7, -9, 20, 0, 0};
  const std::vector<float> gain(16, 1.0F);
  for (const auto& variant : rmsnorm_quant_rows_variants) {
    if (!cpu_has(variant.isa)) continue;
    std::vector<std::int8_t> q(static_cast<std::size_t>(code_stride(16)));
    float scale = 0;
    std::int32_t sum = 0;
    RmsnormQuant a{};
    a.rows = 1;
    a.width = 16;
    a.x = x.data();
    a.projections = 1;
    a.gain[0] = gain.data();
    a.codes[0] = {q.data(), &scale, &sum};
    variant.fn(a, 0, 1);
    const std::vector<int> expected{127, 1, -2, 3, -4, 5, -6, 7, -1, 2, -3, 4, -5, 10, 0, 0};
    EXPECT_EQ(std::vector<int>(q.begin(), q.begin() + 16), expected) << isa_name(variant.isa);
    EXPECT_EQ(scale, 1.0F / 32);
  }
}

TEST(RmsnormQuant, ZeroAndTinyRowsUseTheFloorOfTheScale) {
  const std::vector<float> x{0, 0, 0, 0, 1e-20F, -1e-20F, 0, 1e-20F}, gain(4, 1.0F);
  std::vector<std::int8_t> q(static_cast<std::size_t>(2 * code_stride(4)), 1);
  std::vector<float> scale(2);
  std::vector<std::int32_t> sum(2, 9);
  RmsnormQuant a{};
  a.rows = 2;
  a.width = 4;
  a.x = x.data();
  a.projections = 1;
  a.gain[0] = gain.data();
  a.codes[0] = {q.data(), scale.data(), sum.data()};
  rmsnorm_quant(Ctx{1}, a);
  EXPECT_EQ(q, std::vector<std::int8_t>(128, 0));
  EXPECT_EQ(scale, std::vector<float>(2, 1e-5F / 127));
  EXPECT_EQ(sum, std::vector<std::int32_t>(2, 0));
}

TEST(RmsnormQuant, ARowThatIsNotFiniteGetsAScaleThatIsNotFinite) {
  const std::vector<float> gain(20, 1.0F);
  for (const auto& variant : rmsnorm_quant_rows_variants)
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()})
      for (const std::size_t at : {0, 7, 19})
        for (const float* outer : {static_cast<const float*>(nullptr), gain.data()}) {
          if (!cpu_has(variant.isa)) continue;
          std::vector<float> x(40, 1.5F), scale(2);
          x[at] = bad;
          std::vector<std::int8_t> q(static_cast<std::size_t>(2 * code_stride(20)));
          std::vector<std::int32_t> sum(2);
          RmsnormQuant a{};
          a.rows = 2;
          a.width = 20;
          a.x = x.data();
          a.outer = outer;
          a.projections = 1;
          a.gain[0] = gain.data();
          a.codes[0] = {q.data(), scale.data(), sum.data()};
          variant.fn(a, 0, 2);
          EXPECT_FALSE(std::isfinite(scale[0]))
              << isa_name(variant.isa) << ", " << bad << " at " << at;
          EXPECT_TRUE(std::isfinite(scale[1])) << "the row after it is fine";
        }
}

TEST(RmsnormQuant, NothingHappensWithoutRows) {
  RmsnormQuant a{};
  a.width = 4;
  a.projections = 1;
  rmsnorm_quant(Ctx{2}, a);
  std::vector<float> dgain(4, 1.0F);
  RmsnormQuantBackward b{};
  b.width = 4;
  b.projections = 1;
  b.dgain[0] = dgain.data();
  rmsnorm_quant_backward(Ctx{2}, b);
  EXPECT_EQ(dgain, std::vector<float>(4, 1.0F));
}

}  // namespace
}  // namespace mmfree
