#pragma once
// From a lowered model to a program image.
#include <filesystem>

#include "mmfree/core/progress.h"
#include "mmfree/hw/image.h"
#include "mmfree/hw/lower.h"

namespace mmfree::hw {

// First pages of the sections that a program addresses.
struct Addresses {
  std::uint64_t embedding, layers, head;
};

// The program of one token for `streams` sequences that share the weights.
std::vector<Instruction> make_program(const Shape& shape, int embedding_shift, const Addresses& at,
                                      int streams = 1);

// Sections of a shape laid out one after another, for `code_bytes` of program.
Addresses place_sections(const Shape& shape, std::size_t code_bytes);

// Writes the image for a core with so many memory ports, complete or not at all. Throws a usage
// Error if no core has them.
void write_image(const Ctx& ctx, const FixedModel& model, const std::filesystem::path& path,
                 int streams = 1, const Progress& progress = {}, int ports = 1);

}  // namespace mmfree::hw
