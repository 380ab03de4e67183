// The recurrence in one pass over memory. A block owns one sequence and 32 or 64 channels; its
// warps take neighbouring runs of steps of a tile, each composes its run into h -> A h + B, the
// compositions are chained through shared memory, and every warp applies its run to the state it
// then knows. Tiles follow one another, the next tile's values being on their way while one is in
// work. Where sequences and channels alone cannot fill the GPU, time is cut into segments: one pass
// composes each segment, a second one starts every segment from the chain of those before it. The
// order of operations is fixed.
#include <algorithm>

#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

constexpr int kWarps = 4;
constexpr int kSteps = 8;   // a warp's run in a tile: registers hold it and the next tile's
constexpr int kBlocks = 4;  // on a multiprocessor
constexpr int kTile = kWarps * kSteps;

// Segments of `steps` steps (a multiple of the tile); their compositions in carry (B, count, 2, M).
struct Segments {
  int count;
  idx steps;
  float* carry;  // null when there is one segment
};

template <class T, int C>
__device__ __forceinline__ void store_channels(T* p, const float (&x)[C]) {
  if constexpr (C == 2 && sizeof(T) == 2) {
    *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(x[0], x[1]);
  } else if constexpr (C == 2) {
    *reinterpret_cast<float2*>(p) = make_float2(x[0], x[1]);
  } else {
    p[0] = from_float<T>(x[0]);
  }
}

// The runs' compositions of two tiles in turn, so that one barrier a tile is enough.
template <int C>
struct Chain {
  float factor[2][kWarps][32 * C];
  float offset[2][kWarps][32 * C];

  // state: in, before the tile; out, after it. product: multiplied by the tile's factors. start:
  // the state where this warp's run begins. Runs follow in the order of warps, or against it.
  __device__ __forceinline__ void join(int turn, int warp, int lane, const float (&a)[C],
                                       const float (&b)[C], bool ascending, float (&state)[C],
                                       float (&product)[C], float (&start)[C]) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      factor[turn][warp][lane * C + c] = a[c];
      offset[turn][warp][lane * C + c] = b[c];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kWarps; ++n) {
      const int w = ascending ? n : kWarps - 1 - n;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (w == warp) start[c] = state[c];
        const float f = factor[turn][w][lane * C + c];
        state[c] = f * state[c] + offset[turn][w][lane * C + c];
        product[c] *= f;
      }
    }
  }
};

// What a thread works on.
template <int C>
struct Place {
  int lane, warp;
  idx channel;
  bool live;
  idx sequence;    // first row
  idx begin, end;  // steps of the segment
  idx carry;       // of the segment's composition, in floats

  __device__ Place(const Segments& s, idx length, idx width)
      : lane(static_cast<int>(threadIdx.x) & 31),
        warp(static_cast<int>(threadIdx.x) >> 5),
        channel((static_cast<idx>(blockIdx.x) * 32 + lane) * C),
        live(channel < width),
        sequence(static_cast<idx>(blockIdx.y) * length),
        begin(static_cast<idx>(blockIdx.z) * s.steps),
        end(min(length, begin + s.steps)),
        carry((static_cast<idx>(blockIdx.y) * s.count + blockIdx.z) * 2 * width + channel) {}

  // The state that the segments before (or after) this one lead to.
  __device__ void chain_segments(const Segments& s, idx width, bool ascending,
                                 float (&state)[C]) const {
    if (s.carry == nullptr || !live) return;
    const int own = static_cast<int>(blockIdx.z);
    const int count = ascending ? own : s.count - 1 - own;
    for (int n = 0; n < count; ++n) {
      const int other = ascending ? n : s.count - 1 - n;
      const float* at = s.carry + carry + static_cast<idx>(other - own) * 2 * width;
#pragma unroll
      for (int c = 0; c < C; ++c) state[c] = at[c] * state[c] + at[width + c];
    }
  }
  __device__ void store_composition(const Segments& s, idx width, const float (&product)[C],
                                    const float (&state)[C]) const {
    if (warp != 0 || !live) return;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      s.carry[carry + c] = product[c];
      s.carry[carry + width + c] = state[c];
    }
  }
};

template <class T, int C, bool kCompose>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    scan_kernel(const Scan<T> a, const Segments segments) {
  constexpr int S = kSteps;
  __shared__ Chain<C> chain;
  const Place<C> p(segments, a.length, a.width);
  float bound[C] = {}, state[C] = {}, product[C];
  if (p.live && a.lower_bound != nullptr) load<C>(a.lower_bound + p.channel, bound);
#pragma unroll
  for (int c = 0; c < C; ++c) product[c] = 1;
  if (!kCompose) p.chain_segments(segments, a.width, true, state);
  Raw<T, C> f_raw[S], i_raw[S];
  const auto get = [&](idx t0) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
      if (!p.live || t0 + s >= p.end) continue;
      const idx at = (p.sequence + t0 + s) * a.width + p.channel;
      f_raw[s].get(a.f_pre + at);
      i_raw[s].get(a.i_pre + at);
    }
  };
  get(p.begin + p.warp * S);
  int turn = 0;
  for (idx tile = p.begin; tile < p.end; tile += kTile, turn ^= 1) {
    const idx t0 = tile + p.warp * S;
    float f[S][C], in[S][C];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      f_raw[s].unpack(f[s]);
      i_raw[s].unpack(in[s]);
    }
    get(t0 + kTile);
    float factor[C], offset[C];
