// Forward and backward of the trainable network. The order of operations is spec section 1.0; each
// op's formula and gradient stand in its own header.
#include <algorithm>
#include <cstring>

#include "mmfree/core/error.h"
#include "mmfree/model/activations.h"
#include "mmfree/ops/embedding/embedding.h"
#include "mmfree/ops/gated_norm/gated_norm.h"
#include "mmfree/ops/lower_bounds/lower_bounds.h"
#include "mmfree/ops/mlgru/mlgru.h"
#include "mmfree/ops/swiglu/swiglu.h"

namespace mmfree {
namespace {

void clear(const Ctx& ctx, float* x, idx n) {
  parallel_for(ctx, n, 1 << 14, [&](idx begin, idx end) {
    std::memset(x + begin, 0, static_cast<std::size_t>(end - begin) * sizeof(float));
  });
}

void reserve(Network& net, idx rows) {
  if (net.acts != nullptr && net.acts->capacity >= rows) return;
  const idx d = net.config.hidden_size;
  const idx m = net.config.mixer_width();
  const idx f = net.config.mlp_width();
  net.acts = std::make_unique<Activations>();
  Activations& a = *net.acts;
  a.capacity = rows;
  const auto row = [&](idx width) { return Buffer<float>(rows * width); };
  for (idx l = 0; l < net.config.num_hidden_layers; ++l) {
    LayerActivations s;
    s.x = row(d);
    s.x_mid = row(d);
    s.i_pre = row(m);
    s.f_pre = row(m);
    s.g = row(m);
    s.h = row(m);
    s.pq = row(2 * f);
    for (Buffer<float>* b :
         {&s.attn_rstd, &s.attn_inner_rstd, &s.o_rstd, &s.mlp_rstd, &s.mlp_inner_rstd, &s.z_rstd})
      *b = row(1);
    for (CodeBuffer* b : {&s.u_i, &s.u_f, &s.u_g, &s.v}) *b = CodeBuffer(rows, d);
    s.o = CodeBuffer(rows, m);
    s.z = CodeBuffer(rows, f);
    a.layers.push_back(std::move(s));
  }
  a.x = row(d);
  a.rstd = row(1);
  a.inner_rstd = row(1);
  a.head = CodeBuffer(rows, d);
  a.logits = Buffer<float>(std::min(rows, kHeadRows) * net.config.vocab_size);
  a.nll = row(1);
  a.wide[0] = row(std::max({d, m, f}));
}

// What only the backward needs.
void reserve_backward(Network& net) {
  Activations& a = *net.acts;
  const idx width =
      std::max({net.config.hidden_size, net.config.mixer_width(), net.config.mlp_width()});
  for (Buffer<float>& b : a.wide)
    if (b.empty()) b = Buffer<float>(a.capacity * width);
  if (a.dx.empty()) a.dx = Buffer<float>(a.capacity * net.config.hidden_size);
  if (net.grads.empty()) {
    net.grads = Buffer<float>(storage_size(net.table));
    net.d = view_params(net.table, net.config, net.grads.data());
  }
}

const float* bound_of(const Network& net, idx layer) {
  // Layer 0 has none: its bound is zero by construction.
  return net.bounds.empty() || layer == 0 ? nullptr
                                          : net.bounds.data() + layer * net.config.hidden_size;
}

void block_forward(const Ctx& ctx, Network& net, idx layer, const TokenBatch& batch, float* x_out) {
  const idx d = net.config.hidden_size;
  const idx m = net.config.mixer_width();
  const idx f = net.config.mlp_width();
  const idx rows = batch.batch * batch.length;
  const float eps = static_cast<float>(net.config.rms_norm_eps);
  const auto i = static_cast<std::size_t>(layer);
  const LayerParams& p = net.p.layers[i];
  LayerTernary& w = net.layers[i];
  LayerActivations& s = net.acts->layers[i];
  float* scratch = net.acts->wide[0].data();

  rmsnorm_quant(ctx, {.rows = rows,
                      .width = d,
                      .x = s.x.data(),
                      .outer = p.attn_norm,
                      .outer_eps = eps,
                      .projections = 3,
                      .gain = {p.i_norm, p.f_norm, p.g_in_norm},
                      .codes = {s.u_i.view(), s.u_f.view(), s.u_g.view()},
                      .outer_rstd = s.attn_rstd.data(),
                      .inner_rstd = s.attn_inner_rstd.data()});
  bitlinear(ctx, rows, s.u_i.view(), w.i, nullptr, s.i_pre.data());
  bitlinear(ctx, rows, s.u_f.view(), w.f, nullptr, s.f_pre.data());
  bitlinear(ctx, rows, s.u_g.view(), w.g, nullptr, s.g.data());
  mlgru(ctx, {.batch = batch.batch,
              .length = batch.length,
              .width = m,
              .i_pre = s.i_pre.data(),
              .f_pre = s.f_pre.data(),
              .lower_bound = bound_of(net, layer),
              .mask = batch.mask,
              .state = nullptr,
              .h = s.h.data()});
  gated_norm(ctx, {.rows = rows,
                   .width = m,
                   .g = s.g.data(),
                   .h = s.h.data(),
                   .gain = p.g_norm,
                   .eps = eps,
                   .o = scratch});
  rmsnorm_quant(ctx, {.rows = rows,
                      .width = m,
                      .x = scratch,
                      .outer = nullptr,
                      .outer_eps = 0,
                      .projections = 1,
                      .gain = {p.o_norm},
                      .codes = {s.o.view()},
                      .outer_rstd = nullptr,
                      .inner_rstd = s.o_rstd.data()});
  bitlinear(ctx, rows, s.o.view(), w.o, s.x.data(), s.x_mid.data());

  rmsnorm_quant(ctx, {.rows = rows,
                      .width = d,
                      .x = s.x_mid.data(),
                      .outer = p.mlp_norm,
                      .outer_eps = eps,
                      .projections = 1,
                      .gain = {p.gate_norm},
                      .codes = {s.v.view()},
                      .outer_rstd = s.mlp_rstd.data(),
                      .inner_rstd = s.mlp_inner_rstd.data()});
  bitlinear(ctx, rows, s.v.view(), w.gate, nullptr, s.pq.data());
  swiglu(ctx, rows, f, s.pq.data(), scratch);
  rmsnorm_quant(ctx, {.rows = rows,
                      .width = f,
                      .x = scratch,
                      .outer = nullptr,
                      .outer_eps = 0,
                      .projections = 1,
                      .gain = {p.down_norm},
                      .codes = {s.z.view()},
                      .outer_rstd = nullptr,
                      .inner_rstd = s.z_rstd.data()});
  bitlinear(ctx, rows, s.z.view(), w.down, s.x_mid.data(), x_out);
}

// dx (R, D): in, the gradient at the block's output; out, the gradient at its input.
void block_backward(const Ctx& ctx, Network& net, idx layer, const TokenBatch& batch,
                    float* d_bounds) {
  const idx d = net.config.hidden_size;
  const idx m = net.config.mixer_width();
  const idx f = net.config.mlp_width();
  const idx rows = batch.batch * batch.length;
  const float eps = static_cast<float>(net.config.rms_norm_eps);
  const auto i = static_cast<std::size_t>(layer);
  const LayerParams& p = net.p.layers[i];
  const LayerParams& g = net.d.layers[i];
  const LayerTernary& w = net.layers[i];
  LayerActivations& s = net.acts->layers[i];
  float* dx = net.acts->dx.data();
  float* wide[7];
  for (int k = 0; k < 7; ++k) wide[k] = net.acts->wide[k].data();

  {  // x = x_mid + down(swiglu(gate(norm(x_mid))))
    float *dz_q = wide[0], *z = wide[1], *dz = wide[2], *dv = wide[0];
    bitlinear_backward_input(ctx, rows, dx, w.down, dz_q);
    bitlinear_backward_weight(ctx, rows, dx, d, s.z.view(), f, g.down_w);
    swiglu(ctx, rows, f, s.pq.data(), z);
    clear(ctx, dz, rows * f);
    rmsnorm_quant_backward(ctx, {.rows = rows,
                                 .width = f,
                                 .x = z,
                                 .outer = nullptr,
                                 .projections = 1,
                                 .gain = {p.down_norm},
                                 .outer_rstd = nullptr,
                                 .inner_rstd = s.z_rstd.data(),
                                 .dy = {dz_q},
                                 .dx = dz,
                                 .douter = nullptr,
                                 .dgain = {g.down_norm}});
    swiglu_backward(ctx, rows, f, s.pq.data(), dz, s.pq.data());
    bitlinear_backward_input(ctx, rows, s.pq.data(), w.gate, dv);
    bitlinear_backward_weight(ctx, rows, s.pq.data(), 2 * f, s.v.view(), d, g.gate_w);
    rmsnorm_quant_backward(ctx, {.rows = rows,
                                 .width = d,
                                 .x = s.x_mid.data(),
                                 .outer = p.mlp_norm,
                                 .projections = 1,
                                 .gain = {p.gate_norm},
                                 .outer_rstd = s.mlp_rstd.data(),
                                 .inner_rstd = s.mlp_inner_rstd.data(),
                                 .dy = {dv},
                                 .dx = dx,
                                 .douter = g.mlp_norm,
                                 .dgain = {g.gate_norm}});
  }

  // x_mid = x + o(gated_norm(g(norm(x)), mlgru(i(norm(x)), f(norm(x)))))
  float *do_q = wide[0], *o = wide[1], *d_o = wide[2], *dg = wide[3], *dh = wide[4];
  bitlinear_backward_input(ctx, rows, dx, w.o, do_q);
  bitlinear_backward_weight(ctx, rows, dx, d, s.o.view(), m, g.o_w);
  gated_norm(ctx, {.rows = rows,
                   .width = m,
                   .g = s.g.data(),
                   .h = s.h.data(),
                   .gain = p.g_norm,
                   .eps = eps,
                   .o = o});
  clear(ctx, d_o, rows * m);
  rmsnorm_quant_backward(ctx, {.rows = rows,
                               .width = m,
                               .x = o,
                               .outer = nullptr,
                               .projections = 1,
                               .gain = {p.o_norm},
                               .outer_rstd = nullptr,
                               .inner_rstd = s.o_rstd.data(),
                               .dy = {do_q},
                               .dx = d_o,
                               .douter = nullptr,
                               .dgain = {g.o_norm}});
  gated_norm_backward(ctx, {.rows = rows,
                            .width = m,
                            .g = s.g.data(),
                            .h = s.h.data(),
                            .gain = p.g_norm,
                            .eps = eps,
                            .d_o = d_o,
                            .dg = dg,
                            .dh = dh,
                            .dgain = g.g_norm});
  float *di = wide[5], *df = wide[6];
  mlgru_backward(
      ctx, {.batch = batch.batch,
            .length = batch.length,
            .width = m,
            .i_pre = s.i_pre.data(),
            .f_pre = s.f_pre.data(),
            .lower_bound = bound_of(net, layer),
            .mask = batch.mask,
            .h = s.h.data(),
            .dh = dh,
            .di_pre = di,
            .df_pre = df,
            .d_lower_bound = bound_of(net, layer) == nullptr ? nullptr : d_bounds + layer * d});
  float *du_i = wide[0], *du_f = wide[1], *du_g = wide[2];
  bitlinear_backward_input(ctx, rows, di, w.i, du_i);
  bitlinear_backward_input(ctx, rows, df, w.f, du_f);
  bitlinear_backward_input(ctx, rows, dg, w.g, du_g);
  bitlinear_backward_weight(ctx, rows, di, m, s.u_i.view(), d, g.i_w);
  bitlinear_backward_weight(ctx, rows, df, m, s.u_f.view(), d, g.f_w);
  bitlinear_backward_weight(ctx, rows, dg, m, s.u_g.view(), d, g.g_w);
  rmsnorm_quant_backward(ctx, {.rows = rows,
                               .width = d,
                               .x = s.x.data(),
                               .outer = p.attn_norm,
                               .projections = 3,
                               .gain = {p.i_norm, p.f_norm, p.g_in_norm},
                               .outer_rstd = s.attn_rstd.data(),
                               .inner_rstd = s.attn_inner_rstd.data(),
                               .dy = {du_i, du_f, du_g},
                               .dx = dx,
                               .douter = g.attn_norm,
                               .dgain = {g.i_norm, g.f_norm, g.g_in_norm}});
}

// Logits exist for kHeadRows positions at a time; with gradients, so does what the backward of the
// head needs of them.
LossSum head(const Ctx& ctx, Network& net, const TokenBatch& batch, bool with_gradient,
             float grad_scale) {
  Activations& a = *net.acts;
  const idx d = net.config.hidden_size;
  const idx v = net.config.vocab_size;
  const idx rows = a.rows;
  rmsnorm_quant(ctx, {.rows = rows,
                      .width = d,
                      .x = a.x.data(),
                      .outer = net.p.norm,
                      .outer_eps = static_cast<float>(net.config.rms_norm_eps),
                      .projections = 1,
                      .gain = {net.p.head_norm},
                      .codes = {a.head.view()},
                      .outer_rstd = a.rstd.data(),
                      .inner_rstd = a.inner_rstd.data()});
  float* dy = with_gradient ? a.wide[0].data() : nullptr;  // (R, D)
  for (idx r = 0; r < rows; r += kHeadRows) {
    const idx n = std::min(kHeadRows, rows - r);
    const CodeRows codes = rows_from(a.head.view(), r, d);
    bitlinear(ctx, n, codes, net.head, nullptr, a.logits.data());
    cross_entropy(ctx, n, v, a.logits.data(), batch.labels + r, with_gradient, grad_scale,
                  a.nll.data() + r);
    if (!with_gradient) continue;
    bitlinear_backward_input(ctx, n, a.logits.data(), net.head, dy + r * d);
    bitlinear_backward_weight(ctx, n, a.logits.data(), v, codes, d, net.d.head_w);
  }
  if (with_gradient) {
    clear(ctx, a.dx.data(), rows * d);
    rmsnorm_quant_backward(ctx, {.rows = rows,
                                 .width = d,
                                 .x = a.x.data(),
                                 .outer = net.p.norm,
                                 .projections = 1,
                                 .gain = {net.p.head_norm},
                                 .outer_rstd = a.rstd.data(),
                                 .inner_rstd = a.inner_rstd.data(),
                                 .dy = {dy},
                                 .dx = a.dx.data(),
                                 .douter = net.d.norm,
                                 .dgain = {net.d.head_norm}});
  }
  LossSum loss;
  for (idx r = 0; r < rows; ++r) {
    if (batch.labels[r] == kIgnoreLabel) continue;
    loss.nll += static_cast<double>(a.nll[r]);
    ++loss.count;
  }
  return loss;
}

void body_forward(const Ctx& ctx, Network& net, const TokenBatch& batch) {
  const idx rows = batch.batch * batch.length;
  reserve(net, rows);
  Activations& a = *net.acts;
  a.rows = rows;
  embedding(ctx, rows, net.config.hidden_size, batch.inputs, net.p.embedding,
            a.layers.front().x.data());
  for (idx l = 0; l < net.config.num_hidden_layers; ++l) {
    const bool last = l + 1 == net.config.num_hidden_layers;
    block_forward(ctx, net, l, batch,
                  last ? a.x.data() : a.layers[static_cast<std::size_t>(l) + 1].x.data());
  }
}

}  // namespace

Network::Network(const MatmulFreeConfig& c)
    : config(c),
      table(matmulfree_params(c)),
      values(storage_size(table)),
      p(view_params(table, c, values.data())),
      d{},
      layers(static_cast<std::size_t>(c.num_hidden_layers)),
      bounds(c.use_lower_bound ? c.num_hidden_layers * c.hidden_size : 0) {}
Network::~Network() = default;
Network::Network(Network&&) noexcept = default;
Network& Network::operator=(Network&&) noexcept = default;

void ternarize_weights(const Ctx& ctx, Network& net) {
  const idx d = net.config.hidden_size;
  const idx m = net.config.mixer_width();
  const idx f = net.config.mlp_width();
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const LayerParams& p = net.p.layers[l];
    LayerTernary& w = net.layers[l];
    ternarize(ctx, p.i_w, m, d, w.i);
    ternarize(ctx, p.f_w, m, d, w.f);
    ternarize(ctx, p.g_w, m, d, w.g);
    ternarize(ctx, p.o_w, d, m, w.o);
    ternarize(ctx, p.gate_w, 2 * f, d, w.gate);
    ternarize(ctx, p.down_w, d, f, w.down);
  }
  ternarize(ctx, net.p.head_w, net.config.vocab_size, d, net.head);
  if (!net.bounds.empty())
    lower_bounds(net.config.num_hidden_layers, d, net.p.lower_bounds, net.bounds.data());
}

