#include "mmfree/hw/lower.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/ternary/pack.h"

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

const PackedMatrix& packed_matrix(const PackedModel& model, Matrix matrix, idx layer) {
  if (matrix == Matrix::head) return model.head;
  const PackedLayer& l = model.layers[static_cast<std::size_t>(layer)];
  switch (matrix) {
    case Matrix::f:
      return l.f;
    case Matrix::i:
      return l.i;
    case Matrix::g:
      return l.g;
    case Matrix::o:
      return l.o;
    case Matrix::down:
      return l.down;
    default:
      return l.gate;
  }
}

void set_shape(FixedModel& m) {
  m.d = m.config.hidden_size;
  m.m = m.config.mixer_width();
  m.f = m.config.mlp_width();
  m.layers_count = m.config.num_hidden_layers;
  m.vocab = m.config.vocab_size;
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
  out.name = model.path;
  out.sentencepiece = model.sentencepiece;
  out.trits = [&model, f = model.config.mlp_width()](Matrix matrix, idx layer, idx row,
                                                     std::int8_t* codes) {
    const PackedMatrix& w = packed_matrix(model, matrix, layer);
    const idx first = matrix == Matrix::q ? f : 0;  // the second half of the gate projection
    const std::size_t stride = ternary_row_bytes(w.format, w.in);
    unpack_row(w.format, w.rows + static_cast<std::size_t>(first + row) * stride, w.in, codes);
  };
  set_shape(out);
  lower_embedding(model, out);
  for (const PackedLayer& n : model.layers) out.layers.push_back(lower_layer(n, out));
  const Quantized norm = quantize(model.norm, nullptr, out.d);
  const Quantized head = quantize(model.norm, model.head_norm, out.d);
  out.head_c = matrix_constant(model.head, head, &norm);
  out.head_g1 = norm.values;
  out.head_g = head.values;
  return out;
}

idx FixedModel::rows(Matrix w) const {
  switch (w) {
    case Matrix::f:
    case Matrix::i:
    case Matrix::g:
      return m;
    case Matrix::p:
    case Matrix::q:
      return f;
    case Matrix::head:
      return vocab;
    default:
      return d;
  }
}

idx FixedModel::inputs(Matrix w) const {
  return w == Matrix::o ? m : w == Matrix::down ? f : d;
}

FixedModel random_fixed_model(const MatmulFreeConfig& config, std::uint64_t seed) {
  check_lowerable(config, "random model");
  FixedModel out;
  out.config = config;
  out.name = "random model";
  set_shape(out);
  out.trits = [seed, d = out.d, m = out.m, f = out.f](Matrix matrix, idx layer, idx row,
                                                      std::int8_t* codes) {
    const idx columns = matrix == Matrix::o ? m : matrix == Matrix::down ? f : d;
    const std::uint64_t stream =
        mix64(static_cast<std::uint64_t>(matrix) * 65536U + static_cast<std::uint64_t>(layer)) +
        static_cast<std::uint64_t>(row);
    for (idx k = 0; k < columns; k += 32) {  // 40 trits of 64 bits would do; 32 are simpler
      std::uint64_t bits = random_bits(seed, stream, static_cast<std::uint64_t>(k));
      for (idx j = k; j < std::min(k + 32, columns); ++j, bits /= 3)
        codes[j] = static_cast<std::int8_t>(static_cast<int>(bits % 3) - 1);
    }
  };
  std::uint64_t n = 0;
  const auto random_vector = [&](idx size, int low, int high) {
    Gains g(static_cast<std::size_t>(size));
    for (std::int16_t& v : g)
      v = static_cast<std::int16_t>(low + static_cast<int>(random_bits(seed, 1, n++) %
                                                           static_cast<std::uint64_t>(high - low)));
    return g;
  };
  const auto gain = [&](idx size) { return random_vector(size, 12000, 20000); };
  // Of the size that gives products with ternary weights a deviation near 1 in 13 fraction bits.
  const auto constant = [&](idx in) {
    return scalar_from_double(
        std::ldexp(0.05 / 127 * std::sqrt(static_cast<double>(in)), -kSquareShift));
  };
  out.embedding = random_vector(out.vocab * out.d, -20000, 20000);
  out.embedding_shift = 2;
  for (idx l = 0; l < out.layers_count; ++l) {
    FixedLayer y;
    y.attn_g1 = gain(out.d);
    y.f_g = gain(out.d);
    y.i_g = gain(out.d);
    y.g_g = gain(out.d);
    y.bound = random_vector(out.m, 0, 32767);
    y.o_g1 = gain(out.m);
    y.o_g = gain(out.m);
    y.mlp_g1 = gain(out.d);
    y.gate_g = gain(out.d);
    y.down_g = gain(out.f);
    y.f_c = y.i_c = y.p_c = constant(out.d);
    y.o_c = constant(out.m);
    y.down_c =
        scalar_from_double(std::ldexp(0.05 / 127 * std::sqrt(static_cast<double>(out.f)), -14));
    out.layers.push_back(std::move(y));
  }
  out.head_g1 = gain(out.d);
  out.head_g = gain(out.d);
  out.head_c = constant(out.d);
  return out;
}

}  // namespace mmfree::hw
