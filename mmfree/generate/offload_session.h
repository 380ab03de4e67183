#pragma once
// A session whose first blocks run on a GPU and whose others, with the head, run on the CPU, for
// cards that do not hold the whole model. The residual stream crosses over once a pass. The same
// bits as either device alone.
#include <span>

#include "mmfree/cuda/inference.h"
#include "mmfree/model/tiled.h"

namespace mmfree {

class OffloadSession {
 public:
  // gpu: the first blocks of the model. Both must outlive the session.
  OffloadSession(const Ctx& ctx, GpuModel& gpu, const TiledModel& model);

  // As Session.
  std::span<const float> prefill(std::span<const std::int32_t> tokens);
  std::span<const float> step(std::int32_t token) { return prefill({&token, 1}); }
  void forward(const ForwardCall& call);  // without call.hidden
  void restart();
  idx position() const { return gpu_.position(); }
  SessionState state() const;
  void restore(const SessionState& state, idx position);

 private:
  Ctx ctx_;
  const TiledModel* model_;
  GpuSession gpu_;
  SessionState state_;  // the GPU's blocks in it are not used
  InferScratch scratch_;
  Buffer<float> residual_;  // (prefill_rows(), D)
};

}  // namespace mmfree
