#include "mmfree/hw/noise.h"

#include <fmt/core.h>

#include "mmfree/core/error.h"
#include "mmfree/hw/lower.h"

namespace mmfree::hw {

const NoiseSegment kNoiseTable[2 * 32 << kNoiseSegBits] = {
#include "mmfree/hw/generated/noise_table.inc"
};

Sampling sampling(double temperature, std::uint64_t seed) {
  if (temperature == 0) return {{}, seed, 0};
  if (!(temperature >= kMinTemperature && temperature <= kMaxTemperature))
    fail(ErrorKind::usage, fmt::format("the temperature is {}, expected 0 or {}..{} (the range of "
                                       "the accelerator's fixed-point numbers)",
                                       temperature, kMinTemperature, kMaxTemperature));
  return {scalar_from_double(1 / temperature), seed, 0};
}

}  // namespace mmfree::hw
