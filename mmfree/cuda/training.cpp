#include "mmfree/cuda/training.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/cuda/network.h"

namespace mmfree {
namespace {

using cuda::check;

// Left to the CUDA context and the kernels of the libraries.
constexpr std::size_t kReservedBytes = std::size_t{768} << 20;

// Integer sums in float32 are exact below 2^24.
constexpr idx kWidestProduct = (idx{1} << 24) / 128;

template <class T>
class PinnedBuffer {
 public:
  explicit PinnedBuffer(idx n) {
    check(cudaMallocHost(&data_, static_cast<std::size_t>(n) * sizeof(T)),
          "allocating pinned memory");
  }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  ~PinnedBuffer() { cudaFreeHost(data_); }
  T* data() { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
};

struct Stream {
  Stream() { check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "creating a stream"); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() { cudaStreamDestroy(s); }
  cudaStream_t s = nullptr;
};

struct Event {
  Event() { check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming), "creating an event"); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() { cudaEventDestroy(e); }
  cudaEvent_t e = nullptr;
};

// A batch as one block of 32-bit numbers: inputs, labels, mask (as bytes), then the rows by id.
struct BatchLayout {
  explicit BatchLayout(idx rows) : rows_(rows) {}
  idx inputs() const { return 0; }
  idx labels() const { return rows_; }
  idx mask() const { return 2 * rows_; }
  idx count() const { return 2 * rows_ + (rows_ + 3) / 4; }
  idx ids() const { return count() + 1; }
  idx start() const { return ids() + rows_; }
  idx order() const { return start() + rows_ + 1; }
  idx size() const { return order() + rows_; }

 private:
  idx rows_;
};

// Groups rows by id, ids and rows ascending (counting sort). counts: V zeros, zero again
// afterwards.
void group_rows(const std::int32_t* ids, idx rows, std::vector<std::int32_t>& counts,
                std::int32_t* group_count, std::int32_t* group_ids, std::int32_t* start,
                std::int32_t* order) {
  for (idx r = 0; r < rows; ++r) ++counts[static_cast<std::size_t>(ids[r])];
  std::int32_t groups = 0, position = 0;
  for (std::size_t id = 0; id < counts.size(); ++id) {
    if (counts[id] == 0) continue;
    group_ids[groups] = static_cast<std::int32_t>(id);
    start[groups++] = position;
    position += std::exchange(counts[id], position);
  }
  start[groups] = position;
  *group_count = groups;
  for (idx r = 0; r < rows; ++r)
    order[counts[static_cast<std::size_t>(ids[r])]++] = static_cast<std::int32_t>(r);
  for (std::int32_t g = 0; g < groups; ++g) counts[static_cast<std::size_t>(group_ids[g])] = 0;
}

// What one graph was recorded for.
struct GraphKey {
  idx batch, length;
  float grad_scale;
  bool first, mask;
  bool operator==(const GraphKey&) const = default;
};
struct Graph {
  GraphKey key;
  cudaGraphExec_t exec;  // null: seen once, recorded the next time
};

struct Results {
  double nll, norm;
};

}  // namespace

struct GpuTraining::Engine {
  Engine(const MatmulFreeConfig& c, const GpuTrainingOptions& o)
      : options(o),
        device(cuda::select_device()),
        params(c, !o.keep_moments  ? cuda::Moments::none
                  : o.bf16_moments ? cuda::Moments::half
                                   : cuda::Moments::full),
        layout(o.rows),
        launch{stream.s, device.multiprocessors},
        counts(static_cast<std::size_t>(c.vocab_size)) {}
  virtual ~Engine() {
    for (const Graph& g : graphs)
      if (g.exec != nullptr) cudaGraphExecDestroy(g.exec);
  }
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  virtual void enqueue(const cuda::DeviceBatch& b, float grad_scale, bool first,
                       unsigned* counters) = 0;
  virtual void enqueue_forward(const cuda::DeviceBatch& b) = 0;

