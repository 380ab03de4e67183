// The references (double at 1e-12, float at 2e-6) and the ops (2e-6, codes equal) against the
// modules of the reference implementation. Where the reference has no counterpart of an op, the op
// is held to the oracle in its own folder.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "mmfree/ops/bitlinear/bitlinear_reference.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"
#include "mmfree/ops/cross_entropy/cross_entropy_reference.h"
#include "mmfree/ops/gated_norm/gated_norm.h"
#include "mmfree/ops/gated_norm/gated_norm_reference.h"
#include "mmfree/ops/lower_bounds/lower_bounds.h"
#include "mmfree/ops/lower_bounds/lower_bounds_reference.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "mmfree/ops/rmsnorm/rmsnorm.h"
#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"
#include "mmfree/ops/swiglu/swiglu.h"
#include "mmfree/ops/swiglu/swiglu_reference.h"
#include "tests/support/bitlinear_layer.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"

namespace mmfree {
namespace {

const test::Golden& modules() {
  static const test::Golden golden(test::golden_directory() / "modules.safetensors");
  return golden;
}

template <class Real>
std::vector<Real> get(const std::string& name) {
  return modules().get<Real>(name);
}

// 1e-12 holds for doubles against float64 values; anything that float32 touched gets 2e-6.
template <class Real>
void expect_golden(const std::vector<Real>& got, const std::string& name) {
  const bool exact = sizeof(Real) == 8 && modules().is_f64(name);
  EXPECT_LT(test::relative_l2(got, get<double>(name)), exact ? 1e-12 : 2e-6) << name;
}

template <class Real>
class References : public testing::Test {};
using Reals = testing::Types<double, float>;
TYPED_TEST_SUITE(References, Reals);

template <class Real>
void check_bitlinear_reference(const std::string& name) {
  const auto& shape = modules().shape(name + ".weight");
  const idx out = shape[0], in = shape[1], rows = modules().shape(name + ".x")[0];
  const auto x = get<Real>(name + ".x"), gain = get<Real>(name + ".norm_weight"),
             w = get<Real>(name + ".weight");
  reference::Bitlinear<Real> a;
  std::vector<Real> y(static_cast<std::size_t>(rows * out));
  reference::bitlinear(rows, in, out, x.data(), gain.data(), static_cast<Real>(1e-6), w.data(), a,
                       y.data());
  EXPECT_EQ(a.q, get<std::int8_t>(name + ".act_codes")) << name;
  expect_golden(y, name + ".y");
  if (name == "bitlinear_exact_ties") return;  // forward only
  EXPECT_EQ(a.t, get<std::int8_t>(name + ".weight_codes")) << name;
  expect_golden(std::vector<Real>{a.scale}, name + ".weight_scale");
  const auto dy = get<Real>(name + ".dy");
  std::vector<Real> dx(x.size()), dw(w.size()), dgain(gain.size());
  reference::bitlinear_backward(rows, in, out, x.data(), gain.data(), static_cast<Real>(1e-6), a,
                                dy.data(), dx.data(), dw.data(), dgain.data());
  expect_golden(dx, name + ".dx");
  expect_golden(dgain, name + ".dnorm_weight");
  if (name != "bitlinear_344x128") expect_golden(dw, name + ".dweight");
  if (modules().has(name + ".y_unfused_eps1e8")) {
    reference::bitlinear(rows, in, out, x.data(), gain.data(), static_cast<Real>(1e-8), w.data(), a,
                         y.data());
    expect_golden(y, name + ".y_unfused_eps1e8");
  }
}

constexpr const char* kBitlinearCases[] = {"bitlinear_96x160", "bitlinear_344x128",
                                           "bitlinear_small_inputs", "bitlinear_tiny_weights"};

TYPED_TEST(References, BitlinearEqualsGolden) {
  for (const char* name : kBitlinearCases) check_bitlinear_reference<TypeParam>(name);
}

TEST(GoldenModules, BitlinearReferenceRoundsExactTiesAsGolden) {
  check_bitlinear_reference<float>("bitlinear_exact_ties");
}

TEST(GoldenModules, BitlinearOpsEqualGolden) {
  for (const std::string name : {"bitlinear_96x160", "bitlinear_344x128", "bitlinear_small_inputs",
                                 "bitlinear_tiny_weights", "bitlinear_exact_ties"}) {
    const auto& shape = modules().shape(name + ".weight");
    const idx out = shape[0], in = shape[1], rows = modules().shape(name + ".x")[0];
    const bool forward_only = name == "bitlinear_exact_ties";
    const auto dy = forward_only ? std::vector<float>(static_cast<std::size_t>(rows * out))
                                 : get<float>(name + ".dy");
    const test::BitlinearLayer layer(Ctx{2}, rows, in, out, get<float>(name + ".x"),
                                     get<float>(name + ".norm_weight"),
                                     get<float>(name + ".weight"), dy);
    std::vector<std::int8_t> q;
    for (idx r = 0; r < rows; ++r)
      q.insert(q.end(), layer.q.begin() + r * code_stride(in),
               layer.q.begin() + r * code_stride(in) + in);
    EXPECT_EQ(q, get<std::int8_t>(name + ".act_codes")) << name;
    expect_golden(layer.y, name + ".y");
    if (forward_only) continue;
    EXPECT_EQ(std::vector<std::int8_t>(layer.t.codes.begin(), layer.t.codes.end()),
              get<std::int8_t>(name + ".weight_codes"))
        << name;
    expect_golden(std::vector<float>{layer.t.scale}, name + ".weight_scale");
    expect_golden(layer.dx, name + ".dx");
    expect_golden(layer.dgain, name + ".dnorm_weight");
    if (name != "bitlinear_344x128") expect_golden(layer.dw, name + ".dweight");
  }
}

TYPED_TEST(References, RmsnormWithAndWithoutResidualEqualsGolden) {
  using Real = TypeParam;
  const idx width = 96, rows = 18;
  for (const std::string name : {"rmsnorm", "rmsnorm_residual"}) {
    const bool residual = name == "rmsnorm_residual";
    const Real eps = static_cast<Real>(modules().scalar(name + ".eps"));
    auto x = get<Real>(name + ".x");
    if (residual) {
      const auto r = get<Real>(name + ".residual");
      for (std::size_t i = 0; i < x.size(); ++i) x[i] += r[i];
      expect_golden(x, name + ".residual_out");
    }
    const auto gain = get<Real>(name + ".weight"), dy = get<Real>(name + ".dy");
    std::vector<Real> y(x.size()), dx(x.size()), dgain(gain.size());
    reference::rmsnorm(rows, width, x.data(), gain.data(), eps, y.data());
    if (residual) dx = get<Real>(name + ".dresidual_out");
    reference::rmsnorm_backward(rows, width, x.data(), gain.data(), eps, dy.data(), dx.data(),
                                dgain.data());
    expect_golden(y, name + ".y");
    expect_golden(dx, name + ".dx");
    if (residual) expect_golden(dx, name + ".dresidual");
    expect_golden(dgain, name + ".dweight");
  }
}

TEST(GoldenModules, RmsnormOpsEqualGolden) {
  const idx width = 96, rows = 18;
  const auto x = get<float>("rmsnorm.x"), gain = get<float>("rmsnorm.weight"),
             dy = get<float>("rmsnorm.dy");
  std::vector<float> y(x.size()), rstd(static_cast<std::size_t>(rows)), dx(x.size()),
      dgain(gain.size());
  rmsnorm(Ctx{2}, rows, width, x.data(), gain.data(),
          static_cast<float>(modules().scalar("rmsnorm.eps")), y.data());
  expect_golden(y, "rmsnorm.y");
  // The norm's backward exists inside rmsnorm_quant_backward alone.
  std::vector<float> ignored(x.size());
  reference::rmsnorm(rows, width, x.data(), gain.data(), 1e-6F, ignored.data(), rstd.data());
  RmsnormQuantBackward b{};
  b.rows = rows;
  b.width = width;
  b.x = x.data();
  b.projections = 1;
  b.gain[0] = gain.data();
  b.inner_rstd = rstd.data();
  b.dy[0] = dy.data();
  b.dx = dx.data();
  b.dgain[0] = dgain.data();
  rmsnorm_quant_backward(Ctx{2}, b);
  expect_golden(dx, "rmsnorm.dx");
  expect_golden(dgain, "rmsnorm.dweight");
}

TYPED_TEST(References, GatedNormEqualsGolden) {
  using Real = TypeParam;
  const std::string name = "rmsnorm_swish_gate.";
  const idx width = 96, rows = 18;
  const Real eps = static_cast<Real>(modules().scalar(name + "eps"));
  const auto g = get<Real>(name + "x_normalised"), h = get<Real>(name + "o_swished"),
             gain = get<Real>(name + "weight"), dy = get<Real>(name + "dy");
  std::vector<Real> y(g.size()), dg(g.size()), dh(g.size()), dgain(gain.size());
  reference::gated_norm(rows, width, g.data(), h.data(), gain.data(), eps, y.data());
  reference::gated_norm_backward(rows, width, g.data(), h.data(), gain.data(), eps, dy.data(),
                                 dg.data(), dh.data(), dgain.data());
  expect_golden(y, name + "y");
  expect_golden(dg, name + "dx");
  expect_golden(dh, name + "do");
  expect_golden(dgain, name + "dweight");
}

TEST(GoldenModules, GatedNormOpsEqualGolden) {
  const std::string name = "rmsnorm_swish_gate.";
  const idx width = 96, rows = 18;
  const auto eps = static_cast<float>(modules().scalar(name + "eps"));
  const auto g = get<float>(name + "x_normalised"), h = get<float>(name + "o_swished"),
             gain = get<float>(name + "weight"), dy = get<float>(name + "dy");
  std::vector<float> y(g.size()), dg(g.size()), dh(g.size()), dgain(gain.size());
  gated_norm(Ctx{2}, {rows, width, g.data(), h.data(), gain.data(), eps, y.data()});
  gated_norm_backward(Ctx{2}, {rows, width, g.data(), h.data(), gain.data(), eps, dy.data(),
                               dg.data(), dh.data(), dgain.data()});
  expect_golden(y, name + "y");
  expect_golden(dg, name + "dx");
  expect_golden(dh, name + "do");
  expect_golden(dgain, name + "dweight");
}

// The golden gate has its operands apart, the op has them side by side.
template <class Real>
std::vector<Real> side_by_side(const std::vector<Real>& p, const std::vector<Real>& q, idx width) {
  std::vector<Real> pq;
  for (auto i = p.begin(), j = q.begin(); i != p.end(); i += width, j += width) {
    pq.insert(pq.end(), i, i + width);
    pq.insert(pq.end(), j, j + width);
  }
  return pq;
}

TYPED_TEST(References, SwigluEqualsGolden) {
  using Real = TypeParam;
  const idx rows = 17, width = 33;
  const auto pq = side_by_side(get<Real>("swiglu.x_swished"), get<Real>("swiglu.y"), width);
  std::vector<Real> z(static_cast<std::size_t>(rows * width)), dpq(pq.size());
  reference::swiglu(rows, width, pq.data(), z.data());
  reference::swiglu_backward(rows, width, pq.data(), get<Real>("swiglu.dz").data(), dpq.data());
  expect_golden(z, "swiglu.z");
  const auto expected = side_by_side(get<double>("swiglu.dx"), get<double>("swiglu.dy"), width);
  EXPECT_LT(test::relative_l2(dpq, expected), sizeof(Real) == 8 ? 1e-12 : 2e-6);
}

TEST(GoldenModules, SwigluOpsEqualGolden) {
  const idx rows = 17, width = 33;
  const auto pq = side_by_side(get<float>("swiglu.x_swished"), get<float>("swiglu.y"), width);
  std::vector<float> z(static_cast<std::size_t>(rows * width)), dpq(pq.size());
  swiglu(Ctx{2}, rows, width, pq.data(), z.data());
  swiglu_backward(Ctx{2}, rows, width, pq.data(), get<float>("swiglu.dz").data(), dpq.data());
  expect_golden(z, "swiglu.z");
  const auto expected = side_by_side(get<double>("swiglu.dx"), get<double>("swiglu.dy"), width);
  EXPECT_LT(test::relative_l2(dpq, expected), 2e-6);
}

TYPED_TEST(References, ScanEqualsGolden) {
  using Real = TypeParam;
  for (const std::string name : {"hgrn_h1.", "hgrn_h3_init.", "hgrn_T1_init.", "hgrn_long."}) {
    const auto& shape =
        modules().shape(name + "x");  // (B, H, T, K): heads are sequences to an element-wise scan
    const idx batch = shape[0] * shape[1], length = shape[2], width = shape[3];
    const auto i = get<Real>(name + "x"), f = get<Real>(name + "f"), dh = get<Real>(name + "do");
    std::vector<Real> initial;
    if (modules().has(name + "initial_state")) initial = get<Real>(name + "initial_state");
    const Real* start = initial.empty() ? nullptr : initial.data();
    std::vector<Real> h(i.size()), di(i.size()), df(i.size()), last;
    reference::scan(batch, length, width, i.data(), f.data(), start, h.data());
    reference::scan_backward(batch, length, width, f.data(), start, h.data(), dh.data(), di.data(),
                             df.data());
    for (idx b = 0; b < batch; ++b)
      last.insert(last.end(), h.begin() + ((b + 1) * length - 1) * width,
                  h.begin() + (b + 1) * length * width);
    expect_golden(h, name + "o");
    expect_golden(last, name + "final_state");
    expect_golden(di, name + "dx");
    expect_golden(df, name + "df");
  }
}

TYPED_TEST(References, QuantisersEqualGolden) {
  using Real = TypeParam;
  const auto w = get<Real>("weight_quant.w"), x = get<Real>("activation_quant.x");
  std::vector<std::int8_t> t(w.size()), q(x.size());
  const Real scale = reference::ternarize(40, 30, w.data(), t.data());
  std::vector<Real> u, y, s(9);
  for (const std::int8_t code : t) u.push_back(static_cast<Real>(code) * scale);
  reference::quantize_activations(9, 50, x.data(), q.data(), s.data());
  for (std::size_t i = 0; i < q.size(); ++i) y.push_back(static_cast<Real>(q[i]) / s[i / 50]);
  expect_golden(u, "weight_quant.u");
  expect_golden(std::vector<Real>{scale}, "weight_quant.scale");
  // This is the unfused quantiser, which rounds halves to even. The first row (scale 1) holds the
  // ties; there, and only there, we differ, by one code away from zero.
  auto golden = get<double>("activation_quant.y");
  int ties = 0;
  for (std::size_t i = 0; i < 50; ++i) {
    const double tie = static_cast<double>(x[i]);
    if (tie == std::round(tie) || std::abs(golden[i]) > std::abs(tie)) continue;
    ++ties;
    golden[i] = tie + std::copysign(0.5, tie);
  }
  EXPECT_GT(ties, 5);
  EXPECT_LT(test::relative_l2(y, golden), sizeof(Real) == 8 ? 1e-12 : 2e-6);
}

TEST(GoldenModules, WeightQuantiserOpsEqualGolden) {
  const auto w = get<float>("weight_quant.w");
  TernaryWeights t;
  ternarize(Ctx{2}, w.data(), 40, 30, t);
  std::vector<float> u;
  for (const std::int8_t code : t.codes) u.push_back(static_cast<float>(code) * t.scale);
  expect_golden(u, "weight_quant.u");
  expect_golden(std::vector<float>{t.scale}, "weight_quant.scale");
}

TYPED_TEST(References, CrossEntropyEqualsGolden) {
  using Real = TypeParam;
  const idx rows = 21, vocab = 259;
  const auto logits = get<Real>("cross_entropy.logits");
  const auto labels = get<std::int32_t>("cross_entropy.labels");
  Real count = 0, sum = 0;
  for (const std::int32_t label : labels) count += label == -100 ? 0 : 1;
  ASSERT_LT(count, Real{21}) << "the case has ignored rows";
  std::vector<Real> nll(21), dlogits(logits.size());
  reference::cross_entropy(rows, vocab, logits.data(), labels.data(), -100, 1 / count,
                           dlogits.data(), nll.data());
  for (const Real v : nll) sum += v;
  expect_golden(std::vector<Real>{sum / count}, "cross_entropy.loss");
  expect_golden(dlogits, "cross_entropy.dlogits");
}

TEST(GoldenModules, CrossEntropyOpsEqualGolden) {
  auto logits = get<float>("cross_entropy.logits");
  const auto labels = get<std::int32_t>("cross_entropy.labels");
  float count = 0;
  for (const std::int32_t label : labels) count += label == kIgnoreLabel ? 0 : 1;
  std::vector<float> nll(21);
  cross_entropy(Ctx{2}, 21, 259, logits.data(), labels.data(), true, 1 / count, nll.data());
  double sum = 0;
  for (const float v : nll) sum += static_cast<double>(v);
  expect_golden(std::vector<float>{static_cast<float>(sum) / count}, "cross_entropy.loss");
  expect_golden(logits, "cross_entropy.dlogits");
}

TYPED_TEST(References, LowerBoundsEqualGolden) {
  using Real = TypeParam;
  const auto raw = get<Real>("lower_bounds.raw"), dbound = get<Real>("lower_bounds.dbound");
  std::vector<Real> bound(raw.size()), draw(raw.size());
  reference::lower_bounds(5, 12, raw.data(), bound.data());
  reference::lower_bounds_backward(5, 12, raw.data(), dbound.data(), draw.data());
  expect_golden(bound, "lower_bounds.bound_per_layer");
  expect_golden(draw, "lower_bounds.draw");
}

TEST(GoldenModules, LowerBoundsOpsEqualGolden) {
  const auto raw = get<float>("lower_bounds.raw"), dbound = get<float>("lower_bounds.dbound");
  std::vector<float> bound(raw.size()), draw(raw.size());
  lower_bounds(5, 12, raw.data(), bound.data());
  lower_bounds_backward(5, 12, raw.data(), dbound.data(), draw.data());
  expect_golden(bound, "lower_bounds.bound_per_layer");
  expect_golden(draw, "lower_bounds.draw");
}

}  // namespace
}  // namespace mmfree
