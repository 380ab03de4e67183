#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/rows.cuh"
#include "mmfree/cuda/runtime.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

// One row a block. The statistic of the inner norm comes from the same pass as that of the outer:
// sum u^2 = rstd0^2 * sum (x * outer)^2.
template <class T, class Row, int P>
__global__ void __launch_bounds__(Row::kMaxThreads) norm_quant_kernel(const NormQuant<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[2 * 32];
  __shared__ float maxima[P * 32];
  const int width = static_cast<int>(a.width);
  const idx row = blockIdx.x;
  const idx base = row * a.width;
  float x[Row::kItems][V], outer[Row::kItems][V];
  float s[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      load<V>(a.x + base + k, x[i]);
      if (a.add != nullptr) {
        float add[V];
        load<V>(a.add + base + k, add);
#pragma unroll
        for (int j = 0; j < V; ++j) x[i][j] += add[j];
        if (a.sum != nullptr) store<V>(a.sum + base + k, x[i]);
      }
      load<V>(a.outer + k, outer[i]);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float u = x[i][j] * outer[i][j];
        s[0] += x[i][j] * x[i][j];
        s[1] += u * u;
      }
    }
  }
  block_sum<2>(s, sums);
  const float n = static_cast<float>(width);
  const float rstd0 = 1.0F / sqrtf(s[0] / n + a.outer_eps);
  const float squares = s[1] * rstd0 * rstd0;
  const float rstd1 = 1.0F / sqrtf(squares / n + kInnerEps);
  const float poison = squares - squares;  // NaN if the row is not finite, which maxima would hide

  float y[P][Row::kItems][V];
  float largest[P];
#pragma unroll
  for (int p = 0; p < P; ++p) largest[p] = 1e-5F;
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        float gain[V];
        load<V>(a.gain[p] + k, gain);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          y[p][i][j] = x[i][j] * rstd0 * outer[i][j] * rstd1 * gain[j];
          largest[p] = fmaxf(largest[p], fabsf(y[p][i][j]));
        }
      }
    }
  }
  block_max<P>(largest, maxima);
  unsigned at_limit = 0;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const float scale = 127.0F / largest[p];
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float code[V];
#pragma unroll
        for (int j = 0; j < V; ++j) code[j] = shifted_code(y[p][i][j], scale);
        if (a.saturated != nullptr) at_limit += count_saturated<V>(code);
        if (a.codes[p] != nullptr) store_codes<V>(a.codes[p] + base + k, code);
        if (a.code_values[p] != nullptr) {
#pragma unroll
          for (int j = 0; j < V; ++j) code[j] = code_value(code[j]);
          store<V>(a.code_values[p] + base + k, code);
        }
      }
    }
    if (threadIdx.x == 0) a.largest[p][row] = largest[p] + poison;
  }
  if (threadIdx.x == 0) {
    a.outer_rstd[row] = rstd0;
    a.inner_rstd[row] = rstd1;
  }
  if (a.saturated != nullptr) atomicAdd(a.saturated, at_limit);
}

// Blocks take rows in turn and keep their share of the gains' gradients in registers. With xhat the
// normalised row and c = mean(xhat * g): the inner norm's gradient is (g - xhat * c) * rstd1, and
// the mean that the outer norm's gradient needs follows from c, because mean(xhat^2) = 1 - eps *
// rstd1^2.
// Blocks on a multiprocessor, as far as registers allow it without spills.
template <class Row, int P>
inline constexpr int kBackwardBlocks = Row::kMaxThreads > 320              ? 1
                                       : Row::kMaxThreads <= 256 && P == 1 ? 3
                                                                           : 2;