#pragma unroll
    for (int c = 0; c < C; ++c) factor[c] = 1, offset[c] = 0;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const bool step = p.live && t0 + s < p.end;
      const bool open = step && (a.mask == nullptr || a.mask[p.sequence + t0 + s] != 0);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float gate = bound[c] + (1.0F - bound[c]) * sigmoid(f[s][c]);
        in[s][c] = open ? in[s][c] * sigmoid(in[s][c]) * (1.0F - gate) : 0.0F;
        f[s][c] = step ? gate : 1.0F;
        factor[c] *= f[s][c];
        offset[c] = f[s][c] * offset[c] + in[s][c];
      }
    }
    float h[C];
    chain.join(turn, p.warp, p.lane, factor, offset, true, state, product, h);
    if constexpr (!kCompose) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
#pragma unroll
        for (int c = 0; c < C; ++c) h[c] = f[s][c] * h[c] + in[s][c];
        if (p.live && t0 + s < p.end)
          store_channels<T, C>(a.h + (p.sequence + t0 + s) * a.width + p.channel, h);
      }
    }
  }
  if (kCompose) p.store_composition(segments, a.width, product, state);
}

// Reverse in time: with s_t = f_t * delta_t the gradient is delta_t = dh_t + s_{t+1}.
template <class T, int C, bool kCompose>
__global__ void __launch_bounds__(32 * kWarps, kBlocks)
    scan_backward_kernel(const ScanBackward<T> a, const Segments segments) {
  constexpr int S = kSteps;
  __shared__ Chain<C> chain;
  const Place<C> p(segments, a.length, a.width);
  float bound[C] = {}, d_bound[C] = {}, state[C] = {}, product[C];
  if (p.live && a.lower_bound != nullptr) load<C>(a.lower_bound + p.channel, bound);
#pragma unroll
  for (int c = 0; c < C; ++c) product[c] = 1;
  if (!kCompose) p.chain_segments(segments, a.width, false, state);
  Raw<T, C> f_raw[S], i_raw[S], dh_raw[S], h_raw[S];
  const auto get = [&](idx t0) {
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const idx t = t0 + s;
      if (!p.live || t0 < p.begin || t >= p.end) continue;
      const idx at = (p.sequence + t) * a.width + p.channel;
      f_raw[s].get(a.f_pre + at);
      dh_raw[s].get(a.dh + at);
      if (kCompose) continue;
      i_raw[s].get(a.i_pre + at);
      if (t > 0) h_raw[s].get(a.h + at - a.width);  // before the step
    }
  };
  int turn = 0;
  const idx tiles = (p.end - p.begin + kTile - 1) / kTile;
  const idx last = p.begin + (tiles - 1) * kTile;
  get(last + p.warp * S);
  for (idx tile = last; tile >= p.begin; tile -= kTile, turn ^= 1) {
    const idx t0 = tile + p.warp * S;
    float fs[S][C];
    Raw<T, C> i_now[S], dh_now[S], h_now[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      f_raw[s].unpack(fs[s]);
      i_now[s] = i_raw[s], dh_now[s] = dh_raw[s], h_now[s] = h_raw[s];
    }
    get(t0 - kTile);
    float factor[C], offset[C];
#pragma unroll
    for (int c = 0; c < C; ++c) factor[c] = 1, offset[c] = 0;
#pragma unroll
    for (int s = S - 1; s >= 0; --s) {
      if (!(p.live && t0 + s < p.end)) continue;
      float dh[C];
      dh_now[s].unpack(dh);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        fs[s][c] = sigmoid(fs[s][c]);
        const float f = bound[c] + (1.0F - bound[c]) * fs[s][c];
        factor[c] *= f;
        offset[c] = f * (offset[c] + dh[c]);
      }
    }
    float carried[C];
    chain.join(turn, p.warp, p.lane, factor, offset, false, state, product, carried);
    if constexpr (!kCompose) {
#pragma unroll
      for (int s = S - 1; s >= 0; --s) {
        const idx t = t0 + s;
        if (!(p.live && t < p.end)) continue;
        const idx row = p.sequence + t;
        const float i_scale = a.i_largest[row] * (1.0F / 127.0F);
        const float f_scale = a.f_largest[row] * (1.0F / 127.0F);
        const float open = a.mask == nullptr || a.mask[row] != 0 ? 1.0F : 0.0F;
        float ip[C], dh[C], before[C], di[C], df[C];
        i_now[s].unpack(ip);
        dh_now[s].unpack(dh);
        h_now[s].unpack(before);
#pragma unroll
        for (int c = 0; c < C; ++c) {
          if (t == 0) before[c] = 0;
          const float f = bound[c] + (1.0F - bound[c]) * fs[s][c];
          const float delta = dh[c] + carried[c];
          carried[c] = f * delta;
          const float si = sigmoid(ip[c]);
          const float d_i = delta * open;
          // f also enters through 1 - f.
          const float d_f = delta * before[c] - d_i * (ip[c] * si);
          di[c] = d_i * (1.0F - f) * silu_slope(ip[c], si) * i_scale;
          df[c] = d_f * (1.0F - bound[c]) * fs[s][c] * (1.0F - fs[s][c]) * f_scale;
          d_bound[c] += d_f * (1.0F - fs[s][c]);
        }
        store_channels<T, C>(a.i_pre + row * a.width + p.channel, di);
        store_channels<T, C>(a.f_pre + row * a.width + p.channel, df);
      }
    }
  }
  if (kCompose) return p.store_composition(segments, a.width, product, state);
  if (a.d_lower_bound == nullptr) return;
  __syncthreads();
