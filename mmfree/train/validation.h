#pragma once
// Loss and bits per byte on the validation split.
//
// The split is cut into windows of T tokens that predict the T tokens after them, each from a zero
// state; the last window is shorter. All of them if the split has at most max_tokens labels, else
// max_tokens / T of the full ones (at least one), evenly spread and the same each time. bits per
// byte = nats / ln 2 / bytes of the text that the labels spell.
#include <functional>
#include <vector>

#include "mmfree/model/matmulfree.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "mmfree/train/data.h"

namespace mmfree {

struct Validation {
  double loss = 0;  // nats per token
  double bits_per_byte = 0;
};

class ValidationSet {
 public:
  // Empty if the split has fewer than two tokens. The data must outlive it.
  ValidationSet(const TokenData& data, const Tokenizer& tokenizer, idx seq, idx max_tokens);

  bool empty() const { return windows_.empty(); }
  idx tokens() const { return tokens_; }              // labels
  std::int64_t text_bytes() const { return bytes_; }  // that they spell
  // forward: the summed loss of a batch.
  Validation measure(const std::function<LossSum(const TokenBatch&)>& forward,
                     idx micro_batch) const;

 private:
  struct Window {
    idx begin;
    idx length;
  };
  const TokenStream& stream_;
  std::vector<Window> windows_;
  idx tokens_ = 0;
  std::int64_t bytes_ = 0;
};

}  // namespace mmfree
