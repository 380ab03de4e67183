#pragma once
// The whole network in integers, one token at a time: the rule that the simulator of the
// accelerator and the RTL follow bit for bit. No floating-point number exists at run time.
#include <cstdint>
#include <span>
#include <vector>

#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"
#include "mmfree/hw/lower.h"
#include "mmfree/hw/noise.h"

namespace mmfree::hw {

// One int8 a trit, for speed.
struct CodeMatrix {
  idx out = 0, in = 0;
  Buffer<std::int8_t> codes;  // (out, in)
};

class FixedNetwork {
 public:
  // The model must outlive the network.
  FixedNetwork(const Ctx& ctx, const FixedModel& model);

  const FixedModel& model() const { return *model_; }
  // Advances `state` (L, M), Q4.19, by one token, an id in 0..V-1. With logits: sums() and logits()
  // are of this token.
  void step(std::int32_t token, std::span<std::int32_t> state, bool with_logits);

  std::span<const std::int32_t> sums() const { return sums_; }  // (V) row sums of the head
  Scale logit_scale() const { return logit_scale_; }
  std::int32_t logit(std::size_t row) const {  // Q15.16
    return static_cast<std::int32_t>(apply_scale(sums_[row], logit_scale_, 32));
  }
  std::int32_t best() const;  // the row with the largest sum, the first of equals
  // The row that the head draws (noise.h), the first of equals; best() without temperature.
  std::int32_t draw(const Sampling& s) const;
  std::span<const std::int32_t> residual() const { return x_; }

 private:
  struct LayerCodes {
    CodeMatrix f, i, g, o, p, q, down;
  };
  CodeMatrix unpack(Matrix matrix, idx layer) const;
  Scalar squares(std::span<const std::int32_t> v, const Gains* g1) const;
  Scalar quantize(std::span<const std::int32_t> v, const Gains& g12);  // to q_; the maximum
  void product(const CodeMatrix& w);                                   // q_ -> sums_
  void layer(const FixedLayer& n, const LayerCodes& w, std::int32_t* h);

  Ctx ctx_;
  const FixedModel* model_;
  std::vector<LayerCodes> layers_;
  CodeMatrix head_;
  std::vector<std::int32_t> x_, z_, t_, sums_;
  std::vector<std::int8_t> q_;
  Scalar logit_factor_;  // of the sums, without fraction bits
  Scale logit_scale_;
};

}  // namespace mmfree::hw
