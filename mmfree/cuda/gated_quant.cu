#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/rows.cuh"
#include "mmfree/cuda/runtime.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

// o = g * g_rstd * gain * silu(h), so both statistics come from one pass: sum o^2 = g_rstd^2 * sum
// (g * gain * silu(h))^2.
template <class T, class Row>
__global__ void __launch_bounds__(Row::kMaxThreads) gated_quant_kernel(const GatedQuant<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[2 * 32];
  __shared__ float maxima[32];
  const int width = static_cast<int>(a.width);
  const idx row = blockIdx.x;
  const idx base = row * a.width;
  float o[Row::kItems][V];  // without g_rstd at first
  float s[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      float g[V], h[V], gain[V];
      load<V>(a.g + base + k, g);
      load<V>(a.h + base + k, h);
      load<V>(a.gain + k, gain);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        o[i][j] = g[j] * gain[j] * (h[j] * sigmoid(h[j]));
        s[0] += g[j] * g[j];
        s[1] += o[i][j] * o[i][j];
      }
    }
  }
  block_sum<2>(s, sums);
  const float n = static_cast<float>(width);
  const float g_rstd = 1.0F / sqrtf(s[0] / n + a.eps);
  const float squares = s[1] * g_rstd * g_rstd;
  const float rstd = 1.0F / sqrtf(squares / n + kInnerEps);
  const float poison = squares - squares;
  float largest[1] = {1e-5F};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      float gain[V];
      load<V>(a.inner_gain + k, gain);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        o[i][j] = o[i][j] * g_rstd * rstd * gain[j];
        largest[0] = fmaxf(largest[0], fabsf(o[i][j]));
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
      for (int j = 0; j < V; ++j) code[j] = shifted_code(o[i][j], scale);
      if (a.saturated != nullptr) at_limit += count_saturated<V>(code);
      store_codes<V>(a.codes + base + k, code);
    }
  }
  if (threadIdx.x == 0) {
    a.largest[row] = largest[0] + poison;
    a.g_rstd[row] = g_rstd;
    a.inner_rstd[row] = rstd;
  }
  if (a.saturated != nullptr) atomicAdd(a.saturated, at_limit);
}

