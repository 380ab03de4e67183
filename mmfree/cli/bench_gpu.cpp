#include "mmfree/cli/bench_gpu.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/cuda/inference.h"
#include "mmfree/cuda/roofline.h"
#include "mmfree/generate/offload_session.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

std::vector<std::int32_t> random_tokens(idx n, idx vocab) {
  std::vector<std::int32_t> ids;
  for (idx i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(random_bits(1, 0, static_cast<std::uint64_t>(i)) %
                                            static_cast<std::uint64_t>(vocab)));
  return ids;
}

// The model on the GPU and, where some blocks stay there, on the CPU.
struct Loaded {
  std::optional<TiledModel> cpu;
  std::optional<GpuModel> gpu;
  double load_s = 0;
};

void load(const Ctx& ctx, const BenchGpu& o, Loaded& m) {
  const Clock::time_point start = Clock::now();
  ProgressLine line("loading");
  const auto layers_of = [&](const MatmulFreeConfig& c) {
    if (o.gpu_layers > c.num_hidden_layers)
      fail(ErrorKind::usage, fmt::format("--gpu-layers is {}, expected at most {} (the blocks of "
                                         "the model)",
                                         o.gpu_layers, c.num_hidden_layers));
    return o.gpu_layers < 0 ? c.num_hidden_layers : o.gpu_layers;
  };
  if (o.model.empty()) {
    m.cpu = random_model(ctx, size_preset(o.size, o.vocab), 0, TileFormat::two_bit);
    m.gpu.emplace(ctx, *m.cpu, layers_of(m.cpu->base.config), line.sink());
  } else {
    PackedModel packed = load_packed(ctx, o.model, line.sink());
    const idx layers = layers_of(packed.config);
    m.gpu.emplace(ctx, packed, layers, line.sink());
    if (!m.gpu->whole()) m.cpu = tile_model(ctx, std::move(packed), line.sink());
  }
  if (m.gpu->whole()) m.cpu.reset();
  m.load_s = seconds_since(start);
}

idx ternary_weights(const MatmulFreeConfig& c, bool with_head) {
  const idx d = c.hidden_size;
  const idx layer = 4 * d * c.mixer_width() + 3 * d * c.mlp_width();
  return c.num_hidden_layers * layer + (with_head ? d * c.vocab_size : 0);
}

Json header(const BenchGpu& o, const Loaded& m) {
  const MatmulFreeConfig& c = m.gpu->config();
  const GpuInferenceInfo info = m.gpu->info();
  return {{"what", o.what},
          {"model",
           {{"source", o.model.empty() ? "random weights" : m.gpu->path()},
            {"size", o.model.empty() ? Json(o.size) : Json(nullptr)},
            {"hidden_size", c.hidden_size},
            {"layers", c.num_hidden_layers},
            {"mlp_width", c.mlp_width()},
            {"vocab_size", c.vocab_size},
            {"ternary_weights", ternary_weights(c, true)},
            {"layout", "two_bit"},
            {"matrix_bytes", info.matrix_bytes}}},
          {"device", "cuda"},
          {"gpu", info.device},
          {"gpu_layers", m.gpu->layers()}};
}

// Of the GPU: everything that this program put there but the roofline's buffer.
Json memory_json(const GpuModel& gpu, idx sessions) {
  const GpuInferenceInfo i = gpu.info();
  return {{"weights", i.weight_bytes},
          {"shared_buffers", i.scratch_bytes},
          {"per_session", i.session_bytes},
          {"total", i.weight_bytes + i.scratch_bytes +
                        static_cast<std::size_t>(sessions) * i.session_bytes}};
}

Json roofline_json(const GpuRoofline& r) {
  return {{"read_gb_per_s", r.read_bytes_per_s / 1e9}, {"int8_gops", r.int8_ops_per_s / 1e9}};
}

void add(Json& j, const Json& more) {
  for (const auto& [key, value] : more.items()) j[key] = value;
}

// Seconds of one call of run(): the median of rounds, each at least 0.2 s.
template <class F>
std::vector<double> measure(const BenchGpu& o, const F& run) {
  run();
  Clock::time_point start = Clock::now();
  run();
  const idx calls = std::max<idx>(1, static_cast<idx>(0.2 / std::max(seconds_since(start), 1e-6)));
  std::vector<double> seconds;
  for (idx r = 0; r < o.rounds; ++r) {
    start = Clock::now();
    for (idx i = 0; i < calls; ++i) run();
    seconds.push_back(seconds_since(start) / static_cast<double>(calls));
  }
  return seconds;
}

