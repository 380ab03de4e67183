#include "mmfree/hw/fixed_network.h"

#include <algorithm>

#include "mmfree/core/error.h"

namespace mmfree::hw {
namespace {

std::size_t size(idx n) {
  return static_cast<std::size_t>(n);
}

int shift_of(std::span<const std::int32_t> v) {
  std::uint32_t bits = 0;
  for (const std::int32_t x : v) bits |= static_cast<std::uint32_t>(x ^ (x >> 31));
  return normal_shift(bits);
}

// The factor of row sums: max / sqrt(squares) * constant.
Scalar output_factor(Scalar maximum, Scalar squares, Scalar constant) {
  return multiply(multiply(maximum, reciprocal_sqrt(squares)), constant);
}

Scale output_scale(Scalar maximum, Scalar squares, Scalar constant, int frac) {
  return scale_from_scalar(output_factor(maximum, squares, constant), frac);
}

}  // namespace

FixedNetwork::FixedNetwork(const Ctx& ctx, const FixedModel& model) : ctx_(ctx), model_(&model) {
  const idx widest = std::max({model.d, model.m, model.f});
  for (idx l = 0; l < model.layers_count; ++l)
    layers_.push_back({unpack(Matrix::f, l), unpack(Matrix::i, l), unpack(Matrix::g, l),
                       unpack(Matrix::o, l), unpack(Matrix::p, l), unpack(Matrix::q, l),
                       unpack(Matrix::down, l)});
  head_ = unpack(Matrix::head, 0);
  x_.resize(size(model.d));
  z_.resize(size(widest));
  t_.resize(size(widest));
  q_.resize(size(widest));
  sums_.resize(size(std::max(widest, model.vocab)));
}

CodeMatrix FixedNetwork::unpack(Matrix matrix, idx layer) const {
  CodeMatrix w;
  w.out = model_->rows(matrix);
  w.in = model_->inputs(matrix);
  w.codes = Buffer<std::int8_t>(w.out * w.in);
  parallel_for(ctx_, w.out, 1, [&](idx begin, idx end) {
    for (idx r = begin; r < end; ++r) model_->trits(matrix, layer, r, w.codes.data() + r * w.in);
  });
  return w;
}

Scalar FixedNetwork::squares(std::span<const std::int32_t> v, const Gains* g1) const {
  const int shift = shift_of(v);
  std::uint64_t sum = 0;
  for (std::size_t k = 0; k < v.size(); ++k) {
    const std::int32_t t =
        squared_term(normalize(v[k], shift), g1 == nullptr ? 0 : (*g1)[k], g1 == nullptr);
    sum += static_cast<std::uint64_t>(std::int64_t{t} * t);
  }
  return scalar_from_uint(sum);
}

Scalar FixedNetwork::quantize(std::span<const std::int32_t> v, const Gains& g12) {
  const int shift = shift_of(v);
  std::uint32_t largest = 0;
  for (std::size_t k = 0; k < v.size(); ++k) {
    const std::int32_t p = normalize(v[k], shift) * g12[k];
    largest = std::max(largest, static_cast<std::uint32_t>(p < 0 ? -p : p));
  }
  const Scalar maximum = scalar_from_uint(largest);
  const Scale r = scale_from_scalar(reciprocal127(maximum), 0);
  for (std::size_t k = 0; k < v.size(); ++k) q_[k] = code(normalize(v[k], shift) * g12[k], r);
  return maximum;
}

void FixedNetwork::product(const CodeMatrix& w) {
  parallel_for(ctx_, w.out, 64, [&](idx begin, idx end) {
    for (idx r = begin; r < end; ++r) {
      const std::int8_t* t = w.codes.data() + r * w.in;
      std::int32_t sum = 0;
      for (idx k = 0; k < w.in; k += kLanes)
        for (idx j = k; j < k + kLanes; ++j) sum += std::int32_t{t[j]} * q_[size(j)];
      sums_[size(r)] = sum;
    }
  });
}

void FixedNetwork::layer(const FixedLayer& n, const LayerCodes& w, std::int32_t* h) {
  const idx m = model_->m;
  const idx f = model_->f;
  const std::span<std::int32_t> x(x_);
  const Scalar x_squares = squares(x, &n.attn_g1);

  Scale s = output_scale(quantize(x, n.f_g), x_squares, n.f_c, kActFrac);
  product(w.f);
  for (idx k = 0; k < m; ++k)
    t_[size(k)] = forget_gate(static_cast<std::int32_t>(apply_scale(sums_[size(k)], s, kActBits)),
                              n.bound[size(k)]);
  s = output_scale(quantize(x, n.i_g), x_squares, n.i_c, kActFrac);
  product(w.i);
  for (idx k = 0; k < m; ++k)
    h[k] = update_state(h[k], t_[size(k)],
                        static_cast<std::int32_t>(apply_scale(sums_[size(k)], s, kActBits)));
  quantize(x, n.g_g);
  product(w.g);
  for (idx k = 0; k < m; ++k) z_[size(k)] = gated_value(sums_[size(k)], silu(state_as_act(h[k])));

  const auto add_to_residual = [&](Scale scale) {
    for (idx k = 0; k < model_->d; ++k)
      x_[size(k)] = static_cast<std::int32_t>(
          saturate(x_[size(k)] + apply_scale(sums_[size(k)], scale, kVecBits), kVecBits));
  };
  const std::span<std::int32_t> z(z_.data(), size(m));
  Scalar z_squares = squares(z, &n.o_g1);
  s = output_scale(quantize(z, n.o_g), z_squares, n.o_c, kResidualFrac);
  product(w.o);
  add_to_residual(s);

  const Scalar v_squares = squares(x, &n.mlp_g1);
  s = output_scale(quantize(x, n.gate_g), v_squares, n.p_c, kActFrac);
  product(w.p);
  for (idx k = 0; k < f; ++k)
    t_[size(k)] = silu(static_cast<std::int32_t>(apply_scale(sums_[size(k)], s, kActBits)));
  product(w.q);
  for (idx k = 0; k < f; ++k) z_[size(k)] = gated_value(sums_[size(k)], t_[size(k)]);
  const std::span<std::int32_t> u(z_.data(), size(f));
  z_squares = squares(u, nullptr);
  s = output_scale(quantize(u, n.down_g), z_squares, n.down_c, kResidualFrac);
  product(w.down);
  add_to_residual(s);
}

void FixedNetwork::step(std::int32_t token, std::span<std::int32_t> state, bool with_logits) {
  MMFREE_ASSERT(token >= 0 && token < model_->vocab);
  MMFREE_ASSERT(static_cast<idx>(state.size()) == model_->layers_count * model_->m);
  const std::int16_t* row = model_->embedding.data() + token * model_->d;
  for (idx k = 0; k < model_->d; ++k)
    x_[size(k)] = std::int32_t{row[k]} * (1 << model_->embedding_shift);
  for (idx l = 0; l < model_->layers_count; ++l)
    layer(model_->layers[size(l)], layers_[size(l)], state.data() + l * model_->m);
  if (!with_logits) return;
  const Scalar x_squares = squares(x_, &model_->head_g1);
  logit_factor_ = output_factor(quantize(x_, model_->head_g), x_squares, model_->head_c);
  logit_scale_ = scale_from_scalar(logit_factor_, kLogitFrac);
  product(head_);
}

std::int32_t FixedNetwork::best() const {
  return static_cast<std::int32_t>(std::max_element(sums_.begin(), sums_.begin() + model_->vocab) -
                                   sums_.begin());
}

std::int32_t FixedNetwork::draw(const Sampling& s) const {
  const Scale scale = scale_from_scalar(multiply(logit_factor_, s.inverse_temperature), kLogitFrac);
  std::int64_t largest = 0;
  std::int32_t row = -1;
  for (std::int32_t r = 0; r < model_->vocab; ++r) {
    const std::int64_t key = sample_key(sums_[size(r)], scale, s, static_cast<std::uint32_t>(r));
    if (row < 0 || key > largest) {
      largest = key;
      row = r;
    }
  }
  return row;
}

}  // namespace mmfree::hw
