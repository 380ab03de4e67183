// Both ends of the network: the embedding table and the classifier's loss; and the two small passes
// around products that run in floating point.
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/ops/cross_entropy/cross_entropy.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

template <int V>
__global__ void embedding_kernel(idx groups, int groups_a_row, const std::int32_t* ids,
                                 const float* table, float* x) {
  const idx n = static_cast<idx>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= groups) return;
  const idx row = n / groups_a_row;
  const idx k = n % groups_a_row * V;
  const idx width = static_cast<idx>(groups_a_row) * V;
  float v[V];
  load<V>(table + ids[row] * width + k, v);
  store<V>(x + row * width + k, v);
}

// A block adds all rows of one id, for 256 columns, in ascending order.
__global__ void __launch_bounds__(256)
    embedding_backward_kernel(int width, const RowsById by_id, const float* dx,
                              std::int32_t padding, float* dtable) {
  const int group = static_cast<int>(blockIdx.x);
  const int k = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (group >= *by_id.count || k >= width) return;
  const std::int32_t id = by_id.ids[group];
  if (id == padding) return;
  const int end = by_id.start[group + 1];
  float sum = 0;
#pragma unroll 8
  for (int n = by_id.start[group]; n < end; ++n)
    sum += dx[static_cast<idx>(by_id.order[n]) * width + k];
  dtable[static_cast<idx>(id) * width + k] += sum;
}

__device__ __forceinline__ float exponential(float x, float) {
  return expf(x);
}
__device__ __forceinline__ float exponential(float x, bf16) {
  return __expf(x);
}

template <class T, int V>
__global__ void __launch_bounds__(512)
    cross_entropy_kernel(int vocab, T* logits, const std::int32_t* labels, bool with_gradient,
                         float grad_scale, const float* largest, float* nll) {
  __shared__ float shared[2][32];
  const idx row = blockIdx.x;
  T* x = logits + row * vocab;
  const std::int32_t label = labels[row];
  const bool counted = label != kIgnoreLabel;
  float top = -INFINITY, sum = 0;
  for (int k = static_cast<int>(threadIdx.x) * V; k < vocab; k += 512 * V) {
    float v[V];
    load<V>(x + k, v);
    float m = top;
#pragma unroll
    for (int j = 0; j < V; ++j) m = fmaxf(m, v[j]);
    sum *= exponential(top - m, T{});
#pragma unroll
    for (int j = 0; j < V; ++j) sum += exponential(v[j] - m, T{});
    top = m;
  }
  // Maxima may be negative, which block_max does not expect: one exchange of its own.
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  float m = top;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, o));
  if (lane == 0) shared[0][warp] = m;
  __syncthreads();
  m = lane < 16 ? shared[0][lane] : -INFINITY;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffU, m, o));
  float total[1] = {top == -INFINITY ? 0.0F : sum * exponential(top - m, T{})};
  block_sum<1>(total, shared[1]);
  if (threadIdx.x == 0) nll[row] = counted ? m + logf(total[0]) - to_float(x[label]) : 0.0F;
  if (!with_gradient) return;
  __syncthreads();  // the label's logit is read before it is overwritten
  const float scale = counted ? grad_scale * (largest[row] / 127.0F) : 0.0F;
  const float share = scale / total[0];
  for (int k = static_cast<int>(threadIdx.x) * V; k < vocab; k += 512 * V) {
    float v[V];
    load<V>(x + k, v);
#pragma unroll
    for (int j = 0; j < V; ++j)
      v[j] = counted ? exponential(v[j] - m, T{}) * share - (k + j == label ? scale : 0.0F) : 0.0F;
    store<V>(x + k, v);
  }
}

__global__ void __launch_bounds__(1024)
    sum_losses_kernel(idx rows, const float* nll, bool accumulate, double* total) {
  __shared__ double shared[32];
  double sum = 0;
  for (idx r = threadIdx.x; r < rows; r += 1024) sum += static_cast<double>(nll[r]);
  sum = block_sum_double(sum, shared);
  if (threadIdx.x == 0) *total = (accumulate ? *total : 0.0) + sum;
}

template <class T, int V>
__global__ void expand_codes_kernel(idx groups, const std::int8_t* codes, T* values) {
  const idx n = static_cast<idx>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= groups) return;
  float v[V];
  if constexpr (V == 8) {
    const uint2 raw = reinterpret_cast<const uint2*>(codes)[n];
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] = static_cast<float>(
          static_cast<std::int8_t>(((j < 4 ? raw.x : raw.y) >> (8 * (j % 4))) & 0xffU));
  } else {
    v[0] = static_cast<float>(codes[n]);
  }
  store<V>(values + n * V, v);
}

