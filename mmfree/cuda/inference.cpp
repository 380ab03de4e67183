#include "mmfree/cuda/inference.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "mmfree/core/error.h"
#include "mmfree/cuda/device_weights.h"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/ops/rmsnorm/rmsnorm.h"

namespace mmfree {

using cuda::check;

namespace {

// Host memory that the device reads and writes directly.
template <class T>
class Pinned {
 public:
  void resize(idx n) {
    if (n <= size_) return;
    cudaFreeHost(data_);
    data_ = nullptr;
    size_ = 0;
    void* p = nullptr;
    check(cudaMallocHost(&p, static_cast<std::size_t>(n) * sizeof(T)), "allocating pinned memory");
    data_ = static_cast<T*>(p);
    size_ = n;
  }
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }
  T* data() { return data_; }

 private:
  T* data_ = nullptr;
  idx size_ = 0;
};

constexpr idx round_up(idx n, idx to) {
  return (n + to - 1) / to * to;
}

// Buffers of a pass over up to `rows` rows, of which `logit_rows` get logits.
struct RowScratch {
  idx rows, logit_rows;
  float *x, *i, *f, *g, *z, *logits;
  std::int8_t* codes[3];
  float* scale[3];
  int* code_sum[3];
  std::int32_t *ids, *logit_row, *chosen;
  std::uint8_t* mask;
  cuda::Segment* segments;
  cuda::Arena memory;

  RowScratch(const MatmulFreeConfig& c, idx r, idx l) : rows(r), logit_rows(l) {
    take(c);
    memory.allocate("fewer tokens at a time need less");
    take(c);
  }

 private:
  void take(const MatmulFreeConfig& c) {
    const idx d = c.hidden_size, m = c.mixer_width(), f_width = c.mlp_width();
    const idx widest = std::max({d, m, f_width});
    x = memory.take<float>(rows * d);
    i = memory.take<float>(rows * m);
    f = memory.take<float>(rows * m);
    g = memory.take<float>(rows * m);
    z = memory.take<float>(rows * f_width);
    logits = memory.take<float>(logit_rows * c.vocab_size);
    for (int p = 0; p < 3; ++p) {
      codes[p] = memory.take<std::int8_t>(std::max(rows, logit_rows) *
                                          round_up(p == 0 ? widest : d, cuda::kTileInputs));
      scale[p] = memory.take<float>(std::max(rows, logit_rows));
      code_sum[p] = memory.take<int>(std::max(rows, logit_rows));
    }
    ids = memory.take<std::int32_t>(rows);
    mask = memory.take<std::uint8_t>(rows);
    logit_row = memory.take<std::int32_t>(logit_rows);
    chosen = memory.take<std::int32_t>(logit_rows);
    segments = memory.take<cuda::Segment>(rows);
  }
};

}  // namespace

struct GpuModel::Engine {
  MatmulFreeConfig config;
  std::string path;
  cuda::Device device;
  cudaStream_t stream = nullptr;
  cuda::WeightStore store;
  std::optional<RowScratch> scratch;
  // Of decode:
  cuda::Arena decode_memory;
  cuda::Packet* exchange = nullptr;
  float* logits = nullptr;               // (V)
  unsigned long long* clocks = nullptr;  // (3 kDecodeStages)
  bool measure = false;
  std::uint32_t epoch = 1;
  int clusters = 0;
  Pinned<std::int32_t> given, chosen;
  Pinned<float> host_logits;
  Pinned<float> host_rows;

  Engine(const MatmulFreeConfig& c, std::string p)
      : config(c), path(std::move(p)), device(cuda::select_device(75)) {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  }
  ~Engine() {
    cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
  }

  cuda::Launch launch() const { return {stream, device.multiprocessors}; }
  const cuda::DeviceWeights& w() const { return store.w; }
  bool whole() const { return w().head != nullptr; }
  void wait(const char* what) const { check(cudaStreamSynchronize(stream), what); }

