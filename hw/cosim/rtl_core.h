#pragma once
// The RTL of the core as compiled by Verilator, with a memory on its AXI port, in lock-step with
// the instruction-set simulator.
#include <cstdint>
#include <memory>

#include "mmfree/hw/machine.h"

namespace mmfree::hw {

// A memory that answers reads in order: `latency` cycles from a request to its first beat, then one
// beat in 1 / beats_per_cycle cycles. `jitter` (0..1): the share of cycles in which it neither
// takes a request nor gives a beat.
struct RtlMemory {
  double latency = 100;
  double beats_per_cycle = 1;
  double jitter = 0;
  std::uint64_t seed = 1;
};

struct RtlCounters {
  std::uint64_t cycles = 0, tile_beats = 0, wait_stream = 0, wait_results = 0;  // of the last token
  std::uint64_t compared = 0;  // instructions compared so far
};

class RtlCore {
 public:
  // Throws a config Error if the compiled core is too small for the image. The image must outlive
  // this.
  RtlCore(const Image& image, const RtlMemory& memory);
  ~RtlCore();

  // One token. `lockstep`: a machine that has seen the same tokens; it runs the token too and every
  // retired instruction's result is compared with its own. Throws a numeric Error that names the
  // first instruction that differs, or says that the core hung or read outside the image. Returns
  // the next token (if with_logits).
  std::int32_t run(const TokenInput& input, bool with_logits, Machine* lockstep);
  const RtlCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mmfree::hw
