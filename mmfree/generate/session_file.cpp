#include "mmfree/generate/session_file.h"

#include <fmt/core.h>

#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/io/safetensors.h"

namespace mmfree {
namespace {

constexpr const char* kKind = "mmfree.session.v1";

// FNV-1a: against mix-ups and damage, not against forgery.
struct Hash {
  std::uint64_t value = 0xcbf29ce484222325U;
  void add(const void* data, std::size_t bytes) {
    const auto* p = static_cast<const unsigned char*>(data);
    for (std::size_t i = 0; i < bytes; ++i) value = (value ^ p[i]) * 0x100000001b3U;
  }
  template <class T>
  void add(std::span<const T> v) {
    add(v.data(), v.size_bytes());
  }
};

std::string hex(std::uint64_t v) {
  return fmt::format("{:016x}", v);
}

std::uint64_t data_hash(std::span<const float> h, std::span<const float> logits,
                        std::span<const std::int32_t> tokens) {
  Hash hash;
  hash.add(h);
  hash.add(logits);
  hash.add(tokens);
  return hash.value;
}

template <class T>
std::vector<T> read_tensor(const SafetensorsFile& file, const char* name, DType dtype,
                           std::span<const idx> shape) {
  const TensorView& t = file.get(name);
  if (t.dtype != dtype || !std::equal(t.shape.begin(), t.shape.end(), shape.begin(), shape.end()))
    fail(ErrorKind::format, fmt::format("{}: tensor {} is {} {}, expected {} {}", file.path(), name,
                                        dtype_name(t.dtype), shape_text(t.shape), dtype_name(dtype),
                                        shape_text(shape)));
  std::vector<T> values(t.bytes / sizeof(T));
  if (t.bytes > 0) std::memcpy(values.data(), t.data, t.bytes);
  return values;
}

std::string metadata(const SafetensorsFile& file, const char* key) {
  const auto found = file.metadata().find(key);
  return found == file.metadata().end() ? std::string() : found->second;
}

// `scales`: of i, f, g, o, gate and down of each block, then of the head.
std::uint64_t fingerprint(const PackedModel& base, std::span<const float> scales) {
  const MatmulFreeConfig& c = base.config;
  Hash hash;
  hash.add(std::span<const idx>(std::array{c.vocab_size, c.hidden_size, c.num_hidden_layers,
                                           c.mixer_width(), c.mlp_width()}));
  const auto floats = [&](const float* p, idx n) {
    hash.add(p, static_cast<std::size_t>(n) * sizeof(float));
  };
  for (const PackedLayer& l : base.layers) {
    floats(l.attn_norm, c.hidden_size);
    floats(l.g_norm, c.mixer_width());
    floats(l.mlp_norm, c.hidden_size);
    if (l.bound != nullptr) floats(l.bound, c.hidden_size);
  }
  for (std::size_t n = 0; n + 1 < scales.size(); ++n) floats(&scales[n], 1);
  floats(base.norm, c.hidden_size);
  floats(&scales.back(), 1);
  return hash.value;
}

}  // namespace

ModelIdentity identity(const PackedModel& model) {
  std::vector<float> scales;
  for (const PackedLayer& l : model.layers)
    for (const PackedMatrix* m : {&l.i, &l.f, &l.g, &l.o, &l.gate, &l.down})
      scales.push_back(m->scale);
  scales.push_back(model.head.scale);
  return {model.path, model.config, fingerprint(model, scales)};
}

ModelIdentity identity(const TiledModel& model) {
  std::vector<float> scales;
  for (const TiledLayer& l : model.layers)
    for (const TileMatrix* m : {&l.i, &l.f, &l.g, &l.o, &l.p, &l.down}) scales.push_back(m->scale);
  scales.push_back(model.head.scale);
  return {model.base.path, model.base.config, fingerprint(model.base, scales)};
}

void write_session(const std::filesystem::path& path, const ModelIdentity& model,
                   const SessionState& state, std::span<const float> logits,
                   std::span<const std::int32_t> tokens) {
  const std::span<const float> h(state.h.data(), static_cast<std::size_t>(state.h.size()));
  const std::array tensors = {
      TensorToWrite{"h", DType::f32, {state.layers, state.width}, h.data()},
      TensorToWrite{"logits", DType::f32, {static_cast<idx>(logits.size())}, logits.data()},
      TensorToWrite{"tokens", DType::i32, {static_cast<idx>(tokens.size())}, tokens.data()}};
  write_safetensors(path, tensors,
                    {{"format", kKind},
                     {"model", hex(model.fingerprint)},
                     {"data", hex(data_hash(h, logits, tokens))}});
}

SavedSession read_session(const std::filesystem::path& path, const ModelIdentity& model) {
  const MatmulFreeConfig& c = model.config;
  const SafetensorsFile file(path);
  const std::string kind = metadata(file, "format");
  if (kind != kKind)
    fail(ErrorKind::format, fmt::format("{}: its format is '{}', expected '{}', as generate "
                                        "--save-state writes it",
                                        file.path(), kind, kKind));
  const std::string made_by = metadata(file, "model");
  const std::string ours = hex(model.fingerprint);
  if (made_by != ours)
    fail(ErrorKind::config,
         fmt::format("{}: the state belongs to another model (fingerprint {}), expected {} of {}",
                     file.path(), made_by, ours, model.path));
  SavedSession s{SessionState(c), {}, {}};
  const std::array state_shape = {s.state.layers, s.state.width};
  const std::array logits_shape = {c.vocab_size};
  const std::vector<float> h = read_tensor<float>(file, "h", DType::f32, state_shape);
  s.logits = read_tensor<float>(file, "logits", DType::f32, logits_shape);
  const TensorView& tokens = file.get("tokens");
  const std::array token_shape = {tokens.shape.size() == 1 ? tokens.shape[0] : idx{1}};
  s.tokens = read_tensor<std::int32_t>(file, "tokens", DType::i32, token_shape);
  const std::string found = hex(data_hash(h, s.logits, s.tokens));
  if (found != metadata(file, "data"))
    fail(ErrorKind::format, fmt::format("{}: the data are damaged: their hash is {}, expected {}",
                                        file.path(), found, metadata(file, "data")));
  if (s.tokens.empty())
    fail(ErrorKind::format,
         fmt::format("{}: it holds no tokens, expected at least one", file.path()));
  for (const std::int32_t id : s.tokens)
    if (id < 0 || id >= c.vocab_size)
      fail(ErrorKind::format,
           fmt::format("{}: it holds token {}, expected 0..{}", file.path(), id, c.vocab_size - 1));
  for (const std::span<const float> values :
       {std::span<const float>(h), std::span<const float>(s.logits)})
    for (const float v : values)
      if (!std::isfinite(v))
        fail(ErrorKind::format,
             fmt::format("{}: it holds {}, expected finite numbers", file.path(), v));
  std::copy(h.begin(), h.end(), s.state.h.begin());
  return s;
}

}  // namespace mmfree