  void prepare_decode() {
    clusters = cuda::decode_clusters(launch(), w());
    const idx packets = cuda::decode_exchange_packets(w(), device.multiprocessors);
    const auto take = [&] {
      exchange = decode_memory.take<cuda::Packet>(packets);
      logits = decode_memory.take<float>(config.vocab_size);
      clocks = decode_memory.take<unsigned long long>(3 * cuda::kDecodeStages);
    };
    take();
    decode_memory.allocate("a smaller model or --gpu-layers needs less");
    take();
    check(cudaMemset(exchange, 0, static_cast<std::size_t>(packets) * sizeof(cuda::Packet)),
          "clearing memory");
    check(cudaMemset(clocks, 0, 3 * cuda::kDecodeStages * sizeof(*clocks)), "clearing memory");
  }

  RowScratch& rows_for(idx rows, idx logit_rows) {
    if (scratch && scratch->rows >= rows && scratch->logit_rows >= logit_rows) return *scratch;
    idx r = 8, l = logit_rows;
    while (r < rows) r *= 2;
    if (scratch) {
      r = std::max(r, scratch->rows);
      l = std::max(l, scratch->logit_rows);
    }
    scratch.reset();
    scratch.emplace(config, r, l);
    return *scratch;
  }

  // ---- one pass over rows that lie in the scratch: ids, segments, mask ----

  struct Pass {
    idx rows;
    int segments;
    bool single_steps;
    bool masked;
    idx logit_rows;  // logit_row says which; 0: none
  };

  // `after_block(l)` is called when block l's work is enqueued; l = -1: the embedding's.
  template <class F>
  void pass(RowScratch& s, const Pass& p, const F& after_block) {
    const cuda::Launch l = launch();
    const idx d = config.hidden_size, m = config.mixer_width(), f = config.mlp_width();
    const cuda::LayerTiles tiles(d, m, f);
    const cuda::LayerParams at(static_cast<int>(d), static_cast<int>(m), static_cast<int>(f));
    const float eps = w().eps;
    const auto norm = [&](idx width, const float* x, const float* h, const float* outer,
                          std::initializer_list<const float*> gains, idx rows,
                          const std::int32_t* row_of, const cuda::ScanRows& step = {}) {
      cuda::NormRows a{.rows = rows,
                       .width = static_cast<int>(width),
                       .x = x,
                       .h = h,
                       .step = step,
                       .row_of = row_of,
                       .outer = outer,
                       .outer_eps = eps,
                       .projections = static_cast<int>(gains.size()),
                       .gain = {},
                       .order = cuda::code_order(rows),
                       .codes = {s.codes[0], s.codes[1], s.codes[2]},
                       .code_stride = static_cast<int>(round_up(width, cuda::kTileInputs)),
                       .scale = {s.scale[0], s.scale[1], s.scale[2]},
                       .code_sum = {s.code_sum[0], s.code_sum[1], s.code_sum[2]}};
      std::copy(gains.begin(), gains.end(), a.gain);
      cuda::norm_rows(l, a);
    };
    const auto product = [&](const std::uint8_t* from, idx out, idx in, int members, int pairs,
                             const float* scales, std::initializer_list<float*> y, bool add,
                             idx rows) {
      cuda::RowsProduct a{.rows = rows,
                          .tiles = from,
                          .out = static_cast<int>(out),
                          .k_tiles = static_cast<int>(cuda::input_tiles(in)),
                          .members = members,
                          .pairs = pairs,
                          .order = cuda::code_order(rows),
                          .codes = {s.codes[0], s.codes[1], s.codes[2]},
                          .code_stride = static_cast<int>(round_up(in, cuda::kTileInputs)),
                          .x_scale = {s.scale[0], s.scale[1], s.scale[2]},
                          .code_sum = {s.code_sum[0], s.code_sum[1], s.code_sum[2]},
                          .w_scale = scales,
                          .y = {},
                          .add = add};
      std::copy(y.begin(), y.end(), a.y);
      cuda::rows_product(l, a);
    };
    cuda::embed_rows(l, w(), p.rows, s.ids, s.x);
    after_block(-1);
    for (idx layer = 0; layer < w().layers; ++layer) {
      const float* params = w().params + layer * at.floats;
      const float* scales = params + at.scales;
      const std::uint8_t* from = w().tiles + layer * w().layer_tile_bytes;
      norm(d, s.x, nullptr, params + at.attn_norm,
           {params + at.i_norm, params + at.f_norm, params + at.g_in_norm}, p.rows, nullptr);
      product(from + tiles.mixer_in.offset, m, d, 3, 1, scales, {s.i, s.f, s.g}, false, p.rows);
      const cuda::ScanRows scan{.segment_count = p.segments,
                                .segments = s.segments,
                                .width = static_cast<int>(m),
                                .layer_offset = layer * m,
                                .i = s.i,
                                .f = s.f,
                                .bound = params + at.bound,
                                .mask = p.masked ? s.mask : nullptr};
      if (p.single_steps) {
        norm(m, s.g, nullptr, params + at.g_norm, {params + at.o_norm}, p.rows, nullptr, scan);
      } else {
        cuda::scan_rows(l, scan);
        norm(m, s.g, s.i, params + at.g_norm, {params + at.o_norm}, p.rows, nullptr);
      }
      product(from + tiles.mixer_out.offset, d, m, 1, 1, scales + 3, {s.x}, true, p.rows);
      norm(d, s.x, nullptr, params + at.mlp_norm, {params + at.gate_norm}, p.rows, nullptr);
      product(from + tiles.mlp_in.offset, f, d, 1, 2, scales + 4, {s.z}, false, p.rows);
      norm(f, s.z, nullptr, nullptr, {params + at.down_norm}, p.rows, nullptr);
      product(from + tiles.mlp_out.offset, d, f, 1, 1, scales + 6, {s.x}, true, p.rows);
      after_block(layer);
    }
    if (p.logit_rows == 0) return;
    norm(d, s.x, nullptr, w().norm, {w().head_norm}, p.logit_rows, s.logit_row);
    product(w().head, config.vocab_size, d, 1, 1, store.head_scale, {s.logits}, false,
            p.logit_rows);
  }

