// Writes a run directory with random weights of any size, for tests of loading, conversion and
// memory. Streams: memory does not depend on the size.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/rng.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/config.h"
#include "mmfree/model/params.h"

namespace mmfree {
namespace {

constexpr idx kPiece = idx{1} << 24;  // elements generated at a time

// Mean 0 and deviation 1: the sum of the four 16-bit parts of one random number, close enough to
// normal and cheap.
float bell(std::uint64_t bits) {
  const auto part = [&](int shift) { return static_cast<float>((bits >> shift) & 0xffffU); };
  const float sum = part(0) + part(16) + part(32) + part(48);
  constexpr float kMean = 4 * 32767.5F;
  constexpr float kDeviation = 37837.2F;  // sqrt(4 * 65536^2 / 12)
  return (sum - kMean) / kDeviation;
}

float value(const ParamInfo& p, const MatmulFreeConfig& c, std::uint64_t seed, std::uint64_t tensor,
            idx i) {
  const float x = bell(random_bits(seed, tensor, static_cast<std::uint64_t>(i)));
  const auto deviation = static_cast<float>(c.initializer_range);
  switch (p.init) {
    case ParamInit::ones:
      return 1.0F + 0.1F * x;
    case ParamInit::zeros:
      return 0.1F * x;
    default:
      return deviation * x;
  }
}

void write_tensor(const Ctx& ctx, SafetensorsWriter& out, const ParamInfo& p,
                  const MatmulFreeConfig& c, std::uint64_t seed, std::uint64_t tensor, DType dtype,
                  Buffer<std::byte>& buffer) {
  const idx size = static_cast<idx>(dtype_size(dtype));
  for (idx first = 0; first < p.size(); first += kPiece) {
    const idx n = std::min(kPiece, p.size() - first);
    parallel_for(ctx, n, 4096, [&](idx begin, idx end) {
      auto* wide = reinterpret_cast<float*>(buffer.data());
      auto* narrow = reinterpret_cast<std::uint16_t*>(buffer.data());
      for (idx i = begin; i < end; ++i) {
        const float v = value(p, c, seed, tensor, first + i);
        if (dtype == DType::f32) wide[i] = v;
        if (dtype == DType::f16) narrow[i] = float_to_f16(v);
        if (dtype == DType::bf16) narrow[i] = float_to_bf16(v);
      }
    });
    out.write(p.name, buffer.data(), static_cast<std::size_t>(n * size));
  }
}

std::string shard_name(idx shard, idx shards) {
  return shards == 1 ? "model.safetensors"
                     : fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, shards);
}

void write_model(const Ctx& ctx, const MatmulFreeConfig& config, DType dtype, idx shards,
                 std::uint64_t seed, const std::filesystem::path& out) {
  const std::vector<ParamInfo> table = matmulfree_params(config);
  const idx total = parameter_count(table);
  make_directories(out);
  Buffer<std::byte> buffer(kPiece * static_cast<idx>(dtype_size(dtype)));
  nlohmann::ordered_json weight_map = nlohmann::ordered_json::object();
  std::size_t next = 0;
  idx written = 0;
  for (idx shard = 0; shard < shards; ++shard) {
    const std::size_t begin = next;
    std::vector<TensorSpec> specs;
    // Each shard takes tensors up to its share; the last one takes the rest, and none stays empty.
    while (next < table.size() &&
           (shard + 1 == shards || specs.empty() || written < total * (shard + 1) / shards)) {
      specs.push_back({table[next].name, dtype, table[next].shape});
      weight_map[table[next].name] = shard_name(shard, shards);
      written += table[next].size();
      ++next;
    }
    SafetensorsWriter writer(out / shard_name(shard, shards), specs, {{"format", "pt"}});
    for (std::size_t t = begin; t < next; ++t)
      write_tensor(ctx, writer, table[t], config, seed, t, dtype, buffer);
    writer.commit();
  }
  if (shards > 1) {
    const nlohmann::ordered_json index = {
        {"metadata", {{"total_size", total * static_cast<idx>(dtype_size(dtype))}}},
        {"weight_map", weight_map}};
    write_file_atomically(out / "model.safetensors.index.json", index.dump(2) + "\n");
  }
  write_file_atomically(out / "config.json", config_to_json(config));
}

int run(int argc, char** argv) {
  std::string size = "tiny", dtype = "bf16", out, tokenizer;
  idx vocab = 32000;
  idx shards = 1;
  std::uint64_t seed = 0;
  Ctx ctx{default_threads()};
  CLI::App app("Writes a run directory with random weights", "make_random_model");
  app.add_option("--size", size, "tiny, 8m, 30m, 100m, 370m, 1.3b or 2.7b")->capture_default_str();
  app.add_option("--vocab-size", vocab)->capture_default_str();
  app.add_option("--dtype", dtype)
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->capture_default_str();
  app.add_option("--shards", shards)->check(CLI::Range(1, 100))->capture_default_str();
  app.add_option("--seed", seed)->capture_default_str();
  app.add_option("--threads", ctx.threads)->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--tokenizer", tokenizer, "tokenizer.model to put beside the weights");
  app.add_option("--out", out)->required();
  CLI11_PARSE(app, argc, argv);
  MatmulFreeConfig config = size_preset(size, vocab);
  const DType type = dtype == "f32" ? DType::f32 : dtype == "f16" ? DType::f16 : DType::bf16;
  config.torch_dtype = dtype == "f32" ? "float32" : dtype == "f16" ? "float16" : "bfloat16";
  write_model(ctx, config, type, shards, seed, out);
  if (!tokenizer.empty())
    write_file_atomically(std::filesystem::path(out) / "tokenizer.model",
                          read_text_file(tokenizer));
  return 0;
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  try {
    return mmfree::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "make_random_model: {}\n", e.what());
    return 1;
  }
}
