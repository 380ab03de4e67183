#pragma once
// The limits of this machine, measured: what a speed is compared with (docs/benchmarks.md).
#include <cstdint>
#include <optional>

#include "mmfree/core/buffer.h"
#include "mmfree/core/cpu.h"
#include "mmfree/core/parallel.h"

namespace mmfree {

// Reads a buffer far larger than the caches.
class MemoryProbe {
 public:
  // Touches `bytes` of memory (rounded to whole parts of the threads).
  MemoryProbe(const Ctx& ctx, idx bytes);
  // Two passes, each thread its own contiguous part, with plain loads and with prefetches: bytes
  // per second of the faster.
  double read(const Ctx& ctx);

 private:
  Buffer<std::uint8_t> buffer_;
};

// Multiply-add operations per second (two for each multiply-add) of independent instructions in
// registers: int8 dot products, and float32 fused multiply-adds, on every thread; about 50 ms each.
double int8_ops_per_s(const Ctx& ctx);
double f32_ops_per_s(const Ctx& ctx);
// Whose instructions they are: the best that active_isa() allows and these loops exist for.
Isa roofline_isa();

// How much of the machine's processors others used between construction and share(): 0 to 1, or
// nothing where the system does not tell.
class Bystanders {
 public:
  Bystanders();
  std::optional<double> share() const;

 private:
  double busy_ = 0, total_ = 0, own_ = 0;  // processor seconds at the start
};

// Joules used by the processor packages so far (RAPL); nothing where that is not readable.
std::optional<double> package_joules();

}  // namespace mmfree
