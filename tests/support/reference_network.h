#pragma once
// The whole network, forward and backward, composed of the references of the ops: slow, plain, in
// Real (double for the truth, float to see what float alone does). Spec section 1.0 line by line.
#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mmfree/model/config.h"
#include "mmfree/ops/bitlinear/bitlinear_reference.h"
#include "mmfree/ops/cross_entropy/cross_entropy_reference.h"
#include "mmfree/ops/embedding/embedding_reference.h"
#include "mmfree/ops/gated_norm/gated_norm_reference.h"
#include "mmfree/ops/lower_bounds/lower_bounds_reference.h"
#include "mmfree/ops/mlgru/mlgru_reference.h"
#include "mmfree/ops/rmsnorm/rmsnorm_reference.h"
#include "mmfree/ops/swiglu/swiglu_reference.h"

namespace mmfree::test {

// Parameters, or gradients, under their names in a checkpoint.
template <class Real>
using Tensors = std::map<std::string, std::vector<Real>>;

inline constexpr double kReferenceInnerEps = 1e-6;  // of the norm inside every BitLinear

// Everything that one forward computes.
template <class Real>
struct ReferenceTape {
  struct Layer {
    std::vector<Real> x, u, i_pre, f_pre, g, h, o, x_mid, v, pq, z;
    reference::Bitlinear<Real> i_proj, f_proj, g_proj, o_proj, gate_proj, down_proj;
  };
  idx batch = 0, length = 0;
  std::vector<std::int32_t> ids;
  std::vector<std::uint8_t> mask;  // empty: none
  std::vector<Real> bounds;        // (L, D), empty without lower bounds
  std::vector<Layer> layers;
  std::vector<Real> x, final_norm;
  reference::Bitlinear<Real> head;
  std::vector<Real> logits;  // (B, T, V)
};

template <class Real>
class ReferenceNetwork {
 public:
  ReferenceNetwork(const MatmulFreeConfig& c, Tensors<Real> p) : config(c), params(std::move(p)) {}

  // With `frozen` (a tape) and `frozen_params` (what it was computed with) every quantiser adds the
  // constant that it added there.
  ReferenceTape<Real> forward(idx batch, idx length, const std::vector<std::int32_t>& ids,
                              const std::vector<std::uint8_t>& mask = {},
                              const ReferenceTape<Real>* frozen = nullptr,
                              const Tensors<Real>* frozen_params = nullptr) const {
    const idx d = config.hidden_size, m = config.mixer_width(), f = config.mlp_width();
    const idx rows = batch * length;
    const Real eps = static_cast<Real>(config.rms_norm_eps);
    const auto make = [&](idx width) {
      return std::vector<Real>(static_cast<std::size_t>(rows * width));
    };
    ReferenceTape<Real> tape;
    tape.batch = batch;
    tape.length = length;
    tape.ids = ids;
    tape.mask = mask;
    if (config.use_lower_bound) {
      tape.bounds.resize(at("model.lower_bounds").size());
      reference::lower_bounds(config.num_hidden_layers, d, at("model.lower_bounds").data(),
                              tape.bounds.data());
    }
    const auto project = [&](const std::string& name, idx in, idx out, const std::vector<Real>& x,
                             reference::Bitlinear<Real>& a, const reference::Bitlinear<Real>* fixed,
                             const std::string& weight) {
      std::vector<Real> y = make(out);
      reference::bitlinear(rows, in, out, x.data(), at(name + ".norm.weight").data(),
                           static_cast<Real>(kReferenceInnerEps), at(weight).data(), a, y.data(),
                           fixed, fixed != nullptr ? frozen_params->at(weight).data() : nullptr);
      return y;
    };
    std::vector<Real> x = make(d);
    reference::embedding(rows, d, ids.data(), at("model.embeddings.weight").data(), x.data());
    for (idx l = 0; l < config.num_hidden_layers; ++l) {
      typename ReferenceTape<Real>::Layer t;
      const auto* fixed =
          frozen == nullptr ? nullptr : &frozen->layers[static_cast<std::size_t>(l)];
      const std::string name = layer_name(l);
      const auto linear = [&](const std::string& part, idx in, idx out,
                              const std::vector<Real>& input, auto member) {
        return project(name + part, in, out, input, t.*member,
                       fixed == nullptr ? nullptr : &(fixed->*member), name + part + ".weight");
      };
      using Layer = typename ReferenceTape<Real>::Layer;
      t.x = x;
      t.u = make(d);
      reference::rmsnorm(rows, d, x.data(), at(name + "attn_norm.weight").data(), eps, t.u.data());
      t.i_pre = linear("attn.i_proj", d, m, t.u, &Layer::i_proj);
      t.f_pre = linear("attn.f_proj", d, m, t.u, &Layer::f_proj);
      t.g = linear("attn.g_proj", d, m, t.u, &Layer::g_proj);
      t.h = make(m);
      reference::mlgru<Real>(batch, length, m, t.i_pre.data(), t.f_pre.data(), bound(tape, l),
                             mask.empty() ? nullptr : mask.data(), nullptr, t.h.data());
      t.o = make(m);
      reference::gated_norm(rows, m, t.g.data(), t.h.data(), at(name + "attn.g_norm.weight").data(),
                            eps, t.o.data());
      t.x_mid = linear("attn.o_proj", m, d, t.o, &Layer::o_proj);
      add(t.x_mid, t.x);
      t.v = make(d);
      reference::rmsnorm(rows, d, t.x_mid.data(), at(name + "mlp_norm.weight").data(), eps,
                         t.v.data());
      t.pq = linear("mlp.gate_proj", d, 2 * f, t.v, &Layer::gate_proj);
      t.z = make(f);
      reference::swiglu(rows, f, t.pq.data(), t.z.data());
      x = linear("mlp.down_proj", f, d, t.z, &Layer::down_proj);
      add(x, t.x_mid);
      tape.layers.push_back(std::move(t));
    }
    tape.x = x;
    tape.final_norm = make(d);
    reference::rmsnorm(rows, d, x.data(), at("model.norm.weight").data(), eps,
                       tape.final_norm.data());
    tape.logits = project("lm_head", d, config.vocab_size, tape.final_norm, tape.head,
                          frozen == nullptr ? nullptr : &frozen->head, head_weight());
    return tape;
  }

