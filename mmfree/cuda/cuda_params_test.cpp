// The kernels around the layers: embedding, lower bounds, what happens to the parameters once a
// step, and the small passes; on odd shapes.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "mmfree/cuda/test_support.h"
#include "mmfree/ops/adamw/adamw_reference.h"
#include "mmfree/ops/embedding/embedding_reference.h"
#include "mmfree/ops/lower_bounds/lower_bounds_reference.h"
#include "tests/support/compare.h"
#include "tests/support/random_tensor.h"

namespace mmfree::cuda {
namespace {

using test::DeviceVector;

class GpuParams : public test::GpuTest {};

std::vector<float> as_floats(const std::vector<double>& v) {
  return test::convert<float>(v);
}

TEST_F(GpuParams, EmbeddingAndItsBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(1);
  struct Shape {
    idx rows, width, vocab;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{7, 3, 5}, Shape{100, 8, 300}, Shape{333, 264, 40},
                        Shape{64, 1001, 9}, Shape{1000, 512, 2}}) {
    const std::string what = std::to_string(s.rows) + " x " + std::to_string(s.width);
    const std::vector<std::int32_t> ids = random.ids(s.rows, s.vocab);
    const auto table = random.normals_f64(s.vocab * s.width),
               dx = random.normals_f64(s.rows * s.width);
    std::vector<double> x(dx.size()), dtable(table.size(), 0.25);
    const std::int32_t padding = s.vocab > 2 ? 1 : -1;
    reference::embedding(s.rows, s.width, ids.data(), table.data(), x.data());
    reference::embedding_backward(s.rows, s.width, ids.data(), dx.data(), padding, dtable.data());

    std::vector<std::int32_t> count{0}, group_ids, start, order;
    for (std::int32_t id = 0; id < s.vocab; ++id) {
      const std::size_t before = order.size();
      for (idx r = 0; r < s.rows; ++r)
        if (ids[static_cast<std::size_t>(r)] == id) order.push_back(static_cast<std::int32_t>(r));
      if (order.size() == before) continue;
      ++count[0];
      group_ids.push_back(id);
      start.push_back(static_cast<std::int32_t>(before));
    }
    start.push_back(static_cast<std::int32_t>(s.rows));
    DeviceVector<std::int32_t> d_ids(ids), d_count(count), d_groups(group_ids), d_start(start),
        d_order(order);
    DeviceVector<float> d_table(as_floats(table)), d_x(s.rows * s.width), d_dx(as_floats(dx)),
        d_dtable(std::vector<float>(table.size(), 0.25F));
    embedding(l, s.rows, s.width, d_ids.data(), d_table.data(), d_x.data());
    EXPECT_TRUE(test::same_bits(d_x.get(), as_floats(x))) << what;
    embedding_backward(l, s.rows, s.width,
                       {d_count.data(), d_groups.data(), d_start.data(), d_order.data()},
                       d_dx.data(), padding, d_dtable.data());
    EXPECT_LT(test::relative_l2(d_dtable.get(), dtable), 1e-6) << what;
  }
}

TEST_F(GpuParams, LowerBoundsAndTheirBackwardEqualTheReference) {
  const Launch l = test::default_launch();
  test::Random random(2);
  for (const idx layers : {1, 2, 3, 24, 33})
    for (const idx width : {1, 3, 64, 65, 1001}) {
      const std::string what = std::to_string(layers) + " x " + std::to_string(width);
      const idx n = layers * width;
      const auto raw = random.normals_f64(n, 3), dbound = random.normals_f64(n);
      std::vector<double> bound(raw.size()), draw(raw.size(), 0.5);
      reference::lower_bounds(layers, width, raw.data(), bound.data());
      reference::lower_bounds_backward(layers, width, raw.data(), dbound.data(), draw.data());
      DeviceVector<float> d_raw(as_floats(raw)), d_bound(n), d_dbound(as_floats(dbound)),
          d_draw(std::vector<float>(raw.size(), 0.5F)), fresh(n);
      lower_bounds(l, layers, width, d_raw.data(), d_bound.data());
      EXPECT_LT(test::max_abs_difference(d_bound.get(), bound), 1e-6) << what;
      lower_bounds_backward(l, layers, width, d_raw.data(), d_dbound.data(), d_draw.data(), true);
      EXPECT_LT(test::max_abs_difference(d_draw.get(), draw), 1e-5) << what;
      for (double& v : draw) v -= 0.5;
      lower_bounds_backward(l, layers, width, d_raw.data(), d_dbound.data(), fresh.data(), false);
      EXPECT_LT(test::max_abs_difference(fresh.get(), draw), 1e-5) << what;
    }
}

// Flat storage with two ternary matrices and a gain between them, and gaps that nobody may touch.
struct Storage {
  struct Part {
    idx offset, size;
    int matrix;
    bool decay;
  };
  const std::vector<Part> parts{{0, 2 * kChunk + 37, 0, true},
                                {2 * kChunk + 48, 5, -1, false},
                                {2 * kChunk + 64, 3, -1, true},
                                {2 * kChunk + 80, kChunk + 18, 1, true}};
  const idx size = 3 * kChunk + 112;
  std::vector<Chunk> chunks;
  std::vector<MatrixChunks> matrices{2};
  std::vector<char> used = std::vector<char>(static_cast<std::size_t>(size), 0);