  // Copies from memory that may change afterwards, so it waits.
  template <class T>
  void put(T* to, const std::vector<T>& v) {
    if (v.empty()) return;
    check(cudaMemcpyAsync(to, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice, stream),
          "copying to the GPU");
    wait("copying to the GPU");
  }
  template <class T>
  void get(T* to, const T* from, idx n) {
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(T), cudaMemcpyDeviceToHost,
                          stream),
          "copying from the GPU");
  }

  // ---- decode ----

  // Feeds given tokens, then chosen ones, `steps` in all; what was chosen, or nothing without
  // `choose`. Results are on the device or in `chosen` when it returns.
  std::vector<std::int32_t> decode_tokens(float* state, std::span<const std::int32_t> tokens,
                                          idx steps, bool choose, bool want_logits,
                                          std::int32_t eos, float* hidden_out) {
    const auto count = static_cast<idx>(tokens.size());
    given.resize(count);
    std::copy(tokens.begin(), tokens.end(), given.data());
    const idx choices = steps - count + 1;
    chosen.resize(choices);
    std::fill_n(chosen.data(), choices, kNone);
    cuda::decode(launch(), {.w = w(),
                            .state = state,
                            .first = tokens.front(),
                            .given = given.data(),
                            .given_count = static_cast<int>(count),
                            .steps = static_cast<int>(steps),
                            .chosen = choose ? chosen.data() : nullptr,
                            .eos = eos,
                            .logits = want_logits ? logits : nullptr,
                            .hidden_out = hidden_out,
                            .exchange = exchange,
                            .first_epoch = epoch,
                            .clusters = clusters,
                            .clocks = measure ? clocks : nullptr});
    epoch += static_cast<std::uint32_t>(steps * w().layers);
    if (!choose) return {};
    wait("decoding");
    std::vector<std::int32_t> ids;
    for (idx n = 0; n < choices && chosen.data()[n] != kNone; ++n) {
      ids.push_back(chosen.data()[n]);
      if (ids.back() < 0) fail_not_finite();
    }
    return ids;
  }
  [[noreturn]] void fail_not_finite() const {
    fail(ErrorKind::numeric, path + ": the logits hold a value that is not finite");
  }
  static constexpr std::int32_t kNone = INT32_MIN;
};

