#pragma once
// Text <-> token ids, done by SentencePiece. This is the only folder that knows its library.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/types.h"
#include "mmfree/tokenizer/model_proto.h"

namespace mmfree {

class Tokenizer {
 public:
  // From a SentencePiece model file or a folder that holds one as tokenizer.model. Throws a format
  // Error if the file is no such model, a usage Error if the folder has none (a tokenizer.json
  // alone is not enough).
  static Tokenizer load(const std::filesystem::path& file_or_folder);
  // From the bytes of such a file; `name` is how errors call it.
  static Tokenizer from_bytes(std::string serialized, const std::string& name);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  const std::string& serialized() const;  // the bytes it was loaded from
  std::int32_t vocab_size() const;
  std::int32_t unk_id() const;
  std::int32_t bos_id() const;  // -1 if there is none
  std::int32_t eos_id() const;  // -1 if there is none

  // The ids SentencePiece gives, without BOS and EOS. Bytes that are not UTF-8 count as U+FFFD.
  // Safe to call from several threads at once.
  std::vector<std::int32_t> encode(std::string_view text) const;

  // Cuts text into parts of about `target` bytes (at least 1) such that the ids of the parts, one
  // after another, are those of the whole. A cut takes away one space, which the dummy prefix of
  // the next part gives back. One part if this model allows no cuts or the text offers none.
  std::vector<std::string_view> split(std::string_view text, std::size_t target) const;

  // The text SentencePiece gives. Throws a usage Error if an id is outside the vocabulary.
  std::string decode(std::span<const std::int32_t> ids) const;

  const std::string& piece(std::int32_t id) const;
  float score(std::int32_t id) const;
  PieceType type(std::int32_t id) const;
  // What one id stands for: one byte for a byte piece, the text with plain spaces for a word piece,
  // nothing for a control piece. Not always whole characters.
  std::string_view id_bytes(std::int32_t id) const;

 private:
  friend class TextStream;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The tokenizer.model of a run directory, or the path itself if it is a file.
std::filesystem::path find_tokenizer_model(const std::filesystem::path& file_or_folder);

// Decodes ids one at a time. What put() and finish() return, joined, equals decode() of all the
// ids, and each part is whole characters of UTF-8. The tokenizer must outlive it.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  std::string put(std::int32_t id);
  std::string finish();  // bytes that wait for the rest of their character become U+FFFD

 private:
  std::string take_characters();
  const Tokenizer* tokenizer_;
  std::string pending_;      // bytes of a character that is not complete yet
  bool strip_space_ = true;  // the next word piece loses the space of the dummy prefix
};

struct TokenizerTraining {
  int vocab_size = 4096;
  double character_coverage =
      0.9999;  // share of the characters that get a piece; bytes spell the rest
  // Of texts longer than `sample_bytes` together, a share is taken, chosen by the texts' numbers. 0
  // total: all.
  std::uint64_t sample_bytes = std::uint64_t{64} << 20;
  std::uint64_t total_bytes = 0;
};

// Gives the next text; false at the end.
using TextSource = std::function<bool(std::string& text)>;

// Trains a byte-pair model as LLaMA's and Mistral's are: unknown 0, BOS 1, EOS 2, the 256 bytes,
// then pieces; single digits, no normalisation, a dummy space in front. In addition the line feed
// is a piece of its own, so that no word joins with it. Any UTF-8 text without U+2581 (which spells
// the space) decodes to itself. Returns the bytes of a tokenizer.model file, a pure function of
// texts and options. Throws a usage Error if there is no text, or the vocabulary is too small for
// its characters or larger than it supports; a format Error if a text is not UTF-8.
std::string train_tokenizer(const TextSource& source, const TokenizerTraining& options);

}  // namespace mmfree
