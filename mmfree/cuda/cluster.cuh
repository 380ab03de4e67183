#pragma once
// Words that the blocks of a cluster put into each other's shared memory (sm_90): a write is
// asynchronous and counts its bytes at a barrier of the receiver, which waits for a number of them.
#include <cuda_runtime.h>

#include <cstdint>

namespace mmfree::cuda {

using ClusterBarrier = std::uint64_t;

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ void init_barrier(ClusterBarrier* b, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(arrivals)
               : "memory");
}
// Before the first use by other blocks, with sync_cluster() behind it.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
__device__ __forceinline__ int cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return static_cast<int>(r);
}

__device__ __forceinline__ void arrive(ClusterBarrier* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
// Arrives; the phase ends when that many bytes have come too, before or after this.
__device__ __forceinline__ void arrive_and_expect(ClusterBarrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void wait(ClusterBarrier* b, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni ready;\n"
      "bra.uni again;\n"
      "ready:\n}\n" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// A multiple of 16 bytes from global to this block's shared memory, counted at a barrier.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, int bytes, ClusterBarrier* b,
                                          std::uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(b)), "l"(policy)
      : "memory");
}

// How far the shared memory of block `rank` is from this block's: what is here at address a is
// there at a + distance.
__device__ __forceinline__ std::uint32_t distance_to(int rank, const void* any) {
  std::uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(any)), "r"(rank));
  return remote - shared_address(any);
}
__device__ __forceinline__ void put(std::uint32_t distance, void* to, std::uint32_t v,
                                    ClusterBarrier* b) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                   shared_address(to) + distance),
               "r"(v), "r"(shared_address(b) + distance)
               : "memory");
}
__device__ __forceinline__ void put(std::uint32_t distance, void* to, uint4 v, ClusterBarrier* b) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(shared_address(to) + distance),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(shared_address(b) + distance)
      : "memory");
}

#endif

}  // namespace mmfree::cuda
