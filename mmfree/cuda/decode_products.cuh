#pragma once
// The products of decode_cluster.cu: a stream of weights, products with codes, and what follows
// them up to the exchange between blocks.
#include "mmfree/cuda/decode_exchange.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

// d += popcounts of a & b: a 16 x 256 bits (rows of weights), b 256 x 8 (columns of bits of codes).
__device__ __forceinline__ void count_tile(int (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The eight bits of codes as eight columns: with one row of codes a product of tensor cores has
// seven columns to spare, and of bits they do eight times as many as of bytes. A tile's words are
// 16 outputs by 128 inputs of two bits t + 1 = low + 2 high, so that they multiply as they are: by
// bits of codes in the places of the low bits, then of the high ones.
struct CodeBits {
  unsigned
      word[2];  // of column lane / 4, inputs 32 (lane % 4) .. + 31 of 128: the low bits' places

  // codes: this lane's 32 of 128; zeros unless there.
  __device__ __forceinline__ void take(const std::int8_t* codes, bool there) {
    const auto* from = reinterpret_cast<const uint4*>(codes);
    const uint4 x = from[0], y = from[1];
    // Word 2 p + s has the codes of plane p, half s, whose bits belong at 8 b + 2 p.
    const unsigned even[4] = {x.x, x.z, y.x, y.z}, odd[4] = {x.y, x.w, y.y, y.w};
    const unsigned column = threadIdx.x % 32 / 4;
    const auto gather = [&](const unsigned(&plane)[4]) {
      unsigned r[4];
#pragma unroll
      for (unsigned p = 0; p < 4; ++p) r[p] = __funnelshift_r(plane[p], plane[p], column - 2 * p);
      return (r[0] & 0x01010101U) | (r[1] & 0x04040404U) | (r[2] & 0x10101010U) |
             (r[3] & 0x40404040U);
    };
    word[0] = there ? gather(even) : 0U;
    word[1] = there ? gather(odd) : 0U;
  }
};

// The tiles that one warp multiplies, from the first token to the last, through a ring in shared
// memory: some neighbouring tiles of each row. The ring is full when a stage begins; what the stage
// has used is asked for again when its results are on their way, by one lane. Which weights come
// when does not depend on any result.
struct Stream {
  static constexpr int kTile = static_cast<int>(kTileBytes);
  const DeviceWeights& w;
  const Layout& layout;
  const Share* shares;  // of this warp
  char* ring;
  ClusterBarrier* there;  // a phase for each call of refill()
  int steps, first_head;
  unsigned read = 0;    // tiles
  int fill = 0;         // slots
  unsigned parity = 1;  // of the last call of refill()
  // What is fetched next:
  const std::uint8_t* at = nullptr;
  int left = 0, rows = 0, stage = -1, layer = 0, step = 0;  // left: of a row; rows: with this one

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
    rows = s.count > 0 ? s.rows : 0;
    at = (stage == kHead ? w.head : w.tiles + layer * w.layer_tile_bytes) +
         static_cast<idx>(s.tile) * kTile;
  }

  // One lane calls it.
  __device__ __forceinline__ void refill(int tiles) {
    const std::uint64_t policy = evict_first();
    int bytes = 0;
#pragma unroll 1
    while (tiles > 0 && step < steps) {
      if (rows == 0) {
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
      if (left == 0) {
        left = shares[stage].count;
        at += (layout.stage[stage].depth - left) * kTile;
        --rows;
      }
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

  // This warp's part of a stage's sums of codes times weights, R rows at a time; kOwn: each of them
  // has codes of its own. T: at least share.count; all are multiplied, for want of branches. parts:
  // (rows of tiles, 16, warps), of this warp. Returns how many tiles to ask for again.
  // What does not need the codes comes before wait_for_them.
  template <int R, bool kOwn, int T, class Wait>
  __device__ __forceinline__ int multiply(const Share& share, const std::int8_t* codes, int stride,
                                          int* parts, const Wait& wait_for_them) {
    constexpr int kRows = kOwn ? R : 1;  // of codes
    constexpr unsigned kRing = kSlots * static_cast<unsigned>(kTile);
    const int lane = static_cast<int>(threadIdx.x) % 32, q = lane % 4;
    const auto weights = [&](int r, int t) {
      const unsigned at = (read + static_cast<unsigned>(r * share.count + t)) * kTile % kRing;
      return *reinterpret_cast<const uint4*>(ring + lane * 16 + at);
    };
    if (share.count > 0) wait(there, parity);
    uint4 first[R];
#pragma unroll
    for (int r = 0; r < R; ++r) first[r] = weights(r, 0);
    wait_for_them();
    CodeBits bits[kRows][T];
    int ones[kRows][4] = {};  // sums of codes: weights t are t + 1 here
#pragma unroll
    for (int t = 0; t < T; ++t)
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        bits[m][t].take(codes + m * stride + (share.k + t) * 128 + q * 32, t < share.count);
        constexpr unsigned kLow = 0x55555555U;
        count_tile(ones[m], make_uint4(kLow, kLow, kLow, kLow), bits[m][t].word[0],
                   bits[m][t].word[1]);
      }
    int used = 0;
#pragma unroll 1
    for (int row = 0; row < share.rows; row += R) {
      if (used + R * share.count > kSlots) {
        again(used);
        used = 0;
        wait(there, parity);
#pragma unroll
        for (int r = 0; r < R; ++r) first[r] = weights(r, 0);
      }
      int low[R][4] = {}, high[R][4] = {};
#pragma unroll
      for (int t = 0; t < T; ++t)
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const uint4 a = t == 0 ? first[r] : weights(r, t);
          const CodeBits& b = bits[kOwn ? r : 0][t];
          count_tile(low[r], a, b.word[0], b.word[1]);
          count_tile(high[r], a, b.word[0] << 1, b.word[1] << 1);
        }
      const int rows_here = min(R, share.rows - row);
      used += rows_here * share.count;
      read += static_cast<unsigned>(rows_here * share.count);
#pragma unroll
      for (int r = 0; r < R; ++r) first[r] = weights(r, 0);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        // Columns 2 q and 2 q + 1; the last is the sign.
        const int scale = q == 3 ? -2 : 2;
        const int(&one)[4] = ones[kOwn ? r : 0];
        const auto sum = [&](int i) {
          return (low[r][i] - one[i] + 2 * high[r][i] +
                  scale * (low[r][i + 1] - one[i + 1] + 2 * high[r][i + 1]))
                 << 2 * q;
        };
        const int upper = sum(0), lower = sum(2);
        int mine = q % 2 == 0 ? upper : lower;
        mine += __shfl_xor_sync(0xffffffffU, q % 2 == 0 ? lower : upper, 1);
        mine += __shfl_xor_sync(0xffffffffU, mine, 2);
        if (q < 2 && r < rows_here) parts[((row + r) * 16 + q * 8 + lane / 4) * kWarps] = mine;
      }
    }
    return used;
  }
};

// As core/fastmath.h's, of N values, with divisions that take a branch only where one's result is
// denormal.
template <int N>
__device__ __forceinline__ void sigmoids_of(const float (&x)[N], float (&y)[N]) {
  float d[N], largest = 0.0F;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    d[i] = 1.0F + exp_f32(-x[i]);
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y[i]) : "f"(d[i]));
    y[i] = __fmaf_rn(__fmaf_rn(-d[i], y[i], 1.0F), y[i], y[i]);
    largest = fmaxf(largest, d[i]);
  }
  if (largest > 0x1p126F)
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = __frcp_rn(d[i]);
}
__device__ __forceinline__ float silu_of(float x) {
  float y[1];
  sigmoids_of({x}, y);
  return x * y[0];
}

