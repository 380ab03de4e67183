#pragma once
// Hopper's copy engine, its barriers in shared memory, and what its wide tensor-core products read
// (PTX of sm_90a). Device code only.
#include <cuda.h>

#include <cstdint>

namespace mmfree::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ std::uint32_t address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void wait(std::uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni ready;\n"
      "bra.uni again;\n"
      "ready:\n}\n" ::"r"(address(barrier)),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void expect(std::uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void arrive(std::uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster. It tells the copy engine that tensor
// cores and this thread have read; no writes are published, which would take a fence of the GPU.
__device__ __forceinline__ void arrive(std::uint64_t* barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(address(barrier)),
      "r"(rank)
      : "memory");
}

__device__ __forceinline__ void load_tile(void* to, const CUtensorMap* map, int column, int row,
                                          std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(address(to)),
      "l"(map), "r"(column), "r"(row), "r"(address(barrier))
      : "memory");
}

// The same to the same place in each block of a cluster of N, completing on each one's barrier.
template <int N>
__device__ __forceinline__ void load_tile_for_all(void* to, const CUtensorMap* map, int column,
                                                  int row, std::uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(address(to)),
      "l"(map), "r"(column), "r"(row), "r"(address(barrier)),
      "h"(static_cast<std::uint16_t>((1 << N) - 1))
      : "memory");
}

// Rows of 128 bytes, swizzled in groups of eight.
__device__ __forceinline__ std::uint64_t matrix_descriptor(const void* p) {
  constexpr std::uint64_t kLeading = 1, kStride = 1024 >> 4, kSwizzle128 = 1;
  return ((static_cast<std::uint64_t>(address(p)) & 0x3ffffU) >> 4) | kLeading << 16 |
         kStride << 32 | kSwizzle128 << 62;
}

__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

#endif

// ---- a kernel that starts while the one before it in the stream ends ----
// Both do nothing unless the launch asks for it, or before sm_90.

__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Until all that the kernels before have written is there.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace mmfree::cuda