  // Sum of nll over the positions whose label is not -100.
  Real nll(const ReferenceTape<Real>& tape, const std::vector<std::int32_t>& labels) const {
    std::vector<Real> each(labels.size());
    reference::cross_entropy<Real>(static_cast<idx>(labels.size()), config.vocab_size,
                                   tape.logits.data(), labels.data(), -100, 1, nullptr,
                                   each.data());
    Real sum = 0;
    for (const Real v : each) sum += v;
    return sum;
  }

  // Gradients of grad_scale * nll for every parameter.
  Tensors<Real> backward(const ReferenceTape<Real>& tape, const std::vector<std::int32_t>& labels,
                         Real grad_scale) const {
    const idx d = config.hidden_size, m = config.mixer_width(), f = config.mlp_width();
    const idx v = config.vocab_size, rows = tape.batch * tape.length;
    const Real eps = static_cast<Real>(config.rms_norm_eps);
    const Real inner = static_cast<Real>(kReferenceInnerEps);
    const auto make = [&](idx width) {
      return std::vector<Real>(static_cast<std::size_t>(rows * width));
    };
    Tensors<Real> grads;
    for (const auto& [name, values] : params) grads[name].assign(values.size(), 0);
    const auto unproject = [&](const std::string& name, const std::string& weight, idx in, idx out,
                               const std::vector<Real>& x, const reference::Bitlinear<Real>& a,
                               const std::vector<Real>& dy, std::vector<Real>& dx) {
      reference::bitlinear_backward(rows, in, out, x.data(), at(name + ".norm.weight").data(),
                                    inner, a, dy.data(), dx.data(), grads.at(weight).data(),
                                    grads.at(name + ".norm.weight").data());
    };
    std::vector<Real> each(labels.size()), dlogits = make(v), d_final = make(d), dx = make(d);
    reference::cross_entropy(rows, v, tape.logits.data(), labels.data(), -100, grad_scale,
                             dlogits.data(), each.data());
    unproject("lm_head", head_weight(), d, v, tape.final_norm, tape.head, dlogits, d_final);
    reference::rmsnorm_backward(rows, d, tape.x.data(), at("model.norm.weight").data(), eps,
                                d_final.data(), dx.data(), grads.at("model.norm.weight").data());
    std::vector<Real> d_bounds(tape.bounds.size(), 0);
    for (idx l = config.num_hidden_layers - 1; l >= 0; --l) {
      const auto& t = tape.layers[static_cast<std::size_t>(l)];
      const std::string name = layer_name(l);
      const auto linear = [&](const std::string& part, idx in, idx out, const std::vector<Real>& x,
                              const reference::Bitlinear<Real>& a, const std::vector<Real>& dy,
                              std::vector<Real>& into) {
        unproject(name + part, name + part + ".weight", in, out, x, a, dy, into);
      };
      std::vector<Real> dz = make(f), dpq = make(2 * f), dv = make(d);
      linear("mlp.down_proj", f, d, t.z, t.down_proj, dx, dz);
      reference::swiglu_backward(rows, f, t.pq.data(), dz.data(), dpq.data());
      linear("mlp.gate_proj", d, 2 * f, t.v, t.gate_proj, dpq, dv);
      reference::rmsnorm_backward(rows, d, t.x_mid.data(), at(name + "mlp_norm.weight").data(), eps,
                                  dv.data(), dx.data(), grads.at(name + "mlp_norm.weight").data());
      std::vector<Real> d_o = make(m), dg = make(m), dh = make(m), di = make(m), df = make(m),
                        du = make(d);
      linear("attn.o_proj", m, d, t.o, t.o_proj, dx, d_o);
      reference::gated_norm_backward(
          rows, m, t.g.data(), t.h.data(), at(name + "attn.g_norm.weight").data(), eps, d_o.data(),
          dg.data(), dh.data(), grads.at(name + "attn.g_norm.weight").data());
      const Real* b = bound(tape, l);
      reference::mlgru_backward(tape.batch, tape.length, m, t.i_pre.data(), t.f_pre.data(), b,
                                tape.mask.empty() ? nullptr : tape.mask.data(), t.h.data(),
                                dh.data(), di.data(), df.data(),
                                b == nullptr ? nullptr : d_bounds.data() + l * d);
      linear("attn.g_proj", d, m, t.u, t.g_proj, dg, du);
      linear("attn.f_proj", d, m, t.u, t.f_proj, df, du);
      linear("attn.i_proj", d, m, t.u, t.i_proj, di, du);
      reference::rmsnorm_backward(rows, d, t.x.data(), at(name + "attn_norm.weight").data(), eps,
                                  du.data(), dx.data(), grads.at(name + "attn_norm.weight").data());
    }
    if (config.use_lower_bound)
      reference::lower_bounds_backward(config.num_hidden_layers, d, at("model.lower_bounds").data(),
                                       d_bounds.data(), grads.at("model.lower_bounds").data());
    reference::embedding_backward(rows, d, tape.ids.data(), dx.data(),
                                  static_cast<std::int32_t>(config.pad_token_id.value_or(-1)),
                                  grads.at("model.embeddings.weight").data());
    return grads;
  }

