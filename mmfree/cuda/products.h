#pragma once
// Internal to mmfree/cuda: matrix products in floating point through cublasLt, and those of
// 8-bit operands: the exact one of the forward and, as an option, input gradients in e4m3.
#include <cublasLt.h>

#include <map>
#include <tuple>

#include "mmfree/cuda/kernels.h"

namespace mmfree::cuda {

// C (M, N) = op(A) op(B) (+ C), row-major; op(A) is (M, K), op(B) is (K, N). bf16 operands sum in
// float32; float32 operands are not rounded to TF32. The algorithm of a shape is the library's
// first choice, so that a resumed run repeats it.
class Products {
 public:
  Products(void* workspace, std::size_t workspace_bytes);
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;
  ~Products();

  struct Operand {
    const void* data;
    bool transposed;  // stored as its transpose
  };
  template <class T, class C>
  void multiply(cudaStream_t stream, idx m, idx n, idx k, Operand a, Operand b, C* c,
                bool accumulate) {
    multiply(stream, sizeof(T) == 2, sizeof(C) == 2, m, n, k, a, b, c, accumulate);
  }

  static constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

 private:
  struct Plan;
  using Key = std::tuple<bool, bool, idx, idx, idx, bool, bool, bool>;
  void multiply(cudaStream_t stream, bool half_in, bool half_out, idx m, idx n, idx k, Operand a,
                Operand b, void* c, bool accumulate);
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_;
  std::size_t workspace_bytes_;
  std::map<Key, Plan> plans_;
};

// y[r, o] = float(sum_k x[r, k] * t[o, k]) * largest[r] / 127 * *w_scale: int8 tensor cores of
// Hopper, exact sums. x (R, K), t (O, K). Only where byte_product_fits says so.
bool byte_product_fits(int compute_capability, idx in, idx out);
void int8_product(const Launch& l, idx rows, idx in, idx out, const std::int8_t* x,
                  const std::int8_t* t, const float* largest, const float* w_scale, bf16* y);
// y[r, o] = sum_k x[r, k] * t[o, k] * largest[r] / kLargestE4m3, likewise with e4m3 operands. The
// tensor cores add with about 14 bits, in a fixed order.
void fp8_product(const Launch& l, idx rows, idx in, idx out, const e4m3* x, const e4m3* t,
                 const float* largest, bf16* y);

}  // namespace mmfree::cuda
