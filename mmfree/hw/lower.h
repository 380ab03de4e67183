#pragma once
// From a packed model to the integers that the accelerator works with: gains folded and quantised
// to int16 with one exponent a vector, lower bounds to Q0.15, the embedding to int16, and what
// remains of all scales in one constant a matrix. This is the only place between a model and the
// accelerator where floats are used.
#include <cstdint>
#include <functional>
#include <vector>

#include "mmfree/hw/fixed.h"
#include "mmfree/model/packed.h"

namespace mmfree::hw {

using Gains = std::vector<std::int16_t>;

// A BitLinear: codes = round(127 g12 x / max|g12 x|), y = row sum * max|g12 x| / sqrt(sum (g1 x)^2)
// * constant.
struct FixedLayer {
  Gains attn_g1;         // (D) squared for f, i
  Gains f_g, i_g, g_g;   // (D) folded gains of codes
  Gains bound;           // (D) lower bound, 0..32767; zeros where there is none
  Gains o_g1, o_g;       // (M)
  Gains mlp_g1, gate_g;  // (D)
  Gains down_g;          // (F); its squares have no gain
  Scalar f_c, i_c, o_c, p_c, down_c;
};

// The matrices of a layer in the order of the weight stream, and the head (layer 0).
enum class Matrix { f, i, g, o, p, q, down, head };
// Writes the ternary codes of one row (K). Safe to call from several threads at once.
using TritSource = std::function<void(Matrix matrix, idx layer, idx row, std::int8_t* codes)>;

struct FixedModel {
  MatmulFreeConfig config;
  std::string name;  // the file, for messages
  std::string sentencepiece;
  TritSource trits;
  idx d = 0, m = 0, f = 0, layers_count = 0, vocab = 0;
  std::vector<std::int16_t> embedding;  // (V, D), X = element << embedding_shift
  int embedding_shift = 0;
  std::vector<FixedLayer> layers;
  Gains head_g1, head_g;  // (D)
  Scalar head_c;

  idx rows(Matrix w) const;
  idx inputs(Matrix w) const;
};

// Throws a config Error for what the accelerator cannot do: widths that are not multiples of 64 or
// above kMaxK, a tied head's table is fine, an embedding beyond the residual's range is not.
FixedModel lower_model(const Ctx& ctx, const PackedModel& model);

// Random weights, gains near 1: for cycles and for comparing simulators at any size without a file.
FixedModel random_fixed_model(const MatmulFreeConfig& config, std::uint64_t seed);

// Only the shape checks of the above.
void check_lowerable(const MatmulFreeConfig& config, const std::string& name);

// Nearest scalar of a positive number; 0 for 0.
Scalar scalar_from_double(double v);

}  // namespace mmfree::hw
