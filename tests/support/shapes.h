#pragma once
// Extents that find the seams of vectorised loops, and the float tolerance that goes with them.
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree::test {

// Every width up to two full vectors and a bit, then around powers of two, then large odd-shaped
// ones.
inline std::vector<idx> seam_widths() {
  std::vector<idx> widths;
  for (idx k = 1; k <= 130; ++k) widths.push_back(k);
  for (const idx k : {255, 256, 257, 511, 768, 1100}) widths.push_back(k);
  return widths;
}

inline constexpr idx kSeamRows[] = {0, 1, 2, 5, 17};

// Relative error of a float computation: a sum of `terms` in 16 lanes and a tree, then some 24 more
// roundings (an exponential counts as 4), each of 2^-24, all in the same direction.
constexpr double float_tolerance(idx terms) {
  return (static_cast<double>(terms) / 16 + 4 + 24) * 0x1p-24;
}

}  // namespace mmfree::test
