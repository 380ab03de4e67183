#include "mmfree/model/matmulfree_reference.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <type_traits>

#include <fmt/core.h>

#include "mmfree/core/error.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree {
namespace {

struct Exact {
  template <class Real>
  Real operator()(Real x) const {
    return x;
  }
};
struct ToF16 {
  float operator()(float x) const { return f16_to_float(float_to_f16(x)); }
};
struct ToBf16 {
  float operator()(float x) const { return bf16_to_float(float_to_bf16(x)); }
};

template <class Real>
using Vec = std::vector<Real>;

std::size_t count(idx n) {
  return static_cast<std::size_t>(n);
}

// Interleaved sums keep the error small and let the compiler use vectors.
template <class Real>
Real dot(const Real* a, const Real* b, idx n) {
  std::array<Real, 16> sum{};
  idx k = 0;
  for (; k + 16 <= n; k += 16)
    for (std::size_t j = 0; j < 16; ++j)
      sum[j] += a[k + static_cast<idx>(j)] * b[k + static_cast<idx>(j)];
  for (; k < n; ++k) sum[0] += a[k] * b[k];
  for (std::size_t width = 8; width > 0; width /= 2)
    for (std::size_t j = 0; j < width; ++j) sum[j] += sum[j + width];
  return sum[0];
}

template <class Real, class Round>
class Net {
 public:
  Net(const Ctx& ctx, const LatentModel& model, const ReferenceInput& in)
      : ctx_(ctx), model_(model), in_(in) {}

  ReferenceOutput<Real> run() {
    const MatmulFreeConfig& c = model_.config;
    const idx rows = in_.batch * in_.length;
    const idx d = c.hidden_size;
    ReferenceOutput<Real> out;
    Vec<Real> x = embed();
    out.embedding = x;
    const Vec<Real> bounds = lower_bounds();
    for (idx l = 0; l < c.num_hidden_layers; ++l) {
      const Real* bound = c.use_lower_bound && l > 0 ? bounds.data() + l * d : nullptr;
      block(fmt::format("model.layers.{}.", l), bound, x, out);
      out.block.push_back(x);
    }
    x = norm(x, d, parameter("model.norm.weight"), outer_eps());
    out.final_norm = x;
    out.logits = bitlinear(x, rows, c.tie_word_embeddings ? "model.embeddings" : "lm_head",
                           "lm_head.norm", c.vocab_size, d);
    return out;
  }

 private:
  // A parameter in the type the reference keeps it in.
  Vec<Real> parameter(const std::string& name) {
    const auto it = std::find_if(model_.table.begin(), model_.table.end(),
                                 [&](const ParamInfo& p) { return p.name == name; });
    MMFREE_ASSERT(it != model_.table.end());
    const auto row = count(it - model_.table.begin());
    Vec<float> raw(count(it->size()));
    read_finite(ctx_, model_.tensors[row], model_.path, raw.data());
    release_pages(model_, row);
    Vec<Real> values(raw.size());
    std::transform(raw.begin(), raw.end(), values.begin(),
                   [&](float v) { return round_(static_cast<Real>(v)); });
    return values;
  }

  Real outer_eps() const { return static_cast<Real>(model_.config.rms_norm_eps); }

  Vec<Real> embed() {
    const idx d = model_.config.hidden_size;
    const idx rows = in_.batch * in_.length;
    const Vec<Real> table = parameter("model.embeddings.weight");
    Vec<Real> x(count(rows * d));
    for (idx r = 0; r < rows; ++r)
      std::copy_n(table.data() + idx{in_.ids[r]} * d, d, x.data() + r * d);
    return x;
  }