  const MatmulFreeConfig& config() const { return params.config; }
  cuda::DeviceBatch stage(const TokenBatch& b);
  void run(const cuda::DeviceBatch& b, float grad_scale, bool first);
  Results results();
  void copy(void* to, const void* from, idx bytes, cudaMemcpyKind kind);
  void synchronize() { check(cudaStreamSynchronize(stream.s), "waiting for the GPU"); }

  GpuTrainingOptions options;
  cuda::Device device;
  Stream stream;
  cuda::DeviceParams params;
  BatchLayout layout;
  cuda::Launch launch;
  cuda::Arena arena;
  idx kept_layers = 0;            // whose gate projections are stored
  std::int32_t* batch = nullptr;  // on the device
  double* nll = nullptr;          // likewise
  unsigned* saturated = nullptr;  // (L, 4) likewise
  idx saturated_rows = 0;
  std::vector<Graph> graphs;

  // Two staging blocks: the host fills one while the other is on its way.
  std::optional<PinnedBuffer<std::int32_t>> staging[2];
  Event staged[2];
  int slot = 0;
  std::optional<PinnedBuffer<Results>> host_results;
  std::vector<std::int32_t> counts;
};

namespace {

template <class T>
struct EngineOf final : GpuTraining::Engine {
  EngineOf(const MatmulFreeConfig& c, const GpuTrainingOptions& o);
  void take();
  void check_fp8(const MatmulFreeConfig& c) const;
  [[noreturn]] void out_of_memory(std::size_t least, std::size_t limit, bool by_option) const;
  void enqueue(const cuda::DeviceBatch& b, float grad_scale, bool first,
               unsigned* counters) override {
    network->forward_backward(b, grad_scale, first, nll, counters);
  }
  void enqueue_forward(const cuda::DeviceBatch& b) override { network->forward(b, nll, nullptr); }

