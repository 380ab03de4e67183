// What happens to the parameters once a step: norm of the gradient, AdamW, the weight quantiser,
// the lower bounds. One block handles one Chunk; the quantiser's mean comes from the pass that
// AdamW makes anyway.
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

constexpr int kThreads = 256;

// Calls f(offset, elements) with groups of four of this thread, then singles at the chunk's end.
// Chunks begin at multiples of 16 elements.
template <class Four, class One>
__device__ __forceinline__ void for_chunk(const Chunk& c, const Four& four, const One& one) {
  const int whole = c.count & ~3;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x) * 4; i < whole; i += kThreads * 4) four(c.begin + i);
  if (whole + static_cast<int>(threadIdx.x) < c.count)
    one(c.begin + whole + static_cast<int>(threadIdx.x));
}

__global__ void __launch_bounds__(kThreads)
    magnitude_sums_kernel(const ParamPlan p, const float* w, double* sums) {
  __shared__ double shared[32];
  const Chunk c = p.chunks[blockIdx.x];
  if (c.matrix < 0) return;
  float s = 0;
  for_chunk(
      c,
      [&](idx i) {
        const float4 v = *reinterpret_cast<const float4*>(w + i);
        s += fabsf(v.x) + fabsf(v.y) + (fabsf(v.z) + fabsf(v.w));
      },
      [&](idx i) { s += fabsf(w[i]); });
  const double total = block_sum_double(static_cast<double>(s), shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kThreads)
    matrix_scales_kernel(const ParamPlan p, const double* sums, float* scales) {
  __shared__ double shared[32];
  const MatrixChunks m = p.matrices[blockIdx.x];
  double s = 0;
  for (int i = static_cast<int>(threadIdx.x); i < m.count; i += kThreads) s += sums[m.first + i];
  s = block_sum_double(s, shared);
  const float mean = static_cast<float>(s / m.elements);
  if (threadIdx.x == 0) scales[blockIdx.x] = mean < 1e-5F ? 1e-5F : mean;
}

__device__ __forceinline__ int weight_code(float v) {
  return (v > 0.5F ? 1 : 0) - (v < -0.5F ? 1 : 0);  // halves to even: a half goes to zero
}

__global__ void __launch_bounds__(kThreads)
    codes_kernel(const ParamPlan p, const float* w, const float* scales, std::int8_t* codes) {
  const Chunk c = p.chunks[blockIdx.x];
  if (c.matrix < 0) return;
  const float inverse = 1.0F / scales[c.matrix];
  for_chunk(
      c,
      [&](idx i) {
        const float4 v = *reinterpret_cast<const float4*>(w + i);
        *reinterpret_cast<char4*>(codes + i) =
            make_char4(static_cast<signed char>(weight_code(v.x * inverse)),
                       static_cast<signed char>(weight_code(v.y * inverse)),
                       static_cast<signed char>(weight_code(v.z * inverse)),
                       static_cast<signed char>(weight_code(v.w * inverse)));
      },
      [&](idx i) { codes[i] = static_cast<std::int8_t>(weight_code(w[i] * inverse)); });
}

__global__ void __launch_bounds__(kThreads)
    square_sums_kernel(const ParamPlan p, const float* g, double* sums) {
  __shared__ double shared[32];
  const Chunk c = p.chunks[blockIdx.x];
  float s = 0;
  for_chunk(
      c,
      [&](idx i) {
        const float4 v = *reinterpret_cast<const float4*>(g + i);
        s += v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w);
      },
      [&](idx i) { s += g[i] * g[i]; });
  const double total = block_sum_double(static_cast<double>(s), shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

__global__ void __launch_bounds__(1024) norm_kernel(int chunks, const double* sums, double* norm) {
  __shared__ double shared[32];
  double s = 0;
  for (int i = static_cast<int>(threadIdx.x); i < chunks; i += 1024) s += sums[i];
  s = block_sum_double(s, shared);
  if (threadIdx.x == 0) *norm = sqrt(s);
}

__device__ __forceinline__ float adamw_element(const AdamWStep& s, float keep, float grad_scale,
                                               float gradient, float w, float& m, float& v) {
  const float g = gradient * grad_scale;
  m = s.beta1 * m + s.one_less_beta1 * g;
  v = s.beta2 * v + s.one_less_beta2 * g * g;
  const float denominator = sqrtf(v) / s.root_correction + s.eps;
  return w * keep - s.step_size * (m / denominator);
}

__device__ __forceinline__ float4 load_four(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float4 load_four(const bf16* p) {
  const uint2 raw = *reinterpret_cast<const uint2*>(p);
  return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000U),
                     __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000U));
}
__device__ __forceinline__ void store_four(float* p, const float4& x) {
  *reinterpret_cast<float4*>(p) = x;
}
__device__ __forceinline__ void store_four(bf16* p, const float4& x) {
  const __nv_bfloat162 pair[2] = {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
  *reinterpret_cast<uint2*>(p) = *reinterpret_cast<const uint2*>(pair);
}

template <class M>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const ParamPlan p, const AdamWStep* step, const double* norm, const float* g,
                 float* w, M* m, M* v, double* sums) {
  __shared__ double shared[32];
  const Chunk c = p.chunks[blockIdx.x];
  const AdamWStep s = *step;
  const double length = *norm;
  const bool finite = isfinite(length);
  const double clip = static_cast<double>(s.clip);
  const float grad_scale = clip > 0 && length > clip ? static_cast<float>(clip / length) : 1.0F;
  const float keep = c.decay != 0 ? s.keep_decayed : s.keep;
  float total = 0;
  for_chunk(
      c,
      [&](idx i) {
        float4 wi = *reinterpret_cast<const float4*>(w + i);
        if (finite) {
          const float4 gi = *reinterpret_cast<const float4*>(g + i);
          float4 mi = load_four(m + i);
          float4 vi = load_four(v + i);
          wi.x = adamw_element(s, keep, grad_scale, gi.x, wi.x, mi.x, vi.x);
          wi.y = adamw_element(s, keep, grad_scale, gi.y, wi.y, mi.y, vi.y);
          wi.z = adamw_element(s, keep, grad_scale, gi.z, wi.z, mi.z, vi.z);
          wi.w = adamw_element(s, keep, grad_scale, gi.w, wi.w, mi.w, vi.w);
          *reinterpret_cast<float4*>(w + i) = wi;
          store_four(m + i, mi);
          store_four(v + i, vi);
        }
        total += fabsf(wi.x) + fabsf(wi.y) + (fabsf(wi.z) + fabsf(wi.w));
      },
      [&](idx i) {
        if (finite) {
          float mi = to_float(m[i]), vi = to_float(v[i]);
          w[i] = adamw_element(s, keep, grad_scale, g[i], w[i], mi, vi);
          m[i] = from_float<M>(mi);
          v[i] = from_float<M>(vi);
        }
        total += fabsf(w[i]);
      });
  if (c.matrix < 0) return;
  const double sum = block_sum_double(static_cast<double>(total), shared);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Softmax over layers of one channel a thread: largest raw value and the sum of exponentials.
__device__ double2 softmax_of(int layers, int width, const float* raw, int c) {
  double top = static_cast<double>(raw[c]);
  for (int l = 1; l < layers; ++l) top = fmax(top, static_cast<double>(raw[l * width + c]));
  double sum = 0;
  for (int l = 0; l < layers; ++l) sum += exp(static_cast<double>(raw[l * width + c]) - top);
  return make_double2(top, sum);
}

__global__ void lower_bounds_kernel(int layers, int width, const float* raw, float* bound) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= width) return;
  const double2 s = softmax_of(layers, width, raw, c);
  double total = 0;
  for (int l = 0; l < layers; ++l) {
    if (l > 0) total += exp(static_cast<double>(raw[l * width + c]) - s.x) / s.y;
    bound[l * width + c] = static_cast<float>(total);
  }
}

