#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mmfree/bench/roofline.h"
#include "mmfree/cli/bench_gpu.h"
#include "mmfree/cli/bench_train.h"
#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/cpu.h"
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/core/team.h"
#include "mmfree/generate/session.h"
#include "mmfree/model/config.h"
#include "mmfree/ops/tile_product/tile_product.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Options {
  std::string what, model, size, device = "cpu", layout = "auto";
  idx tokens = 512, vocab = 32000, rounds = 9;
  std::vector<idx> batches = {1, 2, 4, 8, 16, 32};
  bool random = false, json = false;
};

std::optional<TileFormat> layout_of(const std::string& name) {
  if (name == "base3") return TileFormat::base3;
  if (name == "two_bit") return TileFormat::two_bit;
  return std::nullopt;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

// Larger than any last-level cache by far.
constexpr idx kProbeBytes = idx{1} << 30;

// Measurements of the machine between those of the model, so that both see the same machine.
struct Machine {
  explicit Machine(const Ctx& c) : ctx(c), probe(c, kProbeBytes) { probe.read(c); }
  void look() {
    read.push_back(probe.read(ctx));
    int8.push_back(int8_ops_per_s(ctx));
  }
  Json json() {
    Json by_threads = Json::object();  // with fewer threads: a single reading each
    for (int n = 1; n < ctx.threads; n *= 2)
      by_threads[std::to_string(n)] = probe.read(Ctx{n}) / 1e9;
    by_threads[std::to_string(ctx.threads)] = median(read) / 1e9;
    return {{"read_gb_per_s", median(read) / 1e9},
            {"read_gb_per_s_by_threads", by_threads},
            {"int8_gops", median(int8) / 1e9},
            {"int8_isa", isa_name(roofline_isa())},
            {"f32_gflops", f32_ops_per_s(ctx) / 1e9}};
  }
  Ctx ctx;
  MemoryProbe probe;
  std::vector<double> read, int8;
};

TiledModel get_model(const Ctx& ctx, const Options& o) {
  if (o.random) return random_model(ctx, size_preset(o.size, o.vocab), 0, layout_of(o.layout));
  ProgressLine line("loading");
  return load_model(ctx, o.model, line.sink(), layout_of(o.layout));
}

idx ternary_weights(const MatmulFreeConfig& c, bool with_head) {
  const idx d = c.hidden_size;
  const idx layer = 4 * d * c.mixer_width() + 3 * d * c.mlp_width();
  return c.num_hidden_layers * layer + (with_head ? d * c.vocab_size : 0);
}

// base3, two_bit, or base3+two_bit where it differs by width.
std::string layout_name(const Layout& l) {
  bool used[2] = {};
  for (const WidthLayout& w : l.widths) used[w.format == TileFormat::two_bit] = true;
  return used[0] && used[1] ? "base3+two_bit" : used[0] ? "base3" : "two_bit";
}

Json layout_json(const Layout& l) {
  Json widths = Json::array();
  const auto rate = [](double macs) { return macs > 0 ? Json(macs / 1e9) : Json(nullptr); };
  for (const WidthLayout& w : l.widths)
    widths.push_back({{"in", w.in},
                      {"layout", tile_format_name(w.format)},
                      {"base3_gmac_per_s", rate(w.base3_macs_per_s)},
                      {"two_bit_gmac_per_s", rate(w.two_bit_macs_per_s)}});
  const bool forced = l.seconds == 0;
  return {{"chosen_by", forced         ? "option"
                        : l.from_cache ? "speed from cache"
                                       : "speed from memory"},
          {"seconds", l.seconds},
          {"widths", widths}};
}

Json model_json(const TiledModel& m, const Options& o) {
  const MatmulFreeConfig& c = m.base.config;
  return {{"source", o.random ? "random weights" : m.base.path},
          {"size", o.random ? Json(o.size) : Json(nullptr)},
          {"hidden_size", c.hidden_size},
          {"layers", c.num_hidden_layers},
          {"mlp_width", c.mlp_width()},
          {"vocab_size", c.vocab_size},
          {"ternary_weights", ternary_weights(c, true)},
          {"layout", layout_name(m.layout)},
          {"layout_choice", layout_json(m.layout)},
          {"matrix_bytes", matrix_bytes(m)}};
}

std::vector<std::int32_t> random_tokens(idx n, idx vocab) {
  std::vector<std::int32_t> ids;
  for (idx i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(random_bits(1, 0, static_cast<std::uint64_t>(i)) %
                                            static_cast<std::uint64_t>(vocab)));
  return ids;
}

Json stages_json(const StageSeconds& s) {
  const double total =
      s.embedding + s.norms + s.mixer_in + s.mixer_out + s.mlp_in + s.mlp_out + s.head;
  return {{"norms", s.norms / total},         {"mixer_in", s.mixer_in / total},
          {"mixer_out", s.mixer_out / total}, {"mlp_in", s.mlp_in / total},
          {"mlp_out", s.mlp_out / total},     {"head", s.head / total},
          {"embedding", s.embedding / total}};
}

struct Measured {
  double seconds = 0;  // of one call: the median
  double fastest = 0, slowest = 0;
  std::optional<double> joules;  // of one call
};

// Calls run() in rounds of at least 0.3 s, looking at the machine after each.
template <class F>
Measured measure(const Options& o, Machine& machine, const F& run) {
  run();
  Clock::time_point start = Clock::now();
  run();
  const double once = std::max(seconds_since(start), 1e-6);
  const idx calls = std::max<idx>(1, static_cast<idx>(0.3 / once));
  std::vector<double> seconds;
  double joules = 0;
  bool has_energy = true;
  for (idx r = 0; r < o.rounds; ++r) {
    const std::optional<double> before = package_joules();
    start = Clock::now();
    for (idx i = 0; i < calls; ++i) run();
    seconds.push_back(seconds_since(start) / static_cast<double>(calls));
    const std::optional<double> after = package_joules();
    has_energy = has_energy && before && after && *after > *before;
    if (has_energy) joules += (*after - *before) / static_cast<double>(calls * o.rounds);
    machine.look();
  }
  Measured m{median(seconds), *std::min_element(seconds.begin(), seconds.end()),
             *std::max_element(seconds.begin(), seconds.end()), std::nullopt};
  if (has_energy) m.joules = joules;
  return m;
}

Json optional_json(const std::optional<double>& v, double factor = 1) {
  return v ? Json(*v * factor) : Json(nullptr);
}

void finish(Json& j, const Bystanders& others, const Options& o) {
  const std::optional<double> share = others.share();
  j["others_cpu_share"] = optional_json(share);
  if (share && *share > 0.05)
    fmt::print(stderr,
               "mmfree: warning: other programs used {:.0f} % of the processors meanwhile; the "
               "figures are too low\n",
               100 * *share);
  if (o.json) fmt::print("{}\n", j.dump(2));
}

void print_roofline(const Json& r) {
  fmt::print("  machine   read {:.1f} GB/s, int8 {:.0f} GOP/s ({}), float32 {:.0f} GFLOP/s\n",
             r["read_gb_per_s"].get<double>(), r["int8_gops"].get<double>(),
             r["int8_isa"].get<std::string>(), r["f32_gflops"].get<double>());
}

void print_stages(const Json& stages) {
  fmt::print("  time      ");
  for (const auto& [name, value] : stages.items())
    fmt::print("{} {:.1f} %  ", name, 100 * value.get<double>());
  fmt::print("\n");
}

void print_model(const TiledModel& m, const Ctx& ctx, double load_s) {
  fmt::print("  model     {}, {:.1f} MB of matrices ({}), {} threads, {}; ready in {:.2f} s\n",
             m.base.path, static_cast<double>(matrix_bytes(m)) / 1e6, layout_name(m.layout),
             ctx.threads, isa_name(active_isa()), load_s);
}

int bench_decode(const Ctx& ctx, const Options& o) {
  const Clock::time_point start = Clock::now();
  const TiledModel model = get_model(ctx, o);
  Session session(ctx, model);
  const double load_s = seconds_since(start);
  const MatmulFreeConfig& c = model.base.config;
  const std::vector<std::int32_t> ids = random_tokens(64, c.vocab_size);
  session.prefill(ids);
  const double first_s = seconds_since(start);
  const long long peak = peak_rss_bytes();
  const Bystanders others;
  Machine machine(ctx);
  std::size_t next = 0;
  const Measured m = measure(o, machine, [&] { session.step(ids[next++ % ids.size()]); });
  StageSeconds stages;
  InferScratch scratch(c, 1, 1, ctx.threads);
  scratch.stages = &stages;
  SessionState state(c);
  SessionState* const states[] = {&state};
  for (std::size_t i = 0; i < 32; ++i)
    step_batch(ctx, model, std::span(&ids[i], 1), states, scratch);
  const Json roofline = machine.json();
  const double bytes_per_s = static_cast<double>(matrix_bytes(model)) / m.seconds;
  const double share = bytes_per_s / 1e9 / roofline["read_gb_per_s"].get<double>();
  Json j = {{"what", "decode"},
            {"model", model_json(model, o)},
            {"device", "cpu"},
            {"isa", isa_name(active_isa())},
            {"threads", ctx.threads},
            {"batch", 1},
            {"tokens_per_s", 1 / m.seconds},
            {"tokens_per_s_range", {1 / m.slowest, 1 / m.fastest}},
            {"gb_per_s", bytes_per_s / 1e9},
            {"roofline", roofline},
            {"bound", "memory"},
            {"roofline_share", share},
            {"stages", stages_json(stages)},
            {"peak_rss_bytes", peak},
            {"load_s", load_s},
            {"first_token_s", first_s},
            {"joules_per_token", optional_json(m.joules)}};
  if (!o.json) {
    fmt::print("decode, one sequence\n");
    print_model(model, ctx, load_s);
    fmt::print("  speed     {:.1f} tokens/s ({:.1f} to {:.1f} over {} rounds), {:.3f} ms a token\n",
               1 / m.seconds, 1 / m.slowest, 1 / m.fastest, o.rounds, m.seconds * 1e3);
    print_roofline(roofline);
    fmt::print("  weights   {:.1f} GB/s: {:.0f} % of the read bandwidth\n", bytes_per_s / 1e9,
               100 * share);
    print_stages(j["stages"]);
    fmt::print("  memory    {:.1f} MB at most\n", static_cast<double>(peak) / 1e6);
    if (m.joules) fmt::print("  energy    {:.3f} J a token (whole packages)\n", *m.joules);
  }
  finish(j, others, o);
  return 0;
}

int bench_prefill(const Ctx& ctx, const Options& o) {
  const Clock::time_point start = Clock::now();
  const TiledModel model = get_model(ctx, o);
  Session session(ctx, model);
  const double load_s = seconds_since(start);
  const MatmulFreeConfig& c = model.base.config;
  const std::vector<std::int32_t> ids = random_tokens(o.tokens, c.vocab_size);
  session.prefill(ids);
  const long long peak = peak_rss_bytes();
  const Bystanders others;
  Machine machine(ctx);
  const Measured m = measure(o, machine, [&] {
    session.restart();
    session.prefill(ids);
  });
  const Json roofline = machine.json();
  StageSeconds stages;
  {
    InferScratch scratch(c, prefill_rows(), 1, ctx.threads);
    scratch.stages = &stages;
    SessionState state(c);
    ForwardCall call;
    call.tokens = ids;
    forward(ctx, model, call, state, scratch);
  }
  // The head works for the last token only.
  const double ops =
      2.0 * (static_cast<double>(ternary_weights(c, false)) * static_cast<double>(o.tokens) +
             static_cast<double>(c.hidden_size * c.vocab_size));
  const double gops = ops / m.seconds / 1e9;
  const double share = gops / roofline["int8_gops"].get<double>();
  const double rate = static_cast<double>(o.tokens) / m.seconds;
  Json j = {{"what", "prefill"},
            {"model", model_json(model, o)},
            {"device", "cpu"},
            {"isa", isa_name(active_isa())},
            {"threads", ctx.threads},
            {"tokens", o.tokens},
            {"tokens_per_s", rate},
            {"gops", gops},
            {"gb_per_s", static_cast<double>(matrix_bytes(model)) / m.seconds / 1e9},
            {"roofline", roofline},
            {"bound", "int8"},
            {"roofline_share", share},
            {"stages", stages_json(stages)},
            {"peak_rss_bytes", peak},
            {"load_s", load_s},
            {"joules_per_token", optional_json(m.joules, 1.0 / static_cast<double>(o.tokens))}};
  if (!o.json) {
    fmt::print("prefill of {} tokens\n", o.tokens);
    print_model(model, ctx, load_s);
    fmt::print("  speed     {:.1f} tokens/s, {:.1f} ms\n", rate, m.seconds * 1e3);
    print_roofline(roofline);
    fmt::print("  products  {:.0f} GOP/s: {:.0f} % of the int8 peak\n", gops, 100 * share);
    print_stages(j["stages"]);
    fmt::print("  memory    {:.1f} MB at most\n", static_cast<double>(peak) / 1e6);
  }
  finish(j, others, o);
  return 0;
}

int bench_batch(const Ctx& ctx, const Options& o) {
  const Clock::time_point start = Clock::now();
  const TiledModel model = get_model(ctx, o);
  const double load_s = seconds_since(start);
  const MatmulFreeConfig& c = model.base.config;
  const Bystanders others;
  const long long peak_before = peak_rss_bytes();
  Machine machine(ctx);
  if (!o.json) {
    fmt::print("decode of several sequences together\n");
    print_model(model, ctx, load_s);
    fmt::print("  {:>5} {:>12} {:>12} {:>12}\n", "batch", "tokens/s", "ms a step",
               "tokens/s ratio");
  }
  Json rows = Json::array();
  double one = 0;
  for (const idx n : o.batches) {
    InferScratch scratch(c, n, n, ctx.threads);
    std::vector<SessionState> sessions;
    std::vector<SessionState*> states;
    for (idx i = 0; i < n; ++i) sessions.emplace_back(c);
    for (SessionState& s : sessions) states.push_back(&s);
    const std::vector<std::int32_t> ids = random_tokens(n, c.vocab_size);
    const Measured m = measure(o, machine, [&] { step_batch(ctx, model, ids, states, scratch); });
    const double rate = static_cast<double>(n) / m.seconds;
    if (rows.empty()) one = rate;
    rows.push_back({{"batch", n},
                    {"tokens_per_s", rate},
                    {"step_s", m.seconds},
                    {"ratio_to_first", rate / one},
                    {"gb_per_s", static_cast<double>(matrix_bytes(model)) / m.seconds / 1e9},
                    {"gops", 2.0 * static_cast<double>(ternary_weights(c, true)) * rate / 1e9}});
    if (!o.json)
      fmt::print("  {:>5} {:>12.1f} {:>12.3f} {:>12.2f}\n", n, rate, m.seconds * 1e3, rate / one);
  }
  Json j = {{"what", "batch"},        {"model", model_json(model, o)},
            {"device", "cpu"},        {"isa", isa_name(active_isa())},
            {"threads", ctx.threads}, {"roofline", machine.json()},
            {"batches", rows},        {"peak_rss_bytes", peak_before},
            {"load_s", load_s}};
  if (!o.json) print_roofline(j["roofline"]);
  finish(j, others, o);
  return 0;
}

// One session as long as --tokens says, in ten parts: neither time nor memory may depend on what
// came before.
int bench_stream(const Ctx& ctx, const Options& o) {
  constexpr idx kParts = 10;
  const Clock::time_point start = Clock::now();
  const TiledModel model = get_model(ctx, o);
  const idx vocab = model.base.config.vocab_size;
  Session session(ctx, model);
  const double load_s = seconds_since(start);
  const Bystanders others;
  if (!o.json) {
    fmt::print("one stream of {} tokens\n", o.tokens);
    print_model(model, ctx, load_s);
  }
  std::optional<ProgressLine> line("decoding");
  const Progress progress = line->sink();
  Json rows = Json::array();
  for (idx part = 0; part < kParts; ++part) {
    const idx first = o.tokens * part / kParts;
    const idx last = o.tokens * (part + 1) / kParts;
    const Clock::time_point begin = Clock::now();
    for (idx t = first; t < last; ++t) {
      session.step(static_cast<std::int32_t>(random_bits(1, 0, static_cast<std::uint64_t>(t)) %
                                             static_cast<std::uint64_t>(vocab)));
      if (t % 1024 == 0)
        progress("tokens", static_cast<std::uint64_t>(t), static_cast<std::uint64_t>(o.tokens));
    }
    rows.push_back({{"first_position", first},
                    {"tokens", last - first},
                    {"tokens_per_s", static_cast<double>(last - first) / seconds_since(begin)},
                    {"peak_rss_bytes", peak_rss_bytes()}});
  }
  line.reset();
  Json j = {{"what", "stream"},       {"model", model_json(model, o)},
            {"device", "cpu"},        {"isa", isa_name(active_isa())},
            {"threads", ctx.threads}, {"tokens", o.tokens},
            {"parts", rows}};
  if (!o.json) {
    fmt::print("  {:>14} {:>12} {:>14}\n", "from position", "tokens/s", "peak MB so far");
    for (const Json& r : rows)
      fmt::print("  {:>14} {:>12.1f} {:>14.1f}\n", r["first_position"].get<idx>(),
                 r["tokens_per_s"].get<double>(), r["peak_rss_bytes"].get<double>() / 1e6);
  }
  finish(j, others, o);
  return 0;
}

// The product alone, on copies of one matrix that fill the probe's size or on one that stays in the
// cache.
int bench_ops(const Ctx& ctx, const Options& o) {
  struct Shape {
    idx out, in;
  };
  const MatmulFreeConfig c = size_preset(o.size.empty() ? "1.3b" : o.size, o.vocab);
  const Shape shapes[] = {{c.mixer_width(), c.hidden_size},
                          {2 * c.mlp_width(), c.hidden_size},
                          {c.hidden_size, c.mlp_width()}};
  const Bystanders others;
  Machine machine(ctx);
  Json rows = Json::array();
  if (!o.json)
    fmt::print("{:>8} {:>14} {:>6} {:>7} {:>10} {:>8} {:>8} {:>8}\n", "layout", "matrix", "tokens",
               "from", "GMAC/s", "GB/s", "% read", "% int8");
  const TileProductFn product = tile_product();
  for (const TileFormat f : {TileFormat::base3, TileFormat::two_bit})
    for (const Shape& shape : shapes)
      for (const bool cached : {false, true})
        for (const idx n : {idx{1}, idx{2}, idx{4}, idx{16}, idx{128}}) {
          if (!cached && n > 2) continue;
          const idx blocks = tile_blocks(shape.out);
          const idx block_bytes = tile_block_bytes(f, shape.in);
          const idx copies =
              cached ? 1 : std::max<idx>(1, (kProbeBytes / 2) / (blocks * block_bytes));
          Buffer<std::uint8_t> tiles(copies * blocks * block_bytes);
          parallel_for(ctx, tiles.size(), 4096, [&](idx begin, idx end) {
            for (idx i = begin; i < end; ++i) tiles[i] = static_cast<std::uint8_t>(i % 163);
          });
          Buffer<std::int8_t> q(n * code_stride(shape.in));
          for (idx i = 0; i < q.size(); ++i) q[i] = static_cast<std::int8_t>(i % 255 - 127);
          Buffer<float> scale(n), y(ctx.threads * n * kBlockOutputs);
          Buffer<std::int32_t> sum(n);
          Buffer<std::uint8_t> scratch(ctx.threads * tile_scratch_bytes(shape.in));
          const TileMatrix w{copies * shape.out, shape.in, f, 1.0F, tiles.data(), block_bytes};
          const Measured m = measure(o, machine, [&] {
            run_team(ctx, [&](const Team& team) {
              for (idx b = team.begin(copies * blocks); b < team.end(copies * blocks); ++b)
                product({.w = &w,
                         .block = b,
                         .rows = n,
                         .x = {q.data(), scale.data(), sum.data()},
                         .y = y.data() + team.rank * n * kBlockOutputs,
                         .y_stride = kBlockOutputs,
                         .add = false,
                         .scratch = scratch.data() + team.rank * tile_scratch_bytes(shape.in)});
              team.sync();
            });
          });
          const double macs = static_cast<double>(copies * blocks * kBlockOutputs * shape.in * n);
          const double gmacs = macs / m.seconds / 1e9;
          const double gbs = static_cast<double>(tiles.size()) / m.seconds / 1e9;
          const double read_share = gbs * 1e9 / median(machine.read);
          const double int8_share = 2e9 * gmacs / median(machine.int8);
          rows.push_back({{"layout", tile_format_name(f)},
                          {"out", shape.out},
                          {"in", shape.in},
                          {"tokens", n},
                          {"from", cached ? "cache" : "memory"},
                          {"gmac_per_s", gmacs},
                          {"gb_per_s", gbs},
                          {"read_share", read_share},
                          {"int8_share", int8_share}});
          if (!o.json)
            fmt::print("{:>8} {:>14} {:>6} {:>7} {:>10.1f} {:>8.1f} {:>8.0f} {:>8.0f}\n",
                       tile_format_name(f), fmt::format("{} x {}", shape.out, shape.in), n,
                       cached ? "cache" : "memory", gmacs, gbs, 100 * read_share, 100 * int8_share);
        }
  Json j = {{"what", "ops"},
            {"device", "cpu"},
            {"isa", isa_name(active_isa())},
            {"threads", ctx.threads},
            {"roofline", machine.json()},
            {"products", rows}};
  if (!o.json) print_roofline(j["roofline"]);
  finish(j, others, o);
  return 0;
}

}  // namespace

