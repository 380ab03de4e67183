// Input gradients in e4m3: the product, its operands, and the network with them. And the codes that
// come from bf16 inputs.
#include <cuda_fp8.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "mmfree/cuda/products.h"
#include "mmfree/cuda/test_support.h"
#include "mmfree/cuda/training.h"
#include "mmfree/ops/gated_norm/gated_norm_reference.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_reference.h"
#include "mmfree/ops/swiglu/swiglu_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace mmfree::cuda {
namespace {

using test::DeviceVector;

class GpuFp8 : public test::GpuTest {
 protected:
  void SetUp() override {
    test::GpuTest::SetUp();
    if (IsSkipped()) return;
    if (!byte_product_fits(select_device().compute_capability, 16, 16))
      GTEST_SKIP() << "products in e4m3 need a GPU of compute capability 9.0";
  }
};

float decoded(e4m3 byte) {
  __nv_fp8_e4m3 v;
  v.__x = byte;
  return static_cast<float>(v);
}
e4m3 encoded(float x) {
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
}
std::size_t at(idx i) {
  return static_cast<std::size_t>(i);
}

struct Shape {
  idx rows, in, out;
};
constexpr Shape kShapes[] = {{1, 16, 8},       {3, 48, 40},      {128, 128, 256},
                             {129, 144, 264},  {300, 1536, 512}, {700, 1040, 344},
                             {5000, 384, 776}, {300, 5632, 2048}};

TEST_F(GpuFp8, ProductOfSmallIntegersIsExact) {
  const Launch l = test::default_launch();
  test::Random random(1);
  for (const Shape s : kShapes) {
    std::vector<e4m3> x, t;
    std::vector<float> largest;
    for (idx i = 0; i < s.rows * s.in; ++i)
      x.push_back(encoded(static_cast<float>(random.below(3)) - 1.0F));
    for (const std::int8_t c : random.trits(s.out * s.in))
      t.push_back(encoded(static_cast<float>(c)));
    for (idx r = 0; r < s.rows; ++r) largest.push_back(448.0F * static_cast<float>(1 + r % 3));
    DeviceVector<e4m3> dx(x), dt(t);
    DeviceVector<float> dl(largest);
    DeviceVector<bf16> y(s.rows * s.out);
    fp8_product(l, s.rows, s.in, s.out, dx.data(), dt.data(), dl.data(), y.data());
    const std::vector<bf16> got = y.get();
    idx wrong = 0;
    for (idx r = 0; r < s.rows; ++r)
      for (idx o = 0; o < s.out; ++o) {
        if (s.rows * s.out * s.in > 100'000'000 && (r * 31 + o) % 97 != 0) continue;  // a sample
        float sum = 0;
        for (idx k = 0; k < s.in; ++k)
          sum += decoded(x[at(r * s.in + k)]) * decoded(t[at(o * s.in + k)]);
        const float expected = sum * static_cast<float>(1 + r % 3);
        wrong +=
            __bfloat162float(got[at(r * s.out + o)]) != __bfloat162float(__float2bfloat16(expected))
                ? 1
                : 0;
      }
    EXPECT_EQ(wrong, 0) << s.rows << " x " << s.in << " x " << s.out;
  }
}

TEST_F(GpuFp8, ProductOfGradientsIsThatOfItsOperands) {
  const Launch l = test::default_launch();
  test::Random random(2);
  for (const Shape s : kShapes) {
    const std::vector<float> x = random.normals(s.rows * s.in, 1e-4);
    const std::vector<bf16> halves = test::convert<bf16>(x);
    std::vector<e4m3> t;
    for (const std::int8_t c : random.trits(s.out * s.in))
      t.push_back(encoded(static_cast<float>(c)));
    DeviceVector<bf16> dx(halves), y(s.rows * s.out);
    DeviceVector<e4m3> dq(s.rows * s.in), dt(t);
    DeviceVector<float> dl(s.rows);
    quantize_rows(l, s.rows, s.in, dx.data(), {dq.data(), dl.data()});
    fp8_product(l, s.rows, s.in, s.out, dq.data(), dt.data(), dl.data(), y.data());
    const std::vector<e4m3> q = dq.get();
    const std::vector<float> largest = dl.get();
    // The operands are those of the rows, rounded once.
    for (idx r = 0; r < s.rows; ++r) {
      float top = 1e-30F;
      for (idx k = 0; k < s.in; ++k)
        top = std::max(top, std::abs(__bfloat162float(halves[at(r * s.in + k)])));
      ASSERT_EQ(largest[at(r)], top);
      const float scale = 448.0F / top;
      for (idx k = 0; k < s.in; ++k)
        ASSERT_EQ(q[at(r * s.in + k)], encoded(__bfloat162float(halves[at(r * s.in + k)]) * scale));
    }
    const std::vector<bf16> got = y.get();
    double error = 0, norm = 0, plain_error = 0;
    for (idx r = 0; r < s.rows; ++r)
      for (idx o = 0; o < s.out; ++o) {
        if (s.rows * s.out * s.in > 100'000'000 && (r * 31 + o) % 97 != 0) continue;  // a sample
        double sum = 0, plain = 0;
        for (idx k = 0; k < s.in; ++k) {
          const double w = static_cast<double>(decoded(t[at(o * s.in + k)]));
          sum += static_cast<double>(decoded(q[at(r * s.in + k)])) * w;
          plain += static_cast<double>(x[at(r * s.in + k)]) * w;
        }
        sum *= static_cast<double>(largest[at(r)]) / 448;
        const double y_ro = static_cast<double>(__bfloat162float(got[at(r * s.out + o)]));
        error += (y_ro - sum) * (y_ro - sum);
        plain_error += (y_ro - plain) * (y_ro - plain);
        norm += plain * plain;
      }
    const std::string what =
        std::to_string(s.rows) + " x " + std::to_string(s.in) + " x " + std::to_string(s.out);
    EXPECT_LT(std::sqrt(error / norm), 4e-3) << what;  // rounding to bf16, 14-bit sums
    EXPECT_LT(std::sqrt(plain_error / norm), 0.06) << what;
    EXPECT_TRUE(std::isfinite(plain_error)) << what;
  }
}

TEST_F(GpuFp8, TransposedWeightsAreThoseOfTheCodes) {
  const Launch l = test::default_launch();
  test::Random random(3);
  for (const auto& [out, in] : {std::pair<idx, idx>{16, 16},
                                {16, 80},
                                {80, 16},
                                {64, 64},
                                {144, 272},
                                {1536, 512},
                                {272, 2064}}) {
    const std::vector<std::int8_t> codes = random.trits(out * in);
    DeviceVector<std::int8_t> d(codes);
    DeviceVector<e4m3> t(in * out);
    transpose_codes(l, out, in, d.data(), t.data());
    const std::vector<e4m3> got = t.get();
    for (idx o = 0; o < out; ++o)
      for (idx i = 0; i < in; ++i)
        ASSERT_EQ(decoded(got[at(i * out + o)]), static_cast<float>(codes[at(o * in + i)]))
            << out << " x " << in << " at " << o << ", " << i;
  }
}

// Rows of zeros, of huge and tiny numbers; NaN and infinity must not vanish.
TEST_F(GpuFp8, RowsOfAnyMagnitude) {
  const Launch l = test::default_launch();
  constexpr idx kWidth = 264;
  std::vector<bf16> x(5 * kWidth, __float2bfloat16(0));
  const auto set = [&](idx row, idx k, float v) { x[at(row * kWidth + k)] = __float2bfloat16(v); };
  set(1, 3, 1e30F);
  set(2, 263, -1e-20F);
  set(3, 100, NAN);
  set(4, 7, INFINITY);
  DeviceVector<bf16> d(x);
  DeviceVector<e4m3> q(5 * kWidth);
  DeviceVector<float> largest(5);
  quantize_rows(l, 5, kWidth, d.data(), {q.data(), largest.data()});
  const std::vector<e4m3> got = q.get();
  for (idx k = 0; k < kWidth; ++k) {
    EXPECT_EQ(decoded(got[at(k)]), 0);
    EXPECT_EQ(decoded(got[at(kWidth + k)]), k == 3 ? 448 : 0);
    EXPECT_EQ(decoded(got[at(2 * kWidth + k)]), k == 263 ? -448 : 0);
    EXPECT_EQ(std::isnan(decoded(got[at(3 * kWidth + k)])), k == 100);
    EXPECT_EQ(std::isnan(decoded(got[at(4 * kWidth + k)])), k == 7);
  }
}

// bf16 inputs to each quantiser: codes differ from the reference's by at most 1, in at most 0.1 %
// of elements.
class GpuBf16 : public test::GpuTest {};

std::vector<double> rounded(const std::vector<double>& v) {
  std::vector<double> r;
  for (const double x : v)
    r.push_back(static_cast<double>(__bfloat162float(__float2bfloat16(static_cast<float>(x)))));
  return r;
}
std::vector<bf16> halves(const std::vector<double>& v) {
  return test::convert<bf16>(test::convert<float>(v));
}
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

TEST_F(GpuBf16, CodesOfALayerDifferAtMostByRounding) {
  const Launch l = test::default_launch();
  test::Random random(4);
  const double eps = static_cast<double>(kInnerEps);
  for (const idx width : {33, 264, 2048, 2816, 5632}) {
    const idx rows = 40, n = rows * width;
    const std::string what = std::to_string(width);
    const auto quantised = [&](const std::vector<double>& v, const std::vector<double>& gain) {
      std::vector<double> y(v.size()), scale(at(rows));
      std::vector<std::int8_t> codes(v.size());
      reference::rmsnorm(rows, width, v.data(), gain.data(), eps, y.data());
      reference::quantize_activations(rows, width, y.data(), codes.data(), scale.data());
      return codes;
    };
    const auto gain = random.normals_f64(width, 0.3, 1), outer = random.normals_f64(width, 0.3, 1);
    DeviceVector<float> d_gain(test::convert<float>(gain)), d_outer(test::convert<float>(outer)),
        largest(rows), rstd(rows), inner_rstd(rows);
    DeviceVector<std::int8_t> codes(n);

    // Residual and both norms: x float32, what is added bf16.
    const auto x = random.normals_f64(n, 2);
    const auto add = rounded(random.normals_f64(n));
    std::vector<double> sum = x, u(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) sum[i] += add[i];
    reference::rmsnorm(rows, width, sum.data(), outer.data(), 1e-5, u.data());
    DeviceVector<float> d_x(test::convert<float>(x));
    DeviceVector<bf16> d_add(halves(add)), values(n);
    NormQuant<bf16> a{};
    a.rows = rows;
    a.width = width;
    a.x = d_x.data();
    a.add = d_add.data();
    a.outer = d_outer.data();
    a.outer_eps = 1e-5F;
    a.projections = 1;
    a.gain[0] = d_gain.data();
    a.codes[0] = codes.data();
    a.code_values[0] = values.data();
    a.largest[0] = largest.data();
    a.outer_rstd = rstd.data();
    a.inner_rstd = inner_rstd.data();
    norm_quant(l, a);
    const std::vector<std::int8_t> got = codes.get();
    expect_codes(got, quantised(u, gain), "norm_quant " + what);
    const std::vector<bf16> as_numbers = values.get();  // exact in bf16
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(__bfloat162float(as_numbers[i]), static_cast<float>(got[i])) << what;

    const auto g = rounded(random.normals_f64(n)), h = rounded(random.normals_f64(n));
    std::vector<double> o(g.size());
    reference::gated_norm(rows, width, g.data(), h.data(), outer.data(), 1e-5, o.data());
    DeviceVector<bf16> d_g(halves(g)), d_h(halves(h));
    gated_quant(l, GatedQuant<bf16>{rows, width, d_g.data(), d_h.data(), d_outer.data(), 1e-5F,
                                    d_gain.data(), codes.data(), largest.data(), rstd.data(),
                                    inner_rstd.data(), nullptr});
    expect_codes(codes.get(), quantised(o, gain), "gated_quant " + what);

    const auto pq = rounded(random.normals_f64(2 * n));
    std::vector<double> z(g.size());
    reference::swiglu(rows, width, pq.data(), z.data());
    DeviceVector<bf16> d_pq(halves(pq));
    swiglu_quant(l, SwigluQuant<bf16>{rows, width, d_pq.data(), d_gain.data(), codes.data(),
                                      largest.data(), rstd.data(), nullptr});
    expect_codes(codes.get(), quantised(z, gain), "swiglu_quant " + what);
  }
}

}  // namespace
}  // namespace mmfree::cuda

