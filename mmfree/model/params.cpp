#include "mmfree/model/params.h"

#include <fmt/core.h>

#include <cmath>
#include <unordered_map>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree {

idx ParamInfo::size() const {
  idx n = 1;
  for (const idx extent : shape) n *= extent;
  return n;
}

std::vector<ParamInfo> matmulfree_params(const MatmulFreeConfig& c) {
  const idx d = c.hidden_size;
  const idx m = c.mixer_width();
  const idx f = c.mlp_width();
  std::vector<ParamInfo> table;
  idx offset = 0;
  const auto add = [&](std::string name, std::string gguf, std::vector<idx> shape, ParamInit init,
                       bool ternary) {
    ParamInfo p{std::move(name), std::move(gguf), std::move(shape), init, ternary, ternary, offset};
    offset += (p.size() + 15) / 16 * 16;
    table.push_back(std::move(p));
  };
  const auto gain = [&](const std::string& name, const std::string& gguf, idx width) {
    add(name + ".weight", gguf + ".weight", {width}, ParamInit::ones, false);
  };
  // A BitLinear: its ternary matrix and the gain of the norm inside it.
  const auto linear = [&](const std::string& name, const std::string& gguf, idx out, idx in,
                          ParamInit init) {
    add(name + ".weight", gguf + ".weight", {out, in}, init, true);
    gain(name + ".norm", gguf + "_norm", in);
  };

  add("model.embeddings.weight", "token_embd.weight", {c.vocab_size, d}, ParamInit::normal, false);
  if (c.use_lower_bound)
    add("model.lower_bounds", "lower_bounds.weight", {c.num_hidden_layers, d}, ParamInit::zeros,
        false);
  for (idx i = 0; i < c.num_hidden_layers; ++i) {
    const std::string hf = fmt::format("model.layers.{}.", i);
    const std::string gg = fmt::format("blk.{}.", i);
    gain(hf + "attn_norm", gg + "attn_norm", d);
    linear(hf + "attn.i_proj", gg + "attn_i", m, d, ParamInit::xavier_small);
    linear(hf + "attn.f_proj", gg + "attn_f", m, d, ParamInit::xavier_small);
    linear(hf + "attn.g_proj", gg + "attn_g", m, d, ParamInit::xavier_small);
    gain(hf + "attn.g_norm", gg + "attn_gated_norm", m);
    linear(hf + "attn.o_proj", gg + "attn_o", d, m, ParamInit::xavier_small);
    gain(hf + "mlp_norm", gg + "ffn_norm", d);
    linear(hf + "mlp.gate_proj", gg + "ffn_gate_up", 2 * f, d, ParamInit::normal);
    linear(hf + "mlp.down_proj", gg + "ffn_down", d, f, ParamInit::normal_residual);
  }
  gain("model.norm", "output_norm", d);
  if (!c.tie_word_embeddings)
    add("lm_head.weight", "output.weight", {c.vocab_size, d}, ParamInit::normal, true);
  gain("lm_head.norm", "output_in_norm", d);
  return table;
}

idx storage_size(const std::vector<ParamInfo>& table) {
  return table.empty() ? 0 : table.back().offset + (table.back().size() + 15) / 16 * 16;
}

idx parameter_count(const std::vector<ParamInfo>& table) {
  idx n = 0;
  for (const ParamInfo& p : table) n += p.size();
  return n;
}

double training_flops_a_token(const MatmulFreeConfig& c) {
  const idx layer = 4 * c.hidden_size * c.mixer_width() + 3 * c.hidden_size * c.mlp_width();
  return 6 * static_cast<double>(c.num_hidden_layers * layer + c.hidden_size * c.vocab_size);
}

ParamViews view_params(const std::vector<ParamInfo>& table, const MatmulFreeConfig& c,
                       float* storage) {
  std::unordered_map<std::string_view, float*> by_name;
  for (const ParamInfo& p : table) by_name[p.name] = storage + p.offset;
  const auto at = [&](const std::string& name) {
    const auto it = by_name.find(name);
    MMFREE_ASSERT(it != by_name.end());
    return it->second;
  };
  ParamViews v{};
  v.embedding = at("model.embeddings.weight");
  v.lower_bounds = c.use_lower_bound ? at("model.lower_bounds") : nullptr;
  for (idx i = 0; i < c.num_hidden_layers; ++i) {
    const std::string l = fmt::format("model.layers.{}.", i);
    v.layers.push_back({.attn_norm = at(l + "attn_norm.weight"),
                        .i_w = at(l + "attn.i_proj.weight"),
                        .f_w = at(l + "attn.f_proj.weight"),
                        .g_w = at(l + "attn.g_proj.weight"),
                        .i_norm = at(l + "attn.i_proj.norm.weight"),
                        .f_norm = at(l + "attn.f_proj.norm.weight"),
                        .g_in_norm = at(l + "attn.g_proj.norm.weight"),
                        .g_norm = at(l + "attn.g_norm.weight"),
                        .o_w = at(l + "attn.o_proj.weight"),
                        .o_norm = at(l + "attn.o_proj.norm.weight"),
                        .mlp_norm = at(l + "mlp_norm.weight"),
                        .gate_w = at(l + "mlp.gate_proj.weight"),
                        .gate_norm = at(l + "mlp.gate_proj.norm.weight"),
                        .down_w = at(l + "mlp.down_proj.weight"),
                        .down_norm = at(l + "mlp.down_proj.norm.weight")});
  }
  v.norm = at("model.norm.weight");
  v.head_w = c.tie_word_embeddings ? v.embedding : at("lm_head.weight");
  v.head_norm = at("lm_head.norm.weight");
  return v;
}

void initialize_params(const std::vector<ParamInfo>& table, const MatmulFreeConfig& c,
                       std::uint64_t seed, float* storage) {
  const double residual = std::sqrt(2.0 * static_cast<double>(c.num_hidden_layers));
  for (std::size_t t = 0; t < table.size(); ++t) {
    const ParamInfo& p = table[t];
    const idx n = p.size();
    float* w = storage + p.offset;
    const double fan = p.shape.size() == 2 ? static_cast<double>(p.shape[0] + p.shape[1]) : 1.0;
    const double bound = std::exp2(-2.5) * std::sqrt(6.0 / fan);
    for (idx i = 0; i < n; ++i) {
      const auto counter = static_cast<std::uint64_t>(i);
      switch (p.init) {
        case ParamInit::xavier_small:
          w[i] = static_cast<float>(bound * (2.0 * random_uniform(seed, t, counter) - 1.0));
          break;
        case ParamInit::normal:
          w[i] = static_cast<float>(c.initializer_range * random_normal(seed, t, counter));
          break;
        case ParamInit::normal_residual:
          w[i] =
              static_cast<float>(c.initializer_range / residual * random_normal(seed, t, counter));
          break;
        case ParamInit::ones:
          w[i] = 1.0F;
          break;
        case ParamInit::zeros:
          w[i] = 0.0F;
          break;
      }
    }
    const bool embedding = p.name == "model.embeddings.weight";
    if (embedding &&
        c.pad_token_id) {  // as the reference's table: the padding row starts, and stays, zero
      float* row = w + *c.pad_token_id * c.hidden_size;
      for (idx i = 0; i < c.hidden_size; ++i) row[i] = 0.0F;
    }
  }
}

}  // namespace mmfree
