#include "mmfree/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <string>

#include "mmfree/core/error.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {

namespace {

CUtensorMap encode(const void* data, CUtensorMapDataType type, cuuint64_t element_bytes, idx rows,
                   idx width, idx stride, cuuint32_t box_width, int box_rows,
                   CUtensorMapSwizzle swizzle) {
  static const PFN_cuTensorMapEncodeTiled_v12000 ask = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault,
                                           &found),
          "asking the driver for tensor maps");
    if (found != cudaDriverEntryPointSuccess)
      fail(ErrorKind::resource,
           "the driver has no cuTensorMapEncodeTiled; expected CUDA 12 or newer");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(f);
  }();
  CUtensorMap map;
  const cuuint64_t extents[2] = {static_cast<cuuint64_t>(width) / element_bytes,
                                 static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride)};
  const cuuint32_t box[2] = {box_width, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult code = ask(&map, type, 2, const_cast<void*>(data), extents, strides, box, steps,
                            CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS)
    fail(ErrorKind::resource, "describing rows of bytes to the copy engine: CUDA error " +
                                  std::to_string(static_cast<int>(code)));
  return map;
}

}  // namespace

CUtensorMap tensor_map(const void* data, idx rows, idx width, idx stride, int box_rows) {
  return encode(data, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, rows, width, stride, 128, box_rows,
                CU_TENSOR_MAP_SWIZZLE_128B);
}

// In words, since a box has at most 256 elements a side.
CUtensorMap plain_tensor_map(const void* data, idx rows, idx width, idx stride, int box_rows) {
  return encode(data, CU_TENSOR_MAP_DATA_TYPE_UINT32, 4, rows, width, stride, 128, box_rows,
                CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace mmfree::cuda