__global__ void lower_bounds_backward_kernel(int layers, int width, const float* raw,
                                             const float* dbound, float* draw, bool accumulate) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= width) return;
  const double2 s = softmax_of(layers, width, raw, c);
  double tail = 0, dot = 0;
  for (int l = layers - 1; l > 0; --l) {
    tail += static_cast<double>(dbound[l * width + c]);
    dot += tail * (exp(static_cast<double>(raw[l * width + c]) - s.x) / s.y);
  }
  tail = 0;
  for (int l = layers - 1; l >= 0; --l) {
    if (l > 0) tail += static_cast<double>(dbound[l * width + c]);
    const double share = exp(static_cast<double>(raw[l * width + c]) - s.x) / s.y;
    const float d = static_cast<float>(share * ((l > 0 ? tail : 0.0) - dot));
    draw[l * width + c] = (accumulate ? draw[l * width + c] : 0.0F) + d;
  }
}

unsigned count_of(const ParamPlan& p) {
  return static_cast<unsigned>(p.chunk_count);
}

}  // namespace

// ---- launchers ----

void magnitude_sums(const Launch& l, const ParamPlan& p, const float* w, double* sums) {
  magnitude_sums_kernel<<<count_of(p), kThreads, 0, l.stream>>>(p, w, sums);
  check(cudaGetLastError(), "sums of magnitudes");
}

