// The recurrence in one pass over memory. A block owns one sequence and 32 or 64 channels; its 8
// warps take neighbouring runs of steps of a tile, each composes its run into h -> A h + B, the
// compositions are chained through shared memory, and every warp applies its run to the state it
// then knows. Tiles follow one another, so the cost of a token does not depend on the length. The
// order of operations is fixed.
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

constexpr int kWarps = 8;
constexpr int kSteps = 4;   // a warp's run in a tile: registers hold it and the next tile's
constexpr int kBlocks = 4;  // on a multiprocessor

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

// A run's composition, and the state at the start of this warp's run and at the end of the tile.
template <int C>
struct Chain {
  float factor[2][kWarps][32 * C];  // two tiles in turn, so that one barrier a tile is enough
  float offset[2][kWarps][32 * C];

  // first_warp_first: runs follow in the order of warps (forward) or against it (backward).
  __device__ __forceinline__ void join(int turn, int warp, int lane, const float (&a)[C],
                                       const float (&b)[C], bool first_warp_first,
                                       float (&state)[C], float (&start)[C]) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      factor[turn][warp][lane * C + c] = a[c];
      offset[turn][warp][lane * C + c] = b[c];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kWarps; ++n) {
      const int w = first_warp_first ? n : kWarps - 1 - n;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (w == warp) start[c] = state[c];
        state[c] = factor[turn][w][lane * C + c] * state[c] + offset[turn][w][lane * C + c];
      }
    }
  }
};

template <class T, int C>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) scan_kernel(const Scan<T> a) {
  constexpr int S = kSteps;
  __shared__ Chain<C> chain;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const idx channel = (static_cast<idx>(blockIdx.x) * 32 + lane) * C;
  const bool live = channel < a.width;
  const idx sequence = static_cast<idx>(blockIdx.y) * a.length;
  float bound[C] = {};
  if (live && a.lower_bound != nullptr) load<C>(a.lower_bound + channel, bound);
  float state[C] = {};
  Raw<T, C> f_raw[S], i_raw[S];
  const auto get = [&](idx t0) {  // asked for one tile ahead
#pragma unroll
    for (int s = 0; s < S; ++s) {
      if (!live || t0 + s >= a.length) continue;
      const idx at = (sequence + t0 + s) * a.width + channel;
      f_raw[s].get(a.f_pre + at);
      i_raw[s].get(a.i_pre + at);
    }
  };
  get(warp * S);
  int turn = 0;
  for (idx tile = 0; tile < a.length; tile += kWarps * S, turn ^= 1) {
    const idx t0 = tile + warp * S;
    float f[S][C], in[S][C];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      f_raw[s].unpack(f[s]);
      i_raw[s].unpack(in[s]);
    }
    get(t0 + kWarps * S);
    float factor[C], offset[C];
#pragma unroll
    for (int c = 0; c < C; ++c) factor[c] = 1, offset[c] = 0;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const bool step = live && t0 + s < a.length;
      const bool open = step && (a.mask == nullptr || a.mask[sequence + t0 + s] != 0);
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
    chain.join(turn, warp, lane, factor, offset, true, state, h);
#pragma unroll
    for (int s = 0; s < S; ++s) {
#pragma unroll
      for (int c = 0; c < C; ++c) h[c] = f[s][c] * h[c] + in[s][c];
      if (live && t0 + s < a.length)
        store_channels<T, C>(a.h + (sequence + t0 + s) * a.width + channel, h);
    }
  }
}