  void* workspace = nullptr;
  std::optional<cuda::Products> products;
  std::optional<cuda::DeviceNetwork<T>> network;
  typename cuda::DeviceNetwork<T>::Keep keep;
};

template <class T>
void EngineOf<T>::check_fp8(const MatmulFreeConfig& c) const {
  if (!options.fp8_backward) return;
  if (sizeof(T) != 2)
    fail(ErrorKind::usage, "--backward fp8 with --precision float32: expected bf16");
  if (device.compute_capability != 90)
    fail(ErrorKind::resource,
         fmt::format("--backward fp8: {} has compute capability {}.{}, expected 9.0 (Hopper)",
                     device.name, device.compute_capability / 10, device.compute_capability % 10));
  if (!cuda::DeviceNetwork<T>::fp8_fits(c, device.compute_capability))
    fail(ErrorKind::config,
         fmt::format("--backward fp8: hidden size {}, mixer width {}, MLP width {}, expected "
                     "multiples of 16",
                     c.hidden_size, c.mixer_width(), c.mlp_width()));
}

template <class T>
void EngineOf<T>::take() {
  workspace = arena.take<char>(static_cast<idx>(cuda::Products::kWorkspaceBytes));
  params.take(arena);
  batch = arena.take<std::int32_t>(layout.size());
  nll = arena.take<double>(1);
  saturated = arena.take<unsigned>(4 * config().num_hidden_layers);
  if (!products) products.emplace(nullptr, cuda::Products::kWorkspaceBytes);
  if (!network)
    network.emplace(params, *products, launch, device.compute_capability, options.int8_products,
                    options.fp8_backward, options.rows);
  network->take(arena, keep);
}

// Says what the memory is for, and what lowers it: parameters do not care for the micro-batch.
template <class T>
void EngineOf<T>::out_of_memory(std::size_t least, std::size_t limit, bool by_option) const {
  const auto gib = [](std::size_t bytes) { return static_cast<double>(bytes) / 0x1p30; };
  cuda::Arena parameters;
  cuda::DeviceParams(params.config, params.moments).take(parameters);
  std::string remedy;
  if (parameters.peak() < limit && options.rows > 1)
    remedy += "a smaller --micro-batch (or --seq) lowers the latter";
  if (params.moments == cuda::Moments::full)
    remedy += std::string(remedy.empty() ? "" : ", ") + "--moments bf16 the former";
  if (remedy.empty()) remedy = "a smaller --size needs less";
  fail(ErrorKind::resource,
       fmt::format("out of GPU memory: at least {:.2f} GiB needed, {:.2f} GiB {}; {:.2f} GiB are "
                   "for parameters, gradients and moments, {:.2f} GiB for a batch of {} tokens: {}",
                   gib(least), gib(limit), by_option ? "allowed by --device-memory" : "free",
                   gib(parameters.peak()), gib(least - parameters.peak()), options.rows, remedy));
}

template <class T>
EngineOf<T>::EngineOf(const MatmulFreeConfig& c, const GpuTrainingOptions& o) : Engine(c, o) {
  const idx layers = c.num_hidden_layers;
  check_fp8(c);
  // Plan with nothing kept, then keep what the memory allows.
  take();
  const std::size_t least = arena.peak();
  const std::size_t there = device.free_bytes - std::min(device.free_bytes, kReservedBytes);
  const std::size_t limit = o.memory_limit > 0 ? std::min(o.memory_limit, there) : there;
  if (least > limit) out_of_memory(least, limit, limit < there);
  constexpr std::size_t kAlignment = 256;
  std::size_t left = limit - least;
  const auto layers_of = [&](idx bytes) {
    const std::size_t each = static_cast<std::size_t>(bytes) + 4 * kAlignment;
    const idx n = std::min(layers, static_cast<idx>(left / each));
    left -= static_cast<std::size_t>(n) * each;
    return n;
  };
  // In the order of the time that a byte saves.
  keep.pq = kept_layers = layers_of(cuda::DeviceNetwork<T>::pq_bytes(c, o.rows));
  keep.h = layers_of(cuda::DeviceNetwork<T>::h_bytes(c, o.rows));
  keep.codes = layers_of(cuda::DeviceNetwork<T>::codes_bytes(c, o.rows));
  // One launch for all matrices in place of one a product; nothing to gain where those are large,
  // and input gradients in e4m3 need them otherwise.
  constexpr std::size_t kSmall = std::size_t{512} << 20;
  const std::size_t weights = static_cast<std::size_t>(params.size) * sizeof(T) + kAlignment;
  keep.weights = !o.fp8_backward && weights <= std::min(left, kSmall);
  const auto plan = [&] {
    arena.rewind(0);
    take();
  };
  plan();
  arena.allocate("a smaller --micro-batch or --device-memory needs less");
  network.reset();
  products.reset();
  // The library gets its workspace only now that it exists.
  arena.rewind(0);
  workspace = arena.take<char>(static_cast<idx>(cuda::Products::kWorkspaceBytes));
  arena.rewind(0);
  products.emplace(workspace, cuda::Products::kWorkspaceBytes);
  plan();
  params.fill_tables(stream.s);
  for (auto& s : staging) s.emplace(layout.size());
  host_results.emplace(1);
}

cuda::AdamWStep adamw_step(const GpuUpdate& u) {
  const double t = static_cast<double>(u.step);
  // As ops/adamw computes them: from the options rounded to float.
  const double lr = static_cast<double>(static_cast<float>(u.lr));
  const double beta1 = static_cast<double>(static_cast<float>(u.beta1));
  const double beta2 = static_cast<double>(static_cast<float>(u.beta2));
  const double decay = static_cast<double>(static_cast<float>(u.weight_decay));
  return {.keep_decayed = static_cast<float>(1.0 - lr * decay),
          .keep = 1.0F,
          .beta1 = static_cast<float>(u.beta1),
          .one_less_beta1 = static_cast<float>(1.0 - beta1),
          .beta2 = static_cast<float>(u.beta2),
          .one_less_beta2 = static_cast<float>(1.0 - beta2),
          .root_correction = static_cast<float>(std::sqrt(1.0 - std::pow(beta2, t))),
          .eps = static_cast<float>(u.eps),
          .step_size = static_cast<float>(lr / (1.0 - std::pow(beta1, t))),
          .clip = static_cast<float>(u.clip)};
}

std::unique_ptr<GpuTraining::Engine> make_engine(const MatmulFreeConfig& c,
                                                 const GpuTrainingOptions& o) {
  const idx widest = std::max({c.hidden_size, c.mixer_width(), c.mlp_width()});
  if (widest > kWidestProduct)
    fail(ErrorKind::config, fmt::format("--device cuda: a product over {} inputs, expected at most "
                                        "{}",
                                        widest, kWidestProduct));
  if (o.precision == GpuPrecision::bf16) return std::make_unique<EngineOf<cuda::bf16>>(c, o);
  return std::make_unique<EngineOf<float>>(c, o);
}

}  // namespace

void GpuTraining::Engine::copy(void* to, const void* from, idx bytes, cudaMemcpyKind kind) {
  check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream.s),
        "copying between host and GPU");
}

