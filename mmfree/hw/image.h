#pragma once
// Program images: what the accelerator's memory holds. Little endian; sections start at multiples
// of 4 KiB, and the header says where they are, how long, and their CRC32C.
//
//   page 0    ImageHeader
//   code      instructions, 16 bytes each; page 1
//   embedding (V, row) int16, rows padded to 64 bytes
//   layers    the stream of all layers: constants and weights in the order of their use
//             (docs/hardware.md, "Beats")
//   head      the stream of the head
//   tokenizer a SentencePiece model, may be empty
//
// A core with P ports reads wide beats, P beats at once: a section's beats p, p + P, ... come from
// port p. Runs of the stream and rows of the embedding are padded to whole wide beats.
#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/types.h"
#include "mmfree/hw/fixed.h"
#include "mmfree/hw/isa.h"

namespace mmfree::hw {

inline constexpr std::array<char, 8> kImageMagic = {'M', 'M', 'F', 'R', 'E', 'E', 'H', 'W'};
// Fewest rows of a matrix whose results a matrix behind it may read: fewer, and its first row would
// be read before the epilogue has written it. ARGMAX and SAMPLE write no memory and may have any.
inline constexpr std::uint64_t kLeastRows = kFewestRows;
// A group of five rows keeps the epilogue for five cycles, whatever rows it has.
static_assert((kLeastRows + kRows - 1) / kRows * kRows >= kEpilogueStages);
// Runs of beats that may be appended and not yet be taken: the prefetcher's queue.
inline constexpr std::size_t kRunQueue = 4;
// Memory ports are a power of two, so that every page starts with a wide beat.
inline constexpr int kMaxPorts = 8;

enum class Section { code, embedding, layers, head, tokenizer };
inline constexpr int kSections = 5;
inline constexpr std::array<std::string_view, kSections> kSectionNames = {
    "code", "embedding", "layers", "head", "tokenizer"};

struct SectionEntry {
  std::uint64_t offset, bytes;
  std::uint32_t crc, zero;
};

struct ImageHeader {
  std::array<char, 8> magic;
  std::uint32_t version, isa;
  std::uint32_t lanes, rows;      // of the tile
  std::uint32_t d, m, f, layers;  // shape
  std::uint32_t vocab;
  std::int32_t bos, eos;  // -1: none
  std::uint32_t ports;    // memory ports that share the beats: 1, 2, 4 or 8
  std::array<SectionEntry, kSections> sections;
  std::uint64_t file_bytes;
  std::uint32_t zero;
  std::uint32_t crc;  // of all bytes before it
};
static_assert(sizeof(ImageHeader) == 56 + kSections * 24 + 16);

std::uint32_t crc32c(std::uint32_t crc, const void* data, std::size_t bytes);

// What a compiled shape looks like in the image: lengths that header, program and stream must agree
// on.
struct Shape {
  idx d, m, f, layers, vocab;
  idx ports = 1;
  idx group_rows() const { return kRows * ports; }
  // `beats` and the padding to whole wide beats.
  idx padded(idx beats) const { return (beats + ports - 1) / ports * ports; }
  idx matrix_beats(idx rows, idx inputs) const {
    return (rows + group_rows() - 1) / group_rows() * ports * (inputs / kLanes);
  }
  idx embedding_row_beats() const { return (d * 2 + 63) / 64; }  // without padding
  idx layer_beats() const;
  idx head_beats() const;
};
// Whether a core can have so many ports.
constexpr bool ports_exist(std::uint64_t n) {
  return n >= 1 && n <= kMaxPorts && (n & (n - 1)) == 0;
}
// Whether an epilogue keeps one row and writes no vector.
constexpr bool keeps_row(unsigned epi) {
  return epi == kEPI_ARGMAX || epi == kEPI_SAMPLE;
}
constexpr idx constant_beats(idx n) {
  return (n + 31) / 32;
}

// An image whose header, checksums and program have been checked.
class Image {
 public:
  // Parses bytes that outlive the object. Everything is checked; format Errors start with `name`.
  Image(std::span<const std::byte> bytes, std::string name);

  const std::string& name() const { return name_; }
  const ImageHeader& header() const { return header_; }
  Shape shape() const;
  std::span<const std::byte> bytes() const { return bytes_; }
  std::span<const std::byte> section(Section s) const;
  std::span<const Instruction> program() const { return program_; }
  // Streams that the program is for: one more than the last that it embeds.
  int streams() const;

 private:
  void check_program() const;
  std::span<const std::byte> bytes_;
  std::string name_;
  ImageHeader header_;
  std::vector<Instruction> program_;
};

// A file that is an image.
struct ImageFile {
  explicit ImageFile(const std::filesystem::path& path)
      : file(path), image(file.bytes(), file.path()) {}
  MappedFile file;
  Image image;
};

}  // namespace mmfree::hw
