#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/model/gguf_keys.h"
#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/model/tiled.h"
#include "mmfree/ternary/pack.h"

namespace mmfree {
namespace {

using nlohmann::ordered_json;

struct TensorRow {
  std::string name, type;
  std::vector<idx> shape;
  std::size_t bytes = 0;
};

// Codes of one kind of matrix, summed over the layers.
struct CodeCount {
  idx zeros = 0, minus = 0, plus = 0;
  idx total() const { return zeros + minus + plus; }
  double share(idx n) const { return static_cast<double>(n) / static_cast<double>(total()); }
};

// "blk.3.attn_i.weight" -> "attn_i": tensors of one kind differ in the layer only.
std::string kind_of(const ParamInfo& p) {
  std::string kind = p.gguf_name.substr(0, p.gguf_name.rfind('.'));
  if (kind.starts_with("blk.")) kind = kind.substr(kind.find('.', 4) + 1);
  return kind;
}

std::map<std::string, CodeCount> count_codes(const Ctx& ctx, const PackedModel& model) {
  std::map<std::string, CodeCount> counts;
  for (std::size_t i = 0; i < model.table.size(); ++i) {
    const PackedMatrix& w = model.matrices[i];
    if (w.rows == nullptr) continue;
    std::vector<CodeCount> rows(static_cast<std::size_t>(w.out));
    const auto stride = static_cast<idx>(ternary_row_bytes(w.format, w.in));
    parallel_for(ctx, w.out, 64, [&](idx begin, idx end) {
      std::vector<std::int8_t> codes(static_cast<std::size_t>(w.in));
      for (idx o = begin; o < end; ++o) {
        unpack_row(w.format, w.rows + o * stride, w.in, codes.data());
        CodeCount& c = rows[static_cast<std::size_t>(o)];
        for (const std::int8_t t : codes) ++(t == 0 ? c.zeros : t < 0 ? c.minus : c.plus);
      }
    });
    CodeCount& sum = counts[kind_of(model.table[i])];
    for (const CodeCount& c : rows) {
      sum.zeros += c.zeros;
      sum.minus += c.minus;
      sum.plus += c.plus;
    }
  }
  return counts;
}

// The tensors as they are in the file or files.
std::vector<TensorRow> file_tensors(const PackedModel& model) {
  std::vector<TensorRow> rows;
  const GgufFile* gguf = model.gguf ? model.gguf.get() : model.latent->gguf.get();
  if (gguf != nullptr) {
    for (const GgufTensor& t : gguf->header().tensors)
      rows.push_back({t.name, std::string(ggml_type_name(t.type)), t.shape, t.bytes});
  } else {
    for (const TensorView& t : model.latent->tensors)
      rows.push_back({t.name, std::string(dtype_name(t.dtype)), t.shape, t.bytes});
  }
  return rows;
}

struct Summary {
  idx parameters = 0, ternary_parameters = 0;
  std::size_t file_bytes = 0;     // of the tensors in the file
  std::size_t ternary_bytes = 0;  // of the ternary matrices as they are stored
  std::size_t weights = 0;        // of all weights as they are stored
  std::size_t memory = 0;         // of all weights as inference holds them
  std::size_t state = 0;          // of one sequence
  std::size_t scratch = 0;
};

Summary summarize(const PackedModel& model, const std::vector<TensorRow>& tensors) {
  Summary s;
  s.parameters = parameter_count(matmulfree_params(model.config));
  for (const PackedMatrix& w : model.matrices) {
    if (w.rows == nullptr) continue;
    s.ternary_parameters += w.out * w.in;
    s.ternary_bytes +=
        static_cast<std::size_t>(w.out) * ternary_row_bytes(w.format, w.in) + sizeof(float);
  }
  for (const TensorRow& t : tensors) s.file_bytes += t.bytes;
  s.weights = weight_bytes(model);
  const Layout layout = measure_layout(Ctx{default_threads()}, model.config);
  s.memory = matrix_bytes(model.config, layout) + model.embedding.bytes +
             static_cast<std::size_t>(model.gains.size() + model.bounds.size()) * sizeof(float);
  s.state = state_bytes(model.config);
  s.scratch = scratch_bytes(InferScratch(model.config, prefill_rows(), 1, default_threads()));
  return s;
}

double bits(std::size_t bytes, idx weights) {
  return 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

void print_json(const PackedModel& model, const std::vector<TensorRow>& tensors, const Summary& s,
                const std::map<std::string, CodeCount>& codes) {
  ordered_json list = ordered_json::array();
  for (const TensorRow& t : tensors)
    list.push_back({{"name", t.name}, {"shape", t.shape}, {"type", t.type}, {"bytes", t.bytes}});
  ordered_json shares = ordered_json::object();
  CodeCount all;
  for (const auto& [kind, c] : codes) {
    shares[kind] = {
        {"minus", c.share(c.minus)}, {"zero", c.share(c.zeros)}, {"plus", c.share(c.plus)}};
    all.zeros += c.zeros;
    all.minus += c.minus;
    all.plus += c.plus;
  }
  const ordered_json j = {{"path", model.path},
                          {"architecture", kGgufArchitecture},
                          {"weights", model.gguf ? "ternary" : "latent"},
                          {"config", ordered_json::parse(config_to_json(model.config))},
                          {"mixer_width", model.config.mixer_width()},
                          {"mlp_width", model.config.mlp_width()},
                          {"parameters", s.parameters},
                          {"ternary_parameters", s.ternary_parameters},
                          {"tokenizer", model.sentencepiece.empty() ? "none" : "sentencepiece"},
                          {"file_tensor_bytes", s.file_bytes},
                          {"bits_per_ternary_weight", bits(s.ternary_bytes, s.ternary_parameters)},
                          {"bits_per_weight", bits(s.weights, s.parameters)},
                          {"share_of_zeros", all.share(all.zeros)},
                          {"codes", shares},
                          {"memory",
                           {{"weights_bytes", s.memory},
                            {"state_bytes_per_sequence", s.state},
                            {"scratch_bytes", s.scratch}}},
                          {"tensors", list}};
  fmt::print("{}\n", j.dump(2));
}

void print_text(const PackedModel& model, const std::vector<TensorRow>& tensors, const Summary& s,
                const std::map<std::string, CodeCount>& codes, bool all_tensors) {
  const MatmulFreeConfig& c = model.config;
  const auto mb = [](std::size_t bytes) { return static_cast<double>(bytes) / 1e6; };
  fmt::print("{}\n", model.path);
  fmt::print("  architecture   {} ({} weights)\n", kGgufArchitecture,
             model.gguf ? "ternary" : "latent");
  fmt::print("  size           {} layers, width {}, mixer {}, MLP {}, vocabulary {}, heads {}\n",
             c.num_hidden_layers, c.hidden_size, c.mixer_width(), c.mlp_width(), c.vocab_size,
             c.num_heads);
  fmt::print("  options        lower bound {}, tied embeddings {}, norm epsilon {}\n",
             c.use_lower_bound ? "yes" : "no", c.tie_word_embeddings ? "yes" : "no",
             c.rms_norm_eps);
  fmt::print("  tokenizer      {}\n", model.sentencepiece.empty() ? "none" : "SentencePiece");
  fmt::print("  parameters     {} ({} ternary)\n", s.parameters, s.ternary_parameters);
  fmt::print("  in the file    {:.1f} MB in {} tensors\n", mb(s.file_bytes), tensors.size());
  fmt::print("  bits/weight    {:.4f} ternary, {:.4f} overall, as used\n",
             bits(s.ternary_bytes, s.ternary_parameters), bits(s.weights, s.parameters));
  fmt::print(
      "  memory         {:.1f} MB weights, {:.3f} MB state per sequence, {:.1f} MB scratch\n\n",
      mb(s.memory), mb(s.state), mb(s.scratch));
  fmt::print("  {:<14} {:>14} {:>8} {:>8} {:>8}\n", "ternary", "weights", "-1", "0", "+1");
  for (const auto& [kind, n] : codes)
    fmt::print("  {:<14} {:>14} {:>7.2f}% {:>7.2f}% {:>7.2f}%\n", kind, n.total(),
               100 * n.share(n.minus), 100 * n.share(n.zeros), 100 * n.share(n.plus));
  if (!all_tensors) return;
  fmt::print("\n  {:<44} {:<8} {:<18} {:>14}\n", "tensor", "type", "shape", "bytes");
  for (const TensorRow& t : tensors)
    fmt::print("  {:<44} {:<8} {:<18} {:>14}\n", t.name, t.type, shape_text(t.shape), t.bytes);
}

}  // namespace

int cmd_inspect(Args args) {
  std::string path;
  bool json = false;
  bool summary = false;
  Ctx ctx;
  CLI::App app(
      "Shows what a model is: configuration, tensors, bits per weight, share of zeros, memory",
      "mmfree inspect");
  app.add_option("MODEL", path, "run directory or GGUF file")->required();
  app.add_flag("--json", json, "one JSON object");
  app.add_flag("--summary", summary, "leave out the list of tensors");
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;

  ProgressLine line("inspect");
  const PackedModel model = load_packed(ctx, path, line.sink());
  const std::vector<TensorRow> tensors = file_tensors(model);
  const Summary s = summarize(model, tensors);
  const std::map<std::string, CodeCount> codes = count_codes(ctx, model);
  if (json) {
    print_json(model, tensors, s, codes);
  } else {
    print_text(model, tensors, s, codes, !summary);
  }
  return 0;
}

}  // namespace mmfree
