// Each kernel against the reference of its op, on odd shapes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "mmfree/cuda/products.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"
#include "mmfree/ops/cross_entropy/cross_entropy_reference.h"
#include "mmfree/ops/gated_norm/gated_norm_reference.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_reference.h"
#include "mmfree/ops/swiglu/swiglu_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace mmfree::cuda {
namespace {

using test::DeviceVector;

class GpuOps : public test::GpuTest {};

std::vector<std::int8_t> random_codes(test::Random& random, idx n, idx limit) {
  std::vector<std::int8_t> codes;
  for (idx i = 0; i < n; ++i)
    codes.push_back(
        static_cast<std::int8_t>(static_cast<idx>(random.below(2 * limit + 1)) - limit));
  return codes;
}

TEST_F(GpuOps, Int8ProductIsExact) {
  const Launch l = test::default_launch();
  if (!byte_product_fits(select_device().compute_capability, 16, 8))
    GTEST_SKIP() << "the int8 product needs a GPU of compute capability 9.0";
  test::Random random(1);
  struct Shape {
    idx rows, in, out;
  };
  for (const Shape s : {Shape{1, 16, 8}, Shape{3, 48, 40}, Shape{128, 128, 256},
                        Shape{129, 144, 264}, Shape{300, 512, 1536}, Shape{700, 2816, 1032},
                        Shape{5000, 384, 776}, Shape{2560, 6912, 2560}}) {
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
          sum +=
              x[static_cast<std::size_t>(r * s.in + k)] * t[static_cast<std::size_t>(o * s.in + k)];
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

// Codes may differ by one where the value lies at a rounding boundary, in at most 0.1 % of elements
// and one element of a small tensor.
void expect_codes(const std::vector<std::int8_t>& got, const std::vector<std::int8_t>& want,
                  const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  std::size_t different = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_LE(std::abs(got[i] - want[i]), 1) << what << " at " << i;
    different += got[i] != want[i] ? 1 : 0;
  }
  EXPECT_LE(different, 1 + got.size() / 1000) << what;
}

// On each side of every row layout, odd widths included. (A row of one element has no gradient: its
// norm is constant.)
constexpr idx kWidths[] = {3, 5, 33, 64, 520, 1001, 2048, 2056, 2568, 6152, 7176, 8200};

std::vector<float> as_floats(const std::vector<double>& v) {
  return test::convert<float>(v);
}

TEST_F(GpuOps, NormQuantAndItsBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(3);
  for (const idx width : kWidths)
    for (const int projections : {1, 3}) {
      const idx rows = 7, n = rows * width;
      const auto add = random.normals_f64(n), outer = random.normals_f64(width, 0.3, 1);
      auto x = random.normals_f64(n, 2);
      std::vector<double> sum = x, u(x.size()), rstd0(7), dx(x.size()), douter(outer.size());
      for (std::size_t i = 0; i < x.size(); ++i) sum[i] += add[i];
      reference::rmsnorm(rows, width, sum.data(), outer.data(), 1e-5, u.data(), rstd0.data());
      std::vector<double> du(x.size());
      NormQuant<float> a{};
      NormQuantBackward<float> g{};
      std::vector<std::unique_ptr<DeviceVector<float>>> floats;
      std::vector<std::unique_ptr<DeviceVector<std::int8_t>>> codes;
      const auto on_device = [&](const std::vector<double>& v) {
        return floats.emplace_back(std::make_unique<DeviceVector<float>>(as_floats(v)))->data();
      };
      const auto empty = [&](idx size) {
        return floats.emplace_back(std::make_unique<DeviceVector<float>>(size))->data();
      };
      std::vector<std::vector<std::int8_t>> want;
      std::vector<std::vector<double>> dgain;
      for (int p = 0; p < projections; ++p) {
        const auto gain = random.normals_f64(width, 0.3, 1), dy = random.normals_f64(n);
        std::vector<double> y(x.size()), scale(7);
        reference::rmsnorm(rows, width, u.data(), gain.data(), static_cast<double>(kInnerEps),
                           y.data());
        want.emplace_back(x.size());
        reference::quantize_activations(rows, width, y.data(), want.back().data(), scale.data());
        dgain.emplace_back(gain.size());
        reference::rmsnorm_backward(rows, width, u.data(), gain.data(),
                                    static_cast<double>(kInnerEps), dy.data(), du.data(),
                                    dgain.back().data());
        a.gain[p] = on_device(gain);
        codes.push_back(std::make_unique<DeviceVector<std::int8_t>>(n));
        a.codes[p] = codes.back()->data();
        a.code_values[p] = empty(n);
        a.largest[p] = empty(rows);
        // What arrives is dy * x_scale / w_scale.
        std::vector<double> scaled = dy;
        for (std::size_t i = 0; i < scaled.size(); ++i)
          scaled[i] *= 1 / scale[i / static_cast<std::size_t>(width)] / 0.5;
        g.dy[p] = on_device(scaled);
        g.w_scale[p] = on_device({0.5});
        g.dgain[p] = empty(width);
      }
      reference::rmsnorm_backward(rows, width, sum.data(), outer.data(), 1e-5, du.data(), dx.data(),
                                  douter.data());
      a.rows = g.rows = rows;
      a.width = g.width = width;
      a.x = on_device(x);
      a.add = on_device(add);
      float* summed = empty(n);
      const std::size_t summed_at = floats.size() - 1;
      a.sum = summed;
      g.outer = a.outer = on_device(outer);
      a.outer_eps = 1e-5F;
      g.projections = a.projections = projections;
      g.outer_rstd = a.outer_rstd = empty(rows);
      g.inner_rstd = a.inner_rstd = empty(rows);
      DeviceVector<unsigned> saturated(std::vector<unsigned>{0});
      a.saturated = saturated.data();
      norm_quant(l, a);
      const std::string what = std::to_string(width) + " x " + std::to_string(projections);
      EXPECT_LT(test::relative_l2(floats[summed_at]->get(), sum), 1e-6) << what;
      unsigned at_limit = 0;
      for (int p = 0; p < projections; ++p) {
        const auto k = static_cast<std::size_t>(p);
        const std::vector<std::int8_t> got = codes[k]->get();
        expect_codes(got, want[k], what);
        for (const std::int8_t q : got) at_limit += std::abs(q) == 127 ? 1U : 0U;
        g.gain[p] = a.gain[p];
        g.largest[p] = a.largest[p];
      }
      EXPECT_EQ(saturated.get()[0], at_limit) << what;

      g.x = a.x;
      g.add = a.add;
      g.first = true;
      g.dx = empty(n);
      const std::size_t dx_at = floats.size() - 1;
      g.next_largest = on_device(std::vector<double>(7, 254.0));
      g.dx_scaled = empty(n);
      const std::size_t scaled_at = floats.size() - 1;
      g.partial = empty(partial_floats(rows, width, 4, l.multiprocessors));
      g.douter = empty(width);
      const std::size_t douter_at = floats.size() - 1;
      norm_quant_backward(l, g);
      EXPECT_LT(test::relative_l2(floats[dx_at]->get(), dx), 2e-5) << what;
      EXPECT_LT(test::relative_l2(floats[douter_at]->get(), douter), 2e-5) << what;
      for (double& v : dx) v *= 2;
      EXPECT_LT(test::relative_l2(floats[scaled_at]->get(), dx), 2e-5) << what;
    }
}

TEST_F(GpuOps, SwigluQuantAndItsBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(4);
  for (const idx width : kWidths) {
    const idx rows = 5, n = rows * width;
    const double eps = static_cast<double>(kInnerEps);
    const auto pq = random.normals_f64(2 * n), gain = random.normals_f64(width, 0.3, 1),
               dy = random.normals_f64(n);
    std::vector<double> z(dy.size()), y(z.size()), scale(5), dz(z.size()), dgain(gain.size()),
        dpq(pq.size());
    std::vector<std::int8_t> want(z.size());
    reference::swiglu(rows, width, pq.data(), z.data());
    reference::rmsnorm(rows, width, z.data(), gain.data(), eps, y.data());
    reference::quantize_activations(rows, width, y.data(), want.data(), scale.data());
    reference::rmsnorm_backward(rows, width, z.data(), gain.data(), eps, dy.data(), dz.data(),
                                dgain.data());
    reference::swiglu_backward(rows, width, pq.data(), dz.data(), dpq.data());
    std::vector<double> scaled = dy;
    for (std::size_t i = 0; i < scaled.size(); ++i)
      scaled[i] *= 1 / scale[i / static_cast<std::size_t>(width)] / 0.5;
    DeviceVector<float> g_pq(as_floats(pq)), g_gain(as_floats(gain)), largest(rows), rstd(rows),
        g_dz(as_floats(scaled)), w_scale(std::vector<float>{0.5F}),
        out_largest(std::vector<float>(5, 254.0F)),
        partial(partial_floats(rows, width, 1, l.multiprocessors)), g_dgain(width);
    DeviceVector<std::int8_t> codes(n);
    swiglu_quant(l, SwigluQuant<float>{rows, width, g_pq.data(), g_gain.data(), codes.data(),
                                       largest.data(), rstd.data(), nullptr});
    const std::string what = std::to_string(width);
    const std::vector<std::int8_t> got = codes.get();
    expect_codes(got, want, what);
    swiglu_quant_backward(
        l, SwigluQuantBackward<float>{rows, width, g_pq.data(), g_gain.data(), largest.data(),
                                      rstd.data(), out_largest.data(), g_dz.data(), w_scale.data(),
                                      Fp8Rows(), partial.data(), g_dgain.data(), false});
    for (double& v : dpq) v *= 2;
    EXPECT_LT(test::relative_l2(g_pq.get(), dpq), 3e-5) << what;
    EXPECT_LT(test::relative_l2(g_dgain.get(), dgain), 3e-5) << what;
    const std::vector<float> values = g_dz.get();  // the forward's codes, bit for bit
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(values[i], static_cast<float>(got[i])) << what << " at " << i;
  }
}

TEST_F(GpuOps, GatedQuantAndItsBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(5);
  for (const idx width : kWidths) {
    const idx rows = 5, n = rows * width;
    const double eps = static_cast<double>(kInnerEps), outer_eps = 1e-4;
    const auto g = random.normals_f64(n), h = random.normals_f64(n),
               gain = random.normals_f64(width, 0.3, 1), inner = random.normals_f64(width, 0.3, 1),
               dy = random.normals_f64(n);
    std::vector<double> o(g.size()), y(g.size()), scale(5), d_o(g.size()), dg(g.size()),
        dh(g.size()), dgain(gain.size()), dinner(gain.size());
    std::vector<std::int8_t> want(g.size());
    reference::gated_norm(rows, width, g.data(), h.data(), gain.data(), outer_eps, o.data());
    reference::rmsnorm(rows, width, o.data(), inner.data(), eps, y.data());
    reference::quantize_activations(rows, width, y.data(), want.data(), scale.data());
    reference::rmsnorm_backward(rows, width, o.data(), inner.data(), eps, dy.data(), d_o.data(),
                                dinner.data());
    reference::gated_norm_backward(rows, width, g.data(), h.data(), gain.data(), outer_eps,
                                   d_o.data(), dg.data(), dh.data(), dgain.data());
    std::vector<double> scaled = dy;
    for (std::size_t i = 0; i < scaled.size(); ++i)
      scaled[i] *= 1 / scale[i / static_cast<std::size_t>(width)] / 0.5;
    DeviceVector<float> d_g(as_floats(g)), d_h(as_floats(h)), d_gain(as_floats(gain)),
        d_inner(as_floats(inner)), largest(rows), g_rstd(rows), rstd(rows), d_dy(as_floats(scaled)),
        w_scale(std::vector<float>{0.5F}), out_largest(std::vector<float>(5, 254.0F)), d_dh(n),
        partial(partial_floats(rows, width, 2, l.multiprocessors)), d_dgain(width), d_dinner(width);
    DeviceVector<std::int8_t> codes(n);
    gated_quant(l, GatedQuant<float>{rows, width, d_g.data(), d_h.data(), d_gain.data(),
                                     static_cast<float>(outer_eps), d_inner.data(), codes.data(),
                                     largest.data(), g_rstd.data(), rstd.data(), nullptr});
    const std::string what = std::to_string(width);
    const std::vector<std::int8_t> got = codes.get();
    expect_codes(got, want, what);
    gated_quant_backward(
        l, GatedQuantBackward<float>{
               rows, width, d_g.data(), d_h.data(), d_gain.data(), d_inner.data(), largest.data(),
               g_rstd.data(), rstd.data(), out_largest.data(), d_dy.data(), w_scale.data(),
               d_dh.data(), Fp8Rows(), partial.data(), d_dgain.data(), d_dinner.data(), false});
    EXPECT_LT(test::relative_l2(d_dh.get(), dh), 3e-5) << what;
    for (double& v : dg) v *= 2;
    EXPECT_LT(test::relative_l2(d_g.get(), dg), 3e-5) << what;
    EXPECT_LT(test::relative_l2(d_dgain.get(), dgain), 3e-5) << what;
    EXPECT_LT(test::relative_l2(d_dinner.get(), dinner), 3e-5) << what;
    const std::vector<float> values = d_dy.get();
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(values[i], static_cast<float>(got[i])) << what << " at " << i;
  }
}

TEST_F(GpuOps, CrossEntropyEqualsTheReference) {
  const Launch l = test::default_launch();
  test::Random random(6);
  for (const idx vocab : {1, 7, 512, 4099, 32000}) {
    const idx rows = 6;
    auto logits = random.normals_f64(rows * vocab, 4, -30);
    std::vector<std::int32_t> labels = random.ids(rows, vocab);
    labels[2] = kIgnoreLabel;
    std::vector<double> grad(logits.size()), nll(6);
    reference::cross_entropy(rows, vocab, logits.data(), labels.data(), kIgnoreLabel, 0.25,
                             grad.data(), nll.data());
    DeviceVector<float> x(as_floats(logits)), largest(std::vector<float>(6, 254.0F)), got(rows);
    DeviceVector<std::int32_t> ids(labels);
    DeviceVector<double> total(std::vector<double>{1.0});
    cross_entropy(l, rows, vocab, x.data(), ids.data(), true, 0.25F, largest.data(), got.data());
    EXPECT_LT(test::max_abs_difference(got.get(), nll), 1e-4) << vocab;
    for (double& v : grad) v *= 2;
    EXPECT_LT(test::relative_l2(x.get(), grad), 2e-5) << vocab;
    sum_losses(l, rows, got.data(), true, total.data());
    double sum = 1;
    for (const double v : nll) sum += v;
    EXPECT_NEAR(total.get()[0], sum, 1e-4 * sum);
  }
}

}  // namespace
}  // namespace mmfree::cuda
