#pragma once
// The cycle model: when each instruction issues and ends on a core that reads one stream of beats
// a port, by the rules of docs/hardware.md, "Issue and timing". It knows no values, so
// any shape costs milliseconds.
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "mmfree/hw/image.h"

namespace mmfree::hw {

struct MemoryModel {
  double latency = 100;        // cycles from request to first beat
  double beats_per_cycle = 1;  // of each port
};

// The implementation's own delays and sizes; docs/hardware.md states them.
struct CoreModel {
  int lanes = kLanes;     // the tile's columns and bytes of a beat of the port
  int vector_lanes = 16;  // VP
  int fifo_beats = 256;
  int burst_beats = 64;
  int bursts = 16;  // outstanding
  int run_queue = 4;
  int load_tail = 2;
  int stat_tail = 14, quantize_tail = 11;
  int multiply = 6, scale = 6, reciprocal = 21, root = 54;
  int tile_start = 1, tile_depth = 7;
  // From a row's entry to what reads the written row; more for ARGMAX and SAMPLE.
  int epilogue_depth = kEpilogueStages, choice_depth = kChoiceStages - kEpilogueStages;
  int request = 4;  // from a run's instruction to its first request
  int again = 3;    // from a request to the next of the run; one more to the next run's
  int decide = 1;   // from the cycle in which nothing hinders an instruction to its issue
  int arrive = 1;   // from the port into the FIFO
  int result_groups = 8;
  int loop = 2;
};

struct CycleReport {
  std::uint64_t cycles = 0;        // of a token, issue of the first instruction to HALT
  std::uint64_t beats = 0;         // of 64 bytes, taken from all ports
  std::uint64_t weight_beats = 0;  // taken by the tiles, of each port: the floor of `cycles`
  std::uint64_t instructions = 0;
  // Why the tile took no beat, in cycles; with weight_beats they add up to `cycles`.
  std::uint64_t idle_memory = 0;    // the stream was not there yet
  std::uint64_t idle_epilogue = 0;  // results had nowhere to go
  std::uint64_t idle_codes =
      0;  // statistics, scalars and codes of the next matrix, constants, start and end
  std::array<std::uint64_t, 5>
      busy{};  // by unit (isa.h, Unit): cycles with an instruction under way
};

CycleReport count_cycles(std::span<const Instruction> program, const Shape& shape, bool with_logits,
                         const CoreModel& core, const MemoryModel& memory);

}  // namespace mmfree::hw