// ---- model ----

namespace {

void need_whole(const GpuModel& model) {
  if (!model.whole())
    fail(ErrorKind::usage,
         fmt::format("{}: {} of {} blocks are on the GPU, expected all of them", model.path(),
                     model.layers(), model.config().num_hidden_layers));
}

}  // namespace

GpuModel::GpuModel(const Ctx& ctx, const PackedModel& model, idx layers, const Progress& progress)
    : engine_(std::make_unique<Engine>(model.config, model.path)) {
  cuda::upload(ctx, model, layers, progress, engine_->store);
  engine_->prepare_decode();
}
GpuModel::GpuModel(const Ctx& ctx, const TiledModel& model, idx layers, const Progress& progress)
    : engine_(std::make_unique<Engine>(model.base.config, model.base.path)) {
  cuda::upload(ctx, model, layers, progress, engine_->store);
  engine_->prepare_decode();
}
GpuModel::~GpuModel() = default;

const MatmulFreeConfig& GpuModel::config() const {
  return engine_->config;
}
const std::string& GpuModel::path() const {
  return engine_->path;
}
idx GpuModel::layers() const {
  return engine_->w().layers;
}

GpuInferenceInfo GpuModel::info() const {
  const Engine& e = *engine_;
  return {.device = e.device.name,
          .multiprocessors = e.device.multiprocessors,
          .weight_bytes = e.store.memory.peak(),
          .matrix_bytes = e.store.matrix_bytes,
          .scratch_bytes =
              e.decode_memory.peak() + (e.scratch ? e.scratch->memory.peak() : std::size_t{0}),
          .session_bytes =
              static_cast<std::size_t>(e.w().layers * e.config.mixer_width()) * sizeof(float)};
}

void GpuModel::measure_stages(bool on) {
  Engine& e = *engine_;
  e.measure = on;
  check(cudaMemset(e.clocks, 0, 3 * cuda::kDecodeStages * sizeof(*e.clocks)), "clearing memory");
}

std::vector<GpuStage> GpuModel::stages() const {
  const char* const names[cuda::kDecodeStages] = {"mixer_in", "mixer_out", "mlp_in", "mlp_out",
                                                  "head"};
  unsigned long long cycles[3 * cuda::kDecodeStages];
  check(cudaMemcpy(cycles, engine_->clocks, sizeof cycles, cudaMemcpyDeviceToHost),
        "copying from the GPU");
  double total = 0;
  for (int s = 0; s < 2 * cuda::kDecodeStages; ++s) total += static_cast<double>(cycles[s]);
  const auto share = [&](double n) { return n / std::max(total, 1.0); };
  std::vector<GpuStage> result;
  for (int s = 0; s < cuda::kDecodeStages; ++s) {
    const auto waiting = static_cast<double>(cycles[2 * s]);
    const auto busy = static_cast<double>(cycles[2 * s + 1]);
    const double norm = std::min(static_cast<double>(cycles[2 * cuda::kDecodeStages + s]), busy);
    result.push_back({names[s], share(waiting), share(norm), share(busy - norm)});
  }
  return result;
}

// ---- session ----

GpuSession::GpuSession(GpuModel& model) : model_(&model) {
  const idx n = model.layers() * model.config().mixer_width();
  void* p = nullptr;
  check(cudaMalloc(&p, static_cast<std::size_t>(std::max<idx>(n, 1)) * sizeof(float)),
        "allocating a session's state");
  state_ = static_cast<float*>(p);
  restart();
}
GpuSession::~GpuSession() {
  cudaFree(state_);
}
GpuSession::GpuSession(GpuSession&& o) noexcept
    : model_(o.model_), state_(std::exchange(o.state_, nullptr)), position_(o.position_) {}

