#include "mmfree/model/config.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

using nlohmann::json;

// Bounds that keep every product of dimensions far from overflow.
constexpr idx kMaxExtent = idx{1} << 24;
constexpr idx kMaxLayers = 4096;

struct Size {
  std::string_view name;
  idx hidden;
  idx layers;
};
// MLP widths follow from the formula: 768, 768, 1536, 2048, 2816, 5632, 6912.
constexpr Size kSizes[] = {{"tiny", 256, 3},  {"8m", 256, 8},     {"30m", 512, 8},
                           {"100m", 768, 12}, {"370m", 1024, 24}, {"1.3b", 2048, 24},
                           {"2.7b", 2560, 32}};

class Fields {
 public:
  Fields(const json& object, std::string_view name) : object_(object), name_(name) {}

  void get(const char* key, idx& value) const {
    if (const json* v = find(key)) {
      if (!v->is_number_integer()) wrong(key, *v, "an integer");
      value = integer(key, *v);
    }
  }
  void get(const char* key, std::optional<idx>& value) const {
    const auto it = object_.find(key);
    if (it == object_.end()) return;
    if (it->is_null()) {
      value.reset();
    } else if (it->is_number_integer()) {
      value = integer(key, *it);
    } else {
      wrong(key, *it, "an integer or null");
    }
  }
  void get(const char* key, double& value) const {
    if (const json* v = find(key)) {
      if (!v->is_number()) wrong(key, *v, "a number");
      value = v->get<double>();
    }
  }
  void get(const char* key, bool& value) const {
    if (const json* v = find(key)) {
      if (!v->is_boolean()) wrong(key, *v, "true or false");
      value = v->get<bool>();
    }
  }
  void get(const char* key, std::string& value) const {
    if (const json* v = find(key)) {
      if (!v->is_string()) wrong(key, *v, "a string");
      value = v->get<std::string>();
    }
  }

 private:
  const json* find(const char* key) const {  // null means "use the default", as in Hugging Face
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  idx integer(const char* key, const json& v) const {
    if (v.is_number_unsigned() && v.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX))
      wrong(key, v, "an integer below 2^63");
    return v.get<idx>();
  }
  [[noreturn]] void wrong(const char* key, const json& v, const char* expected) const {
    fail(ErrorKind::config,
         fmt::format("{}: {} is {}, expected {}", name_, key, v.dump(), expected));
  }
  const json& object_;
  std::string_view name_;
};

}  // namespace

idx MatmulFreeConfig::mixer_width() const {
  return static_cast<idx>(static_cast<double>(hidden_size) * expand_ratio);
}

idx MatmulFreeConfig::mlp_width() const {
  if (intermediate_size) return *intermediate_size;
  const idx raw = static_cast<idx>(static_cast<double>(hidden_size) * hidden_ratio * 2 / 3);
  return 256 * ((raw + 255) / 256);
}

MatmulFreeConfig config_from_json(std::string_view text, std::string_view name) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded()) fail(ErrorKind::config, fmt::format("{}: not valid JSON", name));
  if (!object.is_object()) fail(ErrorKind::config, fmt::format("{}: expected a JSON object", name));
  std::string model_type = "hgrn_bit";
  MatmulFreeConfig c;
  const Fields f(object, name);
  f.get("model_type", model_type);
  if (model_type != "hgrn_bit")
    fail(ErrorKind::config,
         fmt::format("{}: model_type is \"{}\", expected \"hgrn_bit\"", name, model_type));
  f.get("vocab_size", c.vocab_size);
  f.get("hidden_size", c.hidden_size);
  f.get("num_hidden_layers", c.num_hidden_layers);
  f.get("attn_mode", c.attn_mode);
  f.get("num_heads", c.num_heads);
  f.get("expand_ratio", c.expand_ratio);
  f.get("use_short_conv", c.use_short_conv);
  f.get("conv_size", c.conv_size);
  f.get("share_conv_kernel", c.share_conv_kernel);
  f.get("use_lower_bound", c.use_lower_bound);
  f.get("hidden_ratio", c.hidden_ratio);
  f.get("intermediate_size", c.intermediate_size);
  f.get("hidden_act", c.hidden_act);
  f.get("max_position_embeddings", c.max_position_embeddings);
  f.get("rms_norm_eps", c.rms_norm_eps);
  f.get("use_cache", c.use_cache);
  f.get("pad_token_id", c.pad_token_id);
  f.get("bos_token_id", c.bos_token_id);
  f.get("eos_token_id", c.eos_token_id);
  f.get("tie_word_embeddings", c.tie_word_embeddings);
  f.get("initializer_range", c.initializer_range);
  f.get("fuse_cross_entropy", c.fuse_cross_entropy);
  f.get("torch_dtype", c.torch_dtype);
  validate(c, name);
  return c;
}

