#include "mmfree/generate/sampler.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree {
namespace {

constexpr std::uint64_t kSamplerStream = 0x73616d706c65;  // apart from other uses of the same seed

bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}
bool after(const Candidate& a, const Candidate& b) {
  return before(b, a);
}

void keep_top_k(idx k, std::vector<Candidate>& c) {
  if (k <= 0 || k >= static_cast<idx>(c.size())) return;
  const auto end = c.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(c.begin(), end - 1, c.end(), before);
  c.erase(end, c.end());
}

// Moves the most likely candidates to the front, in order, until they reach `mass` or fall below
// `floor`; drops the rest.
void keep_nucleus(double mass, double floor, std::vector<Candidate>& c) {
  // A heap gives them one by one: usually far fewer are needed than there are.
  std::make_heap(c.begin(), c.end(), after);
  double sum = 0;
  std::size_t kept = 0;
  auto end = c.end();
  while (end != c.begin()) {
    if (kept > 0 && (sum >= mass || c.front().probability < floor)) break;
    sum += c.front().probability;
    std::pop_heap(c.begin(), end, after);
    --end;
    ++kept;
  }
  std::reverse(c.begin(), c.end());  // popped ones gather at the back
  c.resize(kept);
}

// probability = exp(logit - largest) / sum
void softmax(std::vector<Candidate>& c) {
  double largest = c.front().logit;
  for (const Candidate& t : c) largest = std::max(largest, t.logit);
  double sum = 0;
  for (Candidate& t : c) sum += t.probability = std::exp(t.logit - largest);
  for (Candidate& t : c) t.probability /= sum;
}

}  // namespace

void validate(const SamplerOptions& o) {
  const auto check = [](bool ok, std::string_view name, double value, std::string_view range) {
    if (!ok) fail(ErrorKind::usage, fmt::format("{} is {}, expected {}", name, value, range));
  };
  check(std::isfinite(o.temperature) && o.temperature >= 0, "temperature", o.temperature,
        "0 or more");
  check(o.top_k >= 0, "top-k", static_cast<double>(o.top_k), "0 or more");
  check(o.top_p >= 0 && o.top_p <= 1, "top-p", o.top_p, "0..1");
  check(o.min_p >= 0 && o.min_p <= 1, "min-p", o.min_p, "0..1");
  check(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0, "repetition penalty",
        o.repetition_penalty, "more than 0");
  check(o.repetition_window >= 0 && o.repetition_window <= idx{1} << 24, "repetition window",
        static_cast<double>(o.repetition_window), "0..16777216");
}

RecentTokens::RecentTokens(idx vocab, idx window)
    : counts_(static_cast<std::size_t>(vocab)), ring_(static_cast<std::size_t>(window)) {}

void RecentTokens::push(std::int32_t token) {
  MMFREE_ASSERT(token >= 0 && static_cast<std::size_t>(token) < counts_.size());
  std::uint32_t& count = counts_[static_cast<std::size_t>(token)];
  if (ring_.empty()) {
    count = 1;  // nothing ever leaves
    return;
  }
  if (size_ == ring_.size()) {
    --counts_[static_cast<std::size_t>(ring_[next_])];
  } else {
    ++size_;
  }
  ring_[next_] = token;
  next_ = (next_ + 1) % ring_.size();
  ++count;
}

void candidates(std::span<const float> logits, const SamplerOptions& o, const RecentTokens* recent,
                std::vector<Candidate>& result) {
  MMFREE_ASSERT(!logits.empty());
  result.resize(logits.size());
  const bool penalise = recent != nullptr && o.repetition_penalty != 1;
  const bool greedy = o.temperature == 0;
  std::size_t best = 0;
  double largest =
      -std::numeric_limits<double>::infinity();  // before the temperature, which may overflow
  for (std::size_t v = 0; v < logits.size(); ++v) {
    if (!std::isfinite(logits[v]))
      fail(ErrorKind::numeric,
           fmt::format("the logit of token {} is {}, expected a finite number", v, logits[v]));
    double x = static_cast<double>(logits[v]);
    const std::int32_t id = static_cast<std::int32_t>(v);
    if (penalise && recent->contains(id))
      x = x > 0 ? x / o.repetition_penalty : x * o.repetition_penalty;
    result[v] = {id, greedy ? x : x / o.temperature, 0};
    if (x > largest) {
      largest = x;
      best = v;
    }
  }
  // A temperature near 0 may send scaled logits past the largest number; then the largest wins as
  // well.
  if (greedy || !std::isfinite(result[best].logit)) {
    result[0] = {result[best].id, result[best].logit, 1};
    result.resize(1);
    return;
  }
  keep_top_k(o.top_k, result);
  softmax(result);
  const bool sorted = o.top_p < 1 || o.min_p > 0;
  if (sorted) {
    double peak = 0;
    for (const Candidate& c : result) peak = std::max(peak, c.probability);
    keep_nucleus(o.top_p < 1 ? o.top_p : 2.0, o.min_p * peak, result);
    softmax(result);
  } else if (result.size() < logits.size()) {
    std::sort(result.begin(), result.end(), before);  // the selection left them in no stated order
  }
}

std::int32_t sample(std::span<const float> logits, const SamplerOptions& options,
                    const RecentTokens* recent, std::uint64_t draw,
                    std::vector<Candidate>& scratch) {
  candidates(logits, options, recent, scratch);
  double left = random_uniform(options.seed, kSamplerStream, draw);
  for (const Candidate& c : scratch) {
    left -= c.probability;
    if (left < 0) return c.id;
  }
  return scratch.back().id;  // rounding left a trace of the unit mass over
}

}  // namespace mmfree
