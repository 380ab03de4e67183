#pragma once
// The norm warps of decode_cluster.cu: from the exchange between blocks to codes in the shared
// memory of every block of the cluster. Each of the cluster's groups of lanes has a warp for every
// matrix that may take its row; the first also receives and normalises.
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

// ---- the exchange: values with its number beside them ----

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
template <int N>
inline constexpr int kQuestions = N <= 5   ? 3
                                  : N <= 8 ? 2
                                           : 1;

// ---- one group of lanes ----

// A stage's row. Lane l of group g holds the elements 512 j + 32 g + l.
struct NormRow {
  int stage, width, padded;
  const float* outer;  // gain, or null
  bool twice;          // an outer norm before the inner one
};

struct NormWarp {
  int matrix, group, lane;
  bool leads;              // the first for its matrix in this block: says how much will come
  std::uint32_t distance;  // to the block that this lane tells
  std::int8_t* staging;

  // What follows from these is computed where it is needed: kept, it would push out the rows.
  __device__ __forceinline__ void forget() {
    asm volatile("" : "+r"(group), "+r"(lane), "+r"(distance));
  }
  __device__ __forceinline__ int place(int j) const {
    return j * static_cast<int>(kSumLanes) + group * 32 + lane;
  }
  template <int E>
  __device__ __forceinline__ void load_gain(const float* from, int width, RowItems<E>& to) const {
#pragma unroll
    for (int j = 0; j < E; ++j) to[j] = place(j) < width ? __ldg(from + place(j)) : 0.0F;
  }

  // A word of this group for all blocks.
  __device__ __forceinline__ void tell(void* slot, std::uint32_t v, ClusterBarrier* b) const {
    if (lane < kCluster) put(distance, slot, v, b);
  }
  // After this warp's words: `bytes` come from all groups.
  __device__ __forceinline__ void told(ClusterBarrier* b, int bytes) const {
    if (leads && lane == 0) arrive_and_expect(b, bytes);
  }

  // The canonical sum of a term over the row from this lane's part.
  __device__ __forceinline__ float first_sum(float a, Room& room, unsigned parity) const {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) a += __shfl_xor_sync(0xffffffffU, a, o);
    tell(&room.first[group], __float_as_uint(a), &room.on_first);
    told(&room.on_first, kSumGroups * 4);
    wait(&room.on_first, parity);
    float top[kSumGroups];
#pragma unroll
    for (int q = 0; q < kSumGroups / 4; ++q) {
      const float4 v = reinterpret_cast<const float4*>(room.first)[q];
      top[4 * q] = v.x;
      top[4 * q + 1] = v.y;
      top[4 * q + 2] = v.z;
      top[4 * q + 3] = v.w;
    }
    fold_registers<kSumGroups / 2>(top);
    return top[0];
  }
  // Of two terms.
  __device__ __forceinline__ float2 both_sums(float a, float b, Room& room, unsigned parity) const {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) {
      a += __shfl_xor_sync(0xffffffffU, a, o);
      b += __shfl_xor_sync(0xffffffffU, b, o);
    }
    if (lane < kCluster) put(distance, &room.sums[group], a, b, &room.on_sums);
    told(&room.on_sums, kSumGroups * 8);
    wait(&room.on_sums, parity);
    float top[2][kSumGroups];
#pragma unroll
    for (int q = 0; q < kSumGroups / 2; ++q) {
      const float4 v = reinterpret_cast<const float4*>(room.sums)[q];
      top[0][2 * q] = v.x;
      top[1][2 * q] = v.y;
      top[0][2 * q + 1] = v.z;
      top[1][2 * q + 1] = v.w;
    }
    fold_registers<kSumGroups / 2>(top[0]);
    fold_registers<kSumGroups / 2>(top[1]);
    return make_float2(top[0][0], top[1][0]);
  }

  // x becomes x normalised, before the matrix's own gain. h: what the gated norm multiplies with.
  // Returns 0, or NaN if the row is not finite.
  template <int E, bool kOuter>
  __device__ __forceinline__ float normalize(const NormRow& r, RowItems<E>& x, const RowItems<E>& h,
                                             const RowItems<E>& outer, float eps, Room& room,
                                             unsigned parity) const {
    if constexpr (kOuter) {
      if (r.stage == kMixerOut) {
        float squares = 0.0F;
#pragma unroll
        for (int j = 0; j < E; ++j) squares += x[j] * x[j];
        const float rstd = reciprocal_rms_device(first_sum(squares, room, parity), r.width, eps);
#pragma unroll
        for (int j = 0; j < E; ++j) x[j] = x[j] * rstd * outer[j] * h[j];
      }
    }
    float of_x = 0.0F, of_u = 0.0F;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const float u = kOuter ? x[j] * outer[j] : 0.0F;
      of_x += x[j] * x[j];
      of_u += u * u;
    }
    const float2 sums = both_sums(of_x, of_u, room, parity);
    float squares = sums.x;
    if constexpr (kOuter) {
      if (r.twice) {
        const float rstd = reciprocal_rms_device(sums.x, r.width, eps);
        squares = sums.y * rstd * rstd;
#pragma unroll
        for (int j = 0; j < E; ++j) x[j] = x[j] * rstd * outer[j];
      }
    }
    const float rstd = reciprocal_rms_device(squares, r.width, kInnerEps);
