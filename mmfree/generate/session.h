#pragma once
// One conversation with a model: the recurrent state and the buffers that advance it. Memory does
// not grow with the number of tokens and nothing is allocated after construction.
#include <cstdint>
#include <span>

#include "mmfree/core/parallel.h"
#include "mmfree/model/matmulfree_infer.h"
#include "mmfree/model/tiled.h"

namespace mmfree {

class Session {
 public:
  // The model must outlive the session.
  Session(const Ctx& ctx, const TiledModel& model);

  // Feeds tokens and returns the logits (V) for the token after the last one; they stay valid until
  // the next call. Ids outside the vocabulary and empty input are usage Errors that leave the
  // session as it was. Feeding tokens in any number of calls gives the same bits.
  std::span<const float> prefill(std::span<const std::int32_t> tokens);
  std::span<const float> step(std::int32_t token) { return prefill({&token, 1}); }

  void restart();                             // forgets everything
  idx position() const { return position_; }  // tokens fed since the start

  const TiledModel& model() const { return *model_; }
  const SessionState& state() const { return state_; }
  void restore(const SessionState& state,
               idx position);  // a state() of a session of the same configuration

 private:
  Ctx ctx_;
  const TiledModel* model_;
  SessionState state_;
  InferScratch scratch_;
  idx position_ = 0;
};

}  // namespace mmfree
