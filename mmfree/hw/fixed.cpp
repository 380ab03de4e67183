#include "mmfree/hw/fixed.h"

namespace mmfree::hw {

const SigmoidSegment kSigmoidTable[1 << kSegBits] = {
#include "mmfree/hw/generated/sigmoid_table.inc"
};

}  // namespace mmfree::hw