// One reduction serves both norms: with c = mean(ohat * dy * inner_gain), the mean that the gated
// norm's gradient needs is mean(d_o * o) = c * (1 - mean(ohat^2)) = c * eps * rstd^2.
template <class T, class Row>
__global__ void __launch_bounds__(Row::kMaxThreads, Row::kMaxThreads <= 256   ? 3
                                                    : Row::kMaxThreads <= 320 ? 2
                                                                              : 1)
    gated_quant_backward_kernel(const GatedQuantBackward<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[2][32];
  __shared__ float maxima[32];
  const int width = static_cast<int>(a.width);
  float dgain[Row::kItems][V] = {}, dinner[Row::kItems][V] = {};
  Raw<T, V> g_raw[Row::kItems], h_raw[Row::kItems], dy_raw[Row::kItems];
  const auto get = [&](idx row, int i) {  // asked for one row ahead
    const int k = Row::column(i);
    if (row >= a.rows || k >= width) return;
    const idx at = row * a.width + k;
    g_raw[i].get(a.g + at);
    h_raw[i].get(a.h + at);
    dy_raw[i].get(a.d_o + at);
  };
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) get(blockIdx.x, i);
  int turn = 0;
  for (idx row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
    const idx base = row * a.width;
    const float g_rstd = a.g_rstd[row];
    const float rstd = a.inner_rstd[row];
    const float largest = a.largest[row];
    const float unscale = *a.w_scale * (127.0F / largest);
    float c[1] = {0};
    Raw<T, V> g_now[Row::kItems], h_now[Row::kItems], dy_now[Row::kItems];
    float gate[Row::kItems][V];  // sigmoid(h)
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      g_now[i] = g_raw[i], h_now[i] = h_raw[i], dy_now[i] = dy_raw[i];
      get(row + gridDim.x, i);
      const int k = Row::column(i);
      if (k < width) {
        float g[V], h[V], dy[V], gain[V], inner[V];
        g_now[i].unpack(g);
        h_now[i].unpack(h);
        dy_now[i].unpack(dy);
        load<V>(a.gain + k, gain);
        load<V>(a.inner_gain + k, inner);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          gate[i][j] = sigmoid(h[j]);
          const float ohat = g[j] * gain[j] * (h[j] * gate[i][j]) * g_rstd * rstd;
          const float d = dy[j] * unscale;
          dinner[i][j] += d * ohat;
          c[0] += ohat * (d * inner[j]);
        }
      }
    }
    block_sum<1>(c, sums[turn]);
    const float c1 = c[0] / static_cast<float>(width);
    const float c2 = c1 * kInnerEps * rstd * rstd;
    const float out_scale = a.g_largest[row] / 127.0F;
    const float code_scale = 127.0F / largest;
    float top[1] = {kLeastLargest};  // of the magnitudes of g's gradient
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float g[V], h[V], dy[V], gain[V], inner[V];
        g_now[i].unpack(g);
        h_now[i].unpack(h);
        dy_now[i].unpack(dy);
        load<V>(a.gain + k, gain);
        load<V>(a.inner_gain + k, inner);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float s = gate[i][j];
          const float silu = h[j] * s;
          const float ohat = g[j] * gain[j] * silu * g_rstd * rstd;  // in the forward's order
          const float d_o = (dy[j] * unscale * inner[j] - ohat * c1) * rstd;
          const float ghat = g[j] * g_rstd;
          const float dn = d_o * silu;
          dgain[i][j] += dn * ghat;
          g[j] = (dn * gain[j] - ghat * c2) * g_rstd * out_scale;
          h[j] = d_o * ghat * gain[j] * silu_slope(h[j], s);
          dy[j] = code_value(shifted_code(ohat * inner[j], code_scale));
        }
        g_now[i].pack(g);
        g_now[i].put(a.g + base + k);
        include_magnitudes<V>(g, top[0]);
        store<V>(a.dh + base + k, h);
        store<V>(a.d_o + base + k, dy);
      }
    }
    if (a.g_fp8.values == nullptr) continue;
    block_max<1>(top, maxima);
    const float fp8_scale = kLargestE4m3 / top[0];
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float g[V];
        g_now[i].unpack(g);
        store_e4m3<V>(a.g_fp8.values + base + k, g, fp8_scale);
      }
    }
    if (threadIdx.x == 0) a.g_fp8.largest[row] = top[0];
  }
  float* partial = a.partial + static_cast<idx>(blockIdx.x) * 2 * a.width;
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      store<V>(partial + k, dgain[i]);
      store<V>(partial + width + k, dinner[i]);
    }
  }
}

}  // namespace

// ---- launchers ----

template <class T>
void gated_quant(const Launch& l, const GatedQuant<T>& a) {
  if (a.rows == 0) return;
  with_row_layout(a.width, [&]<class Row>(Row, unsigned threads) {
    gated_quant_kernel<T, Row><<<static_cast<unsigned>(a.rows), threads, 0, l.stream>>>(a);
  });
  check(cudaGetLastError(), "gated norm and quantisation");
}
template void gated_quant(const Launch&, const GatedQuant<float>&);
template void gated_quant(const Launch&, const GatedQuant<bf16>&);

template <class T>
void gated_quant_backward(const Launch& l, const GatedQuantBackward<T>& a) {
  if (a.rows == 0) return;
  unsigned grid = 0;
  with_row_layout(a.width, [&]<class Row>(Row, unsigned threads) {
    grid = row_blocks(gated_quant_backward_kernel<T, Row>, a.rows, threads, l.multiprocessors);
    gated_quant_backward_kernel<T, Row><<<grid, threads, 0, l.stream>>>(a);
  });
  check(cudaGetLastError(), "backward of gated norm and quantisation");
  sum_partials(l, grid, a.width, a.partial, {2, {a.dgain, a.dinner_gain}}, a.accumulate);
}
template void gated_quant_backward(const Launch&, const GatedQuantBackward<float>&);
template void gated_quant_backward(const Launch&, const GatedQuantBackward<bf16>&);

}  // namespace mmfree::cuda
