#pragma once
// The instruction-set simulator: executes programs of an image bit for bit, without a notion of
// time (cycles.h has that).
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/hw/fixed.h"
#include "mmfree/hw/image.h"
#include "mmfree/hw/noise.h"

namespace mmfree::hw {

// What one stream has of its own (docs/hardware.md, "Memory of the core").
struct StreamMemory {
  std::vector<std::int32_t> x, z, t, h;    // (D), (W), (W), (L, M); W = max(D, M, F)
  std::vector<std::int8_t> q[kCodeBanks];  // (W)
  std::uint32_t x_bits = 0, z_bits = 0;    // OR of v ^ (v >> 31)
  std::uint32_t s[kScalars] = {};
  std::int32_t token = 0;
  std::int32_t best_row = 0;  // kept by ARGMAX or SAMPLE
  std::int64_t best_key = 0;  // its row sum, or what SAMPLE compares
};

struct TokenInput {
  std::int32_t token = 0;
  bool fresh = false;  // forget the state first
  Sampling sampling = {};
};

// After each executed instruction: where, and what it left in its destination, stream after stream,
// as CRC32C of little-endian values (codes int8, constants int16, all else int32). 0 for sequencer
// instructions. This is what the RTL is compared with.
struct Retired {
  std::size_t pc = 0;
  idx layer = 0;
  std::uint32_t digest = 0;
};

class Machine {
 public:
  // The image must outlive the machine.
  Machine(const Ctx& ctx, const Image& image, int streams = 1);

  // One token for every stream (inputs.size() == streams): afterwards next_token(s) if with_logits.
  // Throws a format Error if the program takes beats that were never asked for, or asks for more
  // than it takes.
  void run(std::span<const TokenInput> inputs, bool with_logits,
           const std::function<void(const Retired&)>& observer = {});

  std::int32_t next_token(int stream) const {
    return stream_[static_cast<std::size_t>(stream)].token;
  }
  int streams() const { return static_cast<int>(stream_.size()); }
  const StreamMemory& memory(int stream) const { return stream_[static_cast<std::size_t>(stream)]; }
  std::uint64_t beats() const { return beats_; }                // taken by the last token
  std::uint64_t instructions() const { return instructions_; }  // executed by the last token

 private:
  struct Run {
    std::uint64_t offset, beats;  // bytes from the image's start
  };
  const std::uint8_t* take(std::uint64_t beats);  // and the padding to whole wide beats
  void check_queue() const;
  void execute(const Instruction& i);
  void embed(const Instruction& i);
  void statistics(const Instruction& i, StreamMemory& m);
  void quantize(const Instruction& i, StreamMemory& m);
  void scalar(const Instruction& i, StreamMemory& m);
  void matrix(const Instruction& i);
  void epilogue(const Instruction& i, StreamMemory& m);
  void choose(std::size_t rows, Scale scale, const Sampling& sampling, StreamMemory& m);
  const TokenInput& input(const StreamMemory& m) const {
    return inputs_[static_cast<std::size_t>(&m - stream_.data())];
  }
  std::uint32_t digest(const Instruction& i) const;
  std::uint32_t digest(const Instruction& i, const StreamMemory& m, std::uint32_t crc) const;

  Ctx ctx_;
  const Image* image_;
  Shape shape_;
  std::vector<StreamMemory> stream_;
  std::vector<TokenInput> inputs_;
  std::vector<std::int16_t> constants_[kConstBanks];  // (W)
  std::vector<std::int32_t> sums_;
  std::vector<Run> runs_;
  std::size_t run_ = 0;
  idx layer_ = 0;
  std::size_t pc_ = 0;
  std::uint64_t beats_ = 0, instructions_ = 0;
};

// Row sums of a tile: (kRows) of `beats` beats, every `ports`-th one from `beat` on; codes
// (64 * beats).
void tile_sums(const std::uint8_t* beat, idx beats, const std::int8_t* codes, std::int32_t* sums,
               idx ports = 1) noexcept;

}  // namespace mmfree::hw
