#include "mmfree/hw/report.h"

#include "mmfree/hw/compile.h"
#include "mmfree/hw/fixed.h"

namespace mmfree::hw {

TokenCost token_cost(const Shape& shape, int streams, const CoreModel& core,
                     const MemoryModel& memory, const EnergyModel& energy) {
  const std::size_t code_bytes = make_program(shape, 0, {}, streams).size() * 16;
  const std::vector<Instruction> program =
      make_program(shape, 0, place_sections(shape, code_bytes), streams);
  TokenCost c;
  c.streams = streams;
  c.cycles = count_cycles(program, shape, /*with_logits=*/true, core, memory);
  const double n = streams;
  const auto beats = static_cast<double>(c.cycles.beats);
  const auto weight_beats = static_cast<double>(c.cycles.weight_beats);
  c.cycles_per_token = static_cast<double>(c.cycles.cycles) / n;
  c.bytes_per_token = beats * kBeatBytes / n;
  c.floor_cycles = weight_beats / n;
  c.utilisation = weight_beats / static_cast<double>(c.cycles.cycles);
  // Words of 32 bits a stream moves: codes of each beat, and vectors through statistics, codes and
  // epilogues.
  const auto d = static_cast<double>(shape.d), m = static_cast<double>(shape.m),
             f = static_cast<double>(shape.f);
  const auto layers = static_cast<double>(shape.layers);
  const double passed =
      layers * (8 * d + 3 * m + 2 * f) + 3 * d;                 // elements through the vector unit
  const double results = layers * (5 * m + 3 * d + 4 * f) + d;  // read and written by epilogues
  const auto ports = static_cast<double>(shape.ports);
  const double words = weight_beats * kLanes / 4 + passed * 1.75 + results;
  c.joule.memory = c.bytes_per_token * energy.dram_byte * 1e-12;
  c.joule.sram = words * energy.sram_word * 1e-12;
  c.joule.accumulate = weight_beats * ports * kLanes * kRows * energy.accumulate * 1e-12;
  c.joule.multiply = (passed * 2 + results * 2) * energy.multiply * 1e-12;
  c.state_bits = n * layers * m * kHBits;
  return c;
}

}  // namespace mmfree::hw