void GpuSession::check_tokens(std::span<const std::int32_t> tokens) const {
  const idx vocab = model_->config().vocab_size;
  if (tokens.empty()) fail(ErrorKind::usage, "no tokens were given, expected at least one");
  for (std::size_t t = 0; t < tokens.size(); ++t)
    if (tokens[t] < 0 || tokens[t] >= vocab)
      fail(ErrorKind::usage,
           fmt::format("token at position {} is {}, expected 0..{} (the vocabulary of {})", t,
                       tokens[t], vocab - 1, model_->path()));
}

std::span<const float> GpuSession::prefill(std::span<const std::int32_t> tokens) {
  check_tokens(tokens);
  need_whole(*model_);
  GpuModel::Engine& e = model_->engine();
  const idx vocab = e.config.vocab_size;
  e.host_logits.resize(vocab);
  if (tokens.size() == 1) {
    // An error of this call shows in the logits, which the caller looks at.
    e.chosen.resize(1);
    cuda::decode(e.launch(), {.w = e.w(),
                              .state = state_,
                              .first = tokens.front(),
                              .given = nullptr,
                              .given_count = 1,
                              .steps = 1,
                              .chosen = e.chosen.data(),
                              .eos = -1,
                              .logits = e.logits,
                              .hidden_out = nullptr,
                              .exchange = e.exchange,
                              .first_epoch = e.epoch,
                              .clusters = e.clusters,
                              .clocks = e.measure ? e.clocks : nullptr});
    e.epoch += static_cast<std::uint32_t>(e.w().layers);
    e.get(e.host_logits.data(), e.logits, vocab);
    e.wait("decoding");
    ++position_;
  } else {
    ForwardCall call;
    call.tokens = tokens;
    call.sink = [&](idx, idx, const float* logits) {
      std::copy_n(logits, vocab, e.host_logits.data());
    };
    forward(call);
  }
  return {e.host_logits.data(), static_cast<std::size_t>(vocab)};
}

std::vector<std::int32_t> GpuSession::decode(std::int32_t token, idx n, std::int32_t eos) {
  check_tokens({&token, 1});
  need_whole(*model_);
  if (n <= 0) return {};
  const std::vector<std::int32_t> ids =
      model_->engine().decode_tokens(state_, {&token, 1}, n, true, false, eos, nullptr);
  position_ += static_cast<idx>(ids.size());
  return ids;
}

void GpuSession::forward(const ForwardCall& call) {
  GpuModel::Engine& e = model_->engine();
  const MatmulFreeConfig& c = e.config;
  const auto total = static_cast<idx>(call.tokens.size());
  if (call.logits != LogitRows::none || call.hidden != nullptr) need_whole(*model_);
  const idx most = call.logits == LogitRows::all ? kLogitRows : kGpuPrefillRows;
  const idx chunk = std::min(total, most);
  for (idx begin = 0; begin < total; begin += chunk) {
    const idx rows = std::min(chunk, total - begin);
    const bool last_chunk = begin + rows == total;
    idx first_logit = rows;
    if (call.logits == LogitRows::all) first_logit = 0;
    if (call.logits == LogitRows::last && last_chunk) first_logit = rows - 1;
    const idx logit_rows = rows - first_logit;
    RowScratch& s = e.rows_for(chunk, call.logits == LogitRows::all ? chunk : 1);
    const auto at = call.tokens.begin() + begin;
    e.put(s.ids, std::vector<std::int32_t>(at, at + rows));
    e.put(s.segments, std::vector<cuda::Segment>{{0, static_cast<int>(rows), state_}});
    if (call.mask != nullptr)
      e.put(s.mask, std::vector<std::uint8_t>(call.mask + begin, call.mask + begin + rows));
    std::vector<std::int32_t> wanted;
    for (idx r = first_logit; r < rows; ++r) wanted.push_back(static_cast<std::int32_t>(r));
    e.put(s.logit_row, wanted);
    const auto capture = [&](idx layer) {
      if (call.hidden == nullptr) return;
      float* to = layer < 0 ? call.hidden->embedding
                  : call.hidden->block.empty()
                      ? nullptr
                      : call.hidden->block[static_cast<std::size_t>(layer)];
      if (to != nullptr) e.get(to + begin * c.hidden_size, s.x, rows * c.hidden_size);
    };
    e.pass(s,
           {.rows = rows,
            .segments = 1,
            .single_steps = false,
            .masked = call.mask != nullptr,
            .logit_rows = logit_rows},
           capture);
    if (logit_rows > 0 && call.sink) {
      e.host_rows.resize(logit_rows * c.vocab_size);
      e.get(e.host_rows.data(), s.logits, logit_rows * c.vocab_size);
    }
    float* const last = call.hidden != nullptr && call.hidden->final_norm != nullptr
                            ? call.hidden->final_norm + begin * c.hidden_size
                            : nullptr;
    if (last != nullptr) e.get(last, s.x, rows * c.hidden_size);
    e.wait("the forward pass");
    if (last != nullptr)
      rmsnorm(Ctx{1}, rows, c.hidden_size, last, e.store.final_gain.data(), e.w().eps, last);
    position_ += rows;
    if (logit_rows > 0 && call.sink) call.sink(begin + first_logit, logit_rows, e.host_rows.data());
  }
}

