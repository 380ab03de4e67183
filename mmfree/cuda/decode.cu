// Decoding as one kernel that stays on the GPU: every multiprocessor owns the same outputs of every
// matrix and does norms and quantisation of the whole row for itself, as the threads of the CPU
// path do. Four exchanges a layer remain. An exchange needs no barrier: each block writes its
// values with the exchange's number beside them, and each reader looks until that number is there.
// Which weights a warp needs when is known beforehand, so they stream into shared memory all the
// while, through exchanges, norms and from one token to the next.
#include <algorithm>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/embedding_rows.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

constexpr int kThreads = kRowThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kHalf = 16;  // lanes that take a row of values
constexpr int kHalfWarps = kThreads / kHalf;
constexpr int kAhead = 12;  // tiles under way, a warp
constexpr int kBurst = 2;   // tiles multiplied together

// ---- exchange ----

// Rows of 16 values (n = 6 packets each) or of two times 16 (n = 11) to shared memory, in order; at
// most U packets a thread.
template <int PER_ROW, int U>
__device__ __forceinline__ void receive(const Packet* from, int rows, std::uint32_t epoch,
                                        float* to) {
  constexpr int kValues = PER_ROW == kPacketsOfOne ? 16 : 32;
  const int total = rows * PER_ROW;
  const Packet* mine = from + threadIdx.x;
  const int left = total - static_cast<int>(threadIdx.x);
  uint4 v[U];
#pragma unroll
  for (int n = 0; n < U; ++n) {
    v[n].w = epoch;
    if (n * kThreads < left) v[n] = look_at_packet(mine + n * kThreads);
  }
#pragma unroll
  for (int n = 0; n < U; ++n) {
    while (v[n].w != epoch) v[n] = look_at_packet(mine + n * kThreads);
    if (n * kThreads >= left) continue;
    const unsigned p = threadIdx.x + static_cast<unsigned>(n * kThreads);
    const unsigned row = p / PER_ROW, i = p - row * PER_ROW;
    float* at = to + row * kValues + i;
    at[0] = __uint_as_float(v[n].x);
    at[PER_ROW] = __uint_as_float(v[n].y);
    if (i + 2 * PER_ROW < kValues) at[2 * PER_ROW] = __uint_as_float(v[n].z);
  }
  __syncthreads();
}
// What a thread receives at most of a row of kThreads E elements.
template <int E>
inline constexpr int kPacketsFor = (kThreads / 16 * E * kPacketsOfOne + kThreads - 1) / kThreads;
template <int E>
inline constexpr int kDoublePacketsFor =
    (kThreads / 16 * E * kPacketsOfTwo + kThreads - 1) / kThreads;

// One row by half a warp whose lanes hold a value each. All 16 lanes take part.
__device__ __forceinline__ void send_one(Packet* to, float v, std::uint32_t epoch, unsigned mask) {
  const int l = static_cast<int>(threadIdx.x) % kHalf;
  const float second = __shfl_sync(mask, v, (l + kPacketsOfOne) & 15, kHalf);
  const float third = __shfl_sync(mask, v, (l + 2 * kPacketsOfOne) & 15, kHalf);
  if (l < kPacketsOfOne) put_packet(to + l, v, second, third, epoch);
}
__device__ __forceinline__ void send_two(Packet* to, float v0, float v1, std::uint32_t epoch,
                                         unsigned mask) {
  const int l = static_cast<int>(threadIdx.x) % kHalf;
  const int s = l + kPacketsOfTwo;
  const float a = __shfl_sync(mask, v0, s & 15, kHalf), b = __shfl_sync(mask, v1, s & 15, kHalf);
  const float third = __shfl_sync(mask, v1, (l + 2 * kPacketsOfTwo) & 15, kHalf);
  if (l < kPacketsOfTwo) put_packet(to + l, v0, s < 16 ? a : b, third, epoch);
}

// ---- products ----

