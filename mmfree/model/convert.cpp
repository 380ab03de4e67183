#include "mmfree/model/convert.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/model/gguf_keys.h"
#include "mmfree/model/packed.h"
#include "mmfree/tokenizer/tokenizer.h"

namespace mmfree {
namespace {

// Numbers that general.file_type uses for a file's main type.
std::uint32_t file_type(StoredWeights w) {
  switch (w) {
    case StoredWeights::f32:
      return 0;
    case StoredWeights::f16:
      return 1;
    case StoredWeights::bf16:
      return 32;
    case StoredWeights::tq1_0:
      return 36;
    case StoredWeights::tq2_0:
      return 37;
  }
  return 0;
}

bool is_ternary(StoredWeights w) {
  return w == StoredWeights::tq1_0 || w == StoredWeights::tq2_0;
}

DType latent_dtype(StoredWeights w) {
  return w == StoredWeights::f32 ? DType::f32 : w == StoredWeights::f16 ? DType::f16 : DType::bf16;
}

std::string torch_name(DType t) {
  return t == DType::f32 ? "float32" : t == DType::f16 ? "float16" : "bfloat16";
}

// The type of the latent matrices.
DType matrix_dtype(const LatentModel& model) {
  for (std::size_t i = 0; i < model.table.size(); ++i)
    if (model.table[i].ternary) return model.tensors[i].dtype;
  return DType::f32;
}

void append_tokenizer(const LatentModel& model, std::vector<GgufKv>& keys) {
  if (model.sentencepiece.empty()) return;
  const Tokenizer t = Tokenizer::from_bytes(model.sentencepiece, model.path + ": tokenizer.model");
  if (t.vocab_size() > model.config.vocab_size)
    fail(ErrorKind::config,
         fmt::format(
             "{}: the tokenizer has {} tokens, the model {}; expected no more than the model",
             model.path, t.vocab_size(), model.config.vocab_size));
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<std::int32_t> types;
  for (std::int32_t id = 0; id < t.vocab_size(); ++id) {
    tokens.push_back(t.piece(id));
    scores.push_back(t.score(id));
    types.push_back(static_cast<std::int32_t>(t.type(id)));
  }
  // Readers expect as many tokens as the embedding has rows.
  for (idx id = t.vocab_size(); id < model.config.vocab_size; ++id) {
    tokens.push_back(fmt::format("[unused{}]", id));
    scores.push_back(0);
    types.push_back(static_cast<std::int32_t>(PieceType::unused));
  }
  keys.emplace_back("tokenizer.ggml.model", std::string("llama"));
  keys.emplace_back("tokenizer.ggml.tokens", GgufArray(std::move(tokens)));
  keys.emplace_back("tokenizer.ggml.scores", GgufArray(std::move(scores)));
  keys.emplace_back("tokenizer.ggml.token_type", GgufArray(std::move(types)));
  keys.emplace_back("tokenizer.ggml.unknown_token_id", static_cast<std::uint32_t>(t.unk_id()));
  keys.emplace_back("tokenizer.ggml.add_bos_token", model.config.bos_token_id.has_value());
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(model.sentencepiece.data());
  keys.emplace_back(
      "mmfree.tokenizer.sentencepiece",
      GgufArray(std::vector<std::uint8_t>(bytes, bytes + model.sentencepiece.size())));
}

std::vector<GgufKv> all_keys(const LatentModel& model, StoredWeights weights) {
  MatmulFreeConfig config = model.config;
  if (!is_ternary(weights) && matrix_dtype(model) != latent_dtype(weights))
    config.torch_dtype = torch_name(latent_dtype(weights));
  std::vector<GgufKv> keys = gguf_config_keys(config);
  // A trailing slash leaves an empty name behind.
  const std::filesystem::path path = std::filesystem::path(model.path).lexically_normal();
  const std::filesystem::path name =
      path.has_filename() ? path.filename() : path.parent_path().filename();
  keys.emplace_back("general.name", name.stem().string());
  keys.emplace_back("general.file_type", file_type(weights));
  if (is_ternary(weights)) keys.emplace_back("general.quantization_version", std::uint32_t{2});
  append_tokenizer(model, keys);
  return keys;
}

struct Meter {
  const Progress& progress;
  std::uint64_t total = 0;
  std::uint64_t done = 0;
  void add(std::size_t bytes) {
    done += bytes;
    if (progress) progress("bytes", done, total);
  }
};

// values (n) as f16 or bf16; Errors for what does not fit.
void narrow(const Ctx& ctx, const LatentModel& model, const TensorView& t, DType dtype,
            bool allow_rounding, const Buffer<float>& values, idx n, Buffer<std::uint16_t>& out) {
  const auto wide = [&](std::uint16_t v) {
    return dtype == DType::f16 ? f16_to_float(v) : bf16_to_float(v);
  };
  parallel_for(ctx, n, 4096, [&](idx begin, idx end) {
    for (idx i = begin; i < end; ++i)
      out[i] = dtype == DType::f16 ? float_to_f16(values[i]) : float_to_bf16(values[i]);
  });
  for (idx i = 0; i < n; ++i) {
    const float back = wide(out[i]);
    if (!std::isfinite(back))
      fail(ErrorKind::format, fmt::format("{}: tensor {} element {} is {}, which {} cannot hold",
                                          model.path, t.name, i, values[i], dtype_name(dtype)));
    if (back != values[i] && !allow_rounding)
      fail(
          ErrorKind::format,
          fmt::format(
              "{}: tensor {} element {} is {}, in {} it would be {}; --allow-rounding accepts that",
              model.path, t.name, i, values[i], dtype_name(dtype), back));
  }
}

void write_ternary(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                   StoredWeights weights, const Progress& progress) {
  const std::vector<ParamInfo> table = ternary_table(model.config);
  const TernaryFormat wanted =
      weights == StoredWeights::tq1_0 ? TernaryFormat::tq1_0 : TernaryFormat::tq2_0;
  std::vector<GgufTensorSpec> specs;
  Meter meter{progress};
  idx largest = 0;
  std::size_t largest_rows = 0;
  for (const ParamInfo& p : table) {
    const TensorView& t = model.tensors[latent_row(model, p)];
    largest = std::max(largest, p.name == "model.embeddings.weight" ? 0 : p.size());
    if (p.ternary) {
      const TernaryFormat format = usable_format(wanted, p.shape[1]);
      const std::size_t bytes =
          static_cast<std::size_t>(p.shape[0]) * ternary_row_bytes(format, p.shape[1]);
      specs.push_back({scale_name(p), GgmlType::f32, {1}});
      specs.push_back({p.gguf_name, ggml_type(format), p.shape});
      largest_rows = std::max(largest_rows, bytes);
    } else {
      const bool keeps = p.shape.size() == 2 && p.name == "model.embeddings.weight";
      specs.push_back({p.gguf_name, keeps ? ggml_type(t.dtype) : GgmlType::f32, p.shape});
    }
    meter.total += t.bytes;
  }
  GgufWriter writer(out, all_keys(model, weights), std::move(specs));
  Buffer<float> values(largest);
  Buffer<std::byte> rows(static_cast<idx>(largest_rows));
  for (const ParamInfo& p : table) {
    const std::size_t row = latent_row(model, p);
    const TensorView& t = model.tensors[row];
    if (p.ternary) {
      const TernaryFormat format = usable_format(wanted, p.shape[1]);
      read_finite(ctx, t, model.path, values.data());
      const float scale =
          pack_matrix(ctx, values.data(), p.shape[0], p.shape[1], format, rows.data());
      if (format != TernaryFormat::i8 && !std::isfinite(f16_to_float(float_to_f16(scale))))
        fail(ErrorKind::format,
             fmt::format("{}: tensor {} has scale {}, expected at most 65504, the largest that the "
                         "16-bit scales of {} hold",
                         model.path, t.name, scale, ternary_format_name(format)));
      writer.write(scale_name(p), &scale, sizeof scale);
      writer.write(p.gguf_name, rows.data(),
                   static_cast<std::size_t>(p.shape[0]) * ternary_row_bytes(format, p.shape[1]));
    } else if (p.name == "model.embeddings.weight") {
      require_finite(ctx, t, model.path);
      writer.write(p.gguf_name, t.data, t.bytes);
    } else {
      read_finite(ctx, t, model.path, values.data());
      writer.write(p.gguf_name, values.data(), static_cast<std::size_t>(p.size()) * sizeof(float));
    }
    release_pages(model, row);
    meter.add(t.bytes);
  }
  writer.commit();
}

void write_latent(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                  const ConvertOptions& options, const Progress& progress) {
  const DType wanted = latent_dtype(options.weights);
  std::vector<GgufTensorSpec> specs;
  Meter meter{progress};
  idx largest = 0;
  for (std::size_t i = 0; i < model.table.size(); ++i) {
    const ParamInfo& p = model.table[i];
    specs.push_back({p.gguf_name, ggml_type(p.ternary ? wanted : model.tensors[i].dtype), p.shape});
    if (p.ternary) largest = std::max(largest, p.size());
    meter.total += model.tensors[i].bytes;
  }
  GgufWriter writer(out, all_keys(model, options.weights), std::move(specs));
  Buffer<float> values(largest);
  Buffer<std::uint16_t> half(wanted == DType::f32 ? 0 : largest);
  for (std::size_t i = 0; i < model.table.size(); ++i) {
    const ParamInfo& p = model.table[i];
    const TensorView& t = model.tensors[i];
    if (!p.ternary || t.dtype == wanted) {
      require_finite(ctx, t, model.path);
      writer.write(p.gguf_name, t.data, t.bytes);
    } else {
      read_finite(ctx, t, model.path, values.data());
      const auto n = static_cast<std::size_t>(p.size());
      if (wanted == DType::f32) {
        writer.write(p.gguf_name, values.data(), n * sizeof(float));
      } else {
        narrow(ctx, model, t, wanted, options.allow_rounding, values, p.size(), half);
        writer.write(p.gguf_name, half.data(), n * sizeof(std::uint16_t));
      }
    }
    release_pages(model, i);
    meter.add(t.bytes);
  }
  writer.commit();
}

}  // namespace

void write_gguf(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                const ConvertOptions& options, const Progress& progress) {
  if (std::filesystem::exists(out) && !options.overwrite)
    fail(ErrorKind::usage, fmt::format("{}: this file exists; --force replaces it", out.string()));
  if (is_ternary(options.weights)) {
    write_ternary(ctx, model, out, options.weights, progress);
  } else {
    write_latent(ctx, model, out, options, progress);
  }
}

void write_run_directory(const Ctx& ctx, const LatentModel& model, const std::filesystem::path& out,
                         bool overwrite, const Progress& progress) {
  for (const char* name : {"config.json", "model.safetensors", "model.safetensors.index.json"})
    if (std::filesystem::exists(out / name) && !overwrite)
      fail(ErrorKind::usage,
           fmt::format("{}: this file exists; --force replaces it", (out / name).string()));
  make_directories(out);
  std::vector<TensorSpec> specs;
  Meter meter{progress};
  for (std::size_t i = 0; i < model.table.size(); ++i) {
    specs.push_back({model.table[i].name, model.tensors[i].dtype, model.table[i].shape});
    meter.total += model.tensors[i].bytes;
  }
  SafetensorsWriter writer(out / "model.safetensors", specs, {{"format", "pt"}});
  for (std::size_t i = 0; i < model.table.size(); ++i) {
    const TensorView& t = model.tensors[i];
    require_finite(ctx, t, model.path);
    writer.write(model.table[i].name, t.data, t.bytes);
    release_pages(model, i);
    meter.add(t.bytes);
  }
  if (!model.sentencepiece.empty())
    write_file_atomically(out / "tokenizer.model", model.sentencepiece);
  write_file_atomically(out / "config.json", config_to_json(model.config));
  writer.commit();
}

}  // namespace mmfree
