#include "mmfree/tokenizer/model_proto.h"

#include <fmt/core.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "mmfree/core/error.h"
#include "mmfree/tokenizer/utf8.h"

namespace mmfree {
namespace {

constexpr std::size_t kMaxPieces = std::size_t{1} << 24;

// Walks the fields of one message. Fields of unknown numbers are passed over, as the format wants.
class Fields {
 public:
  Fields(std::string_view bytes, const std::string& name) : rest_(bytes), name_(name) {}

  bool next() {
    if (rest_.empty()) return false;
    const std::uint64_t tag = varint();
    number_ = tag >> 3;
    if (number_ == 0) broken("a field number of 0");
    value_ = 0;
    bytes_ = {};
    wire_ = static_cast<int>(tag & 7);
    switch (wire_) {
      case 0:
        value_ = varint();
        break;
      case 1:
        bytes_ = take(8);
        break;
      case 2:
        bytes_ = take(varint());
        break;
      case 5:
        bytes_ = take(4);
        break;
      default:
        broken(fmt::format("a field of wire type {}", wire_));
    }
    return true;
  }

  std::uint64_t number() const { return number_; }
  std::uint64_t integer() const {
    expect(0);
    return value_;
  }
  std::string_view bytes() const {
    expect(2);
    return bytes_;
  }
  float real() const {
    expect(5);
    std::uint32_t bits = 0;
    std::memcpy(&bits, bytes_.data(), 4);
    return std::bit_cast<float>(bits);
  }

 private:
  [[noreturn]] void broken(const std::string& what) const {
    fail(ErrorKind::format, fmt::format("{}: not a SentencePiece model: {}", name_, what));
  }
  void expect(int wire) const {
    if (wire_ != wire)
      broken(fmt::format("field {} has wire type {}, expected {}", number_, wire_, wire));
  }
  std::uint64_t varint() {
    std::uint64_t v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) broken("it ends inside a number");
      const auto b = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      v |= static_cast<std::uint64_t>(b & 0x7FU) << shift;
      if (b < 0x80) return v;
    }
    broken("a number of more than 64 bits");
  }
  std::string_view take(std::uint64_t n) {
    if (n > rest_.size())
      broken(fmt::format("a field of {} bytes where {} are left", n, rest_.size()));
    const std::string_view out = rest_.substr(0, static_cast<std::size_t>(n));
    rest_.remove_prefix(out.size());
    return out;
  }

  std::string_view rest_;
  const std::string& name_;
  std::uint64_t number_ = 0;
  int wire_ = 0;
  std::uint64_t value_ = 0;
  std::string_view bytes_;
};

ModelPiece parse_piece(std::string_view bytes, const std::string& name) {
  ModelPiece piece;
  Fields f(bytes, name);
  while (f.next()) {
    if (f.number() == 1) piece.text = std::string(f.bytes());
    if (f.number() == 2) piece.score = f.real();
    if (f.number() == 3) {
      if (f.integer() < 1 || f.integer() > 6)
        fail(ErrorKind::format,
             fmt::format("{}: piece of type {}, expected 1 to 6", name, f.integer()));
      piece.type = static_cast<PieceType>(f.integer());
    }
  }
  return piece;
}

std::optional<unsigned> byte_of_piece(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return std::nullopt;
  unsigned value = 0;
  for (const char c : text.substr(3, 2)) {
    if (c >= '0' && c <= '9') {
      value = value * 16 + static_cast<unsigned>(c - '0');
    } else if (c >= 'A' && c <= 'F') {
      value = value * 16 + static_cast<unsigned>(c - 'A' + 10);
    } else {
      return std::nullopt;
    }
  }
  return value;
}

