#include "mmfree/model/matmulfree_infer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "mmfree/core/error.h"
#include "mmfree/core/team.h"
#include "mmfree/ops/gated_norm/gated_norm_variants.h"
#include "mmfree/ops/mlgru/mlgru_variants.h"
#include "mmfree/ops/rmsnorm/rmsnorm.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant_variants.h"
#include "mmfree/ops/swiglu/swiglu_variants.h"
#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {
namespace {

idx code_width(const MatmulFreeConfig& c) {
  return code_stride(std::max({c.hidden_size, c.mixer_width(), c.mlp_width()}));
}

struct Kernels {
  TileProductFn product;
  RmsnormQuantRowsFn rmsnorm_quant;
  MlgruChannelsFn mlgru;
  GatedNormRowsFn gated_norm;
  SwigluRowsFn swiglu;
};

Kernels pick_kernels() {
  const Isa isa = active_isa();
  return {tile_product(), pick(rmsnorm_quant_rows_variants, isa),
          pick(mlgru_channels_variants, isa), pick(gated_norm_rows_variants, isa),
          pick(swiglu_rows_variants, isa)};
}

// What all threads of a pass share.
struct Pass {
  const TiledModel& model;
  InferScratch& s;
  Kernels kernels;
  std::span<const std::int32_t> tokens;  // (R)
  // Rows of one sequence in order of time, or one row for each of R sequences.
  SessionState* sequence;
  std::span<SessionState* const> sequences;
  const std::uint8_t* mask;  // (R) or null; of one sequence
  const HiddenCapture* hidden;
  idx hidden_row;                   // row 0 in the capture
  idx first_logit;                  // rows [first_logit, R) get logits
  const float* residual = nullptr;  // (R, D) before block first_layer, or null
  idx first_layer = 0;
};

// One thread on its way through the network.
class Worker {
 public:
  Worker(const Pass& pass, const Team& team)
      : p_(pass),
        team_(team),
        s_(pass.s),
        own_(pass.s.own[static_cast<std::size_t>(team.rank)]),
        config_(pass.model.base.config),
        rows_(static_cast<idx>(pass.tokens.size())) {}

  void run() {
    start_clock();
    embed();
    team_.sync();
    lap(&StageSeconds::embedding);
    for (auto l = static_cast<std::size_t>(p_.first_layer); l < p_.model.layers.size(); ++l) {
      block(p_.model.base.layers[l], p_.model.layers[l], static_cast<idx>(l));
      if (p_.hidden != nullptr && !p_.hidden->block.empty()) capture(p_.hidden->block[l]);
    }
    if (p_.hidden != nullptr) final_norm();
    if (p_.first_logit < rows_) head();
  }

 private:
  // ---- one stage each; the products' threads own the same blocks in all of them

  void embed() {
    const idx d = config_.hidden_size;
    for (idx r = team_.begin(rows_); r < team_.end(rows_); ++r) {
      if (p_.residual != nullptr) {
        std::copy_n(p_.residual + r * d, d, s_.x.data() + r * d);
      } else {
        read_as_f32(p_.model.base.embedding, s_.x.data() + r * d,
                    idx{p_.tokens[static_cast<std::size_t>(r)]} * d, d);
      }
    }
    if (p_.hidden == nullptr) return;
    team_.sync();
    capture(p_.hidden->embedding);
  }

  void block(const PackedLayer& n, const TiledLayer& w, idx layer) {
    const idx m = config_.mixer_width();
    float* x = s_.x.data();
    // Token mixer: x += o_proj(gated_norm(g, h))
    quantize(x, config_.hidden_size, n.attn_norm, {n.i_norm, n.f_norm, n.g_in_norm});
    over_blocks(w.i, w.o, {m, {n.g_norm, n.o_norm}}, &StageSeconds::mixer_in,
                [&](idx b) { mixer_in(w, n, layer, b); });
    gate_and_quantize(n, m);
    over_blocks(w.o, w.p, {config_.hidden_size, {n.mlp_norm, n.gate_norm}},
                &StageSeconds::mixer_out, [&](idx b) { add_product(w.o, b); });

    // Channel mixer: x += down_proj(silu(p) * q)
    quantize(x, config_.hidden_size, n.mlp_norm, {n.gate_norm});
    over_blocks(w.p, w.down, {config_.mlp_width(), {n.down_norm}}, &StageSeconds::mlp_in,
                [&](idx b) { mlp_in(w, b); });
    quantize(s_.z.data(), config_.mlp_width(), nullptr, {n.down_norm});
    const bool last = layer + 1 == config_.num_hidden_layers;
    over_blocks(w.down, last ? p_.model.head : (&w)[1].i,
                {config_.hidden_size, last ? gains_of_head() : gains_of_mixer((&n)[1])},
                &StageSeconds::mlp_out, [&](idx b) { add_product(w.down, b); });
  }