#pragma unroll
    for (int j = 0; j < E; ++j) x[j] *= rstd;
    return squares - squares;
  }

  // This warp's matrix's codes of the normalised x to every block. codes: (padded).
  template <int E>
  __device__ __forceinline__ void quantize(const NormRow& r, const RowItems<E>& x,
                                           const RowItems<E>& gain, float poison, Room& room,
                                           unsigned parity, std::int8_t* codes) const {
    RowItems<E> y;
    unsigned top = 0;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      y[j] = x[j] * gain[j];
      top = max(top, __float_as_uint(y[j]) & 0x7fffffffU);
    }
    ClusterBarrier* const on_maxima = &room.on_maxima[matrix];
    tell(&room.maxima[matrix][group], warp_max(top), on_maxima);
    told(on_maxima, kSumGroups * 4);
    wait(on_maxima, parity);
    const float largest = __uint_as_float(warp_max(room.maxima[matrix][lane % kSumGroups]));
    const float bounded = largest > 1e-5F ? largest : 1e-5F;
    const float inverse = 127.0F / bounded;
    const float scale = (bounded + poison) / 127.0F;
    int sum = 0;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int code = code_of(y[j] * inverse);
      staging[j * 32 + lane] = static_cast<std::int8_t>(code);
      sum += code;
    }
    __syncwarp();
    constexpr int kTurns = (2 * E * kCluster + 31) / 32;
#pragma unroll
    for (int n = 0; n < kTurns; ++n) {
      const int piece = n * (32 / kCluster) + lane / kCluster;  // 16 codes
      const int k = piece / 2 * static_cast<int>(kSumLanes) + group * 32 + piece % 2 * 16;
      if (piece < 2 * E && k < r.padded)
        put(distance, codes + k, reinterpret_cast<const uint4*>(staging)[piece], &room.on_codes);
    }
    tell(&room.code_sums[matrix][group], static_cast<std::uint32_t>(warp_sum(sum)), &room.on_codes);
    if (leads && lane == 0) room.scale[matrix] = scale;
    told(&room.on_codes, r.padded + kSumGroups * 4);
    __syncwarp();  // staging has been read
  }
};

// The codes of f and g, from rows that the first warp of the group has normalised.
template <int E>
__device__ __forceinline__ void run_quantizer(const Decode& a, const Layout& at, NormWarp warp,
                                              Common& common, char* shared) {
  const DeviceWeights& w = a.w;
  const Course course(a);
  const int here = warp.group % kGroupsHere;
  const NormRow r{kMixerIn, w.hidden, (w.hidden + 127) / 128 * 128, nullptr, true};
  const auto* row = reinterpret_cast<const float*>(shared + at.rows) + here * (32 * E + 1);
  const StageShape& shape = at.stage[kMixerIn];
  auto* const codes =
      reinterpret_cast<std::int8_t*>(shared + shape.codes) + warp.matrix * shape.stride;
  unsigned turn = 0, heads = 0;
  for (int step = 0; step < a.steps; ++step) {
    for (int layer = 0; layer < course.layers; ++layer, ++turn) {
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
      RowItems<E> gain, x;
      warp.forget();
      warp.load_gain<E>(params + (warp.matrix == 1 ? at.params.f_norm : at.params.g_in_norm),
                        r.width, gain);
      wait(&common.on_row[here], turn & 1U);
#pragma unroll
      for (int j = 0; j < E; ++j) x[j] = row[j * 32 + warp.lane];
      warp.quantize<E>(r, x, gain, row[32 * E], common.rooms[kMixerIn], turn & 1U, codes);
    }
    if (step < course.first_head) continue;
    wait(&common.on_token, heads++ & 1U);
    if (course.ends_with(common.token)) break;
  }
}

