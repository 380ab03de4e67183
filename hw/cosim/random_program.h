#pragma once
// Random legal programs and images to run them from: the RTL must agree with the simulator on all
// of them, not only on what the compiler writes.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "mmfree/hw/image.h"

namespace mmfree::hw {

// The bytes of a complete image: a random small shape, random embedding, constants and weights, and
// a random program of at most `most` instructions for `streams` streams and `ports` memory ports.
// Legal means what docs/hardware.md, "Legal programs", says. The same seed gives the same image.
std::vector<std::byte> random_program_image(std::uint64_t seed, int streams, std::size_t most,
                                            int ports = 1);

}  // namespace mmfree::hw