  void mixer_in(const TiledLayer& w, const PackedLayer& n, idx layer, idx b) {
    const idx m = config_.mixer_width();
    const idx c0 = b * kBlockOutputs;
    const idx n_channels = std::min(kBlockOutputs, m - c0);
    if (p_.sequence != nullptr) prefetch(p_.sequence->layer(layer), c0, c0 + n_channels);
    for (SessionState* state : p_.sequences) prefetch(state->layer(layer), c0, c0 + n_channels);
    prefetch(n.bound, c0, c0 + n_channels);
    product(w.i, b, 0, own_.y[0].data(), kBlockOutputs);
    product(w.f, b, 1, own_.y[1].data(), kBlockOutputs);
    product_to(w.g, b, 2, s_.g.data(), own_.y[2].data());
    Mlgru a{.batch = 1,
            .length = rows_,
            .width = m,
            .i_pre = own_.y[0].data(),
            .f_pre = own_.y[1].data(),
            .lower_bound = n.bound == nullptr ? nullptr : n.bound + c0,
            .mask = p_.mask,
            .state = nullptr,
            .h = s_.h.data() + c0,
            .pre_stride = kBlockOutputs};
    if (p_.sequence != nullptr) {
      a.state = p_.sequence->layer(layer) + c0;
      p_.kernels.mlgru(a, 0, 0, n_channels);
      return;
    }
    a.length = 1;
    for (SessionState* state : p_.sequences) {
      a.state = state->layer(layer) + c0;
      p_.kernels.mlgru(a, 0, 0, n_channels);
      a.i_pre += kBlockOutputs;
      a.f_pre += kBlockOutputs;
      a.h += m;
    }
  }

  void mlp_in(const TiledLayer& w, idx b) {
    const idx f = config_.mlp_width();
    const idx c0 = b * kBlockOutputs;
    float* pq = own_.y[0].data();
    product(w.p, b, 0, pq, 2 * kBlockOutputs);
    product(w.q, b, 0, pq + kBlockOutputs, 2 * kBlockOutputs);
    if (c0 + kBlockOutputs <= f) {  // row by row to where it belongs
      for (idx r = 0; r < rows_; ++r)
        p_.kernels.swiglu(kBlockOutputs, pq + 2 * kBlockOutputs * r, s_.z.data() + r * f + c0, 0,
                          1);
      return;
    }
    float* z = own_.y[1].data();
    p_.kernels.swiglu(kBlockOutputs, pq, z, 0, rows_);
    copy_columns(z, s_.z.data() + c0, f, f - c0);
  }

  // x += w * codes
  void add_product(const TileMatrix& w, idx b) {
    const idx c0 = b * kBlockOutputs;
    const idx n = std::min(kBlockOutputs, w.out - c0);
    if (n == kBlockOutputs) return product(w, b, 0, s_.x.data() + c0, w.out, /*add=*/true);
    float* y = own_.y[0].data();
    product(w, b, 0, y, kBlockOutputs);
    for (idx r = 0; r < rows_; ++r) {
      float* x = s_.x.data() + r * w.out + c0;
      for (idx k = 0; k < n; ++k) x[k] += y[r * kBlockOutputs + k];
    }
  }

  void head() {
    const PackedModel& base = p_.model.base;
    const idx d = config_.hidden_size;
    rows_ -= p_.first_logit;
    quantize(s_.x.data() + p_.first_logit * d, d, base.norm, {base.head_norm});
    over_blocks(p_.model.head, p_.model.layers[0].i, {}, &StageSeconds::head, [&](idx b) {
      product_to(p_.model.head, b, 0, s_.logits.data(), own_.y[0].data());
    });
  }

  // ---- norms and codes: one row is done by every thread for itself, which is quicker than waiting
  // for another one; more rows are shared out

  bool alone() const { return rows_ == 1; }

  CodeRows codes(int k) {
    const auto i = static_cast<std::size_t>(k);
    if (alone()) return {own_.q[i].data(), &own_.q_scale[i], &own_.q_sum[i]};
    return {s_.q[i].data(), s_.q_scale.data() + k * s_.rows, s_.q_sum.data() + k * s_.rows};
  }