// Everything that says which tiles a block reads in which order.
struct Plan {
  const std::uint8_t *tiles, *head;
  idx layers, layer_tile_bytes;
  int steps, first_head;           // steps from first_head on go through the head; none: steps
  int mixer_out, mlp_in, mlp_out;  // offsets in a layer's tiles, units of 512 bytes
  int d_tiles, m_tiles, f_tiles;   // tiles a row of inputs
  Part m, d, f, v;
};

// The tiles that one warp multiplies, from the first token to the last. Each lane copies and reads
// its own 16 bytes of a tile, so the warps need no barrier between them.
struct Stream {
  const Plan& plan;
  uint4* slots;  // this lane's place in slot 0
  int slot = 0;  // of the next tile to be read, and to be replaced then
  // What is fetched next:
  const std::uint8_t* at = nullptr;
  int left = 0, stage = -1, step = 0;
  idx layer = 0;
  std::uint64_t policy = evict_first();

  __device__ __forceinline__ Stream(const Plan& p, uint4* ring) : plan(p) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    slots = ring + warp * kAhead * 32 + lane;
    for (int n = 0; n < kAhead; ++n) refill();
  }

  // A warp's part of rows of tiles: [begin, end).
  struct Range {
    int begin, end;
  };
  static __device__ __forceinline__ Range range_of(int rows, int depth) {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int items = rows * depth;
    return {items * warp / kWarps, items * (warp + 1) / kWarps};
  }

  __device__ __forceinline__ void enter_next_stage() {
    ++stage;
    const bool last_layer = layer + 1 == plan.layers;
    if (stage == 4 && !(last_layer && step >= plan.first_head)) ++stage;
    if (stage == 5) {
      stage = 0;
      if (last_layer) {
        layer = 0;
        ++step;
      } else {
        ++layer;
      }
    }
    if (step >= plan.steps) {
      left = 0;
      return;
    }
    const std::uint8_t* from = plan.tiles + layer * plan.layer_tile_bytes;
    const auto part = [&](const std::uint8_t* base, int offset, int first_row, int rows,
                          int depth) {
      const Range r = range_of(rows, depth);
      left = r.end - r.begin;
      at = base +
           (static_cast<idx>(offset) + static_cast<idx>(first_row) * depth + r.begin) * kTileBytes +
           threadIdx.x % 32 * 16;
    };
    if (stage == 0) part(from, 0, 3 * plan.m.first_group, 3 * plan.m.groups, plan.d_tiles);
    if (stage == 1) part(from, plan.mixer_out, plan.d.first_group, plan.d.groups, plan.m_tiles);
    if (stage == 2)
      part(from, plan.mlp_in, 2 * plan.f.first_group, 2 * plan.f.groups, plan.d_tiles);
    if (stage == 3) part(from, plan.mlp_out, plan.d.first_group, plan.d.groups, plan.f_tiles);
    if (stage == 4) part(plan.head, 0, plan.v.first_group, plan.v.groups, plan.d_tiles);
  }

  // The slot that was read last gets the next tile.
  __device__ __forceinline__ void refill() {
    while (left == 0 && step < plan.steps) enter_next_stage();
    if (left > 0) {
      copy_weights(slots + slot * 32, at, policy);
      at += kTileBytes;
      --left;
    }
    end_copies();
    slot = slot + 1 == kAhead ? 0 : slot + 1;
  }

  // Adds the stage's products to sums (rows of tiles, 16) in shared memory. codes: of matrix m at
  // codes + m * stride.
  template <int GROUP>
  __device__ __forceinline__ void multiply(int rows, int depth, const std::int8_t* codes,
                                           int stride, int* sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const Range r = range_of(rows, depth);
    if (r.begin == r.end) return;
    int row = r.begin / depth, k = r.begin % depth;
    const auto operand = [&] {
      return reinterpret_cast<const uint4*>(codes + row % GROUP * stride) + lane % 4 * 2;
    };
    const uint4* b = operand();
    PlaneSums acc;
    acc.clear();
    const auto flush = [&] {
      if (lane % 4 != 0) return;
      atomicAdd(&sums[row * 16 + lane / 4], acc.total(0));
      atomicAdd(&sums[row * 16 + lane / 4 + 8], acc.total(2));
    };
    for (int i = r.begin; i < r.end;) {
      if (i + kBurst <= r.end && k + kBurst <= depth) {
        wait_copies<kAhead - kBurst>();
        uint4 w[kBurst], x[2 * kBurst];
        int from = slot;
#pragma unroll
        for (int t = 0; t < kBurst; ++t) {
          w[t] = slots[from * 32];
          x[2 * t] = b[(k + t) * 8];
          x[2 * t + 1] = b[(k + t) * 8 + 1];
          from = from + 1 == kAhead ? 0 : from + 1;
        }
#pragma unroll
        for (int t = 0; t < kBurst; ++t) acc.add(w[t], x[2 * t], x[2 * t + 1]);
#pragma unroll
        for (int t = 0; t < kBurst; ++t) refill();
        k += kBurst;
        i += kBurst;
      } else {
        wait_copies<kAhead - 1>();
        acc.add(slots[slot * 32], b[k * 8], b[k * 8 + 1]);
        refill();
        ++k;
        ++i;
      }
      if (k == depth) {
        flush();
        acc.clear();
        k = 0;
        ++row;
        b = operand();
      }
    }
    if (k != 0) flush();
  }
};