cuda::DeviceBatch GpuTraining::Engine::stage(const TokenBatch& b) {
  const idx rows = b.batch * b.length;
  if (rows > options.rows)
    fail(ErrorKind::usage, fmt::format("a batch of {} tokens, expected at most the {} that GPU "
                                       "memory was planned for",
                                       rows, options.rows));
  const auto i = static_cast<std::size_t>(slot);
  check(cudaEventSynchronize(staged[i].e), "waiting for the GPU");
  std::int32_t* h = staging[i]->data();
  const auto bytes = static_cast<std::size_t>(rows) * sizeof(std::int32_t);
  std::memcpy(h + layout.inputs(), b.inputs, bytes);
  std::memcpy(h + layout.labels(), b.labels, bytes);
  if (b.mask != nullptr) std::memcpy(h + layout.mask(), b.mask, static_cast<std::size_t>(rows));
  group_rows(b.inputs, rows, counts, h + layout.count(), h + layout.ids(), h + layout.start(),
             h + layout.order());
  copy(batch, h, layout.size() * static_cast<idx>(sizeof(std::int32_t)), cudaMemcpyHostToDevice);
  check(cudaEventRecord(staged[i].e, stream.s), "recording an event");
  slot ^= 1;
  return {
      b.batch,
      b.length,
      batch + layout.inputs(),
      batch + layout.labels(),
      b.mask == nullptr ? nullptr : reinterpret_cast<const std::uint8_t*>(batch + layout.mask()),
      {batch + layout.count(), batch + layout.ids(), batch + layout.start(),
       batch + layout.order()}};
}

// The first batch of a kind runs launch by launch, the second is recorded, later ones replay it.
void GpuTraining::Engine::run(const cuda::DeviceBatch& b, float grad_scale, bool first) {
  const GraphKey key{b.batch, b.length, grad_scale, first, b.mask != nullptr};
  auto found =
      std::find_if(graphs.begin(), graphs.end(), [&](const Graph& g) { return g.key == key; });
  if (!options.graph || found == graphs.end()) {
    constexpr std::size_t kMostGraphs = 4;  // callers that vary everything do not gain from graphs
    if (options.graph && graphs.size() < kMostGraphs) graphs.push_back({key, nullptr});
    enqueue(b, grad_scale, first, nullptr);
    return;
  }
  if (found->exec == nullptr) {
    check(cudaStreamBeginCapture(stream.s, cudaStreamCaptureModeThreadLocal), "recording a graph");
    enqueue(b, grad_scale, first, nullptr);
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream.s, &graph), "recording a graph");
    const cudaError_t code = cudaGraphInstantiate(&found->exec, graph, 0);
    cudaGraphDestroy(graph);
    check(code, "making a graph");
  }
  check(cudaGraphLaunch(found->exec, stream.s), "launching a graph");
}

Results GpuTraining::Engine::results() {
  Results* r = host_results->data();
  copy(&r->nll, nll, sizeof(double), cudaMemcpyDeviceToHost);
  copy(&r->norm, params.norm, sizeof(double), cudaMemcpyDeviceToHost);
  synchronize();
  return *r;
}