template <class T, class Row, int P>
__global__ void __launch_bounds__(Row::kMaxThreads, kBackwardBlocks<Row, P>)
    norm_quant_backward_kernel(const NormQuantBackward<T> a) {
  constexpr int V = Row::kVec;
  __shared__ float sums[2][32];
  __shared__ float maxima[32];
  const int width = static_cast<int>(a.width);
  float dgain[P][Row::kItems][V] = {};
  float douter[Row::kItems][V] = {};
  Raw<float, V> x_raw[Row::kItems];
  Raw<T, V> add_raw[Row::kItems], dy_raw[P][Row::kItems];
  const auto get = [&](idx row, int i) {  // asked for one row ahead
    const int k = Row::column(i);
    if (row >= a.rows || k >= width) return;
    const idx at = row * a.width + k;
    x_raw[i].get(a.x + at);
    if (a.add != nullptr) add_raw[i].get(a.add + at);
#pragma unroll
    for (int p = 0; p < P; ++p) dy_raw[p][i].get(a.dy[p] + at);
  };
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) get(blockIdx.x, i);
  int turn = 0;
  for (idx row = blockIdx.x; row < a.rows; row += gridDim.x, turn ^= 1) {
    const idx base = row * a.width;
    const float rstd0 = a.outer_rstd[row];
    const float rstd1 = a.inner_rstd[row];
    float unscale[P];
#pragma unroll
    for (int p = 0; p < P; ++p) unscale[p] = *a.w_scale[p] * (127.0F / a.largest[p][row]);
    float x0[Row::kItems][V], g[Row::kItems][V], dx[Row::kItems][V];
    float c[1] = {0};
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        x_raw[i].unpack(x0[i]);
        if (a.add != nullptr) {
          float add[V];
          add_raw[i].unpack(add);
#pragma unroll
          for (int j = 0; j < V; ++j) x0[i][j] += add[j];
        }
        if (a.first) {
#pragma unroll
          for (int j = 0; j < V; ++j) dx[i][j] = 0;
        } else {
          load<V>(a.dx + base + k, dx[i]);
        }
        float outer[V];
        load<V>(a.outer + k, outer);
#pragma unroll
        for (int j = 0; j < V; ++j) x0[i][j] *= rstd0;
#pragma unroll
        for (int j = 0; j < V; ++j) g[i][j] = 0;
#pragma unroll
        for (int p = 0; p < P; ++p) {
          float dy[V], gain[V];
          dy_raw[p][i].unpack(dy);
          load<V>(a.gain[p] + k, gain);
#pragma unroll
          for (int j = 0; j < V; ++j) {
            const float d = dy[j] * unscale[p];
            dgain[p][i][j] += d * (x0[i][j] * outer[j] * rstd1);
            g[i][j] += d * gain[j];
          }
        }
#pragma unroll
        for (int j = 0; j < V; ++j) c[0] += x0[i][j] * outer[j] * rstd1 * g[i][j];
      }
      get(row + gridDim.x, i);
    }
    block_sum<1>(c, sums[turn]);
    const float c1 = c[0] / static_cast<float>(width);
    const float c0 = c1 * kInnerEps * rstd1 * rstd1;
    const float next = a.next_largest != nullptr ? a.next_largest[row] / 127.0F : 0.0F;
    float largest[1] = {kLeastLargest};
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) {
        float outer[V];
        load<V>(a.outer + k, outer);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const float du = (g[i][j] - x0[i][j] * outer[j] * rstd1 * c1) * rstd1;
          douter[i][j] += du * x0[i][j];
          dx[i][j] += (du * outer[j] - x0[i][j] * c0) * rstd0;
        }
        store<V>(a.dx + base + k, dx[i]);
        if (a.dx_scaled != nullptr) {
#pragma unroll
          for (int j = 0; j < V; ++j) dx[i][j] *= next;
          store<V>(a.dx_scaled + base + k, dx[i]);
          include_magnitudes<V>(dx[i], largest[0]);
        }
      }
    }
    if (a.dx_fp8.values == nullptr) continue;
    block_max<1>(largest, maxima);
    const float scale = kLargestE4m3 / largest[0];
#pragma unroll
    for (int i = 0; i < Row::kItems; ++i) {
      const int k = Row::column(i);
      if (k < width) store_e4m3<V>(a.dx_fp8.values + base + k, dx[i], scale);
    }
    if (threadIdx.x == 0) a.dx_fp8.largest[row] = largest[0];
  }
  float* partial = a.partial + static_cast<idx>(blockIdx.x) * (P + 1) * a.width;
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
#pragma unroll
      for (int p = 0; p < P; ++p) store<V>(partial + p * width + k, dgain[p][i]);
      store<V>(partial + P * width + k, douter[i]);
    }
  }
}

}  // namespace

// ---- launchers ----

template <class T>
void norm_quant(const Launch& l, const NormQuant<T>& a) {
  if (a.rows == 0) return;
  with_row_layout(a.width, [&]<class Row>(Row, unsigned threads) {
    const auto grid = static_cast<unsigned>(a.rows);
    if (a.projections == 1) {
      norm_quant_kernel<T, Row, 1><<<grid, threads, 0, l.stream>>>(a);
    } else {
      norm_quant_kernel<T, Row, 3><<<grid, threads, 0, l.stream>>>(a);
    }
  });
  check(cudaGetLastError(), "norm and quantisation");
}
template void norm_quant(const Launch&, const NormQuant<float>&);
template void norm_quant(const Launch&, const NormQuant<bf16>&);

template <class T>
void norm_quant_backward(const Launch& l, const NormQuantBackward<T>& a) {
  if (a.rows == 0) return;
  unsigned grid = 0;
  with_row_layout(a.width, [&]<class Row>(Row, unsigned threads) {
    if (a.projections == 1) {
      grid = row_blocks(norm_quant_backward_kernel<T, Row, 1>, a.rows, threads, l.multiprocessors);
      norm_quant_backward_kernel<T, Row, 1><<<grid, threads, 0, l.stream>>>(a);
    } else {
      grid = row_blocks(norm_quant_backward_kernel<T, Row, 3>, a.rows, threads, l.multiprocessors);
      norm_quant_backward_kernel<T, Row, 3><<<grid, threads, 0, l.stream>>>(a);
    }
  });
  check(cudaGetLastError(), "backward of norm and quantisation");
  SumTargets targets{a.projections + 1, {}};
  for (int p = 0; p < a.projections; ++p) targets.dst[p] = a.dgain[p];
  targets.dst[a.projections] = a.douter;
  sum_partials(l, grid, a.width, a.partial, targets, a.accumulate);
}
template void norm_quant_backward(const Launch&, const NormQuantBackward<float>&);
template void norm_quant_backward(const Launch&, const NormQuantBackward<bf16>&);

}  // namespace mmfree::cuda
