#pragma once
// The product warps of decode_cluster.cu: a stream of weights, products with the codes that the
// norm warps put into shared memory, and what follows them up to the exchange between blocks.
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

__device__ __forceinline__ void put_value(void* to, float v, std::uint32_t epoch) {
  const unsigned long long both = static_cast<unsigned long long>(epoch) << 32 | __float_as_uint(v);
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(both) : "memory");
}

__device__ __forceinline__ void sync_product_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kProductThreads) : "memory");
}

// The tiles that one warp multiplies, from the first token to the last, through a ring in shared
// memory. The ring is full when a stage begins; what the stage has used is asked for again when its
// results are on their way, by one lane. Which weights come when does not depend on any result.
struct Stream {
  static constexpr int kTile = static_cast<int>(kTileBytes);
  const DeviceWeights& w;
  const Share* shares;  // of this warp
  char* ring;
  ClusterBarrier* there;  // a phase for each call of refill()
  int steps, first_head;
  int read = 0, fill = 0;  // slots
  unsigned parity = 1;     // of the last call of refill()
  // What is fetched next:
  const std::uint8_t* at = nullptr;
  int left = 0, stage = -1, layer = 0, step = 0;

  __device__ __forceinline__ void enter_next_stage() {
    const bool last_layer = layer + 1 == static_cast<int>(w.layers);
    ++stage;
    if (stage == kHead && !(last_layer && step >= first_head)) ++stage;
    if (stage == kDecodeStages) {
      stage = 0;
      layer = last_layer ? 0 : layer + 1;
      if (last_layer && ++step == steps) return;
    }
    const Share& s = shares[stage];
    left = s.count;
    at = (stage == kHead ? w.head : w.tiles + layer * w.layer_tile_bytes) +
         static_cast<idx>(s.tile) * kTile;
  }

  // One lane calls it.
  __device__ __forceinline__ void refill(int tiles) {
    const std::uint64_t policy = evict_first();
    int bytes = 0;
#pragma unroll 1
    while (tiles > 0 && step < steps) {
      if (left == 0) {
        enter_next_stage();
        continue;
      }
      const int n = min(min(left, tiles), kSlots - fill);
      copy_bulk(ring + fill * kTile, at, n * kTile, there, policy);
      bytes += n * kTile;
      at += n * kTile;
      fill = fill + n == kSlots ? 0 : fill + n;
      left -= n;
      tiles -= n;
    }
    arrive_and_expect(there, bytes);
  }
  // What was used is asked for again.
  __device__ __forceinline__ void again(int used) {
    if (used == 0) return;
    __syncwarp();
    if (threadIdx.x % 32 == 0) refill(used);
    parity ^= 1U;
  }

  // The weights of the next tiles, which need not wait for the codes.
  struct Next {
    uint4 w[4];
  };
  __device__ __forceinline__ void look_ahead(int count, Next& next) const {
    const auto* from = reinterpret_cast<const uint4*>(ring) + threadIdx.x % 32;
    int slot = read;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      if (t < count) next.w[t] = from[slot * 32];
      slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
  }

  // Adds this warp's part of a stage's products to sums (rows of tiles, 16) in shared memory; next
  // has been looked for. Returns how many tiles to ask for again.
  __device__ __forceinline__ int multiply(const StageShape& shape, const Share& share, Next& next,
                                          const std::int8_t* codes, int* sums) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int row = share.row & 0xffff, member = share.row >> 16, k = share.k;
    int used = 0;
    const auto operand = [&] {
      return reinterpret_cast<const uint4*>(codes + member * shape.stride + k * 128) + lane % 4 * 2;
    };
    const uint4* b = operand();
    PlaneSums acc;
    acc.clear();
    const auto end_row = [&] {
      if (lane % 4 == 0) {
        atomicAdd(&sums[row * 16 + lane / 4], acc.total(0));
        atomicAdd(&sums[row * 16 + lane / 4 + 8], acc.total(2));
      }
      acc.clear();
      k = 0;
      ++row;
      member = member + 1 == shape.group ? 0 : member + 1;
      b = operand();
    };
#pragma unroll 1
    for (int i = share.count; i > 0; i -= 4) {
      if (i >= 4 && k + 4 <= shape.depth) {
        uint4 x[8];
#pragma unroll
        for (int t = 0; t < 8; ++t) x[t] = b[t / 2 * 8 + t % 2];
#pragma unroll
        for (int t = 0; t < 4; ++t) acc.add(next.w[t], x[2 * t], x[2 * t + 1]);
        b += 32;
        k += 4;
        if (k == shape.depth || i == 4) end_row();
      } else {
#pragma unroll 1
        for (int t = 0; t < 4 && t < i; ++t) {
          acc.add(next.w[0], b[0], b[1]);
#pragma unroll
          for (int n = 0; n < 3; ++n) next.w[n] = next.w[n + 1];
          b += 8;
          ++k;
          if (k == shape.depth || t + 1 == i) end_row();
        }
      }
      const int n = min(i, 4);
      read = read + n >= kSlots ? read + n - kSlots : read + n;
      used += n;
      if (i > 4 && used + 4 > kSlots) {
        again(used);
        used = 0;
        wait(there, parity);
      }
      look_ahead(i - 4, next);
    }
    return used;
  }
};