void GpuSession::hidden(std::span<const std::int32_t> tokens, const std::uint8_t* mask, float* x) {
  check_tokens(tokens);
  GpuModel::Engine& e = model_->engine();
  const idx d = e.config.hidden_size;
  const auto total = static_cast<idx>(tokens.size());
  const idx chunk = std::min(total, kGpuPrefillRows);
  for (idx begin = 0; begin < total; begin += chunk) {
    const idx rows = std::min(chunk, total - begin);
    RowScratch& s = e.rows_for(chunk, 1);
    const auto at = tokens.begin() + begin;
    if (rows == 1 && mask == nullptr && e.w().layers > 0) {
      e.decode_tokens(state_, {&*at, 1}, 1, false, false, -1, s.x);
    } else {
      e.put(s.ids, std::vector<std::int32_t>(at, at + rows));
      e.put(s.segments, std::vector<cuda::Segment>{{0, static_cast<int>(rows), state_}});
      if (mask != nullptr)
        e.put(s.mask, std::vector<std::uint8_t>(mask + begin, mask + begin + rows));
      e.pass(s,
             {.rows = rows,
              .segments = 1,
              .single_steps = false,
              .masked = mask != nullptr,
              .logit_rows = 0},
             [](idx) {});
    }
    e.get(x + begin * d, s.x, rows * d);
    e.wait("the forward pass");
    position_ += rows;
  }
}

void GpuSession::restart() {
  GpuModel::Engine& e = model_->engine();
  check(cudaMemsetAsync(
            state_, 0,
            static_cast<std::size_t>(model_->layers() * e.config.mixer_width()) * sizeof(float),
            e.stream),
        "clearing a session's state");
  position_ = 0;
}

void GpuSession::read_state(float* h) const {
  GpuModel::Engine& e = model_->engine();
  e.get(h, static_cast<const float*>(state_), model_->layers() * e.config.mixer_width());
  e.wait("copying a session's state");
}

void GpuSession::write_state(const float* h, idx position) {
  GpuModel::Engine& e = model_->engine();
  check(cudaMemcpyAsync(
            state_, h,
            static_cast<std::size_t>(model_->layers() * e.config.mixer_width()) * sizeof(float),
            cudaMemcpyHostToDevice, e.stream),
        "copying a session's state");
  e.wait("copying a session's state");
  position_ = position;
}

SessionState GpuSession::state() const {
  need_whole(*model_);
  SessionState s(model_->config());
  read_state(s.h.data());
  return s;
}

void GpuSession::restore(const SessionState& state, idx position) {
  need_whole(*model_);
  const MatmulFreeConfig& c = model_->config();
  if (state.layers != c.num_hidden_layers || state.width != c.mixer_width())
    fail(ErrorKind::usage, fmt::format("the state is {} x {}, expected {} x {}", state.layers,
                                       state.width, c.num_hidden_layers, c.mixer_width()));
  write_state(state.h.data(), position);
}

// ---- several sessions ----

