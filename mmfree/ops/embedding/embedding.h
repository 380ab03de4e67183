#pragma once
// x[r] = table[ids[r]]. Ids are checked where they enter the program, not here.
#include <cstdint>

#include "mmfree/core/parallel.h"

namespace mmfree {

void embedding(const Ctx& ctx, idx rows, idx width, const std::int32_t* ids,  // (R)
               const float* table,                                            // (V, D)
               float* x);                                                     // (R, D)

// dtable[ids[r]] += dx[r] in ascending r, for any thread count; rows with id == padding get nothing
// (-1: no padding id).
void embedding_backward(const Ctx& ctx, idx rows, idx width, const std::int32_t* ids,
                        const float* dx,  // (R, D)
                        std::int32_t padding,
                        float* dtable);  // (V, D) accumulated

}  // namespace mmfree