// A normaliser's table is: size of a double-array trie in bytes, the trie (32-bit units), strings
// that end in NUL. The library follows the trie's links without looking where they lead, so every
// link that can be taken is followed here first: from unit i with offset o and byte c to unit i ^ o
// ^ c, whose label must be c.
void check_normalizer_map(std::string_view map, const std::string& name) {
  const auto broken = [&](std::string_view what) {
    fail(ErrorKind::format, fmt::format("{}: normaliser table: {}", name, what));
  };
  std::uint32_t trie_bytes = 0;
  if (map.size() < 4) broken("shorter than its header");
  std::memcpy(&trie_bytes, map.data(), 4);
  if (trie_bytes > map.size() - 4 || trie_bytes % 4 != 0 || trie_bytes < 1024)
    broken(fmt::format("a trie of {} bytes in a table of {}", trie_bytes, map.size()));
  std::vector<std::uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), map.data() + 4, trie_bytes);
  const std::string_view strings = map.substr(4 + trie_bytes);
  if (strings.empty() || strings.back() != '\0') broken("its strings do not end in NUL");

  const auto offset = [](std::uint32_t unit) { return (unit >> 10) << ((unit & (1U << 9)) >> 6); };
  std::vector<bool> seen(units.size(), false);
  std::vector<std::size_t> open = {0};
  seen[0] = true;
  while (!open.empty()) {
    const std::size_t at = open.back();
    open.pop_back();
    const std::size_t base = at ^ offset(units[at]);
    if ((units[at] >> 8 & 1U) != 0) {  // has a value, in the unit that byte 0 leads to
      if (base >= units.size()) broken("a link leaves the trie");
      if ((units[base] & 0x7FFFFFFFU) >= strings.size()) broken("a value leaves the strings");
    }
    for (std::uint32_t c = 1; c < 256; ++c) {
      const std::size_t to = base ^ c;
      if (to >= units.size()) broken("a link leaves the trie");
      if ((units[to] & ((1U << 31) | 0xFFU)) == c && !seen[to]) {
        seen[to] = true;
        open.push_back(to);
      }
    }
  }
}

void parse_normalizer(std::string_view bytes, const std::string& name, ModelProto& m) {
  Fields f(bytes, name);
  while (f.next()) {
    if (f.number() == 2 && !f.bytes().empty()) {
      check_normalizer_map(f.bytes(), name);
      m.has_normalizer_map = true;
    }
    if (f.number() == 3) m.add_dummy_prefix = f.integer() != 0;
    if (f.number() == 4) m.remove_extra_whitespaces = f.integer() != 0;
    if (f.number() == 5) m.escape_whitespaces = f.integer() != 0;
  }
}

void parse_trainer(std::string_view bytes, const std::string& name, ModelProto& m) {
  Fields f(bytes, name);
  while (f.next()) {
    if (f.number() == 3) m.model_type = static_cast<int>(f.integer() & 0xFFU);
    if (f.number() == 24) m.whitespace_as_suffix = f.integer() != 0;
    if (f.number() == 35) m.byte_fallback = f.integer() != 0;
    if (f.number() == 44) m.unknown_surface = std::string(f.bytes());
  }
}

void check_pieces(const ModelProto& m, const std::string& name) {
  if (m.pieces.empty()) fail(ErrorKind::format, name + ": a SentencePiece model without pieces");
  std::unordered_set<std::string_view> texts;
  for (std::size_t id = 0; id < m.pieces.size(); ++id) {
    const ModelPiece& p = m.pieces[id];
    const auto broken = [&](std::string_view what) {
      fail(ErrorKind::format, fmt::format("{}: piece {} {}", name, id, what));
    };
    if (p.text.empty()) broken("is empty");
    if (p.text.find('\0') != std::string::npos) broken("contains a NUL byte");
    if (find_invalid_utf8(p.text) != std::string::npos) broken("is not UTF-8");
    if (!std::isfinite(p.score)) broken("has a score that is not finite");
    if (!texts.insert(p.text).second) broken(fmt::format("repeats the piece '{}'", p.text));
    if (p.type == PieceType::byte && !byte_of_piece(p.text))
      broken(fmt::format("is of type byte but reads '{}', expected <0x00> to <0xFF>", p.text));
  }
}

}  // namespace

ModelProto parse_model_proto(std::string_view bytes, const std::string& name) {
  ModelProto m;
  bool trainer = false;
  bool normalizer = false;
  Fields f(bytes, name);
  while (f.next()) {
    switch (f.number()) {
      case 1:
        if (m.pieces.size() == kMaxPieces)
          fail(ErrorKind::format, fmt::format("{}: more than {} pieces", name, kMaxPieces));
        m.pieces.push_back(parse_piece(f.bytes(), name));
        break;
      case 2:
        parse_trainer(f.bytes(), name, m);
        trainer = true;
        break;
      case 3:
        parse_normalizer(f.bytes(), name, m);
        normalizer = true;
        break;
      case 5: {
        ModelProto denormalizer;
        parse_normalizer(f.bytes(), name, denormalizer);
        m.has_denormalizer = m.has_denormalizer || denormalizer.has_normalizer_map;
        break;
      }
      default:
        break;
    }
  }
  // They follow the pieces; a file that was cut between two pieces is a well-formed message without
  // them.
  if (!trainer || !normalizer)
    fail(ErrorKind::format,
         fmt::format("{}: not a SentencePiece model, or cut short: no {} settings in it", name,
                     trainer ? "normaliser" : "trainer"));
  if (find_invalid_utf8(m.unknown_surface) != std::string::npos)
    fail(ErrorKind::format, name + ": the text of the unknown piece is not UTF-8");
  check_pieces(m, name);
  return m;
}

}  // namespace mmfree
