#pragma once
// The configuration of a MatMul-free language model: the fields of a Hugging Face config.json of
// model type "hgrn_bit".
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree {

struct MatmulFreeConfig {
  idx vocab_size = 32000;      // V
  idx hidden_size = 2048;      // D
  idx num_hidden_layers = 24;  // L
  std::string attn_mode = "fused_recurrent";
  idx num_heads = 1;            // only shapes the state: the recurrence is element-wise
  double expand_ratio = 1;      // mixer width = D * expand_ratio
  bool use_short_conv = false;  // not supported when true
  idx conv_size = 4;
  bool share_conv_kernel = true;
  bool use_lower_bound = true;
  double hidden_ratio = 4;
  std::optional<idx> intermediate_size;  // MLP width F; by formula when absent
  std::string hidden_act =
      "swish";  // the network is SwiGLU whatever this says, as in the reference
  idx max_position_embeddings =
      2048;  // informational: there is no positional encoding and no limit
  double rms_norm_eps =
      1e-6;  // outer norms and the gated norm; the norms inside BitLinear have their own
  bool use_cache = true;
  std::optional<idx> pad_token_id;  // its embedding row gets no gradient
  std::optional<idx> bos_token_id = 1;
  std::optional<idx> eos_token_id = 2;
  bool tie_word_embeddings = false;  // when true the head ternarises the embedding table
  double initializer_range = 0.02;
  bool fuse_cross_entropy = true;
  std::string torch_dtype = "float32";  // of the weights in the file

  idx mixer_width() const;  // M = D * expand_ratio
  idx mlp_width() const;    // F: 256 * ceil(int(D * hidden_ratio * 2 / 3) / 256) unless given
};

// Parses and validates; `name` is used in messages. Unknown fields are ignored, wrong types and
// values are config Errors.
MatmulFreeConfig config_from_json(std::string_view text, std::string_view name);
std::string config_to_json(const MatmulFreeConfig& config);

// Throws a config Error unless the network can be built as the configuration says.
void validate(const MatmulFreeConfig& config, std::string_view name);

// Sizes by parameter count: tiny, 8m, 30m, 100m, 370m, 1.3b, 2.7b. A usage Error names the known
// ones.
MatmulFreeConfig size_preset(std::string_view size, idx vocab_size);
const std::vector<std::string_view>& size_names();

}  // namespace mmfree
