#pragma once
// The RTL of the core as compiled by Verilator, with a memory on each of its AXI ports, in
// lock-step with the instruction-set simulator.
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "mmfree/hw/machine.h"

namespace mmfree::hw {

// What each port reads from, a memory that answers in order: `latency` cycles from a request to its
// first beat, then one beat in 1 / beats_per_cycle cycles. `jitter` (0..1): the share of cycles in
// which it neither takes a request nor gives a beat, other cycles at each port. `skew`: cycles of
// latency that each port has more than the one before.
struct RtlMemory {
  double latency = 100;
  double beats_per_cycle = 1;
  double jitter = 0;
  double skew = 0;
  std::uint64_t seed = 1;
};

struct RtlCounters {
  std::uint64_t cycles = 0, tile_beats = 0, wait_stream = 0, wait_results = 0;  // of the last token
  std::uint64_t compared = 0;  // instructions compared so far
};

// How often the sequencer waited, by operation and cause, over all tokens.
enum class Stall { none, skip, loop, unit, hazard };
inline constexpr std::size_t kStalls = 5;
inline constexpr std::array<std::string_view, kStalls> kStallNames = {"none", "skip", "loop",
                                                                      "unit", "hazard"};
using StallCounts = std::array<std::array<std::uint64_t, kStalls>, 16>;  // [operation][cause]

// The core for all that the project trains or loads, and the small one that is placed and routed
// (hw/synth/pnr_core.sv): 16 lanes, a port of 128 bits, 4 lanes of the vector unit.
enum class RtlSize { large, small };

class RtlCore {
 public:
  // What cores are compiled for; the search for faults and coverage compile one only, for one
  // stream and so many ports.
  struct Kind {
    int streams, ports;
    bool operator==(const Kind&) const = default;
  };
#ifdef MMF_RTL_ONE_CORE
  static constexpr std::array<Kind, 1> kKinds = {{{1, MMF_RTL_ONE_CORE}}};
#else
  static constexpr std::array<Kind, 6> kKinds = {{{1, 1}, {2, 1}, {8, 1}, {1, 2}, {2, 2}, {1, 4}}};
#endif
  static bool exists(Kind kind);

  static constexpr int kSmallLanes = 16, kSmallVectorLanes = 4, kSmallFifo = 128;
  static constexpr idx kSmallWidth = 256, kSmallState = 768;

  // Throws a config Error if no compiled core of that size has `streams` and the image's ports, or
  // it is too small for the image. The image must outlive this.
  RtlCore(const Image& image, const RtlMemory& memory, int streams = 1,
          RtlSize size = RtlSize::large);
  ~RtlCore();

  // One token of every stream. `lockstep`: a machine that has seen the same tokens; it runs the
  // token too and every retired instruction's result is compared with its own. Throws a numeric
  // Error that names the first instruction that differs, or says that the core hung or read outside
  // the image. Afterwards next_token(s) (if with_logits).
  void run(std::span<const TokenInput> inputs, bool with_logits, Machine* lockstep);
  std::int32_t next_token(int stream) const;
  // For one stream: the same, and returns the next token.
  std::int32_t run(const TokenInput& input, bool with_logits, Machine* lockstep);
  const RtlCounters& counters() const;
  const StallCounts& stalls() const;

  struct Impl;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmfree::hw
