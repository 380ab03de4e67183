#pragma once
// Which in-memory layout (ternary/tiles.h) each matrix of a model gets, by a short measurement at
// load. Both layouts give the same bits, so the choice changes speed and memory only.
#include <optional>
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/model/config.h"
#include "mmfree/ternary/tiles.h"

namespace mmfree {

// Matrices of one width: how fast one token's products went, all threads together, in each layout.
struct WidthLayout {
  idx in = 0;  // K
  TileFormat format = TileFormat::base3;
  double base3_macs_per_s = 0, two_bit_macs_per_s = 0;  // 0: not measured
};

struct Layout {
  std::vector<WidthLayout> widths;
  bool from_cache = false;  // measured on a working set as large as the model's; else from memory
  double seconds = 0;       // what measuring took
  TileFormat of(idx in) const;
};

// The same layout for all matrices, unmeasured.
Layout forced_layout(const MatmulFreeConfig& config, TileFormat format);

// Times the product of this machine's variant on as many threads as will run it. A model that takes
// at most half of the last cache at 2 bits is timed on memory of its own size, gone through before;
// a larger one on memory that has just been evicted from all caches, since each token reads it
// anew. 2 bits, which take a quarter more memory, are chosen where they are faster; in a large
// model, by a quarter.
Layout measure_layout(const Ctx& ctx, const MatmulFreeConfig& config);

// forced_layout where a format is given.
Layout choose_layout(const Ctx& ctx, const MatmulFreeConfig& config,
                     std::optional<TileFormat> forced);

}  // namespace mmfree