GpuTraining::GpuTraining(const MatmulFreeConfig& config, const GpuTrainingOptions& options)
    : engine_(make_engine(config, options)) {}
GpuTraining::~GpuTraining() = default;
GpuTraining::GpuTraining(GpuTraining&&) noexcept = default;
GpuTraining& GpuTraining::operator=(GpuTraining&&) noexcept = default;

void GpuTraining::upload(const float* values, const float* m, const float* v) {
  Engine& e = *engine_;
  const idx bytes = e.params.size * static_cast<idx>(sizeof(float));
  e.copy(e.params.values, values, bytes, cudaMemcpyHostToDevice);
  if (e.options.keep_moments) {
    const auto moment_bytes = static_cast<idx>(e.params.moment_bytes());
    const auto moment = [&](void* to, const float* from) {
      if (from == nullptr)
        return check(cudaMemsetAsync(to, 0, e.params.moment_bytes(), e.stream.s),
                     "clearing GPU memory");
      if (e.params.moments == cuda::Moments::full)
        return e.copy(to, from, moment_bytes, cudaMemcpyHostToDevice);
      std::vector<cuda::bf16> rounded(static_cast<std::size_t>(e.params.size));
      for (std::size_t i = 0; i < rounded.size(); ++i) rounded[i] = __float2bfloat16_rn(from[i]);
      e.copy(to, rounded.data(), moment_bytes, cudaMemcpyHostToDevice);
      e.synchronize();
    };
    moment(e.params.m, m);
    moment(e.params.v, v);
  }
  e.params.ternarize(e.launch);
  e.synchronize();
}

void GpuTraining::download(float* values, float* m, float* v) {
  Engine& e = *engine_;
  const idx bytes = e.params.size * static_cast<idx>(sizeof(float));
  const auto get = [&](float* to, const float* from) {
    if (to != nullptr && from != nullptr) e.copy(to, from, bytes, cudaMemcpyDeviceToHost);
  };
  const auto get_moment = [&](float* to, const void* from) {
    if (e.params.moments != cuda::Moments::half) return get(to, static_cast<const float*>(from));
    if (to == nullptr) return;
    std::vector<cuda::bf16> stored(static_cast<std::size_t>(e.params.size));
    e.copy(stored.data(), from, static_cast<idx>(e.params.moment_bytes()), cudaMemcpyDeviceToHost);
    e.synchronize();
    for (std::size_t i = 0; i < stored.size(); ++i) to[i] = __bfloat162float(stored[i]);
  };
  get(values, e.params.values);
  get_moment(m, e.params.m);
  get_moment(v, e.params.v);
  e.synchronize();
}

void GpuTraining::download_gradients(float* grads) {
  Engine& e = *engine_;
  e.copy(grads, e.params.grads, e.params.size * static_cast<idx>(sizeof(float)),
         cudaMemcpyDeviceToHost);
  e.synchronize();
}

void GpuTraining::download_ternary(Network& net) {
  Engine& e = *engine_;
  const auto get = [&](const cuda::Linear& from, TernaryWeights& to) {
    to.out = from.out;
    to.in = from.in;
    if (to.codes.size() != from.out * from.in) to.codes = Buffer<std::int8_t>(from.out * from.in);
    e.copy(to.codes.data(), from.codes, to.codes.size(), cudaMemcpyDeviceToHost);
    e.copy(&to.scale, from.scale, sizeof(float), cudaMemcpyDeviceToHost);
  };
  for (std::size_t l = 0; l < net.layers.size(); ++l) {
    const cuda::LayerLinears& from = e.params.layers[l];
    LayerTernary& to = net.layers[l];
    get(from.i, to.i);
    get(from.f, to.f);
    get(from.g, to.g);
    get(from.o, to.o);
    get(from.gate, to.gate);
    get(from.down, to.down);
  }
  get(e.params.head, net.head);
  if (!net.bounds.empty())
    e.copy(net.bounds.data(), e.params.bounds, net.bounds.size() * static_cast<idx>(sizeof(float)),
           cudaMemcpyDeviceToHost);
  e.synchronize();
}

