#include "mmfree/train/validation.h"

#include <algorithm>
#include <numbers>

namespace mmfree {
namespace {

// UTF-8 bytes that each id stands for.
std::vector<std::int64_t> bytes_of_ids(const Tokenizer& tokenizer) {
  std::vector<std::int64_t> bytes(static_cast<std::size_t>(tokenizer.vocab_size()));
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::int64_t>(tokenizer.id_bytes(static_cast<std::int32_t>(i)).size());
  return bytes;
}

}  // namespace

ValidationSet::ValidationSet(const TokenData& data, const Tokenizer& tokenizer, idx seq,
                             idx max_tokens)
    : stream_(data.val()) {
  const idx labels = stream_.size() - 1;
  if (labels < 1) return;
  if (labels <= max_tokens || labels <= seq) {
    for (idx begin = 0; begin < labels; begin += seq)
      windows_.push_back({begin, std::min(seq, labels - begin)});
  } else {
    const idx all = stream_.windows(seq);
    const idx chosen = std::clamp<idx>(max_tokens / seq, 1, all);
    for (idx i = 0; i < chosen; ++i) windows_.push_back({i * all / chosen * seq, seq});
  }

  const std::vector<std::int64_t> bytes = bytes_of_ids(tokenizer);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(seq) + 1);
  for (const Window& w : windows_) {
    stream_.read(w.begin, w.length + 1, ids.data());
    tokens_ += w.length;
    for (idx i = 1; i <= w.length; ++i) {
      const std::int32_t previous = ids[static_cast<std::size_t>(i - 1)];
      const std::int32_t id = ids[static_cast<std::size_t>(i)];
      bytes_ += bytes[static_cast<std::size_t>(id)];
      // The first piece of a document begins with a space that SentencePiece put there.
      const bool first = previous == tokenizer.bos_id() || previous == tokenizer.eos_id();
      if (first && tokenizer.id_bytes(id).starts_with(' ')) bytes_ -= 1;
    }
  }
}

Validation ValidationSet::measure(const std::function<LossSum(const TokenBatch&)>& forward,
                                  idx micro_batch) const {
  std::vector<std::int32_t> ids, inputs, labels;
  double nll = 0;
  for (std::size_t w = 0; w < windows_.size();) {
    const idx length = windows_[w].length;
    inputs.clear();
    labels.clear();
    idx rows = 0;
    for (; w < windows_.size() && rows < micro_batch && windows_[w].length == length; ++w, ++rows) {
      ids.resize(static_cast<std::size_t>(length) + 1);
      stream_.read(windows_[w].begin, length + 1, ids.data());
      inputs.insert(inputs.end(), ids.begin(), ids.end() - 1);
      labels.insert(labels.end(), ids.begin() + 1, ids.end());
    }
    nll += forward({rows, length, inputs.data(), labels.data()}).nll;
  }
  const double bits = nll / std::numbers::ln2;
  return {nll / static_cast<double>(tokens_),
          bits / static_cast<double>(std::max<std::int64_t>(1, bytes_))};
}

}  // namespace mmfree