// Reads past the end of a gain find others, which meet zeros (device_weights.cpp leaves room).
template <int E>
__device__ __forceinline__ void load_gain(const float* gain, RowItems<E>& to) {
  const float* mine = gain + threadIdx.x;
#pragma unroll
  for (int j = 0; j < E; ++j) to[j] = __ldg(mine + j * kRowThreads);
}

struct Offsets {
  int mixer_out, mlp_in, mlp_out;  // units of 512 bytes
  LayerParams params;
  int x1, z, x2, best;  // packets
};

// ED: elements of D and M a thread holds, EF: of F.
template <int ED, int EF>
__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ Decode a, const __grid_constant__ Offsets at) {
  extern __shared__ __align__(16) char shared[];
  const DeviceWeights& w = a.w;
  const int d = w.hidden, m = w.mixer, f = w.mlp;
  const auto tiles = [](int n) { return (n + 127) / 128; };
  __shared__ Plan plan;  // in registers it would push out the row
  if (threadIdx.x == 0)
    plan = Plan{w.tiles,
                w.head,
                w.layers,
                w.layer_tile_bytes,
                a.steps,
                a.chosen != nullptr ? a.given_count - 1 : a.steps,
                at.mixer_out,
                at.mlp_in,
                at.mlp_out,
                tiles(d),
                tiles(m),
                tiles(f),
                part_of((m + 15) / 16),
                part_of((d + 15) / 16),
                part_of((f + 15) / 16),
                part_of((w.vocab + 15) / 16)};
  __syncthreads();
  const int widest = max(max(plan.d_tiles, plan.m_tiles), plan.f_tiles);

  auto* ring = reinterpret_cast<uint4*>(shared);  // kWarps * kAhead tiles
  auto* row0 = reinterpret_cast<float*>(
      shared + kWarps * kAhead * kTileBytes);                 // (widest * 128 or 2 m_tiles * 128)
  float* own_x = row0 + max(widest, 2 * plan.m_tiles) * 128;  // (plan.d.groups * 16)
  auto& scratch = *reinterpret_cast<RowScratch<3>*>(own_x + plan.d.groups * 16);
  auto* codes = reinterpret_cast<std::int8_t*>(&scratch + 1);  // 3 rows of D or one of F or M
  auto* best = reinterpret_cast<unsigned long long*>(codes + max(3 * plan.d_tiles, widest) * 128);
  int* sums = reinterpret_cast<int*>(best + kWarps);  // rows of tiles of the largest part, 16 each

  const int tid = static_cast<int>(threadIdx.x);
  const int l16 = tid % kHalf, hw = tid / kHalf;
  const unsigned half_mask = 0xffffU << (tid & 16);
  const int stage_rows =
      max(max(3 * plan.m.groups, plan.d.groups), max(2 * plan.f.groups, plan.v.groups));
  for (int i = tid; i < stage_rows * 16; i += kThreads) sums[i] = 0;

  Packet* const gh = a.exchange;
  Packet* const x1 = a.exchange + at.x1;
  Packet* const z = a.exchange + at.z;
  Packet* const x2 = a.exchange + at.x2;
  Packet* const bests = a.exchange + at.best;
  Clock clock{blockIdx.x == gridDim.x / 2 && tid == 0 ? a.clocks : nullptr, 0};

  const auto row_scale = [](float largest) { return largest / 127.0F; };

  Stream stream(plan, ring);
  std::int32_t token = a.first;
  clock.start();
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    const auto embedding = [&](int k) {
      return k < d ? embedding_value(w.embedding, w.embedding_bits, static_cast<idx>(token) * d + k)
                   : 0.0F;
    };
    for (int k = tid; k < d; k += kThreads) row0[k] = embedding(k);
    for (int i = tid; i < plan.d.groups * 16; i += kThreads)
      own_x[i] = embedding(plan.d.first_group * 16 + i);
    for (idx layer = 0; layer < w.layers; ++layer) {
      const std::uint32_t epoch =
          a.first_epoch + static_cast<std::uint32_t>(step) * static_cast<std::uint32_t>(w.layers) +
          static_cast<std::uint32_t>(layer);
      const float* params = w.params + layer * at.params.floats;
      const float* scales = params + at.params.scales;
      const bool last_layer = layer + 1 == w.layers;

      // Token mixer, in: i, f, g and a step of the recurrence.
      {
        // Gains are asked for before the others' values, and are there when those come.
        RowItems<ED> outer, gain3[3], x;
        load_gain<ED>(params + at.params.attn_norm, outer);
        load_gain<ED>(params + at.params.i_norm, gain3[0]);
        load_gain<ED>(params + at.params.f_norm, gain3[1]);
        load_gain<ED>(params + at.params.g_in_norm, gain3[2]);
        const float scale_i = __ldg(scales), scale_f = __ldg(scales + 1),
                    scale_g = __ldg(scales + 2);
        float* state = a.state + layer * m;
        const int first_channel = (plan.m.first_group + hw) * 16 + l16;
        const bool mine = hw < plan.m.groups && first_channel < m;
        const float first_state = mine ? state[first_channel] : 0.0F;
        const float first_bound = mine ? __ldg(params + at.params.bound + first_channel) : 0.0F;
        if (layer > 0) {
          receive<kPacketsOfOne, kPacketsFor<ED>>(x2, (d + 15) / 16, epoch - 1, row0);
        } else {
          __syncthreads();
        }
        clock.lap(0);
        load_row<ED>(row0, d, x);
        const int stride = plan.d_tiles * 128;
        std::int8_t* const to[3] = {codes, codes + stride, codes + 2 * stride};
        float q[3];
        quantize_row<3, true, ED>(x, d, outer, gain3, w.eps, scratch, to, q);
        stream.multiply<3>(3 * plan.m.groups, plan.d_tiles, codes, stride, sums);
        const int sum_i = code_sum(scratch, 0), sum_f = code_sum(scratch, 1),
                  sum_g = code_sum(scratch, 2);
        __syncthreads();
        for (int n = hw; n < plan.m.groups; n += kHalfWarps) {
          int* s = sums + n * 48 + l16;
          const float i_pre = scaled_product(s[0], sum_i, row_scale(q[0]), scale_i);
          const float f_pre = scaled_product(s[16], sum_f, row_scale(q[1]), scale_f);
          const float g = scaled_product(s[32], sum_g, row_scale(q[2]), scale_g);
          s[0] = s[16] = s[32] = 0;
          const int c = (plan.m.first_group + n) * 16 + l16;
          float h = 0.0F;
          if (c < m) {
            const float before = n == hw ? first_state : state[c];
            const float bound = n == hw ? first_bound : __ldg(params + at.params.bound + c);
            const float gate = forget_gate(f_pre, bound);
            h = gate * before + gated_input(i_pre, gate);
            state[c] = h;
          }
          send_two(gh + (plan.m.first_group + n) * kPacketsOfTwo, g, silu(h), epoch, half_mask);
        }
        clock.lap(1);
      }
      // Token mixer, out: x += o_proj(gated_norm(g, h)).
      {
        RowItems<ED> outer, gain1[1], x, hs;
        load_gain<ED>(params + at.params.g_norm, outer);
        load_gain<ED>(params + at.params.o_norm, gain1[0]);
        const float scale = __ldg(scales + 3);
        receive<kPacketsOfTwo, kDoublePacketsFor<ED>>(gh, (m + 15) / 16, epoch, row0);
        clock.lap(2);
#pragma unroll
        for (int j = 0; j < ED; ++j) {
          const int k = row_place(j), place = k / 16 * 32 + k % 16;
          x[j] = k < m ? row0[place] : 0.0F;
          hs[j] = k < m ? row0[place + 16] : 0.0F;
        }
        float lanes[1][kRowLanes], squares[1];
        square_sums<ED>(x, lanes[0]);
        block_sums_canonical(lanes, scratch.parts + 2 * kSumGroups, squares);
        const float rstd = reciprocal_rms_device(squares[0], m, w.eps);
#pragma unroll
        for (int j = 0; j < ED; ++j) x[j] = x[j] * rstd * outer[j] * hs[j];
        std::int8_t* const to[1] = {codes};
        float q[1];
        quantize_row<1, false, ED>(x, m, outer, gain1, 0.0F, scratch, to, q);
        stream.multiply<1>(plan.d.groups, plan.m_tiles, codes, 0, sums);
        const int sum = code_sum(scratch, 0);
        __syncthreads();
        for (int n = hw; n < plan.d.groups; n += kHalfWarps) {
          int* s = sums + n * 16 + l16;
          const float v = own_x[n * 16 + l16] + scaled_product(s[0], sum, row_scale(q[0]), scale);
          s[0] = 0;
          own_x[n * 16 + l16] = v;
          send_one(x1 + (plan.d.first_group + n) * kPacketsOfOne, v, epoch, half_mask);
        }
        clock.lap(3);
      }
      // Channel mixer, in: z = silu(p) * q.
      {
        RowItems<ED> outer, gain1[1], x;
        load_gain<ED>(params + at.params.mlp_norm, outer);
        load_gain<ED>(params + at.params.gate_norm, gain1[0]);
        const float scale_p = __ldg(scales + 4), scale_q = __ldg(scales + 5);
        receive<kPacketsOfOne, kPacketsFor<ED>>(x1, (d + 15) / 16, epoch, row0);
        clock.lap(4);
        load_row<ED>(row0, d, x);
        std::int8_t* const to[1] = {codes};
        float q[1];
        quantize_row<1, true, ED>(x, d, outer, gain1, w.eps, scratch, to, q);
        stream.multiply<2>(2 * plan.f.groups, plan.d_tiles, codes, 0, sums);
        const int sum = code_sum(scratch, 0);
        __syncthreads();
        for (int n = hw; n < plan.f.groups; n += kHalfWarps) {
          int* s = sums + n * 32 + l16;
          const float p = scaled_product(s[0], sum, row_scale(q[0]), scale_p);
          const float v = scaled_product(s[16], sum, row_scale(q[0]), scale_q);
          s[0] = s[16] = 0;
          send_one(z + (plan.f.first_group + n) * kPacketsOfOne, silu(p) * v, epoch, half_mask);
        }
        clock.lap(5);
      }
      // Channel mixer, out: x += down_proj(z).
      {
        RowItems<EF> gain_f[1];
        load_gain<EF>(params + at.params.down_norm, gain_f[0]);
        const float scale = __ldg(scales + 6);
        receive<kPacketsOfOne, kPacketsFor<EF>>(z, (f + 15) / 16, epoch, row0);
        clock.lap(6);
        RowItems<EF> zs;
        load_row<EF>(row0, f, zs);
        std::int8_t* const to[1] = {codes};
        float q[1];
        quantize_row<1, false, EF>(zs, f, gain_f[0], gain_f, 0.0F, scratch, to, q);
        stream.multiply<1>(plan.d.groups, plan.f_tiles, codes, 0, sums);
        const int sum = code_sum(scratch, 0);
        __syncthreads();
        for (int n = hw; n < plan.d.groups; n += kHalfWarps) {
          int* s = sums + n * 16 + l16;
          const float v = own_x[n * 16 + l16] + scaled_product(s[0], sum, row_scale(q[0]), scale);
          s[0] = 0;
          own_x[n * 16 + l16] = v;
          send_one(x2 + (plan.d.first_group + n) * kPacketsOfOne, v, epoch, half_mask);
          const int k = (plan.d.first_group + n) * 16 + l16;
          if (a.hidden_out != nullptr && last_layer && k < d)
            a.hidden_out[static_cast<idx>(step) * d + k] = v;
        }
        clock.lap(7);
      }
    }
    if (step < plan.first_head) {
      __syncthreads();  // own_x is about to be written by other threads than those that read it
      continue;
    }
    const std::uint32_t last_epoch =
        a.first_epoch +
        static_cast<std::uint32_t>(step + 1) * static_cast<std::uint32_t>(w.layers) - 1;
    RowItems<ED> outer, gain1[1], x;
    load_gain<ED>(w.norm, outer);
    load_gain<ED>(w.head_norm, gain1[0]);
    receive<kPacketsOfOne, kPacketsFor<ED>>(x2, (d + 15) / 16, last_epoch, row0);
    clock.lap(8);
    load_row<ED>(row0, d, x);
    std::int8_t* const to[1] = {codes};
    float q[1];
    quantize_row<1, true, ED>(x, d, outer, gain1, w.eps, scratch, to, q);
    stream.multiply<1>(plan.v.groups, plan.d_tiles, codes, 0, sums);
    const int sum = code_sum(scratch, 0);
    __syncthreads();
    unsigned long long key = 0;
    const float scale = row_scale(q[0]);
    for (int i = tid; i < plan.v.groups * 16; i += kThreads) {
      const int id = plan.v.first_group * 16 + i;
      const float v = scaled_product(sums[i], sum, scale, w.head_scale);
      sums[i] = 0;
      if (id >= w.vocab) continue;
      if (a.logits != nullptr && step + 1 == a.steps) a.logits[id] = v;
      const unsigned long long mine = rank_key(v, id);
      key = mine > key ? mine : key;
    }
    key = warp_max64(key);
    if (tid % 32 == 0) best[tid / 32] = key;
    __syncthreads();
    if (tid < 32) {
      key = warp_max64(tid < kWarps ? best[tid] : 0ULL);
      if (tid == 0)
        put_packet(bests + blockIdx.x, __uint_as_float(static_cast<unsigned>(key >> 32)),
                   __uint_as_float(static_cast<unsigned>(key)), 0.0F, last_epoch);
    }
    key = 0;
    for (int b = tid; b < static_cast<int>(gridDim.x); b += kThreads) {
      uint4 v = look_at_packet(bests + b);
      while (v.w != last_epoch) v = look_at_packet(bests + b);
      const unsigned long long other = static_cast<unsigned long long>(v.x) << 32 | v.y;
      key = other > key ? other : key;
    }
    key = warp_max64(key);
    __syncthreads();  // best has been read
    if (tid % 32 == 0) best[tid / 32] = key;
    __syncthreads();
    key = warp_max64(best[tid % kWarps]);
    token = chosen_id(key);
    if (blockIdx.x == 0 && tid == 0) a.chosen[step + 1 - a.given_count] = token;
    clock.lap(9);
    if (token < 0 || token == a.eos) break;
  }
  wait_copies<0>();
}

