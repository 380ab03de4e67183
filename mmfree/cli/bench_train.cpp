#include "mmfree/cli/bench_train.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/cuda/bench_ops.h"
#include "mmfree/cuda/training.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::vector<std::int32_t> random_ids(idx n, idx vocab, std::uint64_t stream) {
  std::vector<std::int32_t> ids;
  for (idx i = 0; i < n; ++i)
    ids.push_back(static_cast<std::int32_t>(random_bits(1, stream, static_cast<std::uint64_t>(i)) %
                                            static_cast<std::uint64_t>(vocab)));
  return ids;
}

}  // namespace

int bench_train(const BenchTrain& o) {
  const idx rows = o.batch * o.seq;
  GpuTrainingOptions g;
  g.precision = o.precision == "float32" ? GpuPrecision::float32 : GpuPrecision::bf16;
  g.rows = rows;
  g.memory_limit = static_cast<std::size_t>(o.memory_gib * 0x1p30);
  g.int8_products = o.int8;
  g.fp8_backward = o.backward == "fp8";
  g.bf16_moments = o.moments == "bf16";
  GpuTraining gpu(o.config, g);
  gpu.randomize(1);
  const std::vector<std::int32_t> ids = random_ids(rows, o.config.vocab_size, 0);
  const std::vector<std::int32_t> labels = random_ids(rows, o.config.vocab_size, 1);
  const TokenBatch batch{o.batch, o.seq, ids.data(), labels.data()};
  const float scale = 1.0F / static_cast<float>(rows);
  idx step = 0;
  double nll = 0;
  const auto run = [&] {
    gpu.forward_backward(batch, scale, true);
    gpu.update({.lr = 1e-4,
                .weight_decay = 0.1,
                .beta1 = 0.9,
                .beta2 = 0.95,
                .eps = 1e-8,
                .clip = 1,
                .step = ++step});
    nll = gpu.wait().nll / static_cast<double>(rows);
  };
  for (int i = 0; i < 4; ++i) run();  // the second records the graph
  std::vector<double> seconds;
  for (idx r = 0; r < o.rounds; ++r) {
    const Clock::time_point start = Clock::now();
    run();
    seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double rate = static_cast<double>(rows) / median;
  const double flops = training_flops_a_token(o.config) * rate;
  const GpuMemory m = gpu.memory();
  nlohmann::ordered_json j;
  j["what"] = "train";
  j["model"] = {{"size", o.size_name},
                {"parameters", parameter_count(matmulfree_params(o.config))},
                {"hidden_size", o.config.hidden_size},
                {"layers", o.config.num_hidden_layers},
                {"mlp_width", o.config.mlp_width()},
                {"vocab_size", o.config.vocab_size}};
  j["device"] = m.device;
  j["precision"] = o.precision;
  j["backward"] = o.backward;
  j["moments"] = o.moments;
  j["forward_products"] = o.int8 ? "int8 where the device has it" : "floating point";
  j["batch"] = o.batch;
  j["seq"] = o.seq;
  j["tokens_per_s"] = rate;
  j["tokens_per_s_range"] = {static_cast<double>(rows) / seconds.back(),
                             static_cast<double>(rows) / seconds.front()};
  j["step_s"] = median;
  j["rounds"] = o.rounds;
  j["tflops"] = flops / 1e12;  // 6 per weight and token
  if (m.peak_flops > 0) j["mfu"] = flops / m.peak_flops;
  j["peak_bytes"] = m.used_bytes;
  j["planned_bytes"] = m.planned_bytes;
  j["layers_kept"] = m.kept_layers;
  j["loss"] = nll;
  if (o.json) {
    fmt::print("{}\n", j.dump(2));
    return 0;
  }
  fmt::print("training step of {}, {} sequences of {} tokens, {}\n", o.size_name, o.batch, o.seq,
             m.device);
  fmt::print("  speed     {:.0f} tokens/s ({:.0f} to {:.0f} over {} steps), {:.2f} ms a step\n",
             rate, static_cast<double>(rows) / seconds.back(),
             static_cast<double>(rows) / seconds.front(), o.rounds, 1e3 * median);
  fmt::print("  products  {:.0f} TFLOP/s (6 operations a weight and token)", flops / 1e12);
  if (m.peak_flops > 0)
    fmt::print(", {:.0f} % of {:.0f} in bf16", 100 * flops / m.peak_flops, m.peak_flops / 1e12);
  fmt::print("\n");
  fmt::print(
      "  memory    {:.2f} GiB of the device in use; MLP activations of {} of {} layers kept\n",
      static_cast<double>(m.used_bytes) / 0x1p30, m.kept_layers, o.config.num_hidden_layers);
  return 0;
}

int bench_gpu_kernels(const BenchTrain& o) {
  const GpuOps r = bench_gpu_ops(o.config, o.batch, o.seq, std::max<idx>(1, o.rounds));
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const GpuOpTime& op : r.ops) {
    // Tensor cores are twice as fast on 8-bit operands as on bf16.
    const bool bytes = op.name.starts_with("int8") || op.name.starts_with("fp8");
    const double peak = r.bf16_ops_per_s * (bytes ? 2 : 1);
    const double memory_s = op.bytes / r.copy_bytes_per_s;
    const double product_s = op.operations / peak;
    nlohmann::ordered_json j;
    j["op"] = op.name;
    j["us"] = 1e6 * op.seconds;
    j["gb_per_s"] = op.bytes / op.seconds / 1e9;
    if (op.operations > 0) j["tops"] = op.operations / op.seconds / 1e12;
    j["bound"] = memory_s > product_s ? "memory" : "products";
    j["roofline_share"] = std::max(memory_s, product_s) / op.seconds;
    rows.push_back(j);
  }
  if (o.json) {
    nlohmann::ordered_json j;
    j["what"] = "ops";
    j["device"] = r.device;
    j["model"] = o.size_name;
    j["batch"] = o.batch;
    j["seq"] = o.seq;
    j["roofline"] = {{"copy_gb_per_s", r.copy_bytes_per_s / 1e9},
                     {"bf16_tflops", r.bf16_ops_per_s / 1e12}};
    j["ops"] = rows;
    fmt::print("{}\n", j.dump(2));
    return 0;
  }
  fmt::print(
      "{}: copy {:.0f} GB/s, bf16 product {:.0f} TFLOP/s; 8-bit operands are taken as twice that\n",
      r.device, r.copy_bytes_per_s / 1e9, r.bf16_ops_per_s / 1e12);
  for (const auto& j : rows)
    fmt::print("  {:<44} {:>9.1f} us {:>7.0f} GB/s  {:>3.0f} % of its bound ({})\n",
               j["op"].get<std::string>(), j["us"].get<double>(), j["gb_per_s"].get<double>(),
               100 * j["roofline_share"].get<double>(), j["bound"].get<std::string>());
  return 0;
}

}  // namespace mmfree
