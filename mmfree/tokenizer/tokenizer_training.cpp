#include <fmt/core.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <charconv>
#include <unordered_map>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "mmfree/tokenizer/utf8.h"

namespace mmfree {
namespace {

// The trainer passes over sentences that are longer than its limit or hold a tab (its own mark
// between pieces) or a NUL. Texts are cut there, so that nothing of them is lost.
constexpr std::size_t kSentenceBytes = 4000;
constexpr int kMinVocab = 3 + 256 + 1;

class Sentences : public sentencepiece::SentenceIterator {
 public:
  Sentences(const TextSource& source, const TokenizerTraining& options)
      : source_(source),
        share_(options.total_bytes > options.sample_bytes
                   ? static_cast<double>(options.sample_bytes) /
                         static_cast<double>(options.total_bytes)
                   : 1.0) {
    Next();
  }

  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override { return {}; }
  std::uint64_t count() const { return count_; }

  void Next() override {
    for (;;) {
      while (begin_ < text_.size() && (text_[begin_] == '\t' || text_[begin_] == '\0')) ++begin_;
      if (begin_ < text_.size()) break;
      do {
        if (!source_(text_)) {
          done_ = true;
          return;
        }
        ++texts_;
      } while (share_ < 1.0 && random_uniform(kSeed, 0, texts_) >= share_);
      begin_ = 0;
      if (const std::size_t bad = find_invalid_utf8(text_); bad != std::string::npos)
        fail(ErrorKind::format,
             fmt::format("text {} is not UTF-8 at its byte {}", texts_ - 1, bad));
    }
    std::size_t end =
        std::min(text_.find_first_of(std::string_view("\t\0", 2), begin_), text_.size());
    std::size_t skip = 0;
    if (end - begin_ > kSentenceBytes) {
      // At a space, which the dummy prefix of the next sentence gives back; else at any character.
      const std::size_t space = text_.rfind(' ', begin_ + kSentenceBytes);
      if (space != std::string::npos && space > begin_) {
        end = space;
        skip = 1;
      } else {
        end = begin_ + kSentenceBytes;
        while ((static_cast<unsigned char>(text_[end]) & 0xC0U) == 0x80U) --end;
      }
    }
    sentence_.assign(text_, begin_, end - begin_);
    begin_ = end + skip;
    ++count_;
  }

 private:
  static constexpr std::uint64_t kSeed = 1;
  const TextSource& source_;
  double share_;
  std::string text_;
  std::size_t begin_ = 0;
  std::string sentence_;
  bool done_ = false;
  std::uint64_t texts_ = 0;
  std::uint64_t count_ = 0;
};

// The library's message for a vocabulary too small for the characters ends in "... FOUND vs NEEDED.
// ...".
[[noreturn]] void fail_training(int vocab_size, std::string_view message) {
  const std::size_t at = message.find(" vs ");
  int needed = 0;
  if (message.find("smaller than required_chars") != message.npos && at != message.npos)
    std::from_chars(message.data() + at + 4, message.data() + message.size(), needed);
  if (needed > 0)
    fail(ErrorKind::usage,
         fmt::format("a vocabulary of {} pieces is too small for this text: its characters need at "
                     "least {} (a lower character coverage needs fewer)",
                     vocab_size, needed));
  fail(ErrorKind::usage,
       fmt::format("cannot train a tokenizer of {} pieces on this text: {}", vocab_size, message));
}

}  // namespace

std::string train_tokenizer(const TextSource& source, const TokenizerTraining& options) {
  constexpr int kMaxVocab = 1 << 20;
  if (options.vocab_size < kMinVocab || options.vocab_size > kMaxVocab)
    fail(ErrorKind::usage, fmt::format("vocabulary of {} pieces: expected {} to {}",
                                       options.vocab_size, kMinVocab, kMaxVocab));
  if (!(options.character_coverage > 0.9 && options.character_coverage <= 1.0))
    fail(ErrorKind::usage,
         fmt::format("character coverage {}: expected more than 0.9 and at most 1",
                     options.character_coverage));
  Sentences sentences(source, options);
  if (sentences.done()) fail(ErrorKind::usage, "no text to train a tokenizer on");

  const std::unordered_map<std::string, std::string> settings = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(options.vocab_size)},
      {"hard_vocab_limit", "false"},  // a vocabulary that comes out smaller is reported below
      {"character_coverage", fmt::format("{}", options.character_coverage)},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"allow_whitespace_only_pieces", "true"},
      {"user_defined_symbols", "\n"},
      {"normalization_rule_name", "identity"},
      {"remove_extra_whitespaces", "false"},
      {"add_dummy_prefix", "true"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"max_sentence_length", "16384"},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  std::string model;
  try {
    const auto status = sentencepiece::SentencePieceTrainer::Train(settings, &sentences, &model);
    if (!status.ok()) fail_training(options.vocab_size, status.message());
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    fail(ErrorKind::usage, fmt::format("cannot train a tokenizer on this text: {}", e.what()));
  }
  const std::size_t pieces = parse_model_proto(model, "the trained tokenizer").pieces.size();
  if (pieces < static_cast<std::size_t>(options.vocab_size))
    fail(ErrorKind::usage, fmt::format("a vocabulary of {} pieces is too large for this text: it "
                                       "supports at most {}",
                                       options.vocab_size, pieces));
  return model;
}

}  // namespace mmfree
