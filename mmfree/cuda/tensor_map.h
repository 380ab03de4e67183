#pragma once
// What Hopper's copy engine needs to know of a matrix of bytes to deliver tiles of it.
#include <cuda.h>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

// Matrices of bytes (rows, width), rows `stride` bytes apart, which is a multiple of 16 as `data`
// is. What lies outside the matrix is delivered as 0.

// Tiles of box_rows by 128 bytes, in shared memory swizzled in groups of eight rows.
CUtensorMap tensor_map(const void* data, idx rows, idx width, idx stride, int box_rows);
// Tiles of box_rows by 512 bytes, in order.
CUtensorMap plain_tensor_map(const void* data, idx rows, idx width, idx stride, int box_rows);

}  // namespace mmfree::cuda
