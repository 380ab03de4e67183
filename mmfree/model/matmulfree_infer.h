#pragma once
// The forward pass of inference on a packed model: integer mode (int8 activations, ternary codes,
// int32 sums), fp32 recurrent state. One sequence, any number of tokens, in chunks of constant
// size: all ops work row by row or in order of time, so any chunking, and one token at a time,
// gives the same bits, as does any number of threads.
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/model/packed.h"

namespace mmfree {

// Rows that go through the network together in prefill: enough to reuse each unpacked weight, small
// enough for the cache.
inline constexpr idx kPrefillRows = 64;

// Everything that one sequence carries from token to token; its size does not depend on the length.
struct SessionState {
  explicit SessionState(const MatmulFreeConfig& config)
      : layers(config.num_hidden_layers), width(config.mixer_width()), h(layers * width) {}
  idx layers;       // L
  idx width;        // M
  Buffer<float> h;  // (L, M)
  float* layer(idx l) { return h.data() + l * width; }
  const float* layer(idx l) const { return h.data() + l * width; }
};
void reset(SessionState& state);

// Buffers of forward(), allocated once. `rows`: largest chunk; `logit_rows`: `rows`, or 1 where
// only the last row's logits are ever asked for.
struct InferScratch {
  InferScratch(const MatmulFreeConfig& config, idx rows, idx logit_rows);
  idx rows;
  idx logit_rows;
  Buffer<float> x;             // (R, D) residual stream
  Buffer<float> i, f, g, h;    // (R, M)
  Buffer<float> o;             // (R, M)
  Buffer<float> pq;            // (R, 2F)
  Buffer<float> z;             // (R, F)
  Buffer<float> norm;          // (R, D) final norm, for those who look at it
  Buffer<float> logits;        // (logit_rows, V)
  Buffer<std::int8_t> q[3];    // codes of up to three projections
  Buffer<float> q_scale;       // (3, R)
  Buffer<std::int32_t> q_sum;  // (3, R)
};
std::size_t scratch_bytes(const InferScratch& scratch);

enum class LogitRows { none, last, all };

// Hidden states of all T tokens; null pointers and an empty vector: not wanted.
struct HiddenCapture {
  float* embedding = nullptr;   // (T, D)
  std::vector<float*> block;    // L times (T, D), after each block
  float* final_norm = nullptr;  // (T, D)
};

struct ForwardCall {
  std::span<const std::int32_t> tokens;  // (T), each in [0, V)
  const std::uint8_t* mask = nullptr;    // (T) attention mask, 0 or 1, or null: all ones
  LogitRows logits = LogitRows::last;
  // Called for each chunk in order of time: logits (rows, V) of tokens [first, first + rows). The
  // memory is reused.
  std::function<void(idx first, idx rows, const float* logits)> sink;
  const HiddenCapture* hidden = nullptr;
};

// Advances the state by the tokens. Nothing is allocated.
void forward(const Ctx& ctx, const PackedModel& model, const ForwardCall& call, SessionState& state,
             InferScratch& scratch);

}  // namespace mmfree
