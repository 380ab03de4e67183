#include "mmfree/ops/rmsnorm/rmsnorm.h"

#include <gtest/gtest.h>

#include <vector>

#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"
#include "mmfree/ops/rmsnorm/rmsnorm_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

TEST(Rmsnorm, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  for (const idx width : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const Guarded<float> x(random.normals(rows * width, 3)), gain(random.normals(width, 0.3, 1));
      Guarded<float> expected(rows * width);
      scalar::rmsnorm_rows(width, x.data(), gain.data(), 1e-6F, expected.data(), 0, rows);
      for (const auto& variant : rmsnorm_rows_variants) {
        if (!cpu_has(variant.isa)) continue;
        Guarded<float> y(rows * width);
        const idx cut = rows / 2;
        variant.fn(width, x.data(), gain.data(), 1e-6F, y.data(), 0, cut);
        variant.fn(width, x.data(), gain.data(), 1e-6F, y.data(), cut, rows);
        ASSERT_TRUE(test::same_bits(y, expected))
            << isa_name(variant.isa) << " rows " << rows << " width " << width;
        ASSERT_TRUE(y.intact() && x.unchanged() && gain.unchanged());
      }
    }
}

TEST(Rmsnorm, EqualsTheDoubleReferenceForAnyNumberOfThreadsAndInPlace) {
  test::Random random(2);
  for (const idx width : {1, 3, 17, 64, 100, 1100}) {
    const idx rows = 9;
    const std::vector<float> x = random.normals(rows * width), gain = random.normals(width, 0.3, 1);
    std::vector<double> expected(x.size());
    reference::rmsnorm(rows, width, test::convert<double>(x).data(),
                       test::convert<double>(gain).data(), 1e-5F, expected.data());
    std::vector<float> one(x.size());
    rmsnorm(Ctx{1}, rows, width, x.data(), gain.data(), 1e-5F, one.data());
    EXPECT_LT(test::relative_l2(one, expected), test::float_tolerance(width)) << "width " << width;
    for (const int threads : {2, 3, 7}) {
      std::vector<float> y = x;
      rmsnorm(Ctx{threads}, rows, width, y.data(), gain.data(), 1e-5F, y.data());
      EXPECT_TRUE(test::same_bits(y, one)) << threads << " threads";
    }
  }
}

TEST(Rmsnorm, NothingHappensWithoutRows) {
  rmsnorm(Ctx{2}, 0, 5, nullptr, nullptr, 1e-6F, nullptr);
}

TEST(RmsnormReference, GradientFollowsFiniteDifferences) {
  test::Random random(3);
  const idx rows = 3, width = 7;
  std::vector<double> x = random.normals_f64(rows * width);
  std::vector<double> gain = random.normals_f64(width, 0.3, 1);
  const std::vector<double> dy = random.normals_f64(rows * width);
  std::vector<double> y(dy.size()), dx(dy.size()), dgain(gain.size());
  const double eps = 0.1;  // large, so that its part in the gradient shows
  const auto value = [&] {
    reference::rmsnorm(rows, width, x.data(), gain.data(), eps, y.data());
    return test::dot(y, dy);
  };
  reference::rmsnorm_backward(rows, width, x.data(), gain.data(), eps, dy.data(), dx.data(),
                              dgain.data());
  EXPECT_LT(test::relative_l2(dx, test::central_differences(x, value)), 1e-9);
  EXPECT_LT(test::relative_l2(dgain, test::central_differences(gain, value)), 1e-9);
}

}  // namespace
}  // namespace mmfree