#pragma unroll
  for (int c = 0; c < C; ++c) chain.factor[0][p.warp][p.lane * C + c] = d_bound[c];
  __syncthreads();
  if (p.warp != 0 || !p.live) return;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += chain.factor[0][w][p.lane * C + c];
    a.scratch[(static_cast<idx>(blockIdx.y) * segments.count + blockIdx.z) * a.width + p.channel +
              c] = sum;
  }
}

// ---- launchers ----

idx blocks_of(idx batch, idx width, int channels) {
  return batch * ((width + 32 * channels - 1) / (32 * channels));
}

// Segments are worth their second pass where some multiprocessors would have no work, and where
// there can be three or more.
idx segment_count(const Launch& l, idx batch, idx length, idx width, int channels) {
  const idx blocks = blocks_of(batch, width, channels);
  const idx count =
      std::min(static_cast<idx>(kBlocks) * l.multiprocessors / blocks, length / kScanSegment);
  return count >= 3 || (count == 2 && blocks < l.multiprocessors) ? count : 1;
}

// Two channels a lane read whole lines of bf16, one a lane has twice the blocks.
bool two_channels(const Launch& l, idx batch, idx length, idx width) {
  return width % 2 == 0 && (blocks_of(batch, width, 2) >= 2 * l.multiprocessors ||
                            segment_count(l, batch, length, width, 2) >= 3);
}

Segments segments_of(const Launch& l, idx batch, idx length, idx width, int channels,
                     float* carry) {
  idx count = segment_count(l, batch, length, width, channels);
  if (count <= 1) return {1, length, nullptr};
  const idx steps = ((length + count - 1) / count + kTile - 1) / kTile * kTile;
  count = (length + steps - 1) / steps;
  return {static_cast<int>(count), steps, carry};
}

dim3 grid_of(idx batch, idx width, int channels, const Segments& s) {
  return {static_cast<unsigned>((width + 32 * channels - 1) / (32 * channels)),
          static_cast<unsigned>(batch), static_cast<unsigned>(s.count)};
}

template <int C, class T>
void scan_channels(const Launch& l, const Scan<T>& a) {
  const Segments s = segments_of(l, a.batch, a.length, a.width, C, a.scratch);
  const dim3 grid = grid_of(a.batch, a.width, C, s);
  if (s.count > 1) scan_kernel<T, C, true><<<grid, 32 * kWarps, 0, l.stream>>>(a, s);
  scan_kernel<T, C, false><<<grid, 32 * kWarps, 0, l.stream>>>(a, s);
  check(cudaGetLastError(), "scan");
}

template <int C, class T>
void scan_backward_channels(const Launch& l, const ScanBackward<T>& a) {
  Segments s = segments_of(l, a.batch, a.length, a.width, C, a.scratch);
  if (s.count > 1) s.carry = a.scratch + a.batch * s.count * a.width;  // after the bounds' sums
  const dim3 grid = grid_of(a.batch, a.width, C, s);
  if (s.count > 1) scan_backward_kernel<T, C, true><<<grid, 32 * kWarps, 0, l.stream>>>(a, s);
  scan_backward_kernel<T, C, false><<<grid, 32 * kWarps, 0, l.stream>>>(a, s);
  check(cudaGetLastError(), "backward of the scan");
  if (a.d_lower_bound != nullptr)
    sum_partials(l, a.batch * s.count, a.width, a.scratch, {1, {a.d_lower_bound}}, false);
}

}  // namespace

template <class T>
void scan(const Launch& l, const Scan<T>& a) {
  if (a.batch * a.length == 0) return;
  return two_channels(l, a.batch, a.length, a.width) ? scan_channels<2>(l, a)
                                                     : scan_channels<1>(l, a);
}
template void scan(const Launch&, const Scan<float>&);
template void scan(const Launch&, const Scan<bf16>&);

template <class T>
void scan_backward(const Launch& l, const ScanBackward<T>& a) {
  if (a.batch * a.length == 0) return;
  return two_channels(l, a.batch, a.length, a.width) ? scan_backward_channels<2>(l, a)
                                                     : scan_backward_channels<1>(l, a);
}
template void scan_backward(const Launch&, const ScanBackward<float>&);
template void scan_backward(const Launch&, const ScanBackward<bf16>&);

}  // namespace mmfree::cuda