template <int ED, int EF>
void launch(const Launch& l, const Decode& a, const Offsets& at, std::size_t shared) {
  check(cudaFuncSetAttribute(decode_kernel<ED, EF>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "reserving shared memory");
  Decode args = a;
  Offsets offsets = at;
  void* list[] = {&args, &offsets};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(decode_kernel<ED, EF>),
                                    dim3(static_cast<unsigned>(l.multiprocessors)), dim3(kThreads),
                                    list, shared, l.stream),
        "decoding");
}

int packets_of(int width, int per_row) {
  return static_cast<int>(row_tiles(width)) * per_row;
}

}  // namespace

LayerTiles::LayerTiles(idx d, idx m, idx f) {
  bytes = 0;
  const auto stage = [&](idx out, idx in, int group) {
    const StageTiles s{bytes, static_cast<int>(out), static_cast<int>(in), group};
    bytes += tile_bytes(out, in) * group;
    return s;
  };
  mixer_in = stage(m, d, 3);
  mixer_out = stage(d, m, 1);
  mlp_in = stage(f, d, 2);
  mlp_out = stage(d, f, 1);
}

LayerParams::LayerParams(int d, int m, int f) {
  floats = 0;
  const auto next = [&](int n) {
    const int at = floats;
    floats += (n + 31) / 32 * 32;
    return at;
  };
  attn_norm = next(d);
  i_norm = next(d);
  f_norm = next(d);
  g_in_norm = next(d);
  bound = next(m);
  g_norm = next(m);
  o_norm = next(m);
  mlp_norm = next(d);
  gate_norm = next(d);
  down_norm = next(f);
  scales = next(7);
}