  // cumsum(softmax(raw)) - softmax(raw)[0], over layers.
  Vec<Real> lower_bounds() {
    const MatmulFreeConfig& c = model_.config;
    if (!c.use_lower_bound) return {};
    const idx layers = c.num_hidden_layers;
    const idx d = c.hidden_size;
    const Vec<Real> raw = parameter("model.lower_bounds");
    Vec<Real> bound(raw.size());
    for (idx k = 0; k < d; ++k) {
      Real largest = raw[count(k)];
      for (idx l = 1; l < layers; ++l) largest = std::max(largest, raw[count(l * d + k)]);
      Real total = 0;
      for (idx l = 0; l < layers; ++l) total += std::exp(raw[count(l * d + k)] - largest);
      const Real first = round_(std::exp(raw[count(k)] - largest) / total);
      Real sum = 0;
      for (idx l = 0; l < layers; ++l) {
        sum = round_(sum + round_(std::exp(raw[count(l * d + k)] - largest) / total));
        bound[count(l * d + k)] = round_(sum - first);
      }
    }
    return bound;
  }

  // RMSNorm of each row of x (R, width), inside in full precision.
  Vec<Real> norm_unrounded(const Vec<Real>& x, idx width, const Vec<Real>& gain, Real eps) {
    Vec<Real> y(x.size());
    const idx rows = static_cast<idx>(x.size()) / width;
    parallel_for(ctx_, rows, 1, [&](idx begin, idx end) {
      for (idx r = begin; r < end; ++r) {
        const Real* p = x.data() + r * width;
        const Real rstd = Real{1} / std::sqrt(dot(p, p, width) / static_cast<Real>(width) + eps);
        for (idx k = 0; k < width; ++k) y[count(r * width + k)] = p[k] * rstd * gain[count(k)];
      }
    });
    return y;
  }
  Vec<Real> norm(const Vec<Real>& x, idx width, const Vec<Real>& gain, Real eps) {
    return rounded(norm_unrounded(x, width, gain, eps));
  }
  Vec<Real> rounded(Vec<Real> x) const {
    for (Real& v : x) v = round_(v);
    return x;
  }

  // FusedBitLinear: y (R, out) of x (R, in).
  Vec<Real> bitlinear(const Vec<Real>& x, idx rows, const std::string& name,
                      const std::string& norm_name, idx out, idx in) {
    Vec<Real> a =
        norm_unrounded(x, in, parameter(norm_name + ".weight"), static_cast<Real>(kInnerEps));
    parallel_for(ctx_, rows, 1, [&](idx begin, idx end) {
      for (idx r = begin; r < end; ++r) {
        Real* p = a.data() + r * in;
        Real largest = 0;
        for (idx k = 0; k < in; ++k) largest = std::max(largest, std::abs(p[k]));
        const Real s = Real{127} / std::max(largest, static_cast<Real>(1e-5));
        for (idx k = 0; k < in; ++k)  // std::round: halves away from zero
          p[k] = round_(std::clamp(std::round(p[k] * s), Real{-128}, Real{127}) / s);
      }
    });
    Vec<Real> w = parameter(name + ".weight");
    double sum = 0;  // torch reduces in more precision than it stores
    for (const Real v : w) sum += static_cast<double>(std::abs(v));
    const Real mean = round_(static_cast<Real>(sum / static_cast<double>(w.size())));
    const Real s = round_(Real{1} / std::max(mean, round_(static_cast<Real>(1e-5))));
    parallel_for(ctx_, static_cast<idx>(w.size()), 4096, [&](idx begin, idx end) {
      for (idx k = begin; k < end; ++k) {  // std::nearbyint: halves to even
        Real& v = w[count(k)];
        v = round_(std::clamp(std::nearbyint(round_(v * s)), Real{-1}, Real{1}) / s);
      }
    });
    Vec<Real> y(count(rows * out));
    parallel_for(ctx_, out, 1, [&](idx begin, idx end) {
      for (idx o = begin; o < end; ++o)
        for (idx r = 0; r < rows; ++r)
          y[count(r * out + o)] = round_(dot(a.data() + r * in, w.data() + o * in, in));
    });
    return y;
  }
  Vec<Real> bitlinear(const Vec<Real>& x, idx rows, const std::string& name, idx out, idx in) {
    return bitlinear(x, rows, name, name + ".norm", out, in);
  }

  static Real sigmoid(Real v) { return Real{1} / (Real{1} + std::exp(-v)); }
  static Real silu(Real v) { return v / (Real{1} + std::exp(-v)); }

