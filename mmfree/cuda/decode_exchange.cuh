#pragma once
// The exchange between blocks of decode_cluster.cu: values with its number beside them. A block
// looks for an eighth of a row and hands it to all blocks of its cluster, so that a cluster reads
// every value once; with it go the sums of squares of that part.
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/decode_norm.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"

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

// What a lane needs to hand values on.
struct Neighbours {
  std::uint32_t distance[2];    // to the two blocks that this lane tells of values
  std::uint32_t distance_of_8;  // to the one it tells of a sum
  __device__ __forceinline__ explicit Neighbours(const void* shared)
      : distance{distance_to(static_cast<int>(threadIdx.x) % 4, shared),
                 distance_to(static_cast<int>(threadIdx.x) % 4 + 4, shared)},
        distance_of_8(distance_to(static_cast<int>(threadIdx.x) % 8, shared)) {}

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

// Bytes that come for a row: its values, and two sums of each group.
__device__ __forceinline__ int row_bytes(int width) {
  return (width + 31) / 32 * 128 + 2 * kSumGroups * 4;
}

// The exchange warps of block r have the groups r and r + 8 of the canonical sum's lanes: lane l of
// group g has the elements 512 j + 32 g + l.
struct ExchangeWarp {
  int group, lane;
  bool leads;  // says how much will come
  Neighbours near;

  __device__ __forceinline__ int place(int j) const {
    return j * static_cast<int>(kSumLanes) + group * 32 + lane;
  }
  // What comes from the other blocks, or of the embedding; 0 past the end. Values of the exchange
  // lie at `from`; with h, packets of two.
  template <int E>
  __device__ __forceinline__ void look(const char* from, int width, std::uint32_t number,
                                       RowItems<E>& x) const {
    const auto* values = reinterpret_cast<const unsigned long long*>(from);
    constexpr int kQuestions = E <= 5 ? 3 : E <= 8 ? 2 : 1;
    ask<kQuestions, E>(
        [&](int j) {
          return place(j) < width ? look_at_value(values + place(j))
                                  : static_cast<unsigned long long>(number) << 32;
        },
        [&](unsigned long long v) { return static_cast<std::uint32_t>(v >> 32) == number; },
        [&](int j, unsigned long long v) {
          x[j] = __uint_as_float(static_cast<std::uint32_t>(v));
        });
  }
  template <int E>
  __device__ __forceinline__ void look(const Packet* packets, int width, std::uint32_t number,
                                       RowItems<E>& x, RowItems<E>& h) const {
    ask<E <= 4 ? 2 : 1, E>(
        [&](int j) {
          return place(j) < width ? look_at_packet(packets + place(j))
                                  : make_uint4(0, 0, 0, number);
        },
        [&](const uint4& v) { return v.w == number; },
        [&](int j, const uint4& v) {
          x[j] = __uint_as_float(v.x);
          h[j] = __uint_as_float(v.y);
        });
  }
  template <int E>
  __device__ __forceinline__ void load_gain(const float* from, int width, RowItems<E>& to) const {
#pragma unroll
    for (int j = 0; j < E; ++j) to[j] = place(j) < width ? __ldg(from + place(j)) : 0.0F;
  }

  // The norm of ops/gated_norm: x becomes x normalised * outer * h.
  template <int E>
  __device__ __forceinline__ void gate(RowItems<E>& x, const RowItems<E>& h,
                                       const RowItems<E>& outer, const Divisor& width, float eps,
                                       Common& common, unsigned parity) const {
    float sum = 0.0F;
#pragma unroll
    for (int j = 0; j < E; ++j) sum += x[j] * x[j];
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffU, sum, o);
    if (lane < kCluster)
      put(near.distance_of_8, &common.first[group], __float_as_uint(sum), &common.on_first);
    if (leads && lane == 0) arrive_and_expect(&common.on_first, kSumGroups * 4);
    wait(&common.on_first, parity);
    float top[kSumGroups];
#pragma unroll
    for (int q = 0; q < kSumGroups / 4; ++q) {
      const float4 v = reinterpret_cast<const float4*>(common.first)[q];
      top[4 * q] = v.x;
      top[4 * q + 1] = v.y;
      top[4 * q + 2] = v.z;
      top[4 * q + 3] = v.w;
    }
    fold_registers<kSumGroups / 2>(top);
    const float rstd = reciprocal_rms_of(top[0], width, eps);
#pragma unroll
    for (int j = 0; j < E; ++j) x[j] = x[j] * rstd * outer[j] * h[j];
  }