  RmsnormQuant quantization(const float* x, idx width, const float* outer,
                            std::initializer_list<const float*> gains) {
    RmsnormQuant a{.rows = rows_,
                   .width = width,
                   .x = x,
                   .outer = outer,
                   .outer_eps = static_cast<float>(config_.rms_norm_eps),
                   .projections = static_cast<int>(gains.size()),
                   .gain = {},
                   .codes = {codes(0), codes(1), codes(2)},
                   .outer_rstd = nullptr,
                   .inner_rstd = nullptr};
    std::copy(gains.begin(), gains.end(), a.gain);
    return a;
  }

  // f(r) for each of this thread's rows, all of them done when it returns.
  template <class F>
  void over_rows(const F& f) {
    if (alone()) {
      f(0);
    } else {
      for (idx r = team_.begin(rows_); r < team_.end(rows_); ++r) f(r);
      team_.sync();
    }
    lap(&StageSeconds::norms);
  }

  // Asks for a whole row at once, half of which another core has just written.
  static void fetch(const float* row, idx width) {
    for (idx k = 0; k < width; k += 16) __builtin_prefetch(row + k, 0, 3);
  }

  void quantize(const float* x, idx width, const float* outer,
                std::initializer_list<const float*> gains) {
    const RmsnormQuant a = quantization(x, width, outer, gains);
    if (alone()) fetch(x, width);
    over_rows([&](idx r) { p_.kernels.rmsnorm_quant(a, r, r + 1); });
  }

  void gate_and_quantize(const PackedLayer& n, idx m) {
    float* o = alone() ? own_.o.data() : s_.g.data();
    const GatedNorm gate{.rows = rows_,
                         .width = m,
                         .g = s_.g.data(),
                         .h = s_.h.data(),
                         .gain = n.g_norm,
                         .eps = static_cast<float>(config_.rms_norm_eps),
                         .o = o};
    const RmsnormQuant codes = quantization(o, m, nullptr, {n.o_norm});
    if (alone()) {
      fetch(s_.g.data(), m);
      fetch(s_.h.data(), m);
    }
    over_rows([&](idx r) {  // row by row: the second finds it in the cache
      p_.kernels.gated_norm(gate, r, r + 1);
      p_.kernels.rmsnorm_quant(codes, r, r + 1);
    });
  }

  // ---- products

  // The gains that the norm after a stage will read, each `width` long; null ones are skipped.
  struct Gains {
    idx width = 0;
    std::array<const float*, 4> of = {};
  };
  static std::array<const float*, 4> gains_of_mixer(const PackedLayer& n) {
    return {n.attn_norm, n.i_norm, n.f_norm, n.g_in_norm};
  }
  std::array<const float*, 4> gains_of_head() const {
    return {p_.model.base.norm, p_.model.base.head_norm};
  }

  // A stage: f(b) for all blocks of `w` (and of those matrices whose blocks take turns with its),
  // this thread's own and then what others have left, done when it returns. Between them the gains
  // of the next norm come nearer, which weights that stream through have pushed out to memory since
  // the last token. Weights are read in one stream that goes on with those of the next stage.
  template <class F>
  void over_blocks(const TileMatrix& w, const TileMatrix& next, const Gains& gains,
                   double StageSeconds::*stage, const F& f) {
    const idx blocks = tile_blocks(w.out);
    const idx first = team_.begin(blocks), n = team_.end(blocks) - first;
    next_ = next.blocks + team_.begin(tile_blocks(next.out)) * next.block_stride;
    end_ = w.blocks + (first + n) * w.block_stride;
    Share& mine = s_.shares[static_cast<std::size_t>(team_.rank)];
    mine.deal(first, first + n);
    const idx lead = std::max<idx>(0, asked_ - kTileAhead);
    for (idx b = mine.take_first(); b >= 0; b = mine.take_first()) {
      if (alone())
        for (const float* gain : gains.of)
          prefetch(gain, (b - first) * gains.width / n, (b - first + 1) * gains.width / n);
      // What was asked for in advance shrinks to nothing over the stage: else kernels, which are
      // faster than the memory, would use it up at once while nothing is asked for.
      lead_ = lead * (first + n - b) / n;
      f(b);
    }
    lead_ = 0;
    for (int i = 1; i < team_.size; ++i) {
      Share& other = s_.shares[static_cast<std::size_t>((team_.rank + i) % team_.size)];
      for (idx b = other.take_last(); b >= 0; b = other.take_last()) {
        end_ = w.blocks + b * w.block_stride;  // what is ahead is the next stage
        f(b);
      }
    }
    ask_and_sync();
    lap(stage);
  }