  // One block: x (R, D) in and out; appends the final state.
  void block(const std::string& layer, const Real* bound, Vec<Real>& x,
             ReferenceOutput<Real>& out) {
    const MatmulFreeConfig& c = model_.config;
    const idx rows = in_.batch * in_.length;
    const idx d = c.hidden_size;
    const idx m = c.mixer_width();
    const idx width = c.mlp_width();

    const Vec<Real> u = norm(x, d, parameter(layer + "attn_norm.weight"), outer_eps());
    Vec<Real> i = bitlinear(u, rows, layer + "attn.i_proj", m, d);
    Vec<Real> f = bitlinear(u, rows, layer + "attn.f_proj", m, d);
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < m; ++k) {
        const auto at = count(r * m + k);
        f[at] = round_(sigmoid(f[at]));
        if (bound != nullptr) f[at] = round_(bound[k] + round_(round_(Real{1} - bound[k]) * f[at]));
        i[at] = round_(silu(i[at]) * round_(Real{1} - f[at]));
        if (in_.mask != nullptr && in_.mask[r] == 0) i[at] = 0;
      }
    // The scan carries full precision from token to token and rounds what it stores.
    Vec<Real> h(count(rows * m));
    Vec<Real> state(count(in_.batch * m));
    for (idx b = 0; b < in_.batch; ++b)
      for (idx k = 0; k < m; ++k) {
        Real carried = 0;
        for (idx t = 0; t < in_.length; ++t) {
          const auto at = count((b * in_.length + t) * m + k);
          carried = f[at] * carried + i[at];
          h[at] = round_(carried);
        }
        state[count(b * m + k)] = round_(carried);
      }
    out.state.push_back(std::move(state));
    const Vec<Real> g = bitlinear(u, rows, layer + "attn.g_proj", m, d);
    Vec<Real> o = norm_unrounded(g, m, parameter(layer + "attn.g_norm.weight"), outer_eps());
    for (std::size_t at = 0; at < o.size(); ++at) o[at] = round_(o[at] * h[at] * sigmoid(h[at]));
    Vec<Real> sum = bitlinear(o, rows, layer + "attn.o_proj", d, m);
    for (std::size_t at = 0; at < sum.size(); ++at) sum[at] += x[at];
    x = rounded(sum);  // the residual is stored; the norm sees the sum before that

    const Vec<Real> v = norm(sum, d, parameter(layer + "mlp_norm.weight"), outer_eps());
    const Vec<Real> pq = bitlinear(v, rows, layer + "mlp.gate_proj", 2 * width, d);
    Vec<Real> z(count(rows * width));
    for (idx r = 0; r < rows; ++r)
      for (idx k = 0; k < width; ++k)
        z[count(r * width + k)] =
            round_(silu(pq[count(r * 2 * width + k)]) * pq[count(r * 2 * width + width + k)]);
    const Vec<Real> y = bitlinear(z, rows, layer + "mlp.down_proj", d, width);
    for (std::size_t at = 0; at < x.size(); ++at) x[at] = round_(x[at] + y[at]);
  }

  const Ctx& ctx_;
  const LatentModel& model_;
  const ReferenceInput& in_;
  Round round_;
};

}  // namespace

template <class Real>
ReferenceOutput<Real> reference_forward(const Ctx& ctx, const LatentModel& model,
                                        const ReferenceInput& input, Rounding rounding) {
  if constexpr (std::is_same_v<Real, float>) {
    if (rounding == Rounding::f16) return Net<Real, ToF16>(ctx, model, input).run();
    if (rounding == Rounding::bf16) return Net<Real, ToBf16>(ctx, model, input).run();
  }
  MMFREE_ASSERT(rounding == Rounding::none);
  return Net<Real, Exact>(ctx, model, input).run();
}

template ReferenceOutput<float> reference_forward(const Ctx&, const LatentModel&,
                                                  const ReferenceInput&, Rounding);
template ReferenceOutput<double> reference_forward(const Ctx&, const LatentModel&,
                                                   const ReferenceInput&, Rounding);

}  // namespace mmfree
