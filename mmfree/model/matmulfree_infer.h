#pragma once
// The forward pass of inference: integer mode (int8 activations, ternary codes, int32 sums), fp32
// recurrent state. Any number of tokens of one sequence in chunks of constant size, or the next
// token of many sequences at once: all ops work row by row or in order of time, so chunking, the
// company in a batch and the number of threads change no bit.
//
// One team of threads goes through the whole network; each has the same part of every matrix's
// outputs at every token, takes blocks of others when it is done first, and does what follows a
// product (scan step, gate, residual) on its outputs at once. Four barriers a block remain: before
// each product that needs the whole row.
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/share.h"
#include "mmfree/model/tiled.h"

namespace mmfree {

// Rows that go through the network together in prefill: each block of weights is unpacked once for
// all of them. Fewer where matrix tiles multiply so fast that the rows' codes must come from the
// second-level cache.
idx prefill_rows();
// And where the logits of all of them are wanted, which take V floats a row.
inline constexpr idx kLogitRows = 128;

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

// Where the time of forward passes goes, as thread 0 sees it; waiting for others counts to the
// stage before.
struct StageSeconds {
  double embedding = 0, norms = 0, mixer_in = 0, mixer_out = 0, mlp_in = 0, mlp_out = 0, head = 0;
};

// One thread's own memory.
struct ThreadScratch {
  Buffer<std::uint8_t> codes;  // one unpacked block of the widest matrix
  Buffer<float> y[3];          // (R, 64) products of one block; y[0] also holds (R, 128)
  Buffer<float> o;             // (M) gated output when R = 1
  Buffer<std::int8_t> q[3];    // codes when R = 1
  float q_scale[3] = {};
  std::int32_t q_sum[3] = {};
};

// Buffers of the forward pass, allocated once. `rows`: largest chunk or batch; `logit_rows`: rows
// whose logits exist at one time; `threads`: the most that will work.
struct InferScratch {
  InferScratch(const MatmulFreeConfig& config, idx rows, idx logit_rows, int threads);
  idx rows;
  idx logit_rows;
  Buffer<float> x;             // (R, D) residual stream
  Buffer<float> g, h;          // (R, M); g becomes the gated output when R > 1
  Buffer<float> z;             // (R, F)
  Buffer<float> norm;          // (R, D) final norm, for those who look at it
  Buffer<float> logits;        // (logit_rows, V)
  Buffer<std::int8_t> q[3];    // codes of up to three projections
  Buffer<float> q_scale;       // (3, R)
  Buffer<std::int32_t> q_sum;  // (3, R)
  std::vector<ThreadScratch> own;
  std::vector<Share> shares;       // of each thread: its blocks of the present stage
  StageSeconds* stages = nullptr;  // adds to it if not null
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
  // Where another device has done the first blocks: begin with block `first_layer` and this
  // residual stream (T, D); the tokens' ids are not looked at. Null: begin with the embedding.
  const float* residual = nullptr;
  idx first_layer = 0;
};

// Advances the state by the tokens. Nothing is allocated.
void forward(const Ctx& ctx, const TiledModel& model, const ForwardCall& call, SessionState& state,
             InferScratch& scratch);

// One token for each of n <= scratch.rows, scratch.logit_rows sequences, each with its own state
// (all different): scratch.logits (n, V).
void step_batch(const Ctx& ctx, const TiledModel& model, std::span<const std::int32_t> tokens,
                std::span<SessionState* const> states, InferScratch& scratch);

}  // namespace mmfree