void ternarize(const Launch& l, const ParamPlan& p, const float* w, const double* sums,
               float* scales, std::int8_t* codes) {
  matrix_scales_kernel<<<static_cast<unsigned>(p.matrix_count), kThreads, 0, l.stream>>>(p, sums,
                                                                                         scales);
  check(cudaGetLastError(), "scales of the weights");
  codes_kernel<<<count_of(p), kThreads, 0, l.stream>>>(p, w, scales, codes);
  check(cudaGetLastError(), "codes of the weights");
}

void lower_bounds(const Launch& l, idx layers, idx width, const float* raw, float* bound) {
  lower_bounds_kernel<<<static_cast<unsigned>((width + 63) / 64), 64, 0, l.stream>>>(
      static_cast<int>(layers), static_cast<int>(width), raw, bound);
  check(cudaGetLastError(), "lower bounds");
}

void lower_bounds_backward(const Launch& l, idx layers, idx width, const float* raw,
                           const float* dbound, float* draw, bool accumulate) {
  lower_bounds_backward_kernel<<<static_cast<unsigned>((width + 63) / 64), 64, 0, l.stream>>>(
      static_cast<int>(layers), static_cast<int>(width), raw, dbound, draw, accumulate);
  check(cudaGetLastError(), "backward of the lower bounds");
}

void gradient_norm(const Launch& l, const ParamPlan& p, const float* g, double* sums,
                   double* norm) {
  square_sums_kernel<<<count_of(p), kThreads, 0, l.stream>>>(p, g, sums);
  check(cudaGetLastError(), "squares of the gradients");
  norm_kernel<<<1, 1024, 0, l.stream>>>(p.chunk_count, sums, norm);
  check(cudaGetLastError(), "norm of the gradients");
}

template <class M>
void adamw(const Launch& l, const ParamPlan& p, const AdamWStep* step, const double* norm,
           const float* g, float* w, M* m, M* v, double* sums) {
  adamw_kernel<M><<<count_of(p), kThreads, 0, l.stream>>>(p, step, norm, g, w, m, v, sums);
  check(cudaGetLastError(), "AdamW");
}
template void adamw(const Launch&, const ParamPlan&, const AdamWStep*, const double*, const float*,
                    float*, float*, float*, double*);
template void adamw(const Launch&, const ParamPlan&, const AdamWStep*, const double*, const float*,
                    float*, bf16*, bf16*, double*);

}  // namespace mmfree::cuda