// Rows of D or M have ED elements a lane, rows of F have EF.
template <int ED, int EF>
__device__ __forceinline__ void run_norm_warp(const Decode& a, const Layout& at, Common& common,
                                              char* shared) {
  const DeviceWeights& w = a.w;
  const Course course(a);
  const int n = static_cast<int>(threadIdx.x) / 32 - kProductWarps;
  const int lane = static_cast<int>(threadIdx.x) % 32, here = n % kGroupsHere;
  NormWarp warp{n / kGroupsHere,
                cluster_rank() * kGroupsHere + here,
                lane,
                here == 0,
                distance_to(lane % kCluster, shared),
                reinterpret_cast<std::int8_t*>(shared + at.staging) + n * 32 * max(ED, EF)};
  if (warp.matrix > 0) return run_quantizer<ED>(a, at, warp, common, shared);

  auto* const row = reinterpret_cast<float*>(shared + at.rows) + here * (32 * ED + 1);
  const char* const exchange = reinterpret_cast<const char*>(a.exchange);
  unsigned long long* const clocks =
      n == 0 && lane == 0 && course.measured() ? common.clocks + 2 * kDecodeStages : nullptr;
  std::int32_t token = a.first;
  unsigned turn = 0, heads = 0;
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    for (int layer = 0; layer < course.layers; ++layer, ++turn) {
      const std::uint32_t epoch = course.epoch(step, layer);
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
#pragma unroll 1
      for (int stage = 0; stage < course.stages(step, layer); ++stage) {
        warp.forget();
        NormRow r{stage, w.hidden, 0, nullptr, true};
        const float* own_gain = nullptr;
        const char* from = exchange;
        std::uint32_t number = epoch;
        switch (stage) {
          case kMixerIn:
            r.outer = params + at.params.attn_norm;
            own_gain = params + at.params.i_norm;
            from += at.x2;
            number = epoch - 1;
            break;
          case kMixerOut:
            r.outer = params + at.params.g_norm;
            own_gain = params + at.params.o_norm;
            r.width = w.mixer;
            r.twice = false;
            break;
          case kMlpIn:
            r.outer = params + at.params.mlp_norm;
            own_gain = params + at.params.gate_norm;
            from += at.x1;
            break;
          case kMlpOut:
            own_gain = params + at.params.down_norm;
            from += at.z;
            r.width = w.mlp;
            r.twice = false;
            break;
          default:
            r.outer = w.norm;
            own_gain = w.head_norm;
            from += at.x2;
        }
        r.padded = (r.width + 127) / 128 * 128;
        Room& room = common.rooms[stage];
        auto* const codes = reinterpret_cast<std::int8_t*>(shared + at.stage[stage].codes);
        const unsigned parity = (stage == kHead ? heads : turn) & 1U;
        long long ready = 0;

        const auto receive = [&](auto& x) {
          constexpr int kItems = sizeof(x) / sizeof(float);
          const auto* values = reinterpret_cast<const unsigned long long*>(from);
          ask<kQuestions<kItems>, kItems>(
              [&](int j) {
                return warp.place(j) < r.width ? look_at_value(values + warp.place(j))
                                               : static_cast<unsigned long long>(number) << 32;
              },
              [&](unsigned long long v) { return static_cast<std::uint32_t>(v >> 32) == number; },
              [&](int j, unsigned long long v) {
                x[j] = __uint_as_float(static_cast<std::uint32_t>(v));
              });
        };
        if (stage == kMlpOut) {
          RowItems<EF> gain, x;
          warp.load_gain<EF>(own_gain, r.width, gain);
          receive(x);
          if (clocks != nullptr) ready = clock64();
          const float poison = warp.normalize<EF, false>(r, x, x, x, w.eps, room, parity);
          warp.quantize<EF>(r, x, gain, poison, room, parity, codes);
        } else {
          RowItems<ED> gain, outer, x, h;
          warp.load_gain<ED>(own_gain, r.width, gain);
          warp.load_gain<ED>(r.outer, r.width, outer);
          if (stage == kMixerIn && layer == 0) {
#pragma unroll
            for (int j = 0; j < ED; ++j)
              x[j] = warp.place(j) < r.width
                         ? embedding_value(w.embedding, w.embedding_bits,
                                           static_cast<idx>(token) * r.width + warp.place(j))
                         : 0.0F;
          } else if (stage == kMixerOut) {
            const auto* packets = reinterpret_cast<const Packet*>(from);
            ask<(kQuestions<ED> + 1) / 2, ED>(
                [&](int j) {
                  return warp.place(j) < r.width ? look_at_packet(packets + warp.place(j))
                                                 : make_uint4(0, 0, 0, number);
                },
                [&](const uint4& v) { return v.w == number; },
                [&](int j, const uint4& v) {
                  x[j] = __uint_as_float(v.x);
                  h[j] = __uint_as_float(v.y);
                });
          } else {
            receive(x);
          }
          if (clocks != nullptr) ready = clock64();
          const float poison = warp.normalize<ED, true>(r, x, h, outer, w.eps, room, parity);
          if (stage == kMixerIn) {
#pragma unroll
            for (int j = 0; j < ED; ++j) row[j * 32 + lane] = x[j];
            if (lane == 0) row[32 * ED] = poison;
            __syncwarp();
            if (lane == 0) arrive(&common.on_row[here]);
          }
          warp.quantize<ED>(r, x, gain, poison, room, parity, codes);
        }
        if (clocks != nullptr) clocks[stage] += static_cast<unsigned long long>(clock64() - ready);
      }
    }
    if (step < course.first_head) continue;
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
        arrive(&common.on_token);
      }
    }
    wait(&common.on_token, heads++ & 1U);
    token = common.token;
    if (course.ends_with(token)) break;
  }
}

}  // namespace mmfree::cuda

#endif
