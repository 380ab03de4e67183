#include "mmfree/model/gguf_keys.h"

#include <fmt/core.h>

#include <algorithm>
#include <limits>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

constexpr const char* kFeedForward = "mmfree.feed_forward_length";
constexpr const char* kByFormula = "mmfree.feed_forward_by_formula";
constexpr const char* kSentencepiece = "mmfree.tokenizer.sentencepiece";

// One list of keys for both directions: `field(key, member)` is called for each.
template <class Config, class Field>
void for_each_key(Config& c, const Field& field) {
  field("mmfree.vocab_size", c.vocab_size);
  field("mmfree.embedding_length", c.hidden_size);
  field("mmfree.block_count", c.num_hidden_layers);
  field("mmfree.head_count", c.num_heads);
  field("mmfree.expand_ratio", c.expand_ratio);
  field("mmfree.hidden_ratio", c.hidden_ratio);
  field("mmfree.use_lower_bound", c.use_lower_bound);
  field("mmfree.layer_norm_rms_epsilon", c.rms_norm_eps);
  field("mmfree.tie_word_embeddings", c.tie_word_embeddings);
  field("mmfree.context_length", c.max_position_embeddings);
  field("mmfree.attn_mode", c.attn_mode);
  field("mmfree.use_short_conv", c.use_short_conv);
  field("mmfree.conv_size", c.conv_size);
  field("mmfree.share_conv_kernel", c.share_conv_kernel);
  field("mmfree.hidden_act", c.hidden_act);
  field("mmfree.use_cache", c.use_cache);
  field("mmfree.initializer_range", c.initializer_range);
  field("mmfree.fuse_cross_entropy", c.fuse_cross_entropy);
  field("mmfree.torch_dtype", c.torch_dtype);
  field("tokenizer.ggml.bos_token_id", c.bos_token_id);
  field("tokenizer.ggml.eos_token_id", c.eos_token_id);
  field("tokenizer.ggml.padding_token_id", c.pad_token_id);
}

// Extents and ids as u32, which other readers expect; larger values keep all their bits.
GgufValue integer_value(idx v) {
  if (v >= 0 && v <= std::numeric_limits<std::uint32_t>::max())
    return static_cast<std::uint32_t>(v);
  return std::int64_t{v};
}

struct Write {
  std::vector<GgufKv>& keys;
  void operator()(const char* key, const idx& v) const { keys.emplace_back(key, integer_value(v)); }
  void operator()(const char* key, const double& v) const { keys.emplace_back(key, v); }
  void operator()(const char* key, const bool& v) const { keys.emplace_back(key, v); }
  void operator()(const char* key, const std::string& v) const { keys.emplace_back(key, v); }
  void operator()(const char* key, const std::optional<idx>& v) const {
    if (v) keys.emplace_back(key, integer_value(*v));  // absent means none
  }
};

struct Read {
  const GgufHeader& header;
  void operator()(const char* key, idx& v) const { v = get_i64(header, key); }
  void operator()(const char* key, double& v) const { v = get_f64(header, key); }
  void operator()(const char* key, bool& v) const { v = get_bool(header, key); }
  void operator()(const char* key, std::string& v) const { v = get_string(header, key); }
  void operator()(const char* key, std::optional<idx>& v) const {
    v.reset();
    if (find_kv(header, key) != nullptr) v = get_i64(header, key);
  }
};

}  // namespace

std::vector<GgufKv> gguf_config_keys(const MatmulFreeConfig& config) {
  std::vector<GgufKv> keys;
  keys.emplace_back("general.architecture", std::string(kGgufArchitecture));
  for_each_key(config, Write{keys});
  keys.emplace_back(kFeedForward, integer_value(config.mlp_width()));
  keys.emplace_back(kByFormula, !config.intermediate_size.has_value());
  return keys;
}

MatmulFreeConfig gguf_config(const GgufHeader& header) {
  const std::string& architecture = get_string(header, "general.architecture");
  if (architecture != kGgufArchitecture)
    fail(ErrorKind::format, fmt::format("{}: general.architecture is \"{}\", expected \"{}\"",
                                        header.name, architecture, kGgufArchitecture));
  MatmulFreeConfig c;
  for_each_key(c, Read{header});
  const idx feed_forward = get_i64(header, kFeedForward);
  const bool by_formula = get_bool(header, kByFormula);
  if (!by_formula) c.intermediate_size = feed_forward;
  validate(c, header.name);
  if (by_formula && c.mlp_width() != feed_forward)
    fail(ErrorKind::config,
         fmt::format("{}: {} is {}, but {} is true and the formula gives {}", header.name,
                     kFeedForward, feed_forward, kByFormula, c.mlp_width()));
  return c;
}

std::string gguf_sentencepiece(const GgufHeader& header) {
  if (find_kv(header, kSentencepiece) == nullptr) return {};
  const std::vector<std::uint8_t>& bytes = get_u8_array(header, kSentencepiece);
  return {bytes.begin(), bytes.end()};
}

std::vector<ParamInfo> ternary_table(const MatmulFreeConfig& config) {
  MatmulFreeConfig untied = config;
  untied.tie_word_embeddings = false;
  return matmulfree_params(untied);
}

std::string scale_name(const ParamInfo& p) {
  constexpr std::string_view kSuffix = ".weight";
  MMFREE_ASSERT(p.gguf_name.ends_with(kSuffix));
  return p.gguf_name.substr(0, p.gguf_name.size() - kSuffix.size()) + ".scale";
}

bool gguf_is_ternary(const GgufHeader& header, const MatmulFreeConfig& config) {
  const std::vector<ParamInfo> table = matmulfree_params(config);
  const auto matrix =
      std::find_if(table.begin(), table.end(), [](const ParamInfo& p) { return p.ternary; });
  MMFREE_ASSERT(matrix != table.end());
  return ggml_ternary_format(get_tensor(header, matrix->gguf_name).type).has_value();
}

}  // namespace mmfree