  // The cache lines of v[begin, end) towards the second-level cache.
  static void prefetch(const float* v, idx begin, idx end) {
    if (v == nullptr) return;
    for (idx k = begin; k < end; k += 16) __builtin_prefetch(v + k, 0, 2);
  }

  // y (R, 64) of block b; `k` says which codes.
  void product(const TileMatrix& w, idx b, int k, float* y, idx y_stride, bool add = false) {
    p_.kernels.product({.w = &w,
                        .block = b,
                        .rows = rows_,
                        .x = codes(k),
                        .y = y,
                        .y_stride = y_stride,
                        .add = add,
                        .scratch = own_.codes.data(),
                        .end = end_,
                        .next = next_,
                        .lead = lead_});
  }

  // Block b of y (R, O), through `edge` (R, 64) where the block is not full.
  void product_to(const TileMatrix& w, idx b, int k, float* y, float* edge) {
    const idx c0 = b * kBlockOutputs;
    if (c0 + kBlockOutputs <= w.out) return product(w, b, k, y + c0, w.out);
    product(w, b, k, edge, kBlockOutputs);
    copy_columns(edge, y + c0, w.out, w.out - c0);
  }

  // (R, 64) to the first n of R rows that lie `stride` apart.
  void copy_columns(const float* from, float* to, idx stride, idx n) const {
    for (idx r = 0; r < rows_; ++r)
      std::memcpy(to + r * stride, from + r * kBlockOutputs, static_cast<std::size_t>(n) * 4);
  }

  // Starts reading this thread's first weights of the next stage, which has a norm before it, and
  // goes on with that while others are not done: a core reads no faster later.
  void ask_and_sync() {
    asked_ = 0;
    while (asked_ < kTouchBytes) ask();
    team_.sync([this] {
      if (alone() && asked_ < kMostAsked)
        ask();
      else
        Barrier::pause();
    });
  }
  void ask() {
    if (asked_ < 2048)
      __builtin_prefetch(next_ + asked_, 0, 3);
    else
      __builtin_prefetch(next_ + asked_, 0, 2);
    asked_ += 64;
  }
  static constexpr idx kTouchBytes = 6144;
  static constexpr idx kMostAsked = 131072;

  // ---- what is looked at from outside, by thread 0

  void final_norm() {
    if (p_.hidden->final_norm == nullptr || team_.rank != 0) return;
    rmsnorm(Ctx{1}, rows_, config_.hidden_size, s_.x.data(), p_.model.base.norm,
            static_cast<float>(config_.rms_norm_eps), s_.norm.data());
    copy_hidden(p_.hidden->final_norm, s_.norm.data());
  }
  void capture(float* target) const {
    if (target != nullptr && team_.rank == 0) copy_hidden(target, s_.x.data());
  }
  void copy_hidden(float* target, const float* source) const {
    const idx d = config_.hidden_size;
    std::memcpy(target + p_.hidden_row * d, source,
                static_cast<std::size_t>(rows_ * d) * sizeof(float));
  }

