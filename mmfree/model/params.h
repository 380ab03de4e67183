#pragma once
// The parameters of the network: one table from which allocation, initialisation, optimizer groups,
// checkpoints and packing derive. Shapes are (out, in) for weights applied as x * W^T.
#include <string>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/model/config.h"

namespace mmfree {

enum class ParamInit {
  xavier_small,     // uniform, +-2^-2.5 * sqrt(6 / (in + out)): the mixer's projections
  normal,           // N(0, initializer_range^2)
  normal_residual,  // the same divided by sqrt(2 L): down_proj
  ones,
  zeros,
};

struct ParamInfo {
  std::string name;        // Hugging Face name, "model.layers.0.attn.i_proj.weight"
  std::string gguf_name;   // "blk.0.attn_i.weight"
  std::vector<idx> shape;  // one or two extents
  ParamInit init;
  bool ternary;  // used through the ternary quantiser
  bool decay;    // weight decay applies
  idx offset;    // first element in flat storage (multiples of 16)

  idx size() const;
};

// In the order of the reference's state dict. With tied embeddings there is no lm_head.weight.
std::vector<ParamInfo> matmulfree_params(const MatmulFreeConfig& config);

// Elements of flat storage, padding included; and of the parameters alone.
idx storage_size(const std::vector<ParamInfo>& table);
idx parameter_count(const std::vector<ParamInfo>& table);
// Operations of a training step for each token, as model FLOP use counts them: 6 for each weight
// that a token is multiplied with (all matrices but the embedding); nothing for what is recomputed.
double training_flops_a_token(const MatmulFreeConfig& config);

// Typed pointers into flat storage of values or of gradients.
struct LayerParams {
  float* attn_norm;                    // (D)
  float *i_w, *f_w, *g_w;              // (M, D)
  float *i_norm, *f_norm, *g_in_norm;  // (D): the norms inside the projections
  float* g_norm;                       // (M): gain of the gated output norm
  float* o_w;                          // (D, M)
  float* o_norm;                       // (M)
  float* mlp_norm;                     // (D)
  float* gate_w;                       // (2F, D): gate rows, then up rows
  float* gate_norm;                    // (D)
  float* down_w;                       // (D, F)
  float* down_norm;                    // (F)
};

struct ParamViews {
  float* embedding;     // (V, D)
  float* lower_bounds;  // (L, D), null when the configuration has none
  std::vector<LayerParams> layers;
  float* norm;       // (D)
  float* head_w;     // (V, D); the embedding when tied
  float* head_norm;  // (D)
};

ParamViews view_params(const std::vector<ParamInfo>& table, const MatmulFreeConfig& config,
                       float* storage);

// Fills storage by the table's rules; a pure function of the seed.
void initialize_params(const std::vector<ParamInfo>& table, const MatmulFreeConfig& config,
                       std::uint64_t seed, float* storage);

}  // namespace mmfree
