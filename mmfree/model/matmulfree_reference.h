#pragma once
// The network written out plainly on fake-quantised float operands, with the rounding points of the
// reference implementation (docs/numerics.md). In double without rounding it is the oracle of
// tests; in float it is
// `--numerics reference`. Weights are quantised at every call, as the reference does.
#include <cstdint>
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/model/latent.h"

namespace mmfree {

// The type in which the reference keeps parameters, activations and products; inside norms,
// quantisers, gates and the recurrence it computes in float whatever this says.
enum class Rounding { none, f16, bf16 };

struct ReferenceInput {
  idx batch = 0;                       // B
  idx length = 0;                      // T
  const std::int32_t* ids = nullptr;   // (B, T), each in [0, V)
  const std::uint8_t* mask = nullptr;  // (B, T), 0 or 1, or null
};

template <class Real>
struct ReferenceOutput {
  std::vector<Real> embedding;           // (B, T, D)
  std::vector<std::vector<Real>> block;  // L times (B, T, D)
  std::vector<Real> final_norm;          // (B, T, D)
  std::vector<std::vector<Real>> state;  // L times (B, M)
  std::vector<Real> logits;              // (B, T, V)
};

// Real is float or double; rounding other than none needs float.
template <class Real>
ReferenceOutput<Real> reference_forward(const Ctx& ctx, const LatentModel& model,
                                        const ReferenceInput& input,
                                        Rounding rounding = Rounding::none);

}  // namespace mmfree