namespace mmfree {
namespace {

class GpuFp8Network : public test::GpuTest {};

struct Batch {
  Batch(idx sequences, idx steps, idx vocab) : batch(sequences), length(steps) {
    test::Random random(7);
    ids = random.ids(batch * length, vocab);
    labels = random.ids(batch * length, vocab);
  }
  TokenBatch view() const { return {batch, length, ids.data(), labels.data(), nullptr}; }
  idx batch, length;
  std::vector<std::int32_t> ids, labels;
};

MatmulFreeConfig config_of(idx hidden, idx mlp) {
  MatmulFreeConfig c;
  c.vocab_size = 384;
  c.hidden_size = hidden;
  c.num_hidden_layers = 3;
  c.intermediate_size = mlp;
  return c;
}

std::vector<float> gradients(const MatmulFreeConfig& c, const GpuTrainingOptions& o,
                             const Batch& batch) {
  GpuTraining gpu(c, o);
  gpu.randomize(1);
  for (int n = 0; n < 3; ++n) gpu.forward_backward(batch.view(), 0.01F, true);
  std::vector<float> g(static_cast<std::size_t>(storage_size(matmulfree_params(c))));
  gpu.download_gradients(g.data());
  return g;
}

// Both sides of the width from which the scan's gradients are converted too.
TEST_F(GpuFp8Network, GradientsPointWhereThoseOfBf16Do) {
  if (cuda::select_device().compute_capability != 90)
    GTEST_SKIP() << "products in e4m3 need a GPU of compute capability 9.0";
  for (const idx hidden : {128, 1536}) {
    const MatmulFreeConfig c = config_of(hidden, hidden == 128 ? 208 : 512);
    const Batch batch(3, 100, c.vocab_size);
    GpuTrainingOptions o;
    o.rows = 300;
    const std::vector<float> want = gradients(c, o, batch);
    o.fp8_backward = true;
    const std::vector<float> got = gradients(c, o, batch);
    EXPECT_TRUE(test::same_bits(gradients(c, o, batch), got)) << "run again";
    const double distance = test::relative_l2(got, want);
    EXPECT_LT(distance, 0.08) << hidden;
    EXPECT_GT(distance, 1e-4) << hidden << ": are these products in e4m3 at all?";
    RecordProperty("distance", std::to_string(distance));
  }
}

TEST_F(GpuFp8Network, WhatCannotBeIsRefused) {
  GpuTrainingOptions o;
  o.rows = 64;
  o.fp8_backward = true;
  const auto message = [&](const MatmulFreeConfig& c) -> std::string {
    try {
      const GpuTraining gpu(c, o);
      return "";
    } catch (const Error& e) {
      return e.what();
    }
  };
  if (cuda::select_device().compute_capability != 90) {
    EXPECT_NE(message(config_of(64, 96)).find("compute capability"), std::string::npos);
    return;
  }
  EXPECT_NE(message(config_of(64, 72)).find("multiples of 16"), std::string::npos);
  o.precision = GpuPrecision::float32;
  EXPECT_NE(message(config_of(64, 96)).find("--precision"), std::string::npos);
}

TEST_F(GpuFp8Network, Bf16MomentsTakeHalfTheMemoryAndComeBackAsTheyWere) {
  const MatmulFreeConfig c = config_of(256, 512);
  const Batch batch(2, 64, c.vocab_size);
  const auto n = static_cast<std::size_t>(storage_size(matmulfree_params(c)));
  GpuTrainingOptions o;
  o.rows = 128;
  const std::size_t full = GpuTraining(c, o).memory().planned_bytes;
  o.bf16_moments = true;
  GpuTraining gpu(c, o);
  EXPECT_NEAR(static_cast<double>(full - gpu.memory().planned_bytes), 4.0 * static_cast<double>(n),
              2048);
  gpu.randomize(1);
  const auto step = [&](GpuTraining& g, idx k) {
    g.forward_backward(batch.view(), 0.01F, true);
    g.update({.lr = 1e-3,
              .weight_decay = 0.1,
              .beta1 = 0.9,
              .beta2 = 0.95,
              .eps = 1e-8,
              .clip = 1,
              .step = k});
  };
  step(gpu, 1);
  std::vector<float> w(n), m(n), v(n), w2(n), m2(n), v2(n);
  gpu.download(w.data(), m.data(), v.data());
  GpuTraining again(c, o);
  again.upload(w.data(), m.data(), v.data());
  step(gpu, 2);
  step(again, 2);
  gpu.download(w.data(), m.data(), v.data());
  again.download(w2.data(), m2.data(), v2.data());
  EXPECT_TRUE(test::same_bits(w, w2));
  EXPECT_TRUE(test::same_bits(m, m2));
  EXPECT_TRUE(test::same_bits(v, v2));
  float top = 0;
  for (const float x : v) top = std::max(top, x);
  EXPECT_GT(top, 0);
}

}  // namespace
}  // namespace mmfree