std::string config_to_json(const MatmulFreeConfig& c) {
  const auto optional = [](const std::optional<idx>& v) { return v ? json(*v) : json(nullptr); };
  const bool whole = c.expand_ratio == std::floor(c.expand_ratio);
  const nlohmann::ordered_json object = {
      {"architectures", {"HGRNBitForCausalLM"}},
      {"model_type", "hgrn_bit"},
      {"torch_dtype", c.torch_dtype},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"attn_mode", c.attn_mode},
      {"num_heads", c.num_heads},
      {"expand_ratio", whole ? json(static_cast<idx>(c.expand_ratio)) : json(c.expand_ratio)},
      {"use_short_conv", c.use_short_conv},
      {"conv_size", c.conv_size},
      {"share_conv_kernel", c.share_conv_kernel},
      {"use_lower_bound", c.use_lower_bound},
      {"hidden_ratio", c.hidden_ratio},
      {"intermediate_size", optional(c.intermediate_size)},
      {"hidden_act", c.hidden_act},
      {"max_position_embeddings", c.max_position_embeddings},
      {"rms_norm_eps", c.rms_norm_eps},
      {"use_cache", c.use_cache},
      {"pad_token_id", optional(c.pad_token_id)},
      {"bos_token_id", optional(c.bos_token_id)},
      {"eos_token_id", optional(c.eos_token_id)},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"initializer_range", c.initializer_range},
      {"fuse_cross_entropy", c.fuse_cross_entropy}};
  return object.dump(2) + "\n";
}

void validate(const MatmulFreeConfig& c, std::string_view name) {
  const auto check = [&](bool ok, const std::string& message) {
    if (!ok) fail(ErrorKind::config, fmt::format("{}: {}", name, message));
  };
  const auto extent = [&](const char* key, idx v, idx limit) {
    check(v >= 1 && v <= limit, fmt::format("{} is {}, expected 1..{}", key, v, limit));
  };
  extent("vocab_size", c.vocab_size, kMaxExtent);
  extent("hidden_size", c.hidden_size, kMaxExtent);
  extent("num_hidden_layers", c.num_hidden_layers, kMaxLayers);
  extent("num_heads", c.num_heads, kMaxExtent);
  if (c.intermediate_size) extent("intermediate_size", *c.intermediate_size, kMaxExtent);
  check(!c.use_short_conv,
        "use_short_conv is true; the short convolution is not supported (it does not work in the "
        "reference either and no released model uses it)");
  check(c.attn_mode == "fused_recurrent" || c.attn_mode == "chunk",
        fmt::format("attn_mode is \"{}\", expected \"fused_recurrent\" or \"chunk\"", c.attn_mode));
  const double limit = static_cast<double>(kMaxExtent);
  check(c.expand_ratio > 0 && static_cast<double>(c.hidden_size) * c.expand_ratio >= 1 &&
            static_cast<double>(c.hidden_size) * c.expand_ratio <= limit,
        fmt::format("expand_ratio is {}, expected hidden_size * expand_ratio in 1..{}",
                    c.expand_ratio, kMaxExtent));
  check(c.hidden_ratio > 0 && static_cast<double>(c.hidden_size) * c.hidden_ratio <= limit,
        fmt::format("hidden_ratio is {}, expected hidden_size * hidden_ratio in 1..{}",
                    c.hidden_ratio, kMaxExtent));
  check(c.mixer_width() % c.num_heads == 0,
        fmt::format("num_heads is {}, expected a divisor of the mixer width {}", c.num_heads,
                    c.mixer_width()));
  check(!c.use_lower_bound || c.mixer_width() == c.hidden_size,
        fmt::format("expand_ratio is {} with use_lower_bound true; lower_bounds are hidden_size "
                    "({}) wide, so this needs expand_ratio 1 or use_lower_bound false",
                    c.expand_ratio, c.hidden_size));
  check(std::isfinite(c.rms_norm_eps) && c.rms_norm_eps >= 0 && c.rms_norm_eps < 1,
        fmt::format("rms_norm_eps is {}, expected 0 <= rms_norm_eps < 1", c.rms_norm_eps));
  check(std::isfinite(c.initializer_range) && c.initializer_range >= 0,
        fmt::format("initializer_range is {}, expected a number >= 0", c.initializer_range));
  const auto token = [&](const char* key, const std::optional<idx>& v) {
    check(!v || (*v >= 0 && *v < c.vocab_size),
          fmt::format("{} is {}, expected a token id below vocab_size {}", key, v.value_or(0),
                      c.vocab_size));
  };
  token("pad_token_id", c.pad_token_id);
  token("bos_token_id", c.bos_token_id);
  token("eos_token_id", c.eos_token_id);
}

const std::vector<std::string_view>& size_names() {
  static const std::vector<std::string_view> names = [] {
    std::vector<std::string_view> v;
    for (const Size& s : kSizes) v.push_back(s.name);
    return v;
  }();
  return names;
}

MatmulFreeConfig size_preset(std::string_view size, idx vocab_size) {
  for (const Size& s : kSizes) {
    if (s.name != size) continue;
    MatmulFreeConfig c;
    c.hidden_size = s.hidden;
    c.num_hidden_layers = s.layers;
    c.vocab_size = vocab_size;
    return c;
  }
  fail(ErrorKind::usage,
       fmt::format("unknown size '{}'; expected one of {}", size, fmt::join(size_names(), ", ")));
}

}  // namespace mmfree