int cmd_bench(Args args) {
  Options o;
  Ctx ctx;
  std::optional<idx> hidden, layers, intermediate, gpu_layers;
  CLI::App app("Measures speed against what this machine can do", "mmfree bench");
  app.add_option(
         "WHAT", o.what,
         "decode: one token after the other; prefill: a prompt at once; batch: several "
         "sequences together; stream: one long session in ten parts; ops: the matrix product "
         "alone; train: the training step")
      ->required()
      ->check(CLI::IsMember({"decode", "prefill", "batch", "stream", "ops", "train"}));
  CLI::Option* model = app.add_option("MODEL", o.model, "run directory or GGUF file");
  app.add_flag("--random", o.random, "random weights instead of a model")->excludes(model);
  app.add_option("--size", o.size, "of the random weights: tiny, 8m, 30m, 100m, 370m, 1.3b, 2.7b");
  app.add_option("--vocab-size", o.vocab, "of the random weights")
      ->check(CLI::Range(idx{1}, idx{1} << 24))
      ->capture_default_str();
  app.add_option("--tokens", o.tokens,
                 "length of the prompt (prefill) or of the session (stream, at least 10)")
      ->check(CLI::Range(idx{1}, idx{1} << 20))
      ->capture_default_str();
  app.add_option("--batch", o.batches, "numbers of sequences (batch)")
      ->check(CLI::Range(idx{1}, idx{4096}))
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--device", o.device, "cpu, or cuda: an NVIDIA GPU")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option(
         "--gpu-layers", gpu_layers,
         "only the first N blocks on the GPU, the others on the CPU (decode, prefill) [all]")
      ->check(CLI::Range(idx{0}, idx{1} << 20));
  BenchTrain t;
  app.add_option("--seq", t.seq, "tokens a sequence (train)")
      ->check(CLI::Range(idx{1}, idx{1} << 20))
      ->capture_default_str();
  app.add_option("--device-memory", t.memory_gib,
                 "GiB of the GPU to use at most (train) [all free]")
      ->check(CLI::Range(0.0, 1e6));
  app.add_option("--precision", t.precision, "of activations and gradients (train)")
      ->check(CLI::IsMember({"bf16", "float32"}))
      ->capture_default_str();
  app.add_option("--backward", t.backward, "operands of the layers' input gradients (train)")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->capture_default_str();
  app.add_option("--moments", t.moments, "AdamW's moments (train)")
      ->check(CLI::IsMember({"float32", "bf16"}))
      ->capture_default_str();
  app.add_option("--hidden", hidden, "hidden size instead of the size's (train)");
  app.add_option("--layers", layers, "number of layers instead of the size's (train)");
  app.add_option("--intermediate", intermediate, "MLP width instead of the formula's (train)");
  bool float_products = false;
  app.add_flag("--float-products", float_products,
               "forward products in floating point instead of int8 (train)");
  app.add_option("--layout", o.layout, "weights in memory: auto, base3 (1.6 bits), two_bit")
      ->check(CLI::IsMember({"auto", "base3", "two_bit"}))
      ->capture_default_str();
  app.add_option("--rounds", o.rounds, "the median of so many measurements is reported")
      ->check(CLI::Range(idx{1}, idx{10000}))
      ->capture_default_str();
  app.add_flag("--json", o.json, "one JSON object");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  if (o.what == "train" || (o.what == "ops" && o.device == "cuda")) {
    if (o.device != "cuda" || o.size.empty() || o.batches.size() != 1)
      fail(ErrorKind::usage,
           "bench: on a GPU expected --device cuda, --size and one --batch (bench/train_speed.py "
           "measures training on the CPU)");
    t.size_name = o.size;
    t.config = size_preset(o.size, o.vocab);
    if (hidden) t.config.hidden_size = *hidden;
    if (layers) t.config.num_hidden_layers = *layers;
    if (intermediate) t.config.intermediate_size = *intermediate;
    validate(t.config, "the model's options");
    t.batch = o.batches.front();
    t.rounds = o.rounds;
    t.int8 = !float_products;
    t.json = o.json;
    return o.what == "train" ? bench_train(t) : bench_gpu_kernels(t);
  }
  if (o.what != "ops" && o.random == !o.model.empty())
    fail(ErrorKind::usage, "bench: expected either MODEL or --random --size");
  if (o.random && o.size.empty()) fail(ErrorKind::usage, "bench: --random needs --size");
  if (o.what == "stream" && o.tokens < 10)
    fail(ErrorKind::usage,
         fmt::format("bench: --tokens is {}, expected at least 10 for stream", o.tokens));
  if (o.device == "cuda")
    return bench_gpu(ctx, {.what = o.what,
                           .model = o.model,
                           .size = o.size,
                           .vocab = o.vocab,
                           .tokens = o.tokens,
                           .rounds = o.rounds,
                           .gpu_layers = gpu_layers.value_or(-1),
                           .batches = o.batches,
                           .json = o.json});
  if (gpu_layers) fail(ErrorKind::usage, "bench: --gpu-layers needs --device cuda");
  if (o.what == "decode") return bench_decode(ctx, o);
  if (o.what == "prefill") return bench_prefill(ctx, o);
  if (o.what == "batch") return bench_batch(ctx, o);
  if (o.what == "stream") return bench_stream(ctx, o);
  return bench_ops(ctx, o);
}

}  // namespace mmfree
