#include "mmfree/tokenizer/tokenizer.h"

#include <fmt/core.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/tokenizer/utf8.h"

namespace mmfree {
namespace {

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";  // U+2581 spells the space
constexpr int kBpe = 2;
// Longer texts are encoded in parts: the library's memory is some hundred bytes per character.
constexpr std::size_t kPartBytes = std::size_t{1} << 16;

std::string with_spaces(std::string_view piece) {
  std::string out;
  while (!piece.empty()) {
    const std::size_t at = std::min(piece.find(kSpacePiece), piece.size());
    out.append(piece.substr(0, at));
    if (at == piece.size()) break;
    out += ' ';
    piece.remove_prefix(at + kSpacePiece.size());
  }
  return out;
}

// Whether no piece reaches over the space in front of a word, so that words are encoded
// independently of each other.
bool words_are_independent(const ModelProto& m) {
  if (m.model_type != kBpe || m.has_normalizer_map || !m.add_dummy_prefix || !m.escape_whitespaces)
    return false;
  return std::all_of(m.pieces.begin(), m.pieces.end(), [](const ModelPiece& p) {
    std::string_view text = p.text;
    if (p.type == PieceType::user_defined)
      return text.find(kSpacePiece) == text.npos && text.find(' ') == text.npos;
    while (text.starts_with(kSpacePiece)) text.remove_prefix(kSpacePiece.size());
    return text.find(kSpacePiece) == text.npos;
  });
}

bool is_ascii_graph(char c) {
  return c > ' ' && c <= '~';
}

}  // namespace

struct Tokenizer::Impl {
  std::string serialized;
  std::string name;
  ModelProto model;
  std::vector<std::string> bytes;  // by id: see id_bytes()
  bool independent_words = false;
  sentencepiece::SentencePieceProcessor processor;

  void check_id(std::int32_t id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= model.pieces.size())
      fail(ErrorKind::usage, fmt::format("token id {}: the vocabulary of {} has the ids 0 to {}",
                                         id, name, model.pieces.size() - 1));
  }
  const ModelPiece& at(std::int32_t id) const {
    check_id(id);
    return model.pieces[static_cast<std::size_t>(id)];
  }
};

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

std::filesystem::path find_tokenizer_model(const std::filesystem::path& file_or_folder) {
  std::error_code ec;
  if (!std::filesystem::is_directory(file_or_folder, ec)) return file_or_folder;
  const std::filesystem::path model = file_or_folder / "tokenizer.model";
  if (std::filesystem::exists(model, ec)) return model;
  const bool json = std::filesystem::exists(file_or_folder / "tokenizer.json", ec);
  fail(ErrorKind::usage,
       fmt::format("{}: {}; a SentencePiece tokenizer.model is expected", file_or_folder.string(),
                   json ? "holds only a tokenizer.json" : "holds no tokenizer"));
}

Tokenizer Tokenizer::load(const std::filesystem::path& file_or_folder) {
  const std::filesystem::path path = find_tokenizer_model(file_or_folder);
  return from_bytes(read_text_file(path), path.string());
}

Tokenizer Tokenizer::from_bytes(std::string serialized, const std::string& name) {
  auto impl = std::make_unique<Impl>();
  impl->name = name;
  impl->model = parse_model_proto(serialized, name);
  const ModelProto& m = impl->model;
  if (m.has_denormalizer || m.whitespace_as_suffix)
    fail(ErrorKind::format,
         fmt::format("{}: a SentencePiece model with {}, which is not supported", name,
                     m.has_denormalizer ? "a denormaliser" : "spaces at the end of words"));
  try {
    const auto status = impl->processor.LoadFromSerializedProto(serialized);
    if (!status.ok())
      fail(ErrorKind::format,
           fmt::format("{}: not a SentencePiece model: {}", name, status.message()));
    if (impl->processor.GetPieceSize() != static_cast<int>(m.pieces.size()))
      fail(ErrorKind::format, fmt::format("{}: SentencePiece reads {} pieces, the file has {}",
                                          name, impl->processor.GetPieceSize(), m.pieces.size()));
  } catch (const Error&) {
    throw;
  } catch (const std::exception& e) {
    fail(ErrorKind::format, fmt::format("{}: not a SentencePiece model: {}", name, e.what()));
  }
  impl->bytes.reserve(m.pieces.size());
  for (const ModelPiece& p : m.pieces) {
    switch (p.type) {
      case PieceType::control:
        impl->bytes.emplace_back();
        break;
      case PieceType::unknown:
        impl->bytes.push_back(m.unknown_surface);
        break;
      case PieceType::byte:
        impl->bytes.emplace_back(1, static_cast<char>(std::stoi(p.text.substr(3, 2), nullptr, 16)));
        break;
      default:
        impl->bytes.push_back(with_spaces(p.text));
        break;
    }
  }
  impl->independent_words = words_are_independent(m);
  impl->serialized = std::move(serialized);
  return Tokenizer(std::move(impl));
}

