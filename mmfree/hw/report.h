#pragma once
// What a token costs on the accelerator: cycles by the cycle model, bytes, and energy by a model
// with stated constants.
#include "mmfree/hw/cycles.h"

namespace mmfree::hw {

// Energy an event, in picojoules. Arithmetic and SRAM: Horowitz, "Computing's energy problem",
// ISSCC 2014 (45 nm). Memory: the same table's DRAM figure of 640 pJ per 32 bits. A model, not a
// measurement; clock trees, control and leakage are not in it.
struct EnergyModel {
  double accumulate = 0.03;  // one int8 add: a trit takes part in one
  double sram_word = 5;      // 32 bits from or to a memory of the core
  double multiply = 0.6;     // one 16-bit multiplication of the vector unit or the epilogue
  double dram_byte = 160;
};

struct TokenCost {
  CycleReport cycles;
  int streams = 1;
  double cycles_per_token = 0;  // of one stream: cycles / streams
  double bytes_per_token = 0;
  double floor_cycles = 0;  // weight beats of a port / streams: ports that never idle
  double utilisation = 0;   // weight beats / cycles
  struct {
    double memory, sram, accumulate, multiply;
    double total() const { return memory + sram + accumulate + multiply; }
  } joule{};              // per token
  double state_bits = 0;  // recurrent state on chip, all streams
};

TokenCost token_cost(const Shape& shape, int streams, const CoreModel& core,
                     const MemoryModel& memory, const EnergyModel& energy);

}  // namespace mmfree::hw