// Reverse in time: with s_t = f_t * delta_t the gradient is delta_t = dh_t + s_{t+1}.
template <class T, int C>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) scan_backward_kernel(const ScanBackward<T> a) {
  constexpr int S = kSteps;
  __shared__ Chain<C> chain;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const idx channel = (static_cast<idx>(blockIdx.x) * 32 + lane) * C;
  const bool live = channel < a.width;
  const idx sequence = static_cast<idx>(blockIdx.y) * a.length;
  float bound[C] = {}, d_bound[C] = {};
  if (live && a.lower_bound != nullptr) load<C>(a.lower_bound + channel, bound);
  float state[C] = {};
  Raw<T, C> f_raw[S], i_raw[S], dh_raw[S], h_raw[S];
  const auto get = [&](idx t0) {  // asked for one tile ahead
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const idx t = t0 + s;
      if (!live || t0 < 0 || t >= a.length) continue;
      const idx at = (sequence + t) * a.width + channel;
      f_raw[s].get(a.f_pre + at);
      i_raw[s].get(a.i_pre + at);
      dh_raw[s].get(a.dh + at);
      if (t > 0) h_raw[s].get(a.h + at - a.width);  // before the step
    }
  };
  int turn = 0;
  const idx tiles = (a.length + kWarps * S - 1) / (kWarps * S);
  get((tiles - 1) * kWarps * S + warp * S);
  for (idx tile = (tiles - 1) * kWarps * S; tile >= 0; tile -= kWarps * S, turn ^= 1) {
    const idx t0 = tile + warp * S;
    float fs[S][C];
    Raw<T, C> i_now[S], dh_now[S], h_now[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      f_raw[s].unpack(fs[s]);
      i_now[s] = i_raw[s], dh_now[s] = dh_raw[s], h_now[s] = h_raw[s];
    }
    get(t0 - kWarps * S);
    float factor[C], offset[C];
#pragma unroll
    for (int c = 0; c < C; ++c) factor[c] = 1, offset[c] = 0;
#pragma unroll
    for (int s = S - 1; s >= 0; --s) {
      if (!(live && t0 + s < a.length)) continue;
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
    chain.join(turn, warp, lane, factor, offset, false, state, carried);
#pragma unroll
    for (int s = S - 1; s >= 0; --s) {
      const idx t = t0 + s;
      if (!(live && t < a.length)) continue;
      const idx row = sequence + t;
      const float i_scale = a.i_largest[row] / 127.0F;
      const float f_scale = a.f_largest[row] / 127.0F;
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
      store_channels<T, C>(a.i_pre + row * a.width + channel, di);
      store_channels<T, C>(a.f_pre + row * a.width + channel, df);
    }
  }
  if (a.d_lower_bound == nullptr) return;
  __syncthreads();
#pragma unroll
  for (int c = 0; c < C; ++c) chain.factor[0][warp][lane * C + c] = d_bound[c];
  __syncthreads();
  if (warp != 0 || !live) return;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += chain.factor[0][w][lane * C + c];
    a.partial[static_cast<idx>(blockIdx.y) * a.width + channel + c] = sum;
  }
}

// Two channels a lane read whole 128-byte lines of bf16; one keeps more blocks busy where there are
// few sequences.
bool two_channels(const Launch& l, idx batch, idx width) {
  return width % 2 == 0 && batch * ((width + 63) / 64) >= 2 * l.multiprocessors;
}

dim3 scan_grid(idx batch, idx width, int channels) {
  return {static_cast<unsigned>((width + 32 * channels - 1) / (32 * channels)),
          static_cast<unsigned>(batch)};
}

}  // namespace

// ---- launchers ----

template <class T>
void scan(const Launch& l, const Scan<T>& a) {
  if (a.batch * a.length == 0) return;
  if (two_channels(l, a.batch, a.width)) {
    scan_kernel<T, 2><<<scan_grid(a.batch, a.width, 2), 32 * kWarps, 0, l.stream>>>(a);
  } else {
    scan_kernel<T, 1><<<scan_grid(a.batch, a.width, 1), 32 * kWarps, 0, l.stream>>>(a);
  }
  check(cudaGetLastError(), "scan");
}
template void scan(const Launch&, const Scan<float>&);
template void scan(const Launch&, const Scan<bf16>&);

template <class T>
void scan_backward(const Launch& l, const ScanBackward<T>& a) {
  if (a.batch * a.length == 0) return;
  if (two_channels(l, a.batch, a.width)) {
    scan_backward_kernel<T, 2><<<scan_grid(a.batch, a.width, 2), 32 * kWarps, 0, l.stream>>>(a);
  } else {
    scan_backward_kernel<T, 1><<<scan_grid(a.batch, a.width, 1), 32 * kWarps, 0, l.stream>>>(a);
  }
  check(cudaGetLastError(), "backward of the scan");
  if (a.d_lower_bound != nullptr)
    sum_partials(l, a.batch, a.width, a.width, a.partial, a.d_lower_bound, false);
}
template void scan_backward(const Launch&, const ScanBackward<float>&);
template void scan_backward(const Launch&, const ScanBackward<bf16>&);

}  // namespace mmfree::cuda