const std::string& Tokenizer::serialized() const {
  return impl_->serialized;
}
std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(impl_->model.pieces.size());
}
std::int32_t Tokenizer::unk_id() const {
  return impl_->processor.unk_id();
}
std::int32_t Tokenizer::bos_id() const {
  return impl_->processor.bos_id();
}
std::int32_t Tokenizer::eos_id() const {
  return impl_->processor.eos_id();
}
const std::string& Tokenizer::piece(std::int32_t id) const {
  return impl_->at(id).text;
}
float Tokenizer::score(std::int32_t id) const {
  return impl_->at(id).score;
}
PieceType Tokenizer::type(std::int32_t id) const {
  return impl_->at(id).type;
}
std::string_view Tokenizer::id_bytes(std::int32_t id) const {
  impl_->check_id(id);
  return impl_->bytes[static_cast<std::size_t>(id)];
}

std::vector<std::string_view> Tokenizer::split(std::string_view text, std::size_t target) const {
  std::vector<std::string_view> parts;
  // Invalid bytes become U+FFFD one by one, so a space beside ASCII is a space in any text.
  std::size_t at = impl_->independent_words ? target : text.size();
  while (at + 1 < text.size()) {
    if (text[at] == ' ' && is_ascii_graph(text[at - 1]) && is_ascii_graph(text[at + 1])) {
      parts.push_back(text.substr(0, at));
      text.remove_prefix(at + 1);
      at = target;
    } else {
      ++at;
    }
  }
  parts.push_back(text);
  return parts;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  for (const std::string_view part : split(text, kPartBytes)) {
    std::vector<int> part_ids;
    const auto status = impl_->processor.Encode(part, &part_ids);
    if (!status.ok())
      fail(ErrorKind::format, fmt::format("{}: cannot encode: {}", impl_->name, status.message()));
    ids.insert(ids.end(), part_ids.begin(), part_ids.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) impl_->check_id(id);
  std::string text;
  const auto status = impl_->processor.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  if (!status.ok())
    fail(ErrorKind::format, fmt::format("{}: cannot decode: {}", impl_->name, status.message()));
  return text;
}

// Takes the characters that are complete, and those that cannot become so, from what is pending.
std::string TextStream::take_characters() {
  std::string out;
  while (!pending_.empty()) {
    const Utf8Char c = first_utf8_char(pending_);
    if (c.status == Utf8Status::incomplete) break;
    if (c.status == Utf8Status::complete) {
      out.append(pending_, 0, c.length);
    } else {
      out += kReplacementCharacter;
    }
    pending_.erase(0, c.length);
  }
  if (!out.empty()) strip_space_ = false;
  return out;
}

std::string TextStream::put(std::int32_t id) {
  const Tokenizer::Impl& t = *tokenizer_->impl_;
  const ModelPiece& piece = t.at(id);
  std::string_view bytes = t.bytes[static_cast<std::size_t>(id)];
  if (piece.type == PieceType::byte) {
    pending_ += bytes;
    return take_characters();
  }
  std::string out = finish();
  const bool word = piece.type != PieceType::control && piece.type != PieceType::unknown;
  if (word && strip_space_ && bytes.starts_with(' ') &&
      (t.model.add_dummy_prefix || t.model.remove_extra_whitespaces)) {
    bytes.remove_prefix(1);
    // A model that drops extra spaces when it encodes drops all of them in front of the first word.
    strip_space_ = t.model.remove_extra_whitespaces;
  }
  if (!bytes.empty()) strip_space_ = false;
  out += bytes;
  return out;
}

std::string TextStream::finish() {
  std::string out = take_characters();
  for (; !pending_.empty(); pending_.pop_back()) out += kReplacementCharacter;
  if (!out.empty()) strip_space_ = false;
  return out;
}

}  // namespace mmfree