__device__ __forceinline__ void run_product_warp(const Decode& a, const Layout& at, Common& common,
                                                 char* shared) {
  constexpr int kHalf = 16;  // lanes that take a row of tiles' outputs
  constexpr int kHalfWarps = kProductThreads / kHalf;
  const DeviceWeights& w = a.w;
  const Course course(a);
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int l16 = tid % kHalf, hw = tid / kHalf;
  auto* const own_x = reinterpret_cast<float*>(shared + at.own_x);
  // Two, taken in turn: when one is used again, clearing it lies a barrier back.
  int* sums = reinterpret_cast<int*>(shared + at.sums);
  int* other_sums = sums + at.stage_sums;
  auto* const best = reinterpret_cast<unsigned long long*>(other_sums + at.stage_sums);
  const auto total = [](const int* parts) {
    int sum = 0;
#pragma unroll
    for (int q = 0; q < kSumGroups / 4; ++q) {
      const int4 v = reinterpret_cast<const int4*>(parts)[q];
      sum += v.x + v.y + v.z + v.w;
    }
    return sum;
  };
  char* const exchange = reinterpret_cast<char*>(a.exchange);
  Clock clock{tid == 0 && course.measured() ? common.clocks : nullptr, 0};

  const auto* const shares =
      reinterpret_cast<const Share*>(shared + at.shares) + warp * kDecodeStages;
  Stream stream{
      w,       shares,           shared + warp * kSlots * Stream::kTile, &common.on_weights[warp],
      a.steps, course.first_head};
  stream.again(kSlots);
  std::int32_t token = a.first;
  unsigned turn = 0, heads = 0;
  clock.start();
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    for (int n = hw; n < common.groups[kMixerOut]; n += kHalfWarps) {
      const int k = (common.first_group[kMixerOut] + n) * 16 + l16;
      own_x[n * 16 + l16] = k < w.hidden ? embedding_value(w.embedding, w.embedding_bits,
                                                           static_cast<idx>(token) * w.hidden + k)
                                         : 0.0F;
    }
    for (int layer = 0; layer < course.layers; ++layer, ++turn) {
      const std::uint32_t epoch = course.epoch(step, layer);
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
#pragma unroll 1
      for (int stage = 0; stage < course.stages(step, layer); ++stage) {
        const int groups = common.groups[stage], first_group = common.first_group[stage];
        if (groups == 0 && stage != kHead) continue;
        // What does not depend on the codes comes before the wait for them.
        const int scale_at = stage == kMixerIn    ? 0
                             : stage == kMixerOut ? 3
                             : stage == kMlpIn    ? 4
                                                  : 6;
        const float* scales = params + at.params.scales + scale_at;
        const float scale0 = __ldg(scales), scale1 = __ldg(scales + 1), scale2 = __ldg(scales + 2);
        float* state = a.state + static_cast<idx>(layer) * w.mixer;
        const int first_channel = (first_group + hw) * 16 + l16;
        float first_state = 0.0F, first_bound = 0.0F;
        if (stage == kMixerIn && hw < groups && first_channel < w.mixer) {
          first_state = state[first_channel];
          first_bound = __ldg(params + at.params.bound + first_channel);
        }
        const Share share = shares[stage];
        const StageShape shape = at.stage[stage];
        Stream::Next next;
        if (share.count > 0) wait(stream.there, stream.parity);
        stream.look_ahead(share.count, next);
        Room& room = common.rooms[stage];
        wait(&room.on_codes, (stage == kHead ? heads : turn) & 1U);
        clock.lap(2 * stage);
        const int used = stream.multiply(
            shape, share, next, reinterpret_cast<const std::int8_t*>(shared + shape.codes), sums);
        int code_sum[3] = {};
        float code_scale[3] = {};
        if (hw < groups || stage == kHead) {
#pragma unroll
          for (int p = 0; p < 3; ++p) {
            if (p > 0 && stage != kMixerIn) continue;
            code_sum[p] = total(room.code_sums[p]);
            code_scale[p] = room.scale[p];
          }
        }
        sync_product_warps();
        if (stage == kHead) {
          unsigned long long key = 0;
          for (int i = tid; i < groups * 16; i += kProductThreads) {
            const int id = first_group * 16 + i;
            const float v = scaled_product(sums[i], code_sum[0], code_scale[0], w.head_scale);
            sums[i] = 0;
            if (id >= w.vocab) continue;
            if (a.logits != nullptr && step + 1 == a.steps) a.logits[id] = v;
            const unsigned long long mine = rank_key(v, id);
            key = mine > key ? mine : key;
          }
          key = warp_max64(key);
          if (lane == 0) best[warp] = key;
          sync_product_warps();
          if (warp == 0) {
            key = warp_max64(lane < kProductWarps ? best[lane] : 0ULL);
            if (lane == 0)
              put_packet(reinterpret_cast<Packet*>(exchange + at.best) + blockIdx.x,
                         __uint_as_float(static_cast<unsigned>(key >> 32)),
                         __uint_as_float(static_cast<unsigned>(key)), 0.0F, epoch);
          }
          stream.again(used);
          clock.lap(2 * stage + 1);
          continue;
        }
#pragma unroll 1
        for (int n = hw; n < groups; n += kHalfWarps) {
          const int k = (first_group + n) * 16 + l16;
          if (stage == kMixerIn) {  // gates, and a step of the recurrence
            int* s = sums + n * 48 + l16;
            const float i_pre = scaled_product(s[0], code_sum[0], code_scale[0], scale0);
            const float f_pre = scaled_product(s[16], code_sum[1], code_scale[1], scale1);
            const float g = scaled_product(s[32], code_sum[2], code_scale[2], scale2);
            s[0] = s[16] = s[32] = 0;
            if (k >= w.mixer) continue;
            const float before = n == hw ? first_state : state[k];
            const float bound = n == hw ? first_bound : __ldg(params + at.params.bound + k);
            const float gate = forget_gate(f_pre, bound);
            const float h = gate * before + gated_input(i_pre, gate);
            put_packet(a.exchange + k, g, silu(h), 0.0F, epoch);
            state[k] = h;
          } else if (stage == kMlpIn) {
            int* s = sums + n * 32 + l16;
            const float p = scaled_product(s[0], code_sum[0], code_scale[0], scale0);
            const float q = scaled_product(s[16], code_sum[0], code_scale[0], scale1);
            s[0] = s[16] = 0;
            if (k < w.mlp) put_value(exchange + at.z + 8 * k, silu(p) * q, epoch);
          } else {  // residual
            int* s = sums + n * 16 + l16;
            const float v =
                own_x[n * 16 + l16] + scaled_product(s[0], code_sum[0], code_scale[0], scale0);
            s[0] = 0;
            own_x[n * 16 + l16] = v;
            if (k >= w.hidden) continue;
            put_value(exchange + (stage == kMixerOut ? at.x1 : at.x2) + 8 * k, v, epoch);
            if (a.hidden_out != nullptr && layer + 1 == course.layers && stage == kMlpOut)
              a.hidden_out[static_cast<idx>(step) * w.hidden + k] = v;
          }
        }
        stream.again(used);
        int* const t = sums;
        sums = other_sums;
        other_sums = t;
        clock.lap(2 * stage + 1);
      }
    }
    if (step < course.first_head) continue;
    wait(&common.on_token, heads++ & 1U);
    token = common.token;
    clock.lap(2 * kHead);
    if (course.ends_with(token)) break;
  }
  wait(stream.there, stream.parity);  // nothing is on its way when the block ends
}

}  // namespace mmfree::cuda

#endif
