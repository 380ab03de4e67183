#include "mmfree/ops/swiglu/swiglu.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <vector>

#include "mmfree/ops/swiglu/swiglu_reference.h"
#include "mmfree/ops/swiglu/swiglu_variants.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

TEST(Swiglu, EveryVariantEqualsScalarBitForBitAndStaysInBounds) {
  test::Random random(1);
  for (const idx width : test::seam_widths())
    for (const idx rows : test::kSeamRows) {
      const Guarded<float> pq(random.normals(2 * rows * width, 5)),
          dz(random.normals(rows * width));
      Guarded<float> z0(rows * width), dpq0(2 * rows * width);
      scalar::swiglu_rows(width, pq.data(), z0.data(), 0, rows);
      scalar::swiglu_backward_rows(width, pq.data(), dz.data(), dpq0.data(), 0, rows);
      for (std::size_t v = 0; v < std::size(swiglu_rows_variants); ++v) {
        const Isa isa = swiglu_rows_variants[v].isa;
        if (!cpu_has(isa)) continue;
        Guarded<float> z(rows * width), dpq(2 * rows * width);
        for (const auto& [begin, end] : {std::pair{idx{0}, rows / 3}, std::pair{rows / 3, rows}}) {
          swiglu_rows_variants[v].fn(width, pq.data(), z.data(), begin, end);
          swiglu_backward_rows_variants[v].fn(width, pq.data(), dz.data(), dpq.data(), begin, end);
        }
        ASSERT_TRUE(test::same_bits(z, z0) && test::same_bits(dpq, dpq0))
            << isa_name(isa) << " rows " << rows << " width " << width;
        ASSERT_TRUE(z.intact() && dpq.intact() && pq.unchanged() && dz.unchanged());
        Guarded<float> in_place(pq.values());
        swiglu_backward_rows_variants[v].fn(width, in_place.data(), dz.data(), in_place.data(), 0,
                                            rows);
        ASSERT_TRUE(test::same_bits(in_place, dpq0)) << "in place, " << isa_name(isa);
      }
    }
}

// Variants that divide in another way must round as a division does, for every divisor.
TEST(Swiglu, EveryVariantEqualsScalarForGatesOfEveryKind) {
  constexpr std::uint32_t kStep = 61;
  constexpr idx kWidth = 1 << 14;
  std::vector<float> pq(2 * kWidth, 1.0F), expected(kWidth), z(kWidth);
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32;) {
    for (idx k = 0; k < kWidth; ++k, bits += kStep) {
      const float x = std::bit_cast<float>(static_cast<std::uint32_t>(bits));
      pq[static_cast<std::size_t>(k)] = x == x ? x : 0.0F;
    }
    scalar::swiglu_rows(kWidth, pq.data(), expected.data(), 0, 1);
    for (const auto& v : swiglu_rows_variants) {
      if (!cpu_has(v.isa)) continue;
      v.fn(kWidth, pq.data(), z.data(), 0, 1);
      ASSERT_EQ(std::memcmp(z.data(), expected.data(), sizeof(float) * kWidth), 0)
          << isa_name(v.isa) << " before " << bits;
    }
  }
}

TEST(Swiglu, EqualsTheDoubleReferenceForAnyNumberOfThreads) {
  test::Random random(2);
  for (const idx width : {1, 3, 17, 64, 100, 1100}) {
    const idx rows = 9;
    const auto pq = random.normals(2 * rows * width, 4), dz = random.normals(rows * width);
    std::vector<double> z(dz.size()), dpq(pq.size());
    reference::swiglu(rows, width, test::convert<double>(pq).data(), z.data());
    reference::swiglu_backward(rows, width, test::convert<double>(pq).data(),
                               test::convert<double>(dz).data(), dpq.data());
    for (const int threads : {1, 2, 3, 7}) {
      std::vector<float> z32(dz.size()), dpq32(pq.size());
      swiglu(Ctx{threads}, rows, width, pq.data(), z32.data());
      swiglu_backward(Ctx{threads}, rows, width, pq.data(), dz.data(), dpq32.data());
      EXPECT_LT(test::relative_l2(z32, z), test::float_tolerance(1)) << "width " << width;
      EXPECT_LT(test::relative_l2(dpq32, dpq), test::float_tolerance(1)) << "width " << width;
    }
  }
}

TEST(Swiglu, LargeGatesSaturateWithoutNan) {
  const std::vector<float> pq{100, -100, 3e4F, -3e4F, 1, 1, 1, 1};
  std::vector<float> z(4), dpq(8);
  const std::vector<float> dz(4, 1.0F);
  swiglu(Ctx{1}, 1, 4, pq.data(), z.data());
  swiglu_backward(Ctx{1}, 1, 4, pq.data(), dz.data(), dpq.data());
  EXPECT_LT(test::max_abs_difference(z, std::vector<double>{100, 0, 3e4, 0}), 1e-30);
  EXPECT_LT(test::max_abs_difference(dpq, std::vector<double>{1, 0, 1, 0, 100, 0, 3e4, 0}), 1e-30);
}

TEST(Swiglu, NothingHappensWithoutRows) {
  swiglu(Ctx{2}, 0, 4, nullptr, nullptr);
  swiglu_backward(Ctx{2}, 0, 4, nullptr, nullptr, nullptr);
}

TEST(SwigluReference, GradientFollowsFiniteDifferences) {
  test::Random random(3);
  const idx rows = 3, width = 5;
  auto pq = random.normals_f64(2 * rows * width, 2);
  const auto dz = random.normals_f64(rows * width);
  std::vector<double> z(dz.size()), dpq(pq.size());
  reference::swiglu_backward(rows, width, pq.data(), dz.data(), dpq.data());
  const auto slope = test::central_differences(pq, [&] {
    reference::swiglu(rows, width, pq.data(), z.data());
    return test::dot(z, dz);
  });
  EXPECT_LT(test::relative_l2(dpq, slope), 1e-9);
}

}  // namespace
}  // namespace mmfree
