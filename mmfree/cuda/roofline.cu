#include "mmfree/cuda/roofline.h"

#include <algorithm>
#include <vector>

#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/runtime.h"

namespace mmfree {
namespace cuda {
namespace {

constexpr idx kProbeBytes = idx{2} << 30;
constexpr int kProducts = 4096;  // in a row, of each of 8 sums a warp
constexpr int kSums = 8;

__global__ void read_kernel(const uint4* from, idx n, unsigned* result) {
  unsigned sum = 0;
  const idx stride = static_cast<idx>(gridDim.x) * blockDim.x;
  idx i = static_cast<idx>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < n; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) v[k] = load_weights(from + i + k * stride);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x12345678U) *result = sum;  // so that nothing is left out
}

__global__ void products_kernel(unsigned seed, int* result) {
  int d[kSums][4] = {};
  const unsigned a = seed * (threadIdx.x + 1), b = seed ^ threadIdx.x;
  for (int n = 0; n < kProducts; ++n)
#pragma unroll
    for (int s = 0; s < kSums; ++s)
      multiply_tile(d[s], a, a + 1U, a + 2U, a + 3U, b, b + static_cast<unsigned>(s));
  int sum = 0;
#pragma unroll
  for (int s = 0; s < kSums; ++s) sum += d[s][0] + d[s][1] + d[s][2] + d[s][3];
  if (sum == 0x12345678) *result = sum;
}

struct Events {
  cudaEvent_t begin = nullptr, end = nullptr;
  Events() {
    check(cudaEventCreate(&begin), "creating an event");
    check(cudaEventCreate(&end), "creating an event");
  }
  ~Events() {
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
  }
};

// The shortest of several runs, after one that is not counted.
template <class F>
double fastest_seconds(const F& run) {
  const Events e;
  float best = 0;
  for (int n = 0; n < 6; ++n) {
    check(cudaEventRecord(e.begin), "timing");
    run();
    check(cudaGetLastError(), "a kernel of the roofline");
    check(cudaEventRecord(e.end), "timing");
    check(cudaEventSynchronize(e.end), "timing");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, e.begin, e.end), "timing");
    if (n == 1 || (n > 1 && ms < best)) best = ms;
  }
  return 1e-3 * static_cast<double>(best);
}

}  // namespace
}  // namespace cuda

GpuRoofline measure_gpu_roofline() {
  using namespace cuda;
  const Device device = select_device(75);
  const idx bytes =
      std::min<idx>(kProbeBytes, static_cast<idx>(device.free_bytes / 2)) / 4096 * 4096;
  Arena memory;
  const auto take = [&] { return memory.take<std::uint8_t>(bytes + 64); };
  take();
  memory.allocate("the roofline reads half of what is free, at most 2 GiB");
  std::uint8_t* p = take();
  check(cudaMemset(p, 1, static_cast<std::size_t>(bytes + 64)), "clearing memory");
  const auto blocks = static_cast<unsigned>(8 * device.multiprocessors);
  const double read_s = fastest_seconds([&] {
    read_kernel<<<blocks, 256>>>(reinterpret_cast<const uint4*>(p), bytes / 16,
                                 reinterpret_cast<unsigned*>(p + bytes));
  });
  const auto grid = static_cast<unsigned>(2 * device.multiprocessors);
  constexpr unsigned kThreads = 256;
  const double products_s = fastest_seconds(
      [&] { products_kernel<<<grid, kThreads>>>(3U, reinterpret_cast<int*>(p + bytes)); });
  const double ops = 2.0 * 16 * 8 * 32 * kProducts * kSums * (kThreads / 32) * grid;
  return {static_cast<double>(bytes) / read_s, ops / products_s};
}

}  // namespace mmfree