LossSum forward_loss(const Ctx& ctx, Network& net, const TokenBatch& batch) {
  if (batch.batch * batch.length == 0) return {};
  body_forward(ctx, net, batch);
  return head(ctx, net, batch, /*with_gradient=*/false, 0);
}

LossSum forward_backward(const Ctx& ctx, Network& net, const TokenBatch& batch, float grad_scale) {
  const idx rows = batch.batch * batch.length;
  if (rows == 0) return {};
  body_forward(ctx, net, batch);
  reserve_backward(net);
  const LossSum loss = head(ctx, net, batch, /*with_gradient=*/true, grad_scale);
  Buffer<float> d_bounds(net.bounds.size());
  for (idx l = net.config.num_hidden_layers - 1; l >= 0; --l)
    block_backward(ctx, net, l, batch, d_bounds.data());
  if (!net.bounds.empty())
    lower_bounds_backward(net.config.num_hidden_layers, net.config.hidden_size, net.p.lower_bounds,
                          d_bounds.data(), net.d.lower_bounds);
  const auto padding = static_cast<std::int32_t>(net.config.pad_token_id.value_or(-1));
  embedding_backward(ctx, rows, net.config.hidden_size, batch.inputs, net.acts->dx.data(), padding,
                     net.d.embedding);
  return loss;
}

void zero_grads(const Ctx& ctx, Network& net) {
  if (!net.grads.empty()) clear(ctx, net.grads.data(), net.grads.size());
}

std::vector<LayerSaturation> activation_saturation(const Network& net) {
  std::vector<LayerSaturation> result;
  if (net.acts == nullptr || net.acts->rows == 0) return result;
  const idx rows = net.acts->rows;
  const auto share = [&](const CodeBuffer& codes, idx width) {
    idx count = 0;
    for (idx r = 0; r < rows; ++r) {
      const std::int8_t* q = codes.q.data() + r * code_stride(width);
      for (idx k = 0; k < width; ++k) count += q[k] == 127 || q[k] == -127 ? 1 : 0;
    }
    return static_cast<double>(count) / static_cast<double>(rows * width);
  };
  const idx d = net.config.hidden_size;
  for (const LayerActivations& s : net.acts->layers)
    result.push_back({.mixer_in = (share(s.u_i, d) + share(s.u_f, d) + share(s.u_g, d)) / 3,
                      .mixer_out = share(s.o, net.config.mixer_width()),
                      .mlp_in = share(s.v, d),
                      .mlp_out = share(s.z, net.config.mlp_width())});
  return result;
}

}  // namespace mmfree
