#include "mmfree/model/matmulfree_infer.h"

#include <algorithm>
#include <cstring>

#include "mmfree/core/error.h"
#include "mmfree/ops/gated_norm/gated_norm.h"
#include "mmfree/ops/mlgru/mlgru.h"
#include "mmfree/ops/rmsnorm/rmsnorm.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"
#include "mmfree/ops/swiglu/swiglu.h"

namespace mmfree {
namespace {

idx code_width(const MatmulFreeConfig& c) {
  return code_stride(std::max({c.hidden_size, c.mixer_width(), c.mlp_width()}));
}

struct Step {  // what all layers of a chunk share
  const Ctx& ctx;
  const MatmulFreeConfig& config;
  InferScratch& s;
  idx rows;
  CodeRows codes[3];
};

// codes[0 .. gains) = quantised norms of x (rows, width).
void quantize(Step& t, const float* x, idx width, const float* outer,
              std::initializer_list<const float*> gains) {
  RmsnormQuant a{.rows = t.rows,
                 .width = width,
                 .x = x,
                 .outer = outer,
                 .outer_eps = static_cast<float>(t.config.rms_norm_eps),
                 .projections = static_cast<int>(gains.size()),
                 .gain = {},
                 .codes = {t.codes[0], t.codes[1], t.codes[2]},
                 .outer_rstd = nullptr,
                 .inner_rstd = nullptr};
  std::copy(gains.begin(), gains.end(), a.gain);
  rmsnorm_quant(t.ctx, a);
}

void block(Step& t, const PackedLayer& w, float* state, const std::uint8_t* mask) {
  const MatmulFreeConfig& c = t.config;
  InferScratch& s = t.s;
  const idx d = c.hidden_size;
  const idx m = c.mixer_width();
  const idx f = c.mlp_width();
  float* x = s.x.data();

  // Token mixer: x += o_proj(gated_norm(g, h))
  quantize(t, x, d, w.attn_norm, {w.i_norm, w.f_norm, w.g_in_norm});
  bitlinear_packed(t.ctx, t.rows, t.codes[0], w.i, nullptr, s.i.data());
  bitlinear_packed(t.ctx, t.rows, t.codes[1], w.f, nullptr, s.f.data());
  bitlinear_packed(t.ctx, t.rows, t.codes[2], w.g, nullptr, s.g.data());
  mlgru(t.ctx, {.batch = 1,
                .length = t.rows,
                .width = m,
                .i_pre = s.i.data(),
                .f_pre = s.f.data(),
                .lower_bound = w.bound,
                .mask = mask,
                .state = state,
                .h = s.h.data()});
  gated_norm(t.ctx, {.rows = t.rows,
                     .width = m,
                     .g = s.g.data(),
                     .h = s.h.data(),
                     .gain = w.g_norm,
                     .eps = static_cast<float>(c.rms_norm_eps),
                     .o = s.o.data()});
  quantize(t, s.o.data(), m, nullptr, {w.o_norm});
  bitlinear_packed(t.ctx, t.rows, t.codes[0], w.o, x, x);

  // Channel mixer: x += down_proj(silu(p) * q)
  quantize(t, x, d, w.mlp_norm, {w.gate_norm});
  bitlinear_packed(t.ctx, t.rows, t.codes[0], w.gate, nullptr, s.pq.data());
  swiglu(t.ctx, t.rows, f, s.pq.data(), s.z.data());
  quantize(t, s.z.data(), f, nullptr, {w.down_norm});
  bitlinear_packed(t.ctx, t.rows, t.codes[0], w.down, x, x);
}

// Logits of rows [first, rows) of the chunk.
void head(Step& t, const PackedModel& model, idx first) {
  const idx rows = t.rows - first;
  MMFREE_ASSERT(rows <= t.s.logit_rows);
  Step tail = t;
  tail.rows = rows;
  quantize(tail, t.s.x.data() + first * t.config.hidden_size, t.config.hidden_size, model.norm,
           {model.head_norm});
  bitlinear_packed(t.ctx, rows, tail.codes[0], model.head, nullptr, t.s.logits.data());
}

}  // namespace

void reset(SessionState& state) {
  std::fill(state.h.begin(), state.h.end(), 0.0F);
}

InferScratch::InferScratch(const MatmulFreeConfig& c, idx r, idx l)
    : rows(r),
      logit_rows(l),
      x(r * c.hidden_size),
      i(r * c.mixer_width()),
      f(r * c.mixer_width()),
      g(r * c.mixer_width()),
      h(r * c.mixer_width()),
      o(r * c.mixer_width()),
      pq(r * 2 * c.mlp_width()),
      z(r * c.mlp_width()),
      norm(r * c.hidden_size),
      logits(l * c.vocab_size),
      q_scale(3 * r),
      q_sum(3 * r) {
  q[0] = Buffer<std::int8_t>(r * code_width(c));
  for (int p = 1; p < 3; ++p) q[p] = Buffer<std::int8_t>(r * code_stride(c.hidden_size));
}

std::size_t scratch_bytes(const InferScratch& s) {
  const idx floats = s.x.size() + s.i.size() + s.f.size() + s.g.size() + s.h.size() + s.o.size() +
                     s.pq.size() + s.z.size() + s.norm.size() + s.logits.size() + s.q_scale.size() +
                     s.q_sum.size();
  return static_cast<std::size_t>(floats) * sizeof(float) +
         static_cast<std::size_t>(s.q[0].size() + s.q[1].size() + s.q[2].size());
}

void forward(const Ctx& ctx, const PackedModel& model, const ForwardCall& call, SessionState& state,
             InferScratch& s) {
  const MatmulFreeConfig& c = model.config;
  const idx d = c.hidden_size;
  const idx total = static_cast<idx>(call.tokens.size());
  for (idx begin = 0; begin < total; begin += s.rows) {
    const idx rows = std::min(s.rows, total - begin);
    Step t{ctx, c, s, rows, {}};
    for (idx p = 0; p < 3; ++p)
      t.codes[p] = {s.q[p].data(), s.q_scale.data() + p * s.rows, s.q_sum.data() + p * s.rows};
    const auto keep = [&](float* target, const float* source) {
      if (target != nullptr)
        std::memcpy(target + begin * d, source, static_cast<std::size_t>(rows * d) * sizeof(float));
    };

    for (idx r = 0; r < rows; ++r) {
      const idx token = call.tokens[static_cast<std::size_t>(begin + r)];
      MMFREE_ASSERT(token >= 0 && token < c.vocab_size);
      read_as_f32(model.embedding, s.x.data() + r * d, token * d, d);
    }
    if (call.hidden != nullptr) keep(call.hidden->embedding, s.x.data());
    const std::uint8_t* mask = call.mask == nullptr ? nullptr : call.mask + begin;
    for (std::size_t l = 0; l < model.layers.size(); ++l) {
      block(t, model.layers[l], state.layer(static_cast<idx>(l)), mask);
      if (call.hidden != nullptr && !call.hidden->block.empty())
        keep(call.hidden->block[l], s.x.data());
    }
    if (call.hidden != nullptr && call.hidden->final_norm != nullptr) {
      rmsnorm(ctx, rows, d, s.x.data(), model.norm, static_cast<float>(c.rms_norm_eps),
              s.norm.data());
      keep(call.hidden->final_norm, s.norm.data());
    }
    const bool last_chunk = begin + rows == total;
    if (call.logits == LogitRows::all) {
      head(t, model, 0);
      if (call.sink) call.sink(begin, rows, s.logits.data());
    } else if (call.logits == LogitRows::last && last_chunk) {
      head(t, model, rows - 1);
      if (call.sink) call.sink(total - 1, 1, s.logits.data());
    }
  }
}

}  // namespace mmfree
