#pragma once
// The trainable network: float32 latent weights, forward and hand-written backward.
#include <cstdint>
#include <memory>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/model/config.h"
#include "mmfree/model/params.h"
#include "mmfree/ops/bitlinear/bitlinear.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"

namespace mmfree {

struct LayerTernary {
  TernaryWeights i, f, g, o, gate, down;
};

struct Activations;  // what the forward keeps for the backward; sized for the largest batch seen

// Latent parameters, gradients, and the ternary weights derived from them.
struct Network {
  explicit Network(const MatmulFreeConfig& config);  // allocates; values are zero
  ~Network();
  Network(Network&&) noexcept;
  Network& operator=(Network&&) noexcept;

  MatmulFreeConfig config;
  std::vector<ParamInfo> table;
  Buffer<float> values;  // flat storage, see params.h
  Buffer<float> grads;   // the same layout; allocated at the first backward
  ParamViews p;          // into values
  ParamViews d;          // into grads
  std::vector<LayerTernary> layers;
  TernaryWeights head;
  Buffer<float> bounds;  // (L, D) lower bounds, empty when the configuration has none
  std::unique_ptr<Activations> acts;
};

// Call after every change of values: ternarises all weights and computes the lower bounds.
void ternarize_weights(const Ctx& ctx, Network& net);

struct TokenBatch {
  idx batch;                   // B
  idx length;                  // T
  const std::int32_t* inputs;  // (B, T), each in [0, V)
  const std::int32_t* labels;  // (B, T), the token to predict at each position, or kIgnoreLabel
  const std::uint8_t* mask = nullptr;  // (B, T) attention mask or null
};

struct LossSum {
  double nll = 0;  // nats, summed over the labelled positions
  idx count = 0;   // labelled positions
};

// Forward only; sequences start from a zero state.
LossSum forward_loss(const Ctx& ctx, Network& net, const TokenBatch& batch);

// Forward and backward of grad_scale * (sum of nll): gradients are added to net.grads (zero_grads
// clears them).
LossSum forward_backward(const Ctx& ctx, Network& net, const TokenBatch& batch, float grad_scale);
void zero_grads(const Ctx& ctx, Network& net);

// Of the last forward: per layer, the share of activation codes at +-127, in the order i/f/g input,
// o input, gate input, down input.
struct LayerSaturation {
  double mixer_in, mixer_out, mlp_in, mlp_out;
};
std::vector<LayerSaturation> activation_saturation(const Network& net);

}  // namespace mmfree