  MatmulFreeConfig config;
  Tensors<Real> params;

 private:
  static std::string layer_name(idx l) { return "model.layers." + std::to_string(l) + "."; }
  const std::vector<Real>& at(const std::string& name) const { return params.at(name); }
  std::string head_weight() const {
    return config.tie_word_embeddings ? "model.embeddings.weight" : "lm_head.weight";
  }
  // The first layer has no bound.
  const Real* bound(const ReferenceTape<Real>& tape, idx l) const {
    return tape.bounds.empty() || l == 0 ? nullptr : tape.bounds.data() + l * config.hidden_size;
  }
  static void add(std::vector<Real>& to, const std::vector<Real>& x) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += x[i];
  }
};

// labels[b, t] = ids[b, t + 1]; the last position of a sequence is not counted.
inline std::vector<std::int32_t> next_token_labels(idx batch, idx length,
                                                   const std::vector<std::int32_t>& ids) {
  std::vector<std::int32_t> labels(ids.size(), -100);
  for (idx b = 0; b < batch; ++b)
    for (idx t = 0; t + 1 < length; ++t)
      labels[static_cast<std::size_t>(b * length + t)] =
          ids[static_cast<std::size_t>(b * length + t + 1)];
  return labels;
}

}  // namespace mmfree::test