  Storage() {
    for (const Part& p : parts) {
      if (p.matrix >= 0)
        matrices[static_cast<std::size_t>(p.matrix)] = {
            static_cast<int>(chunks.size()), static_cast<int>((p.size + kChunk - 1) / kChunk),
            static_cast<double>(p.size)};
      for (idx k = 0; k < p.size; k += kChunk)
        chunks.push_back({p.offset + k, static_cast<int>(std::min<idx>(kChunk, p.size - k)),
                          p.matrix, p.decay ? 1 : 0});
      for (idx k = 0; k < p.size; ++k) used[static_cast<std::size_t>(p.offset + k)] = 1;
    }
  }
  std::vector<double> random(test::Random& r, double gap, double deviation) const {
    std::vector<double> v = r.normals_f64(size, deviation);
    for (std::size_t i = 0; i < v.size(); ++i)
      if (used[i] == 0) v[i] = gap;
    return v;
  }
};

// Codes and scales of w, as ops/bitlinear quantises weights.
void expect_ternary(const Storage& s, const std::vector<float>& w,
                    const std::vector<std::int8_t>& codes, const std::vector<float>& scales) {
  for (const Storage::Part& p : s.parts) {
    if (p.matrix < 0) continue;
    double sum = 0;
    for (idx k = 0; k < p.size; ++k)
      sum += std::abs(static_cast<double>(w[static_cast<std::size_t>(p.offset + k)]));
    const double scale = std::max(1e-5, sum / static_cast<double>(p.size));
    EXPECT_NEAR(static_cast<double>(scales[static_cast<std::size_t>(p.matrix)]), scale,
                1e-6 * scale);
    for (idx k = 0; k < p.size; ++k) {
      const auto at = static_cast<std::size_t>(p.offset + k);
      const double v = static_cast<double>(w[at]) / scale;
      if (std::abs(std::abs(v) - 0.5) < 1e-5) continue;  // either
      ASSERT_EQ(codes[at], v > 0.5 ? 1 : v < -0.5 ? -1 : 0) << at << ": " << v;
    }
  }
  for (std::size_t i = 0; i < codes.size(); ++i)
    if (s.used[i] == 0) {
      ASSERT_EQ(codes[i], 9) << "a gap was written";
    }
}

template <class M>
void check_adamw(double moment_tolerance, double weight_tolerance) {
  const Launch l = test::default_launch();
  const Storage s;
  test::Random random(3);
  const std::vector<double> g = s.random(random, 0, 2), start = s.random(random, 7, 0.1);
  std::vector<double> w = start, m = s.random(random, 7, 0.1), v = s.random(random, 7, 1);
  for (double& x : v) x = std::abs(x) + 0.01;
  DeviceVector<Chunk> chunks(s.chunks);
  DeviceVector<MatrixChunks> matrices(s.matrices);
  const ParamPlan plan{chunks.data(), static_cast<int>(s.chunks.size()), matrices.data(), 2};
  DeviceVector<float> d_g(as_floats(g)), d_w(as_floats(w)), scales(2);
  DeviceVector<M> d_m(test::convert<M>(as_floats(m))), d_v(test::convert<M>(as_floats(v)));
  m = test::convert<double>(test::convert<float>(d_m.get()));  // as stored
  v = test::convert<double>(test::convert<float>(d_v.get()));
  DeviceVector<double> sums(static_cast<idx>(s.chunks.size())), norm(1);
  DeviceVector<std::int8_t> codes(std::vector<std::int8_t>(w.size(), 9));

  magnitude_sums(l, plan, d_w.data(), sums.data());
  ternarize(l, plan, d_w.data(), sums.data(), scales.data(), codes.data());
  expect_ternary(s, d_w.get(), codes.get(), scales.get());

  double square = 0;
  for (const double x : g) square += x * x;
  gradient_norm(l, plan, d_g.data(), sums.data(), norm.data());
  EXPECT_NEAR(norm.get()[0], std::sqrt(square), 1e-6 * std::sqrt(square));

  constexpr double kLr = 0.01, kDecay = 0.1, kBeta1 = 0.9, kBeta2 = 0.95, kEps = 1e-8, kClip = 1;
  constexpr idx kStep = 3;
  DeviceVector<AdamWStep> step(std::vector<AdamWStep>{
      {.keep_decayed = static_cast<float>(1 - kLr * kDecay),
       .keep = 1,
       .beta1 = static_cast<float>(kBeta1),
       .one_less_beta1 = static_cast<float>(1 - kBeta1),
       .beta2 = static_cast<float>(kBeta2),
       .one_less_beta2 = static_cast<float>(1 - kBeta2),
       .root_correction = static_cast<float>(std::sqrt(1 - std::pow(kBeta2, kStep))),
       .eps = static_cast<float>(kEps),
       .step_size = static_cast<float>(kLr / (1 - std::pow(kBeta1, kStep))),
       .clip = static_cast<float>(kClip)}});
  adamw(l, plan, step.data(), norm.data(), d_g.data(), d_w.data(), d_m.data(), d_v.data(),
        sums.data());
  for (const Storage::Part& p : s.parts)
    reference::adamw(reference::AdamW<double>{kLr, kBeta1, kBeta2, kEps, p.decay ? kDecay : 0,
                                              kClip / std::sqrt(square), kStep},
                     p.size, g.data() + p.offset, w.data() + p.offset, m.data() + p.offset,
                     v.data() + p.offset);
  EXPECT_LT(test::relative_l2(test::convert<float>(d_m.get()), m), moment_tolerance);
  EXPECT_LT(test::relative_l2(test::convert<float>(d_v.get()), v), moment_tolerance);
  EXPECT_LT(test::relative_l2(d_w.get(), w), weight_tolerance);
  // The sums that came with it are those of the new weights.
  ternarize(l, plan, d_w.data(), sums.data(), scales.data(), codes.data());
  expect_ternary(s, d_w.get(), codes.get(), scales.get());

  // A gradient that is not finite changes nothing.
  const std::vector<float> before = d_w.get();
  DeviceVector<double> infinite(std::vector<double>{INFINITY});
  adamw(l, plan, step.data(), infinite.data(), d_g.data(), d_w.data(), d_m.data(), d_v.data(),
        sums.data());
  EXPECT_TRUE(test::same_bits(d_w.get(), before));
}

TEST_F(GpuParams, AdamWNormAndTernaryWeightsEqualTheReference) {
  check_adamw<float>(1e-6, 1e-6);
}

TEST_F(GpuParams, AdamWWithBf16MomentsIsTheReferenceRounded) {
  check_adamw<bf16>(3e-3, 1e-6);
}

TEST_F(GpuParams, SumsOverRowsEqualAPlainSum) {
  const Launch l = test::default_launch();
  test::Random random(4);
  for (const idx parts : {1, 2, 31, 33, 700})
    for (const idx width : {1, 31, 33, 264}) {
      const auto partial = random.normals_f64(parts * 2 * width);
      std::vector<double> want(static_cast<std::size_t>(2 * width), 3);
      for (idx p = 0; p < parts; ++p)
        for (idx k = 0; k < 2 * width; ++k)
          want[static_cast<std::size_t>(k)] += partial[static_cast<std::size_t>(p * 2 * width + k)];
      const std::vector<float> three(static_cast<std::size_t>(width), 3.0F);
      DeviceVector<float> d(as_floats(partial)), a(three), b(three);
      sum_partials(l, parts, width, d.data(), {2, {a.data(), b.data()}}, true);
      std::vector<float> got = a.get();
      const std::vector<float> second = b.get();
      got.insert(got.end(), second.begin(), second.end());
      EXPECT_LT(test::max_abs_difference(got, want), 1e-4) << parts << " x " << width;
    }
}

}  // namespace
}  // namespace mmfree::cuda
