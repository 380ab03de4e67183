#include "mmfree/ops/gated_norm/gated_norm.h"

#include <gtest/gtest.h>

#include <vector>

#include "mmfree/ops/gated_norm/gated_norm_reference.h"
#include "mmfree/ops/gated_norm/gated_norm_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

TEST(GatedNorm, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  for (const idx width : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const idx n = rows * width;
      const Guarded<float> g(random.normals(n, 2)), h(random.normals(n, 4)),
          gain(random.normals(width, 0.3, 1)), d_o(random.normals(n));
      const std::vector<float> start = random.normals(width);
      Guarded<float> o0(n), dg0(n), dh0(n), dgain0(start);
      scalar::gated_norm_rows({rows, width, g.data(), h.data(), gain.data(), 1e-6F, o0.data()}, 0,
                              rows);
      scalar::gated_norm_backward_rows({rows, width, g.data(), h.data(), gain.data(), 1e-6F,
                                        d_o.data(), dg0.data(), dh0.data(), nullptr},
                                       0, rows, dgain0.data());
      for (std::size_t v = 0; v < std::size(gated_norm_rows_variants); ++v) {
        const auto& forward = gated_norm_rows_variants[v];
        const auto& backward = gated_norm_backward_rows_variants[v];
        if (!cpu_has(forward.isa)) continue;
        Guarded<float> o(n), dg(n), dh(n), dgain(start);
        const GatedNorm a{rows, width, g.data(), h.data(), gain.data(), 1e-6F, o.data()};
        const GatedNormBackward b{rows,  width,      g.data(),  h.data(),  gain.data(),
                                  1e-6F, d_o.data(), dg.data(), dh.data(), nullptr};
        for (const auto& [begin, end] : {std::pair{idx{0}, rows / 3}, std::pair{rows / 3, rows}}) {
          forward.fn(a, begin, end);
          backward.fn(b, begin, end, dgain.data());
        }
        ASSERT_TRUE(test::same_bits(o, o0) && test::same_bits(dg, dg0) &&
                    test::same_bits(dh, dh0) && test::same_bits(dgain, dgain0))
            << isa_name(forward.isa) << " rows " << rows << " width " << width;
        ASSERT_TRUE(o.intact() && dg.intact() && dh.intact() && dgain.intact());
        ASSERT_TRUE(g.unchanged() && h.unchanged() && gain.unchanged() && d_o.unchanged());
      }
    }
}

struct Result {
  std::vector<float> o, dg, dh, dgain;
};

Result run(int threads, idx rows, idx width, const std::vector<float>& g,
           const std::vector<float>& h, const std::vector<float>& gain,
           const std::vector<float>& d_o) {
  Result r{std::vector<float>(g.size()), std::vector<float>(g.size()), std::vector<float>(g.size()),
           std::vector<float>(gain.size())};
  gated_norm(Ctx{threads}, {rows, width, g.data(), h.data(), gain.data(), 1e-5F, r.o.data()});
  gated_norm_backward(Ctx{threads}, {rows, width, g.data(), h.data(), gain.data(), 1e-5F,
                                     d_o.data(), r.dg.data(), r.dh.data(), r.dgain.data()});
  return r;
}

