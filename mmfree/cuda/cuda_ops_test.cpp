// Each kernel against the reference of its op, on odd shapes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "mmfree/cuda/products.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace mmfree::cuda {
namespace {

using test::DeviceVector;

class GpuOps : public test::GpuTest {};

std::vector<std::int8_t> random_codes(test::Random& random, idx n, idx limit) {
  std::vector<std::int8_t> codes;
  for (idx i = 0; i < n; ++i)
    codes.push_back(static_cast<std::int8_t>(static_cast<idx>(random.below(2 * limit + 1)) - limit));
  return codes;
}

TEST_F(GpuOps, Int8ProductIsExact) {
  const Launch l = test::default_launch();
  if (!int8_product_fits(select_device().compute_capability, 16, 8))
    GTEST_SKIP() << "the int8 product needs a GPU of compute capability 9.0";
  test::Random random(1);
  struct Shape {
    idx rows, in, out;
  };
  for (const Shape s : {Shape{1, 16, 8}, Shape{3, 48, 40}, Shape{128, 128, 256}, Shape{129, 144, 264},
                        Shape{300, 512, 1536}, Shape{700, 2816, 1032}, Shape{5000, 384, 776},
                        Shape{2560, 6912, 2560}}) {
    const std::vector<std::int8_t> x = random_codes(random, s.rows * s.in, 127);
    const std::vector<std::int8_t> t = random_codes(random, s.out * s.in, 1);
    std::vector<float> largest;
    for (idx r = 0; r < s.rows; ++r) largest.push_back(127.0F * static_cast<float>(1 + r % 3));
    DeviceVector<std::int8_t> dx(x), dt(t);
    DeviceVector<float> dl(largest), scale(std::vector<float>{0.5F});
    DeviceVector<bf16> y(s.rows * s.out);
    int8_product(l, s.rows, s.in, s.out, dx.data(), dt.data(), dl.data(), scale.data(), y.data());
    const std::vector<bf16> got = y.get();
    idx wrong = 0;
    for (idx r = 0; r < s.rows; ++r)
      for (idx o = 0; o < s.out; ++o) {
        if (s.rows * s.out * s.in > 100'000'000 && (r * 31 + o) % 97 != 0) continue;  // a sample
        int sum = 0;
        for (idx k = 0; k < s.in; ++k)
          sum += x[static_cast<std::size_t>(r * s.in + k)] * t[static_cast<std::size_t>(o * s.in + k)];
        const float expected = static_cast<float>(sum) * static_cast<float>(1 + r % 3) * 0.5F;
        wrong += __bfloat162float(got[static_cast<std::size_t>(r * s.out + o)]) !=
                         __bfloat162float(__float2bfloat16(expected))
                     ? 1
                     : 0;
      }
    EXPECT_EQ(wrong, 0) << s.rows << " x " << s.in << " x " << s.out;
  }
}

TEST_F(GpuOps, ScanAndItsBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(2);
  struct Shape {
    idx batch, length, width;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{2, 5, 3}, Shape{3, 127, 33}, Shape{2, 129, 64},
                        Shape{300, 70, 66}, Shape{1, 1000, 40}, Shape{2, 2500, 35}})
    for (const bool extras : {false, true}) {
      const idx n = s.batch * s.length * s.width, rows = s.batch * s.length;
      const auto i = random.normals_f64(n), f = random.normals_f64(n), dh = random.normals_f64(n);
      std::vector<double> bound;
      std::vector<std::uint8_t> mask;
      for (idx k = 0; k < s.width; ++k) bound.push_back(0.5 / static_cast<double>(1 + k % 4));
      for (idx r = 0; r < rows; ++r) mask.push_back(r % 5 == 3 ? 0 : 1);
      const std::size_t size = i.size();
      std::vector<double> h(size), di(size), df(size), db(bound.size());
      const double* b64 = extras ? bound.data() : nullptr;
      const std::uint8_t* m = extras ? mask.data() : nullptr;
      reference::mlgru(s.batch, s.length, s.width, i.data(), f.data(), b64, m,
                       static_cast<double*>(nullptr), h.data());
      reference::mlgru_backward(s.batch, s.length, s.width, i.data(), f.data(), b64, m, h.data(),
                                dh.data(), di.data(), df.data(), extras ? db.data() : nullptr);
      DeviceVector<float> gi(test::convert<float>(i)), gf(test::convert<float>(f)), gh(n),
          gdh(test::convert<float>(dh)), gb(test::convert<float>(bound)), gdb(s.width),
          largest(std::vector<float>(static_cast<std::size_t>(rows), 254.0F)),
          scratch(3 * s.batch * s.width * (1 + s.length / kScanSegment));
      DeviceVector<std::uint8_t> gm(mask);
      const float* bp = extras ? gb.data() : nullptr;
      const std::uint8_t* mp = extras ? gm.data() : nullptr;
      scan(l, Scan<float>{s.batch, s.length, s.width, gi.data(), gf.data(), bp, mp, gh.data(),
                          scratch.data()});
      EXPECT_LT(test::relative_l2(gh.get(), h), 2e-6) << s.length << " x " << s.width;
      scan_backward(l, ScanBackward<float>{s.batch, s.length, s.width, gi.data(), gf.data(), bp, mp,
                                           gh.data(), gdh.data(), largest.data(), largest.data(),
                                           scratch.data(), extras ? gdb.data() : nullptr});
      for (std::size_t k = 0; k < size; ++k) di[k] *= 2, df[k] *= 2;  // largest / 127
      EXPECT_LT(test::relative_l2(gi.get(), di), 1e-5);
      EXPECT_LT(test::relative_l2(gf.get(), df), 1e-5);
      if (extras) {
        EXPECT_LT(test::relative_l2(gdb.get(), db), 1e-5);
      }
    }
}

}  // namespace
}  // namespace mmfree::cuda
