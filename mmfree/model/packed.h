#pragma once
// A model as inference uses it: ternary matrices in a packed format, norm gains in fp32, the
// embedding where it lies. From GGUF the matrices are used in place in the mapped file and nothing
// is unpacked; from float weights they are ternarised once, tensor by tensor, into memory.
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/progress.h"
#include "mmfree/io/gguf.h"
#include "mmfree/model/config.h"
#include "mmfree/model/latent.h"
#include "mmfree/model/params.h"
#include "mmfree/ops/bitlinear/bitlinear.h"

namespace mmfree {

struct PackedLayer {
  const float* attn_norm;                    // (D)
  const float *i_norm, *f_norm, *g_in_norm;  // (D): inside the projections
  const float* bound;                        // (D) lower bound of the forget gate, or null
  const float* g_norm;                       // (M)
  const float* o_norm;                       // (M)
  const float* mlp_norm;                     // (D)
  const float* gate_norm;                    // (D)
  const float* down_norm;                    // (F)
  PackedMatrix i, f, g, o, gate, down;
};

struct PackedModel {
  std::string path;
  MatmulFreeConfig config;
  TensorView embedding;  // (V, D) F32, F16 or BF16, rows converted as they are looked up
  std::vector<PackedLayer> layers;
  const float* norm = nullptr;       // (D)
  PackedMatrix head;                 // (V, D)
  const float* head_norm = nullptr;  // (D)
  std::string sentencepiece;         // the tokenizer.model file; empty: there is none

  // The matrices again, with their rows of ternary_table(config), for those who walk over all of
  // them.
  std::vector<ParamInfo> table;
  std::vector<PackedMatrix>
      matrices;  // one per row of the table; rows == nullptr where it is not ternary

  // Owners of what the pointers above refer to.
  Buffer<float> gains;                    // 1-D tensors and raw lower bounds
  Buffer<float> bounds;                   // (L, D)
  std::vector<Buffer<std::byte>> packed;  // matrices made at load
  std::shared_ptr<const GgufFile> gguf;
  std::shared_ptr<const LatentModel> latent;
};

// Opens a GGUF file or a run directory. Everything the network reads is checked: names, shapes,
// element types, codes, block scales against the exact scale, finite gains and embedding; format
// Errors name file and tensor.
PackedModel load_packed(const Ctx& ctx, const std::filesystem::path& path,
                        const Progress& progress = {});

// Quantises one latent matrix (rule of ops/bitlinear) and packs its rows; `latent` (out, in). rows:
// (out, ternary_row_bytes(format, in)). Returns the exact scale.
float pack_matrix(const Ctx& ctx, const float* latent, idx out, idx in, TernaryFormat format,
                  std::byte* rows);

// TQ formats need rows of whole blocks; other rows are kept as I8 codes.
TernaryFormat usable_format(TernaryFormat wanted, idx in);

// The table's row that a latent matrix of a ternary file comes from: the embedding for a tied head,
// else its own.
std::size_t latent_row(const LatentModel& model, const ParamInfo& p);

// Bytes of the weights as they are used, embedding included, and of the recurrent state of one
// sequence.
std::size_t weight_bytes(const PackedModel& model);
std::size_t state_bytes(const MatmulFreeConfig& config);

}  // namespace mmfree
