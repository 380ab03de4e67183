#pragma once
// Inference on an NVIDIA GPU: integer mode (docs/numerics.md) with the CPU's bits. One packed copy
// of the weights serves decoding, batches and prefill, and all sessions; a session owns nothing but
// its recurrent state. docs/gpu_inference.md says how. Calls return when their results are there.
// In a build without CUDA the constructor of GpuModel throws a usage Error.
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mmfree/core/progress.h"
#include "mmfree/model/matmulfree_infer.h"

namespace mmfree {

// Rows that go through the network together.
inline constexpr idx kGpuPrefillRows = 2048;

struct GpuInferenceInfo {
  std::string device;
  int multiprocessors = 0;
  std::size_t weight_bytes = 0;   // on the device: tiles, gains, embedding
  std::size_t matrix_bytes = 0;   // of them the tiles, which a decoded token reads once
  std::size_t scratch_bytes = 0;  // buffers that all sessions share, as of now
  std::size_t session_bytes = 0;  // the state of one session
};

// The time of one multiprocessor, in shares of all: in each stage waiting for the values of the
// others; norm and quantisation, where the kernel takes their time (else part of working); working.
struct GpuStage {
  const char* name;
  double waiting, norm, working;
};

class GpuModel {
 public:
  // `layers`: blocks to put on the device, the first ones. All blocks: the head as well. The model
  // may go away afterwards. Widths that the kernels do not take are config Errors, too little
  // memory is a resource Error that says what would fit.
  GpuModel(const Ctx& ctx, const PackedModel& model, idx layers, const Progress& progress = {});
  GpuModel(const Ctx& ctx, const TiledModel& model, idx layers, const Progress& progress = {});
  ~GpuModel();
  GpuModel(const GpuModel&) = delete;
  GpuModel& operator=(const GpuModel&) = delete;

  const MatmulFreeConfig& config() const;
  const std::string& path() const;
  idx layers() const;  // on the device
  bool whole() const { return layers() == config().num_hidden_layers; }
  GpuInferenceInfo info() const;

  // Where decode() spends its time; measuring costs a little, so it is off until asked for.
  void measure_stages(bool on);
  std::vector<GpuStage> stages() const;

  struct Engine;
  Engine& engine() { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
};

// One sequence on the device. The model must outlive it and stay where it is; sessions of one model
// are used one at a time.
class GpuSession {
 public:
  explicit GpuSession(GpuModel& model);
  ~GpuSession();
  GpuSession(GpuSession&& o) noexcept;
  GpuSession& operator=(GpuSession&&) = delete;

  // As Session: logits (V) for the token after the last one, valid until the next call to the
  // model. The whole model must be on the device.
  std::span<const float> prefill(std::span<const std::int32_t> tokens);
  std::span<const float> step(std::int32_t token) { return prefill({&token, 1}); }

  // Feeds `token`, then always the most likely one, up to n tokens in all: the chosen ones, the
  // last of them not fed yet. Stops after eos (-1: never). The host takes no part in between.
  // Logits that are not finite are a numeric Error.
  std::vector<std::int32_t> decode(std::int32_t token, idx n, std::int32_t eos = -1);

  // model/matmulfree_infer.h's forward() with this session's state.
  void forward(const ForwardCall& call);
  // The residual stream (T, D) after the blocks that are on the device.
  void hidden(std::span<const std::int32_t> tokens, const std::uint8_t* mask, float* x);

  void restart();
  idx position() const { return position_; }
  GpuModel& model() { return *model_; }
  // The state of the blocks on the device, (layers, M), to and from the host.
  void read_state(float* h) const;
  void write_state(const float* h, idx position);
  SessionState state() const;  // of the whole model
  void restore(const SessionState& state, idx position);

 private:
  friend std::vector<std::int32_t> decode_batch(GpuModel&, std::span<GpuSession* const>,
                                                std::span<const std::int32_t>, idx);
  friend void forward_parts(GpuModel&, std::span<const struct GpuPart>, float*);
  void check_tokens(std::span<const std::int32_t> tokens) const;
  GpuModel* model_;
  float* state_ = nullptr;  // on the device
  idx position_ = 0;
};

// `steps` tokens for each of n different sessions of the model, in one pass over the weights a
// step: feeds tokens (n) first and then each session's most likely token. Returns those chosen,
// (steps, n).
std::vector<std::int32_t> decode_batch(GpuModel& model, std::span<GpuSession* const> sessions,
                                       std::span<const std::int32_t> tokens, idx steps);

// Any number of tokens for each of several different sessions at once, some at their prompt, others
// decoding: logits (parts, V) for the token after each part's last, or null.
struct GpuPart {
  GpuSession* session;
  std::span<const std::int32_t> tokens;  // at least one
};
void forward_parts(GpuModel& model, std::span<const GpuPart> parts, float* logits);

}  // namespace mmfree