void GpuTraining::randomize(std::uint64_t seed) {
  Engine& e = *engine_;
  // One block of numbers, repeated: as good as any for a measurement, and quickly made.
  constexpr std::size_t kBlock = std::size_t{1} << 20;
  std::vector<float> block(kBlock);
  for (std::size_t i = 0; i < kBlock; ++i)
    block[i] = static_cast<float>(random_uniform(seed, 0, i) - 0.5);
  std::vector<float> tensor;
  for (const ParamInfo& p : e.params.table) {
    const auto n = static_cast<std::size_t>(p.size());
    tensor.assign(n, p.init == ParamInit::ones ? 1.0F : 0.0F);
    const double fan = p.shape.size() == 2 ? static_cast<double>(p.shape[0] + p.shape[1]) : 1.0;
    const double range = p.init == ParamInit::xavier_small
                             ? 2 * std::exp2(-2.5) * std::sqrt(6 / fan)
                             : 0.02 * std::sqrt(12.0);
    if (p.init != ParamInit::ones && p.init != ParamInit::zeros)
      for (std::size_t i = 0; i < n; ++i)
        tensor[i] = static_cast<float>(range) * block[(i + n) % kBlock];
    e.copy(e.params.values + p.offset, tensor.data(), static_cast<idx>(n * sizeof(float)),
           cudaMemcpyHostToDevice);
    e.synchronize();
  }
  e.params.ternarize(e.launch);
  e.synchronize();
}

void GpuTraining::forward_backward(const TokenBatch& b, float grad_scale, bool first,
                                   bool count_saturation) {
  Engine& e = *engine_;
  const cuda::DeviceBatch batch = e.stage(b);
  if (!count_saturation) return e.run(batch, grad_scale, first);
  check(
      cudaMemsetAsync(e.saturated, 0,
                      4 * static_cast<std::size_t>(e.config().num_hidden_layers) * sizeof(unsigned),
                      e.stream.s),
      "clearing counters");
  e.saturated_rows = b.batch * b.length;
  e.enqueue(batch, grad_scale, first, e.saturated);
}

LossSum GpuTraining::forward_loss(const TokenBatch& b) {
  Engine& e = *engine_;
  if (b.batch * b.length == 0) return {};
  e.enqueue_forward(e.stage(b));
  LossSum loss;
  loss.nll = e.results().nll;
  for (idx r = 0; r < b.batch * b.length; ++r) loss.count += b.labels[r] == kIgnoreLabel ? 0 : 1;
  return loss;
}

void GpuTraining::update(const GpuUpdate& u) {
  engine_->params.update(engine_->launch, adamw_step(u));
}

GpuStepResult GpuTraining::wait() {
  const Results r = engine_->results();
  return {r.nll, r.norm};
}

std::vector<LayerSaturation> GpuTraining::saturation() {
  Engine& e = *engine_;
  const MatmulFreeConfig& c = e.config();
  std::vector<unsigned> n(static_cast<std::size_t>(4 * c.num_hidden_layers));
  e.copy(n.data(), e.saturated, static_cast<idx>(n.size() * sizeof(unsigned)),
         cudaMemcpyDeviceToHost);
  e.synchronize();
  std::vector<LayerSaturation> result;
  if (e.saturated_rows == 0) return result;
  const auto share = [&](std::size_t i, idx width) {
    return static_cast<double>(n[i]) / static_cast<double>(e.saturated_rows * width);
  };
  for (std::size_t i = 0; i < n.size(); i += 4)
    result.push_back({.mixer_in = share(i, 3 * c.hidden_size),
                      .mixer_out = share(i + 1, c.mixer_width()),
                      .mlp_in = share(i + 2, c.hidden_size),
                      .mlp_out = share(i + 3, c.mlp_width())});
  return result;
}

GpuMemory GpuTraining::memory() const {
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the GPU's memory");
  return {engine_->device.name, engine_->arena.peak(), total_bytes - free_bytes,
          total_bytes,          engine_->kept_layers,  engine_->device.peak_flops};
}

}  // namespace mmfree
