#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

// Element i of a table of float32 (bits 32), float16 (16) or bf16 (17), as float32.
__device__ __forceinline__ float embedding_value(const void* table, int bits, idx i) {
  if (bits == 32) return __ldg(static_cast<const float*>(table) + i);
  if (bits == 16) return __half2float(static_cast<const __half*>(table)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(table)[i]);
}

}  // namespace mmfree::cuda