std::vector<std::int32_t> decode_batch(GpuModel& model, std::span<GpuSession* const> sessions,
                                       std::span<const std::int32_t> tokens, idx steps) {
  need_whole(model);
  if (sessions.size() != tokens.size())
    fail(ErrorKind::usage, fmt::format("{} tokens for {} sessions, expected one each",
                                       tokens.size(), sessions.size()));
  if (sessions.empty() || steps <= 0) return {};
  GpuModel::Engine& e = model.engine();
  sessions.front()->check_tokens(tokens);
  const auto n = static_cast<idx>(sessions.size());
  RowScratch& s = e.rows_for(n, n);
  std::vector<cuda::Segment> segments;
  std::vector<std::int32_t> rows;
  for (idx k = 0; k < n; ++k) {
    segments.push_back({static_cast<int>(k), static_cast<int>(k) + 1,
                        sessions[static_cast<std::size_t>(k)]->state_});
    rows.push_back(static_cast<std::int32_t>(k));
  }
  e.put(s.segments, segments);
  e.put(s.logit_row, rows);
  e.put(s.ids, std::vector<std::int32_t>(tokens.begin(), tokens.end()));
  e.chosen.resize(steps * n);

  // One step as a graph: about nine launches a block cost more from the host than on the device.
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(e.stream, cudaStreamCaptureModeThreadLocal), "recording a step");
  e.pass(s,
         {.rows = n,
          .segments = static_cast<int>(n),
          .single_steps = true,
          .masked = false,
          .logit_rows = n},
         [](idx) {});
  cuda::choose_rows(e.launch(), n, static_cast<int>(e.config.vocab_size), s.logits, s.ids);
  check(cudaStreamEndCapture(e.stream, &graph), "recording a step");
  const cudaError_t made = cudaGraphInstantiate(&replay, graph, 0);
  cudaGraphDestroy(graph);
  check(made, "preparing a step's graph");
  for (idx step = 0; step < steps; ++step) {
    const cudaError_t code = cudaGraphLaunch(replay, e.stream);
    if (code != cudaSuccess) {
      cudaGraphExecDestroy(replay);
      check(code, "launching a step");
    }
    e.get(e.chosen.data() + step * n, s.ids, n);
  }
  const cudaError_t done = cudaStreamSynchronize(e.stream);
  cudaGraphExecDestroy(replay);
  check(done, "decoding a batch");
  for (GpuSession* session : sessions) session->position_ += steps;
  std::vector<std::int32_t> ids(e.chosen.data(), e.chosen.data() + steps * n);
  if (std::find(ids.begin(), ids.end(), -1) != ids.end()) e.fail_not_finite();
  return ids;
}

void forward_parts(GpuModel& model, std::span<const GpuPart> parts, float* logits) {
  need_whole(model);
  if (parts.empty()) return;
  GpuModel::Engine& e = model.engine();
  std::vector<std::int32_t> ids, last;
  std::vector<cuda::Segment> segments;
  bool single = true;
  for (const GpuPart& p : parts) {
    p.session->check_tokens(p.tokens);
    const auto begin = static_cast<int>(ids.size());
    ids.insert(ids.end(), p.tokens.begin(), p.tokens.end());
    segments.push_back({begin, static_cast<int>(ids.size()), p.session->state_});
    last.push_back(static_cast<std::int32_t>(ids.size()) - 1);
    single = single && p.tokens.size() == 1;
  }
  const auto rows = static_cast<idx>(ids.size()), n = static_cast<idx>(parts.size());
  RowScratch& s = e.rows_for(rows, n);
  e.put(s.ids, ids);
  e.put(s.segments, segments);
  e.put(s.logit_row, last);
  e.pass(s,
         {.rows = rows,
          .segments = static_cast<int>(n),
          .single_steps = single,
          .masked = false,
          .logit_rows = logits != nullptr ? n : 0},
         [](idx) {});
  if (logits != nullptr)
    e.get(logits, static_cast<const float*>(s.logits), n * e.config.vocab_size);
  e.wait("the forward pass");
  for (const GpuPart& p : parts) p.session->position_ += static_cast<idx>(p.tokens.size());
}

}  // namespace mmfree
