#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/rows.cuh"
#include "mmfree/cuda/runtime.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

template <class T, class Row>
__global__ void __launch_bounds__(Row::kMaxThreads) swiglu_quant_kernel(const SwigluQuant<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[32];
  __shared__ float maxima[32];
  const int width = static_cast<int>(a.width);
  const idx row = blockIdx.x;
  const T* pq = a.pq + row * 2 * a.width;
  float z[Row::kItems][V];
  float s[1] = {0};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      float p[V], q[V];
      load<V>(pq + k, p);
      load<V>(pq + width + k, q);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        z[i][j] = p[j] * sigmoid(p[j]) * q[j];
        s[0] += z[i][j] * z[i][j];
      }
    }
  }
  block_sum<1>(s, sums);
  const float rstd = 1.0F / sqrtf(s[0] / static_cast<float>(width) + kInnerEps);
  const float poison = s[0] - s[0];
  float largest[1] = {1e-5F};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      float gain[V];
      load<V>(a.gain + k, gain);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        z[i][j] = z[i][j] * rstd * gain[j];
        largest[0] = fmaxf(largest[0], fabsf(z[i][j]));
      }
    }
  }
  block_max<1>(largest, maxima);
  const float scale = 127.0F / largest[0];
  unsigned at_limit = 0;
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      float code[V];
#pragma unroll
      for (int j = 0; j < V; ++j) code[j] = shifted_code(z[i][j], scale);
      if (a.saturated != nullptr) at_limit += count_saturated<V>(code);
      store_codes<V>(a.codes + row * a.width + k, code);
    }
  }
  if (threadIdx.x == 0) {
    a.largest[row] = largest[0] + poison;
    a.rstd[row] = rstd;
  }
  if (a.saturated != nullptr) atomicAdd(a.saturated, at_limit);
}

template <class T, class Row>
__global__ void __launch_bounds__(Row::kMaxThreads)
    swiglu_quant_backward_kernel(const SwigluQuantBackward<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[2][32];
  __shared__ float maxima[32];
  const int width = static_cast<int>(a.width);
  float dgain[Row::kItems][V] = {};
  Raw<T, V> p_raw[Row::kItems], q_raw[Row::kItems], dz_raw[Row::kItems];
  const auto get = [&](idx row, int i) {  // asked for one row ahead
    const int k = Row::column(i);
    if (row >= a.rows || k >= width) return;
    p_raw[i].get(a.pq + row * 2 * a.width + k);
    q_raw[i].get(a.pq + row * 2 * a.width + width + k);
    dz_raw[i].get(a.dz + row * a.width + k);
  };
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) get(blockIdx.x, i);
  int turn = 0;
  for (idx row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
    T* pq = a.pq + row * 2 * a.width;
    T* dz = a.dz + row * a.width;
    const float rstd = a.rstd[row];
    const float largest = a.largest[row];
    const float unscale = *a.w_scale * (127.0F / largest);
    float c[1] = {0};
    Raw<T, V> p_now[Row::kItems], q_now[Row::kItems], dz_now[Row::kItems];
    float gate[Row::kItems][V];  // sigmoid(p)
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      p_now[i] = p_raw[i], q_now[i] = q_raw[i], dz_now[i] = dz_raw[i];
      get(row + gridDim.x, i);
      const int k = Row::column(i);
      if (k < width) {
        float p[V], q[V], dy[V], gain[V];
        p_now[i].unpack(p);
        q_now[i].unpack(q);
        dz_now[i].unpack(dy);
        load<V>(a.gain + k, gain);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          gate[i][j] = sigmoid(p[j]);
          const float zhat = p[j] * gate[i][j] * q[j] * rstd;
          const float d = dy[j] * unscale;
          dgain[i][j] += d * zhat;
          c[0] += zhat * (d * gain[j]);
        }
      }
    }
    block_sum<1>(c, sums[turn]);
    const float c1 = c[0] / static_cast<float>(width);
    const float out_scale = a.v_largest[row] / 127.0F;
    const float code_scale = 127.0F / largest;
    float top[1] = {kLeastLargest};  // of the gradient's magnitudes
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float p[V], q[V], dy[V], gain[V], code[V];
        p_now[i].unpack(p);
        q_now[i].unpack(q);
        dz_now[i].unpack(dy);
        load<V>(a.gain + k, gain);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float s = gate[i][j];
          const float zhat = p[j] * s * q[j] * rstd;
          code[j] = code_value(shifted_code(zhat * gain[j], code_scale));
          const float d = (dy[j] * unscale * gain[j] - zhat * c1) * rstd * out_scale;
          const float dp = d * q[j] * silu_slope(p[j], s);
          q[j] = d * (p[j] * s);
          p[j] = dp;
        }
        store<V>(dz + k, code);
        p_now[i].pack(p);
        q_now[i].pack(q);
        p_now[i].put(pq + k);
        q_now[i].put(pq + width + k);
        include_magnitudes<V>(p, top[0]);
        include_magnitudes<V>(q, top[0]);
      }
    }
    if (a.pq_fp8.values == nullptr) continue;
    block_max<1>(top, maxima);
    const float fp8_scale = kLargestE4m3 / top[0];
    e4m3* pq_fp8 = a.pq_fp8.values + row * 2 * a.width;
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float p[V], q[V];
        p_now[i].unpack(p);
        q_now[i].unpack(q);
        store_e4m3<V>(pq_fp8 + k, p, fp8_scale);
        store_e4m3<V>(pq_fp8 + width + k, q, fp8_scale);
      }
    }
    if (threadIdx.x == 0) a.pq_fp8.largest[row] = top[0];
  }
  float* partial = a.partial + static_cast<idx>(blockIdx.x) * a.width;
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) store<V>(partial + k, dgain[i]);
  }
}

