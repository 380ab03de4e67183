#pragma once
// Sums over rows that do not depend on the number of threads: rows are cut into chunks of fixed
// size, each chunk sums into its own buffer, and the chunks are added in order.
#include "mmfree/core/buffer.h"
#include "mmfree/core/parallel.h"

namespace mmfree {

inline constexpr idx kRowChunk = 64;

// body(begin, end, partial) adds rows [begin, end) into partial (vectors, width), which starts at
// zero. The totals are added to targets[v] (width); a null target is skipped.
template <class F>
void sum_over_rows(const Ctx& ctx, idx rows, idx vectors, idx width, float* const* targets,
                   const F& body) {
  const idx chunks = (rows + kRowChunk - 1) / kRowChunk;
  Buffer<float> partial(chunks * vectors * width);
  parallel_for(ctx, rows, kRowChunk, [&](idx begin, idx end) {
    for (idx r = begin; r < end; r += kRowChunk) {
      const idx last = r + kRowChunk < end ? r + kRowChunk : end;
      body(r, last, partial.data() + r / kRowChunk * vectors * width);
    }
  });
  parallel_for(ctx, width, 64, [&](idx begin, idx end) {
    for (idx v = 0; v < vectors; ++v) {
      if (targets[v] == nullptr) continue;
      for (idx c = 0; c < chunks; ++c) {
        const float* row = partial.data() + (c * vectors + v) * width;
        for (idx k = begin; k < end; ++k) targets[v][k] += row[k];
      }
    }
  });
}

}  // namespace mmfree
