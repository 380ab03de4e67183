#include "mmfree/hw/lower.h"

#include <fmt/core.h>

#include <cmath>

#include "mmfree/core/error.h"
#include "mmfree/io/safetensors.h"

namespace mmfree::hw {
namespace {

struct Quantized {
  Gains values;
  int exponent;  // real = value * 2^exponent
};

// a[k] * b[k] (b may be null) with the largest magnitude in 2^14..2^15 - 1.
Quantized quantize(const float* a, const float* b, idx n) {
  std::vector<double> product(static_cast<std::size_t>(n));
  double largest = 0;
  for (std::size_t k = 0; k < product.size(); ++k) {
    product[k] = static_cast<double>(a[k]) * (b == nullptr ? 1.0 : static_cast<double>(b[k]));
    largest = std::fmax(largest, std::fabs(product[k]));
  }
  Quantized q{Gains(product.size()), 0};
  if (largest == 0) return q;
  q.exponent = std::ilogb(largest) - (kGainBits - 2);
  if (std::lround(std::ldexp(largest, -q.exponent)) > 32767) ++q.exponent;
  for (std::size_t k = 0; k < product.size(); ++k)
    q.values[k] = static_cast<std::int16_t>(std::lround(std::ldexp(product[k], -q.exponent)));
  return q;
}

// What multiplies sum * max / sqrt(sum of squares): see docs/hardware.md, "Numbers". g1 null:
// squares without gain.
Scalar matrix_constant(const PackedMatrix& w, const Quantized& g12, const Quantized* g1) {
  const double c = static_cast<double>(w.scale) / 127 * std::sqrt(static_cast<double>(w.in));
  const int e = g1 == nullptr ? g12.exponent : g12.exponent - g1->exponent - kSquareShift;
  return scalar_from_double(std::ldexp(c, e));
}

void lower_embedding(const PackedModel& model, FixedModel& out) {
  std::vector<float> row(static_cast<std::size_t>(out.d));
  double largest = 0;
  for (idx v = 0; v < out.vocab; ++v) {
    read_as_f32(model.embedding, row.data(), v * out.d, out.d);
    for (const float x : row) largest = std::fmax(largest, std::fabs(static_cast<double>(x)));
  }
  int frac = kResidualFrac;  // no finer than the residual
  while (frac > 0 && std::lround(std::ldexp(largest, frac)) > 32767) --frac;
  out.embedding_shift = kResidualFrac - frac;
  if (out.embedding_shift > 31 - (kGainBits - 1))
    fail(ErrorKind::config,
         fmt::format("{}: the largest embedding is {}, expected below {} (the residual's range)",
                     model.path, largest, 1 << (31 - kResidualFrac)));
  out.embedding.resize(static_cast<std::size_t>(out.vocab * out.d));
  for (idx v = 0; v < out.vocab; ++v) {
    read_as_f32(model.embedding, row.data(), v * out.d, out.d);
    for (idx k = 0; k < out.d; ++k)
      out.embedding[static_cast<std::size_t>(v * out.d + k)] = static_cast<std::int16_t>(
          std::lround(std::ldexp(static_cast<double>(row[static_cast<std::size_t>(k)]), frac)));
  }
}

FixedLayer lower_layer(const PackedLayer& n, const FixedModel& model) {
  FixedLayer l;
  const Quantized attn = quantize(n.attn_norm, nullptr, model.d);
  const Quantized f = quantize(n.attn_norm, n.f_norm, model.d);
  const Quantized i = quantize(n.attn_norm, n.i_norm, model.d);
  const Quantized g = quantize(n.attn_norm, n.g_in_norm, model.d);
  const Quantized o1 = quantize(n.g_norm, nullptr, model.m);
  const Quantized o = quantize(n.g_norm, n.o_norm, model.m);
  const Quantized mlp = quantize(n.mlp_norm, nullptr, model.d);
  const Quantized gate = quantize(n.mlp_norm, n.gate_norm, model.d);
  const Quantized down = quantize(n.down_norm, nullptr, model.f);
  l.f_c = matrix_constant(n.f, f, &attn);
  l.i_c = matrix_constant(n.i, i, &attn);
  l.o_c = matrix_constant(n.o, o, &o1);
  l.p_c = matrix_constant(n.gate, gate, &mlp);
  l.down_c = matrix_constant(n.down, down, nullptr);
  l.attn_g1 = attn.values;
  l.f_g = f.values;
  l.i_g = i.values;
  l.g_g = g.values;
  l.o_g1 = o1.values;
  l.o_g = o.values;
  l.mlp_g1 = mlp.values;
  l.gate_g = gate.values;
  l.down_g = down.values;
  l.bound.resize(static_cast<std::size_t>(model.m));
  if (n.bound != nullptr)
    for (std::size_t k = 0; k < l.bound.size(); ++k)
      l.bound[k] = static_cast<std::int16_t>(std::clamp<long>(
          std::lround(std::ldexp(static_cast<double>(n.bound[k]), kSigFrac)), 0, 32767));
  return l;
}

}  // namespace

Scalar scalar_from_double(double v) {
  if (v <= 0) return {};
  int e = std::ilogb(v) - (kMantBits - 1);
  long m = std::lround(std::ldexp(v, -e));
  if (m > 0xffff) {
    m >>= 1;
    ++e;
  }
  return {static_cast<std::uint16_t>(m), clamp_exponent(e)};
}

void check_lowerable(const MatmulFreeConfig& c, const std::string& name) {
  const auto width = [&](const char* what, idx n) {
    if (n % kLanes != 0 || n < kLanes || n > kMaxK)
      fail(ErrorKind::config,
           fmt::format("{}: {} is {}, and the accelerator needs a multiple of {} in {}..{}", name,
                       what, n, kLanes, kLanes, kMaxK));
  };
  width("hidden_size", c.hidden_size);
  width("the mixer's width", c.mixer_width());
  width("the MLP's width", c.mlp_width());
  if (c.num_hidden_layers > 0xffff)
    fail(ErrorKind::config, fmt::format("{}: {} layers, and the accelerator counts to 65535", name,
                                        c.num_hidden_layers));
}

FixedModel lower_model(const Ctx&, const PackedModel& model) {
  check_lowerable(model.config, model.path);
  FixedModel out;
  out.config = model.config;
  out.source = &model;
  out.d = model.config.hidden_size;
  out.m = model.config.mixer_width();
  out.f = model.config.mlp_width();
  out.layers_count = model.config.num_hidden_layers;
  out.vocab = model.config.vocab_size;
  lower_embedding(model, out);
  for (const PackedLayer& n : model.layers) out.layers.push_back(lower_layer(n, out));
  const Quantized norm = quantize(model.norm, nullptr, out.d);
  const Quantized head = quantize(model.norm, model.head_norm, out.d);
  out.head_c = matrix_constant(model.head, head, &norm);
  out.head_g1 = norm.values;
  out.head_g = head.values;
  return out;
}

}  // namespace mmfree::hw