void print_end(const BenchGpu& o, const Json& j) {
  if (o.json) return fmt::print("{}\n", j.dump(2));
  fmt::print("  machine   {}: read {:.0f} GB/s, int8 {:.0f} TOP/s\n", j["gpu"].get<std::string>(),
             j["roofline"]["read_gb_per_s"].get<double>(),
             j["roofline"]["int8_gops"].get<double>() / 1e3);
  if (j.contains("device_memory_bytes"))
    fmt::print("  memory    {:.3f} GiB on the GPU, of it {:.2f} MB a session\n",
               j["device_memory_bytes"]["total"].get<double>() / (1 << 30),
               j["device_memory_bytes"]["per_session"].get<double>() / 1e6);
}

int decode(const BenchGpu& o, const Ctx& ctx, Loaded& m) {
  GpuModel& gpu = *m.gpu;
  const MatmulFreeConfig& c = gpu.config();
  std::vector<double> seconds;
  std::vector<GpuStage> stages;
  if (gpu.whole()) {
    GpuSession session(gpu);
    constexpr idx kTokens = 256;
    std::int32_t token = 1;
    const auto run = [&] { token = session.decode(token, kTokens).back(); };
    seconds = measure(o, run);
    for (double& s : seconds) s /= static_cast<double>(kTokens);
    gpu.measure_stages(true);
    run();
    stages = gpu.stages();
    gpu.measure_stages(false);
  } else {
    OffloadSession session(ctx, gpu, *m.cpu);
    const std::vector<std::int32_t> ids = random_tokens(64, c.vocab_size);
    std::size_t next = 0;
    seconds = measure(o, [&] { session.step(ids[next++ % ids.size()]); });
  }
  const double s = median(seconds);
  const GpuRoofline roofline = measure_gpu_roofline();
  const double bytes_per_s = static_cast<double>(gpu.info().matrix_bytes) / s;
  Json j = header(o, m);
  add(j, {{"batch", 1},
          {"tokens_per_s", 1 / s},
          {"tokens_per_s_range",
           {1 / *std::max_element(seconds.begin(), seconds.end()),
            1 / *std::min_element(seconds.begin(), seconds.end())}},
          {"gb_per_s", bytes_per_s / 1e9},
          {"roofline", roofline_json(roofline)},
          {"roofline_share", bytes_per_s / roofline.read_bytes_per_s},
          {"device_memory_bytes", memory_json(gpu, 1)},
          {"peak_rss_bytes", peak_rss_bytes()},
          {"load_s", m.load_s}});
  for (const GpuStage& stage : stages)
    j["stages"][stage.name] = {
        {"waiting", stage.waiting}, {"norm", stage.norm}, {"working", stage.working}};
  if (!o.json) {
    fmt::print("decode, one sequence, {} of {} blocks on the GPU\n", gpu.layers(),
               c.num_hidden_layers);
    fmt::print("  speed     {:.1f} tokens/s, {:.1f} us a token\n", 1 / s, s * 1e6);
    fmt::print("  weights   {:.0f} GB/s: {:.0f} % of the read bandwidth\n", bytes_per_s / 1e9,
               100 * bytes_per_s / roofline.read_bytes_per_s);
    if (!stages.empty()) {
      fmt::print("  time      ");
      for (const GpuStage& stage : stages)
        fmt::print("{} {:.1f} + {:.1f} + {:.1f} %  ", stage.name, 100 * stage.waiting,
                   100 * stage.norm, 100 * stage.working);
      fmt::print("(waiting + norm + working)\n");
    }
  }
  print_end(o, j);
  return 0;
}

int prefill(const BenchGpu& o, const Ctx& ctx, Loaded& m) {
  GpuModel& gpu = *m.gpu;
  const MatmulFreeConfig& c = gpu.config();
  const std::vector<std::int32_t> ids = random_tokens(o.tokens, c.vocab_size);
  std::vector<double> seconds;
  if (gpu.whole()) {
    GpuSession session(gpu);
    seconds = measure(o, [&] {
      session.restart();
      session.prefill(ids);
    });
  } else {
    OffloadSession session(ctx, gpu, *m.cpu);
    seconds = measure(o, [&] {
      session.restart();
      session.prefill(ids);
    });
  }
  const double s = median(seconds);
  const GpuRoofline roofline = measure_gpu_roofline();
  const double ops =
      2.0 * (static_cast<double>(ternary_weights(c, false)) * static_cast<double>(o.tokens) +
             static_cast<double>(c.hidden_size * c.vocab_size));
  Json j = header(o, m);
  add(j, {{"tokens", o.tokens},
          {"tokens_per_s", static_cast<double>(o.tokens) / s},
          {"gops", ops / s / 1e9},
          {"roofline", roofline_json(roofline)},
          {"bound", "int8"},
          {"roofline_share", ops / s / roofline.int8_ops_per_s},
          {"device_memory_bytes", memory_json(gpu, 1)},
          {"peak_rss_bytes", peak_rss_bytes()},
          {"load_s", m.load_s}});
  if (!o.json) {
    fmt::print("prefill of {} tokens\n", o.tokens);
    fmt::print("  speed     {:.0f} tokens/s, {:.2f} ms\n", static_cast<double>(o.tokens) / s,
               s * 1e3);
    fmt::print("  products  {:.0f} TOP/s: {:.0f} % of the int8 peak\n", ops / s / 1e12,
               100 * ops / s / roofline.int8_ops_per_s);
  }
  print_end(o, j);
  return 0;
}