TEST(GatedNorm, EqualsTheDoubleReferenceForAnyNumberOfThreads) {
  test::Random random(2);
  for (const idx width : {1, 3, 17, 64, 100, 1100})
    for (const idx rows : {1, 9, 200}) {
      const auto g = random.normals(rows * width, 2), h = random.normals(rows * width, 3),
                 gain = random.normals(width, 0.3, 1), d_o = random.normals(rows * width);
      const auto g64 = test::convert<double>(g), h64 = test::convert<double>(h),
                 gain64 = test::convert<double>(gain), d_o64 = test::convert<double>(d_o);
      std::vector<double> o(g.size()), dg(g.size()), dh(g.size()), dgain(gain.size());
      reference::gated_norm(rows, width, g64.data(), h64.data(), gain64.data(), 1e-5F, o.data());
      reference::gated_norm_backward(rows, width, g64.data(), h64.data(), gain64.data(), 1e-5F,
                                     d_o64.data(), dg.data(), dh.data(), dgain.data());
      const Result one = run(1, rows, width, g, h, gain, d_o);
      const double tolerance = test::float_tolerance(width);
      EXPECT_LT(test::relative_l2(one.o, o), tolerance) << rows << " x " << width;
      EXPECT_LT(test::relative_l2(one.dh, dh), tolerance) << rows << " x " << width;
      // One channel alone: dg is the difference of two nearly equal numbers, so compare with their
      // size.
      if (width > 1) {
        EXPECT_LT(test::relative_l2(one.dg, dg), tolerance) << rows << " x " << width;
      }
      EXPECT_LT(test::relative_l2(one.dgain, dgain), test::float_tolerance(rows * 16 + width))
          << rows << " x " << width;
      for (const int threads : {2, 3, 7}) {
        const Result many = run(threads, rows, width, g, h, gain, d_o);
        EXPECT_TRUE(test::same_bits(many.o, one.o) && test::same_bits(many.dg, one.dg) &&
                    test::same_bits(many.dh, one.dh) && test::same_bits(many.dgain, one.dgain))
            << threads << " threads";
      }
    }
}

TEST(GatedNorm, NormalisesTheGateAndNotTheHiddenState) {
  // Three channels worked out by hand from the formula; with the operands swapped the first would
  // be 0.168.
  const std::vector<float> g{1, -2, 0.5F}, h{0.3F, -1, 2}, gain{1, 1, 1};
  std::vector<float> o(3);
  gated_norm(Ctx{1}, {1, 3, g.data(), h.data(), gain.data(), 1e-6F, o.data()});
  EXPECT_LT(test::max_abs_difference(o, std::vector<double>{0.13027128, 0.40660109, 0.66581982}),
            1e-7);
}

TEST(GatedNorm, GainGradientIsAccumulated) {
  const std::vector<float> g{1}, h{1}, gain{1}, d_o{1};
  std::vector<float> dg(1), dh(1), once(1), twice(1);
  for (int i = 0; i < 2; ++i)
    gated_norm_backward(Ctx{1}, {1, 1, g.data(), h.data(), gain.data(), 1e-6F, d_o.data(),
                                 dg.data(), dh.data(), twice.data()});
  gated_norm_backward(Ctx{1}, {1, 1, g.data(), h.data(), gain.data(), 1e-6F, d_o.data(), dg.data(),
                               dh.data(), once.data()});
  EXPECT_EQ(twice[0], 2 * once[0]);
  EXPECT_NE(once[0], 0.0F);
}

TEST(GatedNorm, NothingHappensWithoutRows) {
  gated_norm(Ctx{2}, {.rows = 0,
                      .width = 4,
                      .g = nullptr,
                      .h = nullptr,
                      .gain = nullptr,
                      .eps = 1e-6F,
                      .o = nullptr});
  std::vector<float> dgain(4, 1.0F);
  gated_norm_backward(
      Ctx{2}, {0, 4, nullptr, nullptr, nullptr, 1e-6F, nullptr, nullptr, nullptr, dgain.data()});
  EXPECT_EQ(dgain, std::vector<float>(4, 1.0F));
}

TEST(GatedNormReference, GradientFollowsFiniteDifferences) {
  test::Random random(3);
  const idx rows = 3, width = 6;
  auto g = random.normals_f64(rows * width), h = random.normals_f64(rows * width, 2),
       gain = random.normals_f64(width, 0.3, 1);
  const auto d_o = random.normals_f64(rows * width);
  std::vector<double> o(d_o.size()), dg(d_o.size()), dh(d_o.size()), dgain(gain.size());
  const auto value = [&] {
    reference::gated_norm(rows, width, g.data(), h.data(), gain.data(), 0.1, o.data());
    return test::dot(o, d_o);
  };
  reference::gated_norm_backward(rows, width, g.data(), h.data(), gain.data(), 0.1, d_o.data(),
                                 dg.data(), dh.data(), dgain.data());
  EXPECT_LT(test::relative_l2(dg, test::central_differences(g, value)), 1e-9);
  EXPECT_LT(test::relative_l2(dh, test::central_differences(h, value)), 1e-9);
  EXPECT_LT(test::relative_l2(dgain, test::central_differences(gain, value)), 1e-9);
}

}  // namespace
}  // namespace mmfree
