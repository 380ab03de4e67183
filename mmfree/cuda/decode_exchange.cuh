#pragma once
// The exchange between blocks of decode_cluster.cu: values with its number beside them. A block
// looks for an eighth of a row and hands it to all blocks of its cluster, so that a cluster reads
// every value once.
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/decode_shared.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

__device__ __forceinline__ void put_value(void* to, float v, std::uint32_t epoch) {
  const unsigned long long both = static_cast<unsigned long long>(epoch) << 32 | __float_as_uint(v);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(both) : "memory");
}

__device__ __forceinline__ unsigned long long look_at_value(const unsigned long long* from) {
  unsigned long long v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
  return v;
}

// Asks for N things until all lanes of the warp have theirs, then takes them. S questions are under
// way, a part of an answer's time apart, so that news does not wait for a whole round.
template <int S, int N, class Look, class Ready, class Take>
__device__ __forceinline__ void ask(const Look& look, const Ready& ready, const Take& take) {
  using V = decltype(look(0));
  constexpr int kAnswerCycles = 800;
  const auto question = [&](V(&v)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = look(j);
  };
  const auto pause = [] {
    for (const long long start = clock64(); clock64() - start < kAnswerCycles / S;) {
    }
  };
  // Takes the answer and says so, or asks again.
  const auto answered = [&](V(&v)[N]) {
    bool there = true;
#pragma unroll
    for (int j = 0; j < N; ++j) there = there && ready(v[j]);
    if (!__all_sync(0xffffffffU, there)) {
      question(v);
      return false;
    }
#pragma unroll
    for (int j = 0; j < N; ++j) take(j, v[j]);
    return true;
  };
  V v0[N], v1[N], v2[N];
  question(v0);
  if constexpr (S > 1) {
    pause();
    question(v1);
  }
  if constexpr (S > 2) {
    pause();
    question(v2);
  }
  while (true) {
    if (answered(v0)) return;
    if constexpr (S > 1)
      if (answered(v1)) return;
    if constexpr (S > 2)
      if (answered(v2)) return;
  }
}

// What a lane of a cluster's block needs to hand values on.
struct Neighbours {
  int rank;
  std::uint32_t distance[2];  // to the two blocks that this lane tells
  __device__ __forceinline__ explicit Neighbours(const void* shared)
      : rank(cluster_rank()),
        distance{distance_to(static_cast<int>(threadIdx.x) % 4, shared),
                 distance_to(static_cast<int>(threadIdx.x) % 4 + 4, shared)} {}

  // 32 values, one of each lane of a warp, to the same place in every block. Four lanes put their
  // values together and share the eight blocks among them.
  __device__ __forceinline__ void hand_on(float v, float* to, ClusterBarrier* b) const {
    static_assert(kCluster == 8);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    uint4 four;
    four.x = __shfl_sync(0xffffffffU, __float_as_uint(v), 0, 4);
    four.y = __shfl_sync(0xffffffffU, __float_as_uint(v), 1, 4);
    four.z = __shfl_sync(0xffffffffU, __float_as_uint(v), 2, 4);
    four.w = __shfl_sync(0xffffffffU, __float_as_uint(v), 3, 4);
    put(distance[0], to + lane / 4 * 4, four, b);
    put(distance[1], to + lane / 4 * 4, four, b);
  }
};

// Chunks of 32 values: turn t of norm warp w of block r of a cluster has chunk (8 t + w) 8 + r.
__device__ __forceinline__ int first_chunk(int rank, int warp) {
  return warp * kCluster + rank;
}
inline constexpr int kChunksATurn = kNormWarps * kCluster;
// How many turns rows of 512 E values take.
template <int E>
inline constexpr int kTurns = (E * kSumGroups + kChunksATurn - 1) / kChunksATurn;

// This warp's part of a row of values, to all blocks of the cluster.
template <int TURNS>
__device__ __forceinline__ void receive(const Neighbours& near, int warp, const char* from,
                                        int width, std::uint32_t number, float* row,
                                        ClusterBarrier* b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = first_chunk(near.rank, warp) * 32;
  if (first >= width) return;
  const auto* values = reinterpret_cast<const unsigned long long*>(from) + first + lane;
  float v[TURNS];
  ask<TURNS == 1 ? 3 : 2, TURNS>(
      [&](int t) {
        return first + t * kChunksATurn * 32 + lane < width
                   ? look_at_value(values + t * kChunksATurn * 32)
                   : static_cast<unsigned long long>(number) << 32;
      },
      [&](unsigned long long both) { return static_cast<std::uint32_t>(both >> 32) == number; },
      [&](int t, unsigned long long both) {
        v[t] = __uint_as_float(static_cast<std::uint32_t>(both));
      });
#pragma unroll
  for (int t = 0; t < TURNS; ++t)
    if (first + t * kChunksATurn * 32 < width)
      near.hand_on(v[t], row + first + t * kChunksATurn * 32, b);
}
// The same for packets of two values, whose second ones make the row at `second`.
template <int TURNS>
__device__ __forceinline__ void receive_two(const Neighbours& near, int warp, const Packet* packets,
                                            int width, std::uint32_t number, float* row,
                                            float* second, ClusterBarrier* b) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = first_chunk(near.rank, warp) * 32;
  if (first >= width) return;
  float v[TURNS], u[TURNS];
  ask<2, TURNS>(
      [&](int t) {
        const int place = first + t * kChunksATurn * 32 + lane;
        return place < width ? look_at_packet(packets + place) : make_uint4(0, 0, 0, number);
      },
      [&](const uint4& both) { return both.w == number; },
      [&](int t, const uint4& both) {
        v[t] = __uint_as_float(both.x);
        u[t] = __uint_as_float(both.y);
      });
#pragma unroll
  for (int t = 0; t < TURNS; ++t) {
    if (first + t * kChunksATurn * 32 >= width) continue;
    near.hand_on(v[t], row + first + t * kChunksATurn * 32, b);
    near.hand_on(u[t], second + first + t * kChunksATurn * 32, b);
  }
}
// Bytes that all blocks of a cluster put into each other's row.
__device__ __forceinline__ int row_bytes(int width) {
  return (width + 31) / 32 * 128;
}

}  // namespace mmfree::cuda

#endif
