// The operations that decode_cluster.cu does without branches give the rounded ones' bits, for
// every float that can come.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "mmfree/cuda/decode_norm.cuh"
#include "mmfree/cuda/decode_products.cuh"

namespace mmfree::cuda {
namespace {

enum class Operation { sigmoid, code_factor, code, reciprocal_rms };

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ bool same(Operation what, float v, int width, float eps) {
  const auto equal = [](float a, float b) { return __float_as_uint(a) == __float_as_uint(b); };
  switch (what) {
    case Operation::sigmoid: {
      float y[2];
      sigmoids_of({v, 0.0F}, y);
      return equal(y[0], sigmoid_f32(v)) && equal(y[1], 0.5F);
    }
    case Operation::code_factor:
      return !(v >= 1e-5F && v <= 3e38F) || equal(code_factor(v), 127.0F / v);
    case Operation::code:
      return !(fabsf(v) < 127.4F) ||
             static_cast<std::int8_t>(__float_as_uint(shifted_code_of(v)) & 0xffU) == code_of(v);
    case Operation::reciprocal_rms:
      return !(v >= 0.0F && v <= 3e38F) ||
             equal(reciprocal_rms_of(v, Divisor(width), eps), reciprocal_rms_device(v, width, eps));
  }
  return false;
}

#else  // nothing was compiled for the GPUs that have these operations

__device__ bool same(Operation, float, int, float) {
  return false;
}

#endif

__global__ void count_different(Operation what, int width, float eps, unsigned long long* count,
                                unsigned* example) {
  const std::uint64_t step = static_cast<std::uint64_t>(gridDim.x) * blockDim.x;
  for (std::uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < 1ULL << 32; i += step) {
    if (same(what, __uint_as_float(static_cast<unsigned>(i)), width, eps)) continue;
    atomicAdd(count, 1ULL);
    *example = static_cast<unsigned>(i);
  }
}

class DecodeMath : public ::testing::Test {
 protected:
  void SetUp() override {
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, 0) != cudaSuccess || p.major != 9)
      GTEST_SKIP() << "no GPU of compute capability 9.x";
  }
  static void expect_same(Operation what, int width = 1, float eps = 1.0F) {
    unsigned long long* count = nullptr;
    ASSERT_EQ(cudaMallocManaged(&count, 16), cudaSuccess);
    auto* example = reinterpret_cast<unsigned*>(count + 1);
    *count = 0;
    *example = 0;
    count_different<<<1024, 256>>>(what, width, eps, count, example);
    ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(*count, 0U) << "width " << width << ", eps " << eps << ": differs for float "
                          << *example;
    cudaFree(count);
  }
};

TEST_F(DecodeMath, Sigmoid) {
  expect_same(Operation::sigmoid);
}
TEST_F(DecodeMath, CodeFactor) {
  expect_same(Operation::code_factor);
}
TEST_F(DecodeMath, Code) {
  expect_same(Operation::code);
}
TEST_F(DecodeMath, ReciprocalRms) {
  for (const int width : {1, 3, 40, 333, 1000, 1024, 2048, 2560, 2816, 4600, 5632, 6912, 8191})
    for (const float eps : {kLeastEps, 1e-6F, 1e-5F})
      expect_same(Operation::reciprocal_rms, width, eps);
}

}  // namespace
}  // namespace mmfree::cuda