  void start_clock() {
    if (s_.stages != nullptr && team_.rank == 0) last_ = Clock::now();
  }
  void lap(double StageSeconds::*stage) {
    if (s_.stages == nullptr || team_.rank != 0) return;
    const Clock::time_point now = Clock::now();
    s_.stages->*stage += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

  using Clock = std::chrono::steady_clock;
  const Pass& p_;
  Team team_;
  InferScratch& s_;
  ThreadScratch& own_;
  const MatmulFreeConfig& config_;
  idx rows_;                           // R
  const std::uint8_t* end_ = nullptr;  // of the weights that this thread reads in this stage
  const std::uint8_t* next_ = nullptr;
  idx asked_ = 0;  // bytes of the next stage's weights that are asked for already
  idx lead_ = 0;   // TileProduct::lead
  Clock::time_point last_;
};

void run_pass(const Ctx& ctx, const Pass& pass) {
  for ([[maybe_unused]] const std::int32_t t : pass.tokens)
    MMFREE_ASSERT(t >= 0 && t < pass.model.base.config.vocab_size);
  MMFREE_ASSERT(static_cast<std::size_t>(ctx.threads) <= pass.s.own.size());
  MMFREE_ASSERT(static_cast<idx>(pass.tokens.size()) - pass.first_logit <= pass.s.logit_rows);
  run_team(ctx, [&](const Team& team) { Worker(pass, team).run(); });
}

}  // namespace

idx prefill_rows() {
  return active_isa() < Isa::amx ? 512 : 256;
}

void reset(SessionState& state) {
  std::fill(state.h.begin(), state.h.end(), 0.0F);
}

InferScratch::InferScratch(const MatmulFreeConfig& c, idx r, idx l, int threads)
    : rows(r),
      logit_rows(l),
      x(r * c.hidden_size),
      g(r * c.mixer_width()),
      h(r * c.mixer_width()),
      z(r * c.mlp_width()),
      norm(r * c.hidden_size),
      logits(l * c.vocab_size),
      q_scale(3 * r),
      q_sum(3 * r),
      own(static_cast<std::size_t>(threads)),
      shares(static_cast<std::size_t>(threads)) {
  const idx widest = std::max({c.hidden_size, c.mixer_width(), c.mlp_width()});
  for (int k = 0; k < 3; ++k)
    q[k] = Buffer<std::int8_t>(r * (k == 0 ? code_width(c) : code_stride(c.hidden_size)));
  for (ThreadScratch& t : own) {
    t.codes = Buffer<std::uint8_t>(tile_scratch_bytes(widest));
    t.y[0] = Buffer<float>(r * 2 * kBlockOutputs);
    for (int k = 1; k < 3; ++k) t.y[k] = Buffer<float>(r * kBlockOutputs);
    t.o = Buffer<float>(c.mixer_width());
    for (int k = 0; k < 3; ++k)
      t.q[k] = Buffer<std::int8_t>(k == 0 ? code_width(c) : code_stride(c.hidden_size));
  }
}

std::size_t scratch_bytes(const InferScratch& s) {
  idx floats = s.x.size() + s.g.size() + s.h.size() + s.z.size() + s.norm.size() + s.logits.size() +
               s.q_scale.size() + s.q_sum.size();
  idx bytes = s.q[0].size() + s.q[1].size() + s.q[2].size();
  for (const ThreadScratch& t : s.own) {
    floats += t.y[0].size() + t.y[1].size() + t.y[2].size() + t.o.size();
    bytes += t.codes.size() + t.q[0].size() + t.q[1].size() + t.q[2].size();
  }
  return static_cast<std::size_t>(floats) * sizeof(float) + static_cast<std::size_t>(bytes);
}

void forward(const Ctx& ctx, const TiledModel& model, const ForwardCall& call, SessionState& state,
             InferScratch& s) {
  const Kernels kernels = pick_kernels();
  const idx total = static_cast<idx>(call.tokens.size());
  for (idx begin = 0; begin < total; begin += s.rows) {
    const idx rows = std::min(s.rows, total - begin);
    const bool last_chunk = begin + rows == total;
    idx first_logit = rows;
    if (call.logits == LogitRows::all) first_logit = 0;
    if (call.logits == LogitRows::last && last_chunk) first_logit = rows - 1;
    run_pass(ctx, {.model = model,
                   .s = s,
                   .kernels = kernels,
                   .tokens = call.tokens.subspan(static_cast<std::size_t>(begin),
                                                 static_cast<std::size_t>(rows)),
                   .sequence = &state,
                   .sequences = {},
                   .mask = call.mask == nullptr ? nullptr : call.mask + begin,
                   .hidden = call.hidden,
                   .hidden_row = begin,
                   .first_logit = first_logit,
                   .residual = call.residual == nullptr
                                   ? nullptr
                                   : call.residual + begin * model.base.config.hidden_size,
                   .first_layer = call.first_layer});
    if (first_logit < rows && call.sink)
      call.sink(begin + first_logit, rows - first_logit, s.logits.data());
  }
}

void step_batch(const Ctx& ctx, const TiledModel& model, std::span<const std::int32_t> tokens,
                std::span<SessionState* const> states, InferScratch& s) {
  MMFREE_ASSERT(tokens.size() == states.size() && static_cast<idx>(tokens.size()) <= s.rows);
  if (tokens.empty()) return;
  run_pass(ctx, {.model = model,
                 .s = s,
                 .kernels = pick_kernels(),
                 .tokens = tokens,
                 .sequence = nullptr,
                 .sequences = states,
                 .mask = nullptr,
                 .hidden = nullptr,
                 .hidden_row = 0,
                 .first_logit = 0});
}

}  // namespace mmfree