idx decode_exchange_packets(const DeviceWeights& w, int multiprocessors) {
  const idx plain = packets_of(w.mixer, kPacketsOfTwo) + 2 * packets_of(w.hidden, kPacketsOfOne) +
                    packets_of(w.mlp, kPacketsOfOne) + multiprocessors;
  return std::max(plain, cluster_exchange_packets(w, multiprocessors));
}

bool decode_fits(int hidden, int mixer, int mlp) {
  return std::max(hidden, mixer) <= 8192 && mlp <= 16384;
}

void decode(const Launch& l, const Decode& a) {
  if (a.clusters > 0) return decode_in_clusters(l, a);
  const DeviceWeights& w = a.w;
  const LayerTiles tiles(w.hidden, w.mixer, w.mlp);
  const auto units = [](const StageTiles& s) { return static_cast<int>(s.offset / kTileBytes); };
  Offsets at{units(tiles.mixer_out),
             units(tiles.mlp_in),
             units(tiles.mlp_out),
             LayerParams(w.hidden, w.mixer, w.mlp),
             0,
             0,
             0,
             0};
  at.x1 = packets_of(w.mixer, kPacketsOfTwo);
  at.z = at.x1 + packets_of(w.hidden, kPacketsOfOne);
  at.x2 = at.z + packets_of(w.mlp, kPacketsOfOne);
  at.best = at.x2 + packets_of(w.hidden, kPacketsOfOne);
  const auto chunks = [](int n) { return (n + 127) / 128; };
  const auto most = [&](int width) {
    return static_cast<int>((row_tiles(width) + l.multiprocessors - 1) / l.multiprocessors);
  };
  const int widest = std::max({chunks(w.hidden), chunks(w.mixer), chunks(w.mlp)});
  const int rows = std::max({3 * most(w.mixer), most(w.hidden), 2 * most(w.mlp), most(w.vocab)});
  const std::size_t shared =
      static_cast<std::size_t>(kWarps * kAhead) * kTileBytes +
      4 * static_cast<std::size_t>(std::max(widest, 2 * chunks(w.mixer)) * 128 +
                                   most(w.hidden) * 16) +
      sizeof(RowScratch<3>) +
      static_cast<std::size_t>(std::max(3 * chunks(w.hidden), widest) * 128) + 8 * kWarps +
      4 * static_cast<std::size_t>(rows * 16);
  const int wide = (std::max(w.hidden, w.mixer) + kThreads - 1) / kThreads;
  const int mlp = (w.mlp + kThreads - 1) / kThreads;
  if (wide <= 2 && mlp <= 6) return launch<2, 6>(l, a, at, shared);
  if (wide <= 4 && mlp <= 11) return launch<4, 11>(l, a, at, shared);
  if (wide <= 5 && mlp <= 14) return launch<5, 14>(l, a, at, shared);
  if (wide <= 8 && mlp <= 16) return launch<8, 16>(l, a, at, shared);
  launch<16, 32>(l, a, at, shared);
}

}  // namespace mmfree::cuda
