#pragma once
// What both decode kernels use.
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"

namespace mmfree::cuda {

// ---- packets: 16 bytes that are written and read at once ----

__device__ __forceinline__ void put_packet(Packet* to, float a, float b, float c,
                                           std::uint32_t epoch) {
  asm volatile(
      "{\n.reg .b64 lo, hi;\n.reg .b128 v;\n"
      "mov.b64 lo, {%1, %2};\nmov.b64 hi, {%3, %4};\nmov.b128 v, {lo, hi};\n"
      "st.relaxed.gpu.global.b128 [%0], v;\n}\n" ::"l"(to),
      "r"(__float_as_uint(a)), "r"(__float_as_uint(b)), "r"(__float_as_uint(c)), "r"(epoch)
      : "memory");
}
__device__ __forceinline__ uint4 look_at_packet(const Packet* from) {
  uint4 v;
  asm volatile(
      "{\n.reg .b64 lo, hi;\n.reg .b128 v;\n"
      "ld.relaxed.gpu.global.b128 v, [%4];\n"
      "mov.b128 {lo, hi}, v;\nmov.b64 {%0, %1}, lo;\nmov.b64 {%2, %3}, hi;\n}\n"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from)
      : "memory");
  return v;
}

// A block's part of a stage: rows of tiles of each of its matrices.
struct Part {
  int first_group, groups;
};
__device__ __forceinline__ Part part_of(int row_tile_count) {
  const int b = static_cast<int>(blockIdx.x), n = static_cast<int>(gridDim.x);
  const int begin = static_cast<int>(static_cast<long long>(row_tile_count) * b / n);
  const int end = static_cast<int>(static_cast<long long>(row_tile_count) * (b + 1) / n);
  return {begin, end - begin};
}

struct Clock {
  unsigned long long* to;
  long long last;
  __device__ __forceinline__ void start() {
    if (to != nullptr) last = clock64();
  }
  // Adds the time since the last lap, which goes on.
  __device__ __forceinline__ void add(int slot) const {
    if (to != nullptr) to[slot] += static_cast<unsigned long long>(clock64() - last);
  }
  // Adds the time since the last call.
  __device__ __forceinline__ void lap(int slot) {
    if (to == nullptr) return;
    const long long now = clock64();
    to[slot] += static_cast<unsigned long long>(now - last);
    last = now;
  }
};

}  // namespace mmfree::cuda
