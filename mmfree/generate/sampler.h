#pragma once
// Choosing the next token. A pure function of the logits, the options, the recent tokens and a draw
// number: the same arguments give the same token on any machine.
//
// Order, as in Hugging Face: repetition penalty, temperature, top-k, top-p, min-p, draw. Every
// filter looks at what the one before it left, renormalised, and leaves at least the most likely
// token. Equal logits count in order of token id, lower first, so that exactly k tokens pass top-k.
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree {

struct SamplerOptions {
  double temperature = 0.7;  // 0: the most likely token, nothing random
  idx top_k = 50;            // the k most likely tokens; 0 or more than the vocabulary: all
  double top_p = 0.9;  // the fewest tokens, most likely first, whose probabilities reach p; 1: all
  double min_p = 0;    // tokens with at least this share of the largest probability; 0: all
  double repetition_penalty =
      1;  // divides positive and multiplies negative logits of recent tokens; 1: off
  idx repetition_window = 0;  // tokens that count as recent; 0: all since the start
  std::uint64_t seed = 0;
};

// Throws a usage Error that names the option, its value and its range.
void validate(const SamplerOptions& options);

// Which tokens are recent. Memory: a count for each word of the vocabulary and one window of ids.
class RecentTokens {
 public:
  RecentTokens(idx vocab, idx window);
  void push(std::int32_t token);
  bool contains(std::int32_t token) const { return counts_[static_cast<std::size_t>(token)] > 0; }

 private:
  std::vector<std::uint32_t> counts_;  // (V)
  std::vector<std::int32_t> ring_;     // (window), empty: unlimited
  std::size_t next_ = 0;
  std::size_t size_ = 0;
};

struct Candidate {
  std::int32_t id;
  double logit;        // after penalty and temperature
  double probability;  // among the candidates
};

// What passes the filters, with probabilities that sum to 1. `result` is reused memory: its
// capacity settles at V. Most likely first, except that nothing is sorted when no filter asks for
// it. Logits that are not finite are a numeric Error. `recent` may be null. With temperature 0 the
// result is the one most likely token.
void candidates(std::span<const float> logits, const SamplerOptions& options,
                const RecentTokens* recent, std::vector<Candidate>& result);

// Draw number `draw` (the position of the token, say) from the candidates.
std::int32_t sample(std::span<const float> logits, const SamplerOptions& options,
                    const RecentTokens* recent, std::uint64_t draw,
                    std::vector<Candidate>& scratch);

}  // namespace mmfree