  // x and the sums of its squares and, with an outer gain, of those of x * outer to all blocks.
  template <int E, bool kOuter>
  __device__ __forceinline__ void hand_on(const RowItems<E>& x, const RowItems<E>& outer, int width,
                                          float* row, float (&sums)[2][kSumGroups],
                                          ClusterBarrier* b) const {
#pragma unroll
    for (int j = 0; j < E; ++j)
      if (place(j) - lane < width) near.hand_on(x[j], row + place(j) - lane, b);
    float of_x = 0.0F, of_u = 0.0F;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      of_x += x[j] * x[j];
      const float u = kOuter ? x[j] * outer[j] : 0.0F;
      of_u += u * u;
    }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
      of_x += __shfl_xor_sync(0xffffffffU, of_x, o);
      of_u += __shfl_xor_sync(0xffffffffU, of_u, o);
    }
    if (lane < 2 * kCluster)
      put(near.distance_of_8, &sums[lane / kCluster][group],
          __float_as_uint(lane < kCluster ? of_x : of_u), b);
  }
};

// ED: elements of D and M a lane of the canonical sum has, EF: of F.
template <int ED, int EF>
__device__ __forceinline__ void run_exchange_warp(const Decode& a, const Layout& at, Common& common,
                                                  char* shared) {
  const DeviceWeights& w = a.w;
  const Course course(a);
  const int n = static_cast<int>(threadIdx.x) / 32 - kWarps;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const ExchangeWarp warp{cluster_rank() + n * kCluster, lane, n == 0, Neighbours(shared)};
  const Divisor mixer(w.mixer);
  const char* const exchange = reinterpret_cast<const char*>(a.exchange);
  std::int32_t token = a.first;
  unsigned rows = 0, gated = 0;  // handed on
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    for (int layer = 0; layer < course.layers; ++layer) {
      const std::uint32_t epoch = course.epoch(step, layer);
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
#pragma unroll 1
      for (int stage = 0; stage < course.stages(step, layer); ++stage, ++rows) {
        const int width = course.width(stage);
        float* const row = reinterpret_cast<float*>(shared + at.rows) + (rows & 1U) * at.row_floats;
        float(&sums)[2][kSumGroups] = common.sums[rows & 1U];
        ClusterBarrier* const on_row = &common.on_row[rows & 1U];
        if (warp.leads && lane == 0) arrive_and_expect(on_row, row_bytes(width));
        // Nobody hands on the next row before this block has told of this one, and this block not
        // before the last one has come. So what is put here for a row finds its barrier's turn.
        const auto wait_for_last = [&] {
          if (rows > 0) wait(&common.on_row[~rows & 1U], (rows - 1) >> 1 & 1U);
        };
        if (stage == kMlpOut) {
          RowItems<EF> x;
          warp.look<EF>(exchange + at.z, width, epoch, x);
          wait_for_last();
          warp.hand_on<EF, false>(x, x, width, row, sums, on_row);
          continue;
        }
        RowItems<ED> outer, x;
        warp.load_gain<ED>(stage == kMixerIn    ? params + at.params.attn_norm
                           : stage == kMixerOut ? params + at.params.g_norm
                           : stage == kMlpIn    ? params + at.params.mlp_norm
                                                : w.norm,
                           width, outer);
        if (stage == kMixerOut) {
          RowItems<ED> h;
          warp.look<ED>(a.exchange, width, epoch, x, h);
          warp.gate<ED>(x, h, outer, mixer, w.eps, common, gated++ & 1U);
        } else if (stage == kMixerIn && layer == 0) {
#pragma unroll
          for (int j = 0; j < ED; ++j)
            x[j] = warp.place(j) < width
                       ? embedding_value(w.embedding, w.embedding_bits,
                                         static_cast<idx>(token) * width + warp.place(j))
                       : 0.0F;
        } else {
          warp.look<ED>(exchange + (stage == kMlpIn ? at.x1 : at.x2), width,
                        stage == kMixerIn ? epoch - 1 : epoch, x);
        }
        wait_for_last();
        warp.hand_on<ED, true>(x, outer, width, row, sums, on_row);
      }
    }
    if (step < course.first_head) {
      // The next row needs no output of a block that may still be reading the last one.
      sync_cluster();
      continue;
    }
    if (n == 0) {
      const std::uint32_t epoch = course.epoch(step, course.layers - 1);
      const auto* bests = reinterpret_cast<const Packet*>(exchange + at.best);
      unsigned long long key = 0;
      for (int b = lane; b < static_cast<int>(gridDim.x); b += 32) {
        uint4 v = look_at_packet(bests + b);
        while (v.w != epoch) v = look_at_packet(bests + b);
        const unsigned long long other = static_cast<unsigned long long>(v.x) << 32 | v.y;
        key = other > key ? other : key;
      }
      key = warp_max64(key);
      if (lane == 0) {
        common.token = chosen_id(key);
        if (blockIdx.x == 0) a.chosen[step + 1 - a.given_count] = common.token;
      }
    }
    __syncthreads();
    token = common.token;
    if (course.ends_with(token)) break;
  }
}

}  // namespace mmfree::cuda

#endif