int batch(const BenchGpu& o, Loaded& m) {
  GpuModel& gpu = *m.gpu;
  const MatmulFreeConfig& c = gpu.config();
  constexpr idx kSteps = 32;
  Json rows = Json::array();
  if (!o.json)
    fmt::print("decode of several sequences together\n  {:>5} {:>12} {:>12} {:>12}\n", "batch",
               "tokens/s", "ms a step", "GiB");
  for (const idx n : o.batches) {
    std::vector<GpuSession> sessions;
    std::vector<GpuSession*> pointers;
    for (idx k = 0; k < n; ++k) sessions.emplace_back(gpu);
    for (GpuSession& session : sessions) pointers.push_back(&session);
    const std::vector<std::int32_t> ids = random_tokens(n, c.vocab_size);
    const double s = median(measure(o, [&] { decode_batch(gpu, pointers, ids, kSteps); })) / kSteps;
    const double rate = static_cast<double>(n) / s;
    rows.push_back({{"batch", n},
                    {"tokens_per_s", rate},
                    {"step_s", s},
                    {"gb_per_s", static_cast<double>(gpu.info().matrix_bytes) / s / 1e9},
                    {"gops", 2.0 * static_cast<double>(ternary_weights(c, true)) * rate / 1e9},
                    {"device_memory_bytes", memory_json(gpu, n)}});
    if (!o.json)
      fmt::print("  {:>5} {:>12.1f} {:>12.3f} {:>12.3f}\n", n, rate, s * 1e3,
                 rows.back()["device_memory_bytes"]["total"].get<double>() / (1 << 30));
  }
  Json j = header(o, m);
  add(j, {{"roofline", roofline_json(measure_gpu_roofline())},
          {"batches", rows},
          {"load_s", m.load_s}});
  print_end(o, j);
  return 0;
}

// One session as long as --tokens says, in ten parts: neither time nor memory may depend on what
// came before.
int stream(const BenchGpu& o, Loaded& m) {
  constexpr idx kParts = 10;
  GpuModel& gpu = *m.gpu;
  GpuSession session(gpu);
  std::int32_t token = session.decode(1, 64).back();
  Json rows = Json::array();
  std::optional<ProgressLine> line("decoding");
  const Progress progress = line->sink();
  for (idx part = 0; part < kParts; ++part) {
    const idx first = o.tokens * part / kParts, last = o.tokens * (part + 1) / kParts;
    const Clock::time_point begin = Clock::now();
    for (idx t = first; t < last;) {
      const idx n = std::min<idx>(4096, last - t);
      token = session.decode(token, n).back();
      t += n;
      progress("tokens", static_cast<std::uint64_t>(t), static_cast<std::uint64_t>(o.tokens));
    }
    rows.push_back({{"first_position", first},
                    {"tokens", last - first},
                    {"tokens_per_s", static_cast<double>(last - first) / seconds_since(begin)},
                    {"device_memory_bytes", memory_json(gpu, 1)["total"]},
                    {"peak_rss_bytes", peak_rss_bytes()}});
  }
  line.reset();
  Json j = header(o, m);
  add(j, {{"tokens", o.tokens}, {"parts", rows}, {"load_s", m.load_s}});
  if (o.json) {
    fmt::print("{}\n", j.dump(2));
    return 0;
  }
  fmt::print("one stream of {} tokens\n  {:>14} {:>12} {:>10}\n", o.tokens, "from position",
             "tokens/s", "GPU GiB");
  for (const Json& r : rows)
    fmt::print("  {:>14} {:>12.1f} {:>10.3f}\n", r["first_position"].get<idx>(),
               r["tokens_per_s"].get<double>(), r["device_memory_bytes"].get<double>() / (1 << 30));
  return 0;
}

}  // namespace

int bench_gpu(const Ctx& ctx, const BenchGpu& o) {
  Loaded m;
  load(ctx, o, m);
  if (!m.gpu->whole() && o.what != "decode" && o.what != "prefill")
    fail(ErrorKind::usage, "bench: --gpu-layers is for decode and prefill");
  if (o.what == "decode") return decode(o, ctx, m);
  if (o.what == "prefill") return prefill(o, ctx, m);
  if (o.what == "batch") return batch(o, m);
  return stream(o, m);
}

}  // namespace mmfree
