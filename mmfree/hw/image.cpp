#include "mmfree/hw/image.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstring>

#include "mmfree/core/error.h"
#include "mmfree/hw/fixed.h"

namespace mmfree::hw {
namespace {

// Eight tables, so that eight bytes go at once (Castagnoli polynomial, reflected).
struct CrcTables {
  std::uint32_t t[8][256];
  constexpr CrcTables() : t() {
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = (c & 1U) != 0 ? (c >> 1) ^ 0x82f63b78U : c >> 1;
      t[0][i] = c;
    }
    for (int k = 1; k < 8; ++k)
      for (std::uint32_t i = 0; i < 256; ++i)
        t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255U];
  }
};
constexpr CrcTables kCrc;

constexpr std::uint64_t kMaxWidth = kMaxK;
constexpr std::uint64_t kMaxVocab = std::uint64_t{1} << 24;

}  // namespace

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    std::uint64_t v = 0;
    std::memcpy(&v, p, 8);
    v ^= crc;
    crc = kCrc.t[7][v & 255U] ^ kCrc.t[6][(v >> 8) & 255U] ^ kCrc.t[5][(v >> 16) & 255U] ^
          kCrc.t[4][(v >> 24) & 255U] ^ kCrc.t[3][(v >> 32) & 255U] ^ kCrc.t[2][(v >> 40) & 255U] ^
          kCrc.t[1][(v >> 48) & 255U] ^ kCrc.t[0][v >> 56];
  }
  for (; bytes > 0; --bytes, ++p) crc = (crc >> 8) ^ kCrc.t[0][(crc ^ *p) & 255U];
  return ~crc;
}

idx Shape::layer_beats() const {
  return padded(1) + padded(constant_beats(d)) * 6 + padded(constant_beats(m)) * 3 +
         padded(constant_beats(f)) + 3 * matrix_beats(m, d) + matrix_beats(d, m) +
         2 * matrix_beats(f, d) + matrix_beats(d, f);
}
idx Shape::head_beats() const {
  return padded(1) + 2 * padded(constant_beats(d)) + matrix_beats(vocab, d);
}