template <class T, int V>
__global__ void scale_products_kernel(idx groups, int groups_a_row, const float* sums,
                                      const float* largest, const float* w_scale, T* y) {
  const idx n = static_cast<idx>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= groups) return;
  const float x_scale = largest[n / groups_a_row] / 127.0F;
  float v[V];
  load<V>(sums + n * V, v);
#pragma unroll
  for (int j = 0; j < V; ++j) v[j] = v[j] * x_scale * *w_scale;
  store<V>(y + n * V, v);
}

unsigned blocks_of(idx n, idx threads) {
  return static_cast<unsigned>((n + threads - 1) / threads);
}

}  // namespace

// ---- launchers ----

void embedding(const Launch& l, idx rows, idx width, const std::int32_t* ids, const float* table,
               float* x) {
  if (rows == 0) return;
  if (width % 8 == 0) {
    const idx n = rows * width / 8;
    embedding_kernel<8>
        <<<blocks_of(n, 256), 256, 0, l.stream>>>(n, static_cast<int>(width / 8), ids, table, x);
  } else {
    embedding_kernel<1><<<blocks_of(rows * width, 256), 256, 0, l.stream>>>(
        rows * width, static_cast<int>(width), ids, table, x);
  }
  check(cudaGetLastError(), "embedding");
}

void embedding_backward(const Launch& l, idx rows, idx width, const RowsById& by_id,
                        const float* dx, std::int32_t padding, float* dtable) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(rows), blocks_of(width, 256));
  embedding_backward_kernel<<<grid, 256, 0, l.stream>>>(static_cast<int>(width), by_id, dx, padding,
                                                        dtable);
  check(cudaGetLastError(), "backward of the embedding");
}

template <class T>
void cross_entropy(const Launch& l, idx rows, idx vocab, T* logits, const std::int32_t* labels,
                   bool with_gradient, float grad_scale, const float* largest, float* nll) {
  if (rows == 0) return;
  const auto grid = static_cast<unsigned>(rows);
  const int v = static_cast<int>(vocab);
  if (vocab % 8 == 0) {
    cross_entropy_kernel<T, 8>
        <<<grid, 512, 0, l.stream>>>(v, logits, labels, with_gradient, grad_scale, largest, nll);
  } else {
    cross_entropy_kernel<T, 1>
        <<<grid, 512, 0, l.stream>>>(v, logits, labels, with_gradient, grad_scale, largest, nll);
  }
  check(cudaGetLastError(), "cross entropy");
}
template void cross_entropy(const Launch&, idx, idx, float*, const std::int32_t*, bool, float,
                            const float*, float*);
template void cross_entropy(const Launch&, idx, idx, bf16*, const std::int32_t*, bool, float,
                            const float*, float*);

void sum_losses(const Launch& l, idx rows, const float* nll, bool accumulate, double* total) {
  sum_losses_kernel<<<1, 1024, 0, l.stream>>>(rows, nll, accumulate, total);
  check(cudaGetLastError(), "sum of losses");
}

template <class T>
void expand_codes(const Launch& l, idx n, const std::int8_t* codes, T* values) {
  if (n == 0) return;
  if (n % 8 == 0) {
    expand_codes_kernel<T, 8><<<blocks_of(n / 8, 256), 256, 0, l.stream>>>(n / 8, codes, values);
  } else {
    expand_codes_kernel<T, 1><<<blocks_of(n, 256), 256, 0, l.stream>>>(n, codes, values);
  }
  check(cudaGetLastError(), "expansion of codes");
}
template void expand_codes(const Launch&, idx, const std::int8_t*, float*);
template void expand_codes(const Launch&, idx, const std::int8_t*, bf16*);

template <class T>
void scale_products(const Launch& l, idx rows, idx width, const float* sums, const float* largest,
                    const float* w_scale, T* y) {
  if (rows == 0) return;
  const idx n = rows * width;
  if (width % 8 == 0) {
    scale_products_kernel<T, 8><<<blocks_of(n / 8, 256), 256, 0, l.stream>>>(
        n / 8, static_cast<int>(width / 8), sums, largest, w_scale, y);
  } else {
    scale_products_kernel<T, 1><<<blocks_of(n, 256), 256, 0, l.stream>>>(n, static_cast<int>(width),
                                                                         sums, largest, w_scale, y);
  }
  check(cudaGetLastError(), "scaling of products");
}
template void scale_products(const Launch&, idx, idx, const float*, const float*, const float*,
                             float*);
template void scale_products(const Launch&, idx, idx, const float*, const float*, const float*,
                             bf16*);

}  // namespace mmfree::cuda
