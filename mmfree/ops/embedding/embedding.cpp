#include "mmfree/ops/embedding/embedding.h"

#include <cstring>

namespace mmfree {

void embedding(const Ctx& ctx, idx rows, idx width, const std::int32_t* ids, const float* table,
               float* x) {
  parallel_for(ctx, rows, 1, [&](idx begin, idx end) {
    for (idx r = begin; r < end; ++r)
      std::memcpy(x + r * width, table + ids[r] * width,
                  static_cast<std::size_t>(width) * sizeof(float));
  });
}

void embedding_backward(const Ctx& ctx, idx rows, idx width, const std::int32_t* ids,
                        const float* dx, std::int32_t padding, float* dtable) {
  // Threads split the channels, so each table element sees its rows in order whatever their number.
  parallel_for(ctx, width, 16, [&](idx begin, idx end) {
    for (idx r = 0; r < rows; ++r) {
      if (ids[r] == padding) continue;
      float* target = dtable + ids[r] * width;
      const float* source = dx + r * width;
      for (idx k = begin; k < end; ++k) target[k] += source[k];
    }
  });
}

}  // namespace mmfree
