#include "mmfree/cuda/products.h"

#include <fmt/core.h>

#include "mmfree/core/error.h"

namespace mmfree::cuda {
namespace {

void check_lt(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    fail(ErrorKind::resource,
         fmt::format("{}: cublasLt status {}", what, static_cast<int>(status)));
}

cudaDataType type_of(bool half) {
  return half ? CUDA_R_16BF : CUDA_R_32F;
}

}  // namespace

// The library counts columns first: a row-major (r, c) matrix is its (c, r) matrix, so the product
// is asked for as C^T = op(B)^T op(A)^T.
struct Products::Plan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

Products::Products(void* workspace, std::size_t workspace_bytes)
    : workspace_(workspace), workspace_bytes_(workspace_bytes) {
  check_lt(cublasLtCreate(&handle_), "starting cublasLt");
}

Products::~Products() {
  for (auto& [key, p] : plans_) {
    cublasLtMatrixLayoutDestroy(p.first);
    cublasLtMatrixLayoutDestroy(p.second);
    cublasLtMatrixLayoutDestroy(p.result);
    cublasLtMatmulDescDestroy(p.operation);
  }
  cublasLtDestroy(handle_);
}

void Products::multiply(cudaStream_t stream, bool half_in, bool half_out, idx m, idx n, idx k,
                        Operand a, Operand b, void* c, bool accumulate) {
  if (m == 0 || n == 0) return;
  const auto [found, missing] =
      plans_.try_emplace(Key{half_in, half_out, m, n, k, a.transposed, b.transposed, accumulate});
  Plan& p = found->second;
  if (missing) {
    const auto layout = [](cublasLtMatrixLayout_t* l, cudaDataType type, idx rows, idx columns) {
      check_lt(cublasLtMatrixLayoutCreate(l, type, static_cast<std::uint64_t>(columns),
                                          static_cast<std::uint64_t>(rows), columns),
               "describing a matrix");
    };
    check_lt(cublasLtMatmulDescCreate(&p.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "describing a product");
    const cublasOperation_t op_first = b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t op_second = a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    check_lt(cublasLtMatmulDescSetAttribute(p.operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_first,
                                            sizeof op_first),
             "describing a product");
    check_lt(cublasLtMatmulDescSetAttribute(p.operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_second,
                                            sizeof op_second),
             "describing a product");
    layout(&p.first, type_of(half_in), b.transposed ? n : k, b.transposed ? k : n);
    layout(&p.second, type_of(half_in), a.transposed ? k : m, a.transposed ? m : k);
    layout(&p.result, type_of(half_out), m, n);
    cublasLtMatmulPreference_t preference = nullptr;
    check_lt(cublasLtMatmulPreferenceCreate(&preference), "choosing an algorithm");
    check_lt(
        cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace_bytes_, sizeof workspace_bytes_),
        "choosing an algorithm");
    // Rows of odd length: no more than the element's own alignment may be assumed.
    const std::uint32_t alignment = half_in && (n % 8 != 0 || k % 8 != 0 || m % 8 != 0)    ? 2
                                    : !half_in && (n % 4 != 0 || k % 4 != 0 || m % 4 != 0) ? 4
                                                                                           : 16;
    for (const auto attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      check_lt(
          cublasLtMatmulPreferenceSetAttribute(preference, attribute, &alignment, sizeof alignment),
          "choosing an algorithm");
    cublasLtMatmulHeuristicResult_t choice{};
    int choices = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle_, p.operation, p.first, p.second, p.result, p.result,
                                       preference, 1, &choice, &choices);
    cublasLtMatmulPreferenceDestroy(preference);
    check_lt(status, fmt::format("choosing an algorithm for {} x {} x {}", m, n, k).c_str());
    if (choices == 0)
      fail(ErrorKind::resource,
           fmt::format("cublasLt has no algorithm for a product of {} x {} x {}", m, n, k));
    p.algorithm = choice.algo;
  }
  const float one = 1, zero = 0;
  check_lt(cublasLtMatmul(handle_, p.operation, &one, b.data, p.first, a.data, p.second,
                          accumulate ? &one : &zero, c, p.result, c, p.result, &p.algorithm,
                          workspace_, workspace_bytes_, stream),
           "matrix product");
}

}  // namespace mmfree::cuda
