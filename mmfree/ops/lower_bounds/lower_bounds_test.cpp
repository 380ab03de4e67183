#include "mmfree/ops/lower_bounds/lower_bounds.h"

#include <gtest/gtest.h>

#include <vector>

#include "mmfree/ops/lower_bounds/lower_bounds_reference.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

TEST(LowerBounds, EqualTheDoubleReferenceAndStayInBounds) {
  test::Random random(1);
  for (const idx layers : {1, 2, 5, 24})
    for (const idx width : {1, 3, 16, 65}) {
      const Guarded<float> raw(random.normals(layers * width, 2)),
          dbound(random.normals(layers * width));
      const auto start = random.normals(layers * width);
      Guarded<float> bound(layers * width), draw(start);
      lower_bounds(layers, width, raw.data(), bound.data());
      lower_bounds_backward(layers, width, raw.data(), dbound.data(), draw.data());
      const auto raw64 = test::convert<double>(raw.values()),
                 dbound64 = test::convert<double>(dbound.values());
      std::vector<double> bound64(start.size()), draw64 = test::convert<double>(start);
      reference::lower_bounds(layers, width, raw64.data(), bound64.data());
      reference::lower_bounds_backward(layers, width, raw64.data(), dbound64.data(), draw64.data());
      EXPECT_LT(test::max_abs_difference(bound, bound64), 1e-6);
      EXPECT_LT(test::max_abs_difference(draw, draw64), 2e-6);
      EXPECT_TRUE(bound.intact() && draw.intact() && raw.unchanged() && dbound.unchanged());
      for (idx d = 0; d < width; ++d) EXPECT_EQ(bound[static_cast<std::size_t>(d)], 0.0F);
    }
}

TEST(LowerBounds, RiseEvenlyFromZeroAtInitialisation) {
  const std::vector<float> raw(8, 0.0F);
  std::vector<float> bound(8);
  lower_bounds(4, 2, raw.data(), bound.data());
  EXPECT_EQ(bound, (std::vector<float>{0, 0, 0.25F, 0.25F, 0.5F, 0.5F, 0.75F, 0.75F}));
}

TEST(LowerBounds, HugeRawValuesStayBelowOrAtOne) {
  const std::vector<float> raw{-1e4F, 1e4F, 1e4F};
  std::vector<float> bound(3);
  lower_bounds(3, 1, raw.data(), bound.data());
  EXPECT_EQ(bound, (std::vector<float>{0, 0.5F, 1}));
}

TEST(LowerBoundsReference, GradientFollowsFiniteDifferences) {
  test::Random random(2);
  const idx layers = 4, width = 3;
  auto raw = random.normals_f64(layers * width);
  const auto dbound = random.normals_f64(layers * width);
  std::vector<double> bound(raw.size()), draw(raw.size());
  reference::lower_bounds_backward(layers, width, raw.data(), dbound.data(), draw.data());
  const auto slope = test::central_differences(raw, [&] {
    reference::lower_bounds(layers, width, raw.data(), bound.data());
    return test::dot(bound, dbound);
  });
  EXPECT_LT(test::relative_l2(draw, slope), 1e-9);
}

}  // namespace
}  // namespace mmfree
