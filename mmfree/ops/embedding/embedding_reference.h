#pragma once
// Table lookup and its gradient in Real (float or double).
#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree::reference {

template <class Real>
void embedding(idx rows, idx width, const std::int32_t* ids, const Real* table, Real* x) {
  for (idx r = 0; r < rows; ++r)
    for (idx k = 0; k < width; ++k) x[r * width + k] = table[ids[r] * width + k];
}

// Rows with id == padding get nothing; dtable is accumulated.
template <class Real>
void embedding_backward(idx rows, idx width, const std::int32_t* ids, const Real* dx,
                        std::int32_t padding, Real* dtable) {
  for (idx r = 0; r < rows; ++r)
    if (ids[r] != padding)
      for (idx k = 0; k < width; ++k) dtable[ids[r] * width + k] += dx[r * width + k];
}

}  // namespace mmfree::reference