// One of the kWarps, for all steps. ED, EF: as of the kernel.
template <int ED, int EF>
__device__ __forceinline__ void run_warp(const Decode& a, const Layout& at, Common& common,
                                         char* shared) {
  constexpr int kHalf = 16;  // lanes that take a row of tiles' outputs
  constexpr int kHalfWarps = kThreads / kHalf;
  const DeviceWeights& w = a.w;
  const Course course(a);
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32;
  const int l16 = tid % kHalf, hw = tid / kHalf;
  auto* const own_x = reinterpret_cast<float*>(shared + at.own_x);
  int* const parts = reinterpret_cast<int*>(shared + at.sums);  // (rows of tiles, 16, warps)
  auto* const best = reinterpret_cast<unsigned long long*>(parts + kWarps * at.stage_sums);
  // Of output i of the block.
  const auto product = [&](int i) {
    const auto* p = reinterpret_cast<const int4*>(parts + i * kWarps);
    const int4 u = p[0], v = p[1];
    return static_cast<float>((u.x + u.y + u.z + u.w) + (v.x + v.y + v.z + v.w));
  };
  char* const exchange = reinterpret_cast<char*>(a.exchange);
  Clock clock{tid == 0 && course.measured() ? common.clocks : nullptr, 0};

  const auto* const shares =
      reinterpret_cast<const Share*>(shared + at.shares) + warp * kDecodeStages;
  Stream stream{w,
                at,
                shares,
                shared + warp * kSlots * Stream::kTile,
                &common.on_weights[warp],
                a.steps,
                course.first_head};
  stream.again(kSlots);
  std::int32_t token = a.first;
  const Divisor hidden(w.hidden), mixer(w.mixer), mlp(w.mlp);
  unsigned rows = 0;
  if (lane == 0)
    for (ClusterBarrier& b : common.on_row) arrive(&b);
  clock.start();
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    for (int n = hw; n < common.groups[kMixerOut]; n += kHalfWarps) {
      const int k = (common.first_group[kMixerOut] + n) * 16 + l16;
      own_x[n * 16 + l16] = k < w.hidden ? embedding_value(w.embedding, w.embedding_bits,
                                                           static_cast<idx>(token) * w.hidden + k)
                                         : 0.0F;
    }
    for (int layer = 0; layer < course.layers; ++layer) {
      const std::uint32_t epoch = course.epoch(step, layer);
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
#pragma unroll 1
      for (int stage = 0; stage < course.stages(step, layer); ++stage, ++rows) {
        const int groups = common.groups[stage], first_group = common.first_group[stage];
        ClusterBarrier* const on_row = &common.on_row[rows & 1U];
        const auto wait_for_row = [&] {
          wait(on_row, rows >> 1 & 1U);
          if (lane == 0) arrive(on_row);  // the row after the next may come
          clock.lap(2 * stage);
        };
        if (groups == 0 && stage != kHead) {
          wait_for_row();
          continue;
        }
        // What does not depend on the codes comes before the wait for them.
        const float* scales = params + at.params.scales +
                              (stage == kMixerIn    ? 0
                               : stage == kMixerOut ? 3
                               : stage == kMlpIn    ? 4
                                                    : 6);
        const float scale0 = __ldg(scales), scale1 = __ldg(scales + 1), scale2 = __ldg(scales + 2);
        float* const state = a.state + static_cast<idx>(layer) * w.mixer;
        const int width = stage == kMixerIn ? w.mixer : stage == kMlpIn ? w.mlp : w.hidden;
        int k = (first_group + hw) * 16 + l16;
        const bool mine = hw < groups && k < width && stage != kHead;
        float before = 0.0F, bound = 0.0F;  // of output k: the state, or the residual stream
        if (mine && stage == kMixerIn) {
          before = state[k];
          bound = __ldg(params + at.params.bound + k);
        } else if (mine) {
          before = own_x[hw * 16 + l16];
        }
        char* to = exchange + (stage == kMixerIn    ? 16 * k
                               : stage == kMixerOut ? at.x1 + 8 * k
                               : stage == kMlpIn    ? at.z + 8 * k
                                                    : at.x2 + 8 * k);
        float* const hidden_out =
            stage == kMlpOut && layer + 1 == course.layers && a.hidden_out != nullptr
                ? a.hidden_out + static_cast<idx>(step) * w.hidden
                : nullptr;
        const Share share = shares[stage];
        auto* const codes = reinterpret_cast<std::int8_t*>(shared + at.codes);
        // The row comes, becomes codes, and meets the weights.
        const NormInput input{
            reinterpret_cast<const float*>(shared + at.rows) + (rows & 1U) * at.row_floats,
            common.sums[rows & 1U],
            stage == kMixerIn ? params + at.params.attn_norm
            : stage == kMlpIn ? params + at.params.mlp_norm
                              : w.norm,
            {stage == kMixerIn    ? params + at.params.i_norm
             : stage == kMixerOut ? params + at.params.o_norm
             : stage == kMlpIn    ? params + at.params.gate_norm
             : stage == kMlpOut   ? params + at.params.down_norm
                                  : w.head_norm,
             params + at.params.f_norm, params + at.params.g_in_norm},
            stage == kMixerOut ? mixer
            : stage == kMlpOut ? mlp
                               : hidden,
            w.eps};
        float code_scale[3];
        const auto codes_made = [&] { clock.add(2 * kDecodeStages + stage); };
        constexpr int kTilesD = (ED + 1) / 2, kTilesF = (EF + 1) / 2;  // of 8 warps at most
        int* const own = parts + warp;
        int used;
        if (stage == kMixerIn) {
          used = stream.multiply<3, true, kTilesD>(share, codes, at.code_stride, own, [&] {
            make_codes<3, true, kTilesD>(input, share, codes, at.code_stride, common, code_scale,
                                         wait_for_row);
            codes_made();
          });
        } else if (stage == kMixerOut) {
          used = stream.multiply<2, false, kTilesD>(share, codes, 0, own, [&] {
            make_codes<1, false, kTilesD>(input, share, codes, 0, common, code_scale, wait_for_row);
            codes_made();
          });
        } else if (stage == kMlpOut) {
          used = stream.multiply<2, false, kTilesF>(share, codes, 0, own, [&] {
            make_codes<1, false, kTilesF>(input, share, codes, 0, common, code_scale, wait_for_row);
            codes_made();
          });
        } else {
          used = stream.multiply<4, false, kTilesD>(share, codes, 0, own, [&] {
            make_codes<1, true, kTilesD>(input, share, codes, 0, common, code_scale, wait_for_row);
            codes_made();
          });
        }
        sync_warps();
        if (stage == kHead) {
          unsigned long long key = 0;
          for (int i = tid; i < groups * 16; i += kThreads) {
            const int id = first_group * 16 + i;
            const float v = product(i) * code_scale[0] * w.head_scale;
            if (id >= w.vocab) continue;
            if (a.logits != nullptr && step + 1 == a.steps) a.logits[id] = v;
            const unsigned long long mine = rank_key(v, id);
            key = mine > key ? mine : key;
          }
          key = warp_max64(key);
          if (lane == 0) best[warp] = key;
          sync_warps();
          if (warp == 0) {
            key = warp_max64(lane < kWarps ? best[lane] : 0ULL);
            if (lane == 0)
              put_packet(reinterpret_cast<Packet*>(exchange + at.best) + blockIdx.x,
                         __uint_as_float(static_cast<unsigned>(key >> 32)),
                         __uint_as_float(static_cast<unsigned>(key)), 0.0F, epoch);
          }
          stream.again(used);
          clock.lap(2 * stage + 1);
          continue;
        }
        if (mine && stage == kMixerIn) {  // gates, and a step of the recurrence
#pragma unroll 1
          for (int n = hw; n < groups; n += kHalfWarps, k += 16 * kHalfWarps) {
            if (k >= width) break;
            if (n != hw) {
              before = state[k];
              bound = __ldg(params + at.params.bound + k);
            }
            const int i = n * 48 + l16;
            const float i_pre = product(i) * code_scale[0] * scale0;
            const float f_pre = product(i + 16) * code_scale[1] * scale1;
            const float g = product(i + 32) * code_scale[2] * scale2;
            float of[2];
            sigmoids_of({i_pre, f_pre}, of);
            const float gate = bound + (1.0F - bound) * of[1];
            const float h = gate * before + i_pre * of[0] * (1.0F - gate);
            put_packet(reinterpret_cast<Packet*>(to), g, silu_of(h), 0.0F, epoch);
            state[k] = h;
            to += 16 * 16 * kHalfWarps;
          }
        } else if (mine && stage == kMlpIn) {
#pragma unroll 1
          for (int n = hw; n < groups; n += kHalfWarps, k += 16 * kHalfWarps) {
            if (k >= width) break;
            const int i = n * 32 + l16;
            const float p = product(i) * code_scale[0] * scale0;
            const float q = product(i + 16) * code_scale[0] * scale1;
            put_value(to, silu_of(p) * q, epoch);
            to += 8 * 16 * kHalfWarps;
          }
        } else if (mine) {  // residual
#pragma unroll 1
          for (int n = hw; n < groups; n += kHalfWarps, k += 16 * kHalfWarps) {
            if (k >= width) break;
            const int i = n * 16 + l16;
            if (n != hw) before = own_x[i];
            const float v = before + product(i) * code_scale[0] * scale0;
            put_value(to, v, epoch);
            own_x[i] = v;
            if (hidden_out != nullptr) hidden_out[k] = v;
            to += 8 * 16 * kHalfWarps;
          }
        }
        stream.again(used);
        clock.lap(2 * stage + 1);
      }
    }
    if (step < course.first_head) {
      sync_cluster();
      continue;
    }
    __syncthreads();
    token = common.token;
    clock.lap(2 * kHead);
    if (course.ends_with(token)) break;
  }
  wait(stream.there, stream.parity);  // nothing is on its way when the block ends
}

}  // namespace mmfree::cuda

#endif