Image::Image(std::span<const std::byte> bytes, std::string name)
    : bytes_(bytes), name_(std::move(name)), header_() {
  const auto check = [&](bool ok, const std::string& message) {
    if (!ok) fail(ErrorKind::format, name_ + ": " + message);
  };
  const auto equal = [&](const char* what, std::uint64_t found, std::uint64_t expected) {
    check(found == expected, fmt::format("{} is {}, expected {}", what, found, expected));
  };
  check(bytes.size() >= sizeof header_,
        fmt::format("the file has {} bytes, expected at least the {} of an image's header",
                    bytes.size(), sizeof header_));
  std::memcpy(&header_, bytes.data(), sizeof header_);
  const ImageHeader& h = header_;
  check(h.magic == kImageMagic,
        "not an image of the accelerator (it does not start with MMFREEHW)");
  equal("the image's version", h.version, kImageVersion);
  const std::uint32_t crc = crc32c(0, bytes.data(), offsetof(ImageHeader, crc));
  check(crc == h.crc,
        fmt::format("the header's checksum is {:08x}, its bytes give {:08x}: the file is damaged",
                    h.crc, crc));
  equal("the instruction set's version", h.isa, kIsaVersion);
  equal("the number of lanes", h.lanes, kLanes);
  equal("the number of rows a beat", h.rows, kRows);
  check(
      ports_exist(h.ports),
      fmt::format("the number of memory ports is {}, expected 1, 2, 4 or {}", h.ports, kMaxPorts));
  equal("the length of the file", bytes.size(), h.file_bytes);
  const auto width = [&](const char* what, std::uint32_t v) {
    check(v >= kLanes && v <= kMaxWidth && v % kLanes == 0,
          fmt::format("{} is {}, expected a multiple of {} in {}..{}", what, v, kLanes, kLanes,
                      kMaxWidth));
  };
  width("the model's width", h.d);
  width("the mixer's width", h.m);
  width("the MLP's width", h.f);
  check(h.layers >= 1 && h.layers <= 0xffff,
        fmt::format("the number of layers is {}, expected 1..65535", h.layers));
  check(h.vocab >= 1 && h.vocab <= kMaxVocab,
        fmt::format("the vocabulary is {}, expected 1..{}", h.vocab, kMaxVocab));
  const auto token = [&](const char* what, std::int32_t v) {
    check(v >= -1 && v < static_cast<std::int32_t>(h.vocab),
          fmt::format("{} is {}, expected -1 or a token below {}", what, v, h.vocab));
  };
  token("the beginning-of-text token", h.bos);
  token("the end-of-text token", h.eos);
  check(h.zero == 0, "reserved fields of the header are not 0");

  std::uint64_t end = kPageBytes;  // sections follow one another
  for (int i = 0; i < kSections; ++i) {
    const SectionEntry& s = h.sections[static_cast<std::size_t>(i)];
    const std::string_view what = kSectionNames[static_cast<std::size_t>(i)];
    check(s.offset == end && s.zero == 0,
          fmt::format("section {} is at byte {}, expected {}", what, s.offset, end));
    check(s.offset <= bytes.size() && s.bytes <= bytes.size() - s.offset,
          fmt::format("section {} has {} bytes at {}, beyond the file's {}", what, s.bytes,
                      s.offset, bytes.size()));
    const std::uint32_t sum = crc32c(0, bytes.data() + s.offset, s.bytes);
    check(sum == s.crc,
          fmt::format("section {} has checksum {:08x}, its bytes give {:08x}: the file is damaged",
                      what, s.crc, sum));
    end = (s.offset + s.bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
  check(bytes.size() <= end,
        fmt::format("the file goes on after its last section ({} bytes)", bytes.size() - end));
  const Shape n = shape();
  const auto length = [&](Section s, idx beats) {
    const std::uint64_t found = section(s).size();
    check(found == static_cast<std::uint64_t>(beats) * kBeatBytes,
          fmt::format("section {} has {} bytes, expected {}",
                      kSectionNames[static_cast<std::size_t>(s)], found, beats * kBeatBytes));
  };
  length(Section::embedding, n.vocab * n.padded(n.embedding_row_beats()));
  length(Section::layers, n.layers * n.layer_beats());
  length(Section::head, n.head_beats());
  const std::span<const std::byte> code = section(Section::code);
  check(
      code.size() % 16 == 0 && !code.empty() && code.size() <= 16 * 65536,
      fmt::format("section code has {} bytes, expected 1..65536 instructions of 16", code.size()));
  program_.resize(code.size() / 16);
  for (std::size_t i = 0; i < program_.size(); ++i) {
    std::memcpy(&program_[i].low, code.data() + 16 * i, 8);
    std::memcpy(&program_[i].high, code.data() + 16 * i + 8, 8);
  }
  check_program();
}

Shape Image::shape() const {
  return {header_.d, header_.m, header_.f, header_.layers, header_.vocab, header_.ports};
}

int Image::streams() const {
  unsigned last = 0;
  for (const Instruction& i : program_)
    if (i.op() == Op::EMB) last = std::max(last, i.a());
  return static_cast<int>(last) + 1;
}

std::span<const std::byte> Image::section(Section s) const {
  const SectionEntry& e = header_.sections[static_cast<std::size_t>(s)];
  return bytes_.subspan(e.offset, e.bytes);
}

// Every operand exists, every address lies in the image, loops are closed. What depends on the
// order of execution (that each beat is there when it is taken) the simulator checks as it runs.
void Image::check_program() const {
  const Shape n = shape();
  const idx widest = std::max({n.d, n.m, n.f});
  idx loop_start = -1;
  for (std::size_t pc = 0; pc < program_.size(); ++pc) {
    const Instruction& i = program_[pc];
    const std::string where = fmt::format("{}: instruction {}", name_, pc);
    check_instruction(i, where);
    const auto below = [&](std::string_view field, std::uint64_t limit) {
      const std::uint64_t v = i.field(field);
      if (v >= limit)
        fail(ErrorKind::format,
             fmt::format("{}: {} is {}, expected below {}", where, field, v, limit));
    };
    const auto inside = [&](std::uint64_t page, std::uint64_t beats) {
      if (page * kPageBytes + beats * kBeatBytes > bytes_.size())
        fail(ErrorKind::format,
             fmt::format("{}: reads {} beats from page {}, beyond the image", where, beats, page));
    };
    const auto bad = [&](const std::string& message) {
      fail(ErrorKind::format, where + ": " + message);
    };
    const auto limit = [](idx v) { return static_cast<std::uint64_t>(v); };
    // A loop or an end that is sometimes skipped has no meaning.
    const bool control = i.op() == Op::LOOP || i.op() == Op::ENDL || i.op() == Op::HALT;
    if (control && i.flags() != 0) bad("LOOP, ENDL and HALT cannot depend on LOGITS");
    switch (i.op()) {
      case Op::LOOP:
        if (loop_start >= 0) bad("a loop inside a loop");
        if (i.field("count") == 0 || i.field("count") > limit(n.layers))
          bad("count is not in 1..layers");
        loop_start = static_cast<idx>(pc) + 1;
        break;
      case Op::ENDL:
        if (loop_start < 0 || i.field("target") != limit(loop_start))
          bad("ENDL does not close a LOOP");
        loop_start = -1;
        break;
      case Op::WST:
        inside(i.field("page"), i.field("beats"));
        if (i.field("beats") % limit(n.ports) != 0)
          bad(fmt::format("a run of {} beats for {} ports", i.field("beats"), n.ports));
        break;
      case Op::EMB:
        below("a", 256);
        below("shift", 17);
        if (i.len() != limit(n.embedding_row_beats())) bad("len is not that of an embedding row");
        inside(i.field("page"), limit(n.vocab * n.padded(n.embedding_row_beats())));
        break;
      case Op::LDC:
        below("dst", kConstBanks);
        below("len", limit(constant_beats(widest)) + 1);
        break;
      case Op::LDS:
        below("dst", kScalars - 15);
        break;
      case Op::STAT:
        below("dst", kScalars);
        below("mx", kScalars);
        below("b", kConstBanks);
        break;
      case Op::QNT:
        below("dst", kCodeBanks);
        below("r", kScalars);
        below("b", kConstBanks);
        break;
      case Op::SFU:
        below("dst", kScalars);
        below("a", kScalars);
        below("b", kScalars);
        break;
      case Op::TMM: {
        below("a", kCodeBanks);
        below("b", kScalars);
        below("bank", kConstBanks);
        below("len", limit(widest) / kLanes + 1);
        const auto epi = static_cast<unsigned>(i.field("epi"));
        const bool state = epi == kEPI_SIGF || epi == kEPI_STATE || epi == kEPI_SWISHG;
        const idx rows = keeps_row(epi) ? n.vocab : epi == kEPI_RESADD ? n.d : state ? n.m : n.f;
        if (i.field("rows") == 0 || i.len() == 0) bad("an empty matrix");
        if (!keeps_row(epi) && i.field("rows") < kLeastRows)
          bad(fmt::format("rows is {}, expected at least {}", i.field("rows"), kLeastRows));
        below("rows", limit(rows) + 1);
        break;
      }
      default:
        break;
    }
    if (i.op() == Op::STAT || i.op() == Op::QNT) {
      const idx most = i.a() == kVEC_X ? n.d : widest;
      if (i.len() == 0) bad("an empty vector");
      below("len", limit(most) / kLanes + 1);
    }
  }
  if (loop_start >= 0) fail(ErrorKind::format, name_ + ": LOOP without ENDL");
  if (program_.back().op() != Op::HALT)
    fail(ErrorKind::format, name_ + ": the program does not end with HALT");
}

}  // namespace mmfree::hw