// Columns in groups of 32 lanes; 32 warps take every 32nd part each and are added in order.
constexpr int kSumWarps = 32;
__global__ void __launch_bounds__(32 * kSumWarps)
    sum_partials_kernel(int parts, int width, const float* partial, const SumTargets targets,
                        bool accumulate) {
  __shared__ float sums[kSumWarps][32];
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int k = static_cast<int>(blockIdx.x) * 32 + lane;
  const int target = static_cast<int>(blockIdx.y);
  const float* from = partial + static_cast<idx>(target) * width + k;
  const idx stride = static_cast<idx>(targets.count) * width;
  float s = 0;
  if (k < width) {
#pragma unroll 8
    for (int p = warp; p < parts; p += kSumWarps) s += from[p * stride];
  }
  sums[warp][lane] = s;
  __syncthreads();
  if (warp != 0 || k >= width) return;
  float* dst = targets.dst[target];
  s = accumulate ? dst[k] : 0.0F;
#pragma unroll
  for (int w = 0; w < kSumWarps; ++w) s += sums[w][lane];
  dst[k] = s;
}

}  // namespace

// ---- launchers ----

template <class T>
void swiglu_quant(const Launch& l, const SwigluQuant<T>& a) {
  if (a.rows == 0) return;
  const auto launch = [&]<class Row>(Row, unsigned threads) {
    swiglu_quant_kernel<T, Row><<<static_cast<unsigned>(a.rows), threads, 0, l.stream>>>(a);
  };
  if (a.width % 8 == 0 && a.width > 8 * 512 && a.width <= 16 * 448) {
    // Half the threads, so that more rows are in work: some compute while others wait for memory.
    launch(RowLayout<8, 2, 448>{}, static_cast<unsigned>((a.width / 8 + 63) / 64 * 32));
  } else {
    with_row_layout(a.width, launch);
  }
  check(cudaGetLastError(), "SwiGLU and quantisation");
}
template void swiglu_quant(const Launch&, const SwigluQuant<float>&);
template void swiglu_quant(const Launch&, const SwigluQuant<bf16>&);

template <class T>
void swiglu_quant_backward(const Launch& l, const SwigluQuantBackward<T>& a) {
  if (a.rows == 0) return;
  unsigned grid = 0;
  with_row_layout(a.width, [&]<class Row>(Row, unsigned threads) {
    grid = row_blocks(swiglu_quant_backward_kernel<T, Row>, a.rows, threads, l.multiprocessors);
    swiglu_quant_backward_kernel<T, Row><<<grid, threads, 0, l.stream>>>(a);
  });
  check(cudaGetLastError(), "backward of SwiGLU and quantisation");
  sum_partials(l, grid, a.width, a.partial, {1, {a.dgain}}, a.accumulate);
}
template void swiglu_quant_backward(const Launch&, const SwigluQuantBackward<float>&);
template void swiglu_quant_backward(const Launch&, const SwigluQuantBackward<bf16>&);

idx partial_floats(idx rows, idx width, int sums, int multiprocessors) {
  idx blocks = 0;
  with_row_layout(width, [&]<class Row>(Row, unsigned threads) {
    blocks = most_row_blocks(rows, threads, multiprocessors);
  });
  return blocks * width * sums;
}

void sum_partials(const Launch& l, idx parts, idx width, const float* partial,
                  const SumTargets& targets, bool accumulate) {
  const dim3 grid(static_cast<unsigned>((width + 31) / 32), static_cast<unsigned>(targets.count));
  sum_partials_kernel<<<grid, 32 * kSumWarps, 0, l.stream>>>(
      static_cast<int>(parts), static_cast<int>(width), partial, targets, accumulate);
  check(cudaGetLastError(), "sums over rows");
}

}  // namespace mmfree::cuda
