#pragma once
// Device helpers shared by the kernels: vectors of 8 elements in float32, bf16 or int8, sums over a
// block in a fixed order, and elementary functions.
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

using bf16 = __nv_bfloat16;

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

// V neighbouring elements, V = 8 (16-byte accesses; 8 for codes) or 1.
template <int V>
__device__ __forceinline__ void load(const float* p, float (&x)[V]) {
  if constexpr (V == 8) {
    const float4 a = reinterpret_cast<const float4*>(p)[0];
    const float4 b = reinterpret_cast<const float4*>(p)[1];
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = p[i];
  }
}
template <int V>
__device__ __forceinline__ void load(const bf16* p, float (&x)[V]) {
  if constexpr (V == 8) {
    const uint4 raw = *reinterpret_cast<const uint4*>(p);
    const std::uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(word[i] << 16);
      x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000U);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = to_float(p[i]);
  }
}
template <int V>
__device__ __forceinline__ void store(float* p, const float (&x)[V]) {
  if constexpr (V == 8) {
    reinterpret_cast<float4*>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    reinterpret_cast<float4*>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = x[i];
  }
}
template <int V>
__device__ __forceinline__ void store(bf16* p, const float (&x)[V]) {
  if constexpr (V == 8) {
    __nv_bfloat162 pair[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pair[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
    *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(pair);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = from_float<bf16>(x[i]);
  }
}
// The same V elements as they lie in memory: what a kernel asks for one row ahead takes half the
// registers in bf16.
template <class T, int V>
struct Raw {
  T value;  // V = 1
  __device__ __forceinline__ void get(const T* p) { value = *p; }
  __device__ __forceinline__ void put(T* p) const { *p = value; }
  __device__ __forceinline__ void pack(const float (&x)[V]) { value = from_float<T>(x[0]); }
  __device__ __forceinline__ void unpack(float (&x)[V]) const { x[0] = to_float(value); }
};
template <>
struct Raw<float, 8> {
  float4 a, b;
  __device__ __forceinline__ void get(const float* p) {
    a = reinterpret_cast<const float4*>(p)[0];
    b = reinterpret_cast<const float4*>(p)[1];
  }
  __device__ __forceinline__ void put(float* p) const {
    reinterpret_cast<float4*>(p)[0] = a;
    reinterpret_cast<float4*>(p)[1] = b;
  }
  __device__ __forceinline__ void pack(const float (&x)[8]) {
    a = make_float4(x[0], x[1], x[2], x[3]);
    b = make_float4(x[4], x[5], x[6], x[7]);
  }
  __device__ __forceinline__ void unpack(float (&x)[8]) const {
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
  }
};
template <>
struct Raw<bf16, 8> {
  uint4 a;
  __device__ __forceinline__ void get(const bf16* p) { a = *reinterpret_cast<const uint4*>(p); }
  __device__ __forceinline__ void put(bf16* p) const { *reinterpret_cast<uint4*>(p) = a; }
  __device__ __forceinline__ void pack(const float (&x)[8]) {
    store<8>(reinterpret_cast<bf16*>(&a), x);
  }
  __device__ __forceinline__ void unpack(float (&x)[8]) const {
    const std::uint32_t word[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = __uint_as_float(word[i] << 16);
      x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000U);
    }
  }
};
template <>
struct Raw<bf16, 2> {
  std::uint32_t a;
  __device__ __forceinline__ void get(const bf16* p) {
    a = *reinterpret_cast<const std::uint32_t*>(p);
  }
  __device__ __forceinline__ void unpack(float (&x)[2]) const {
    x[0] = __uint_as_float(a << 16);
    x[1] = __uint_as_float(a & 0xffff0000U);
  }
};
template <>
struct Raw<float, 2> {
  float2 a;
  __device__ __forceinline__ void get(const float* p) { a = *reinterpret_cast<const float2*>(p); }
  __device__ __forceinline__ void unpack(float (&x)[2]) const { x[0] = a.x, x[1] = a.y; }
};

// The code of v * scale, |v * scale| <= 127 and a rounding error: rounded to an integer, halves
// away from zero. The result is the code plus 1.5 * 2^23, so its lowest byte is the code as int8;
// that takes additions alone, where conversions run at an eighth of their rate. The intrinsics keep
// the compiler from fusing, so that every kernel finds the same codes.
inline constexpr float kCodeShift = 12582912.0F;
__device__ __forceinline__ float shifted_code(float value, float scale) {
  const float v = __fmul_rn(value, scale);
  const float even = __fadd_rn(v, kCodeShift);  // halves to even
  const float half = copysignf(0.5F, v);
  const bool short_of_half = __fsub_rn(v, __fsub_rn(even, kCodeShift)) == half;
  return short_of_half ? __fadd_rn(even, 2.0F * half) : even;
}
__device__ __forceinline__ float code_value(float shifted) {
  return __fsub_rn(shifted, kCodeShift);
}
template <int V>
__device__ __forceinline__ void store_codes(std::int8_t* p, const float (&shifted)[V]) {
  if constexpr (V == 8) {
    std::uint32_t word[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* s = shifted + 4 * i;
      const std::uint32_t low = __byte_perm(__float_as_uint(s[0]), __float_as_uint(s[1]), 0x0040);
      const std::uint32_t high = __byte_perm(__float_as_uint(s[2]), __float_as_uint(s[3]), 0x0040);
      word[i] = __byte_perm(low, high, 0x5410);
    }
    *reinterpret_cast<uint2*>(p) = make_uint2(word[0], word[1]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      p[i] = static_cast<std::int8_t>(__float_as_uint(shifted[i]) & 0xffU);
  }
}
template <int V>
__device__ __forceinline__ unsigned count_saturated(const float (&shifted)[V]) {
  unsigned n = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) n += fabsf(code_value(shifted[i])) == 127.0F ? 1U : 0U;
  return n;
}

// Rows of gradients in e4m3. A row of zeros is scaled by a finite number too.
inline constexpr float kLeastLargest = 1e-30F;
template <int V>
__device__ __forceinline__ void include_magnitudes(const float (&x)[V], float& largest) {
#pragma unroll
  for (int i = 0; i < V; ++i) largest = fmaxf(largest, fabsf(x[i]));
}
// x * scale; what is not finite becomes NaN.
template <int V>
__device__ __forceinline__ void store_e4m3(std::uint8_t* p, const float (&x)[V], float scale) {
  if constexpr (V == 8) {
    std::uint32_t word[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* v = x + 4 * i;
      const std::uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v[0] * scale, v[1] * scale),
                                                         __NV_SATFINITE, __NV_E4M3);
      const std::uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(v[2] * scale, v[3] * scale),
                                                          __NV_SATFINITE, __NV_E4M3);
      word[i] = low | high << 16;
    }
    *reinterpret_cast<uint2*>(p) = make_uint2(word[0], word[1]);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i)
      p[i] = __nv_cvt_float_to_fp8(x[i] * scale, __NV_SATFINITE, __NV_E4M3);
  }
}

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0F, 1.0F + __expf(-x));
}
// d silu(x) / dx for s = sigmoid(x).
__device__ __forceinline__ float silu_slope(float x, float s) {
  return s * (1.0F + x * (1.0F - s));
}

// Sums N values over the block: every thread gets the totals, added in a fixed order. `shared` has
// room for 32 N floats; the caller may call it again at once with another `shared`.
template <int N>
__device__ __forceinline__ void block_sum(float (&v)[N], float* shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warps = (static_cast<int>(blockDim.x) + 31) >> 5;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v[n] += __shfl_xor_sync(0xffffffffU, v[n], o);
    if (lane == 0) shared[n * 32 + warp] = v[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    v[n] = lane < warps ? shared[n * 32 + lane] : 0.0F;
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v[n] += __shfl_xor_sync(0xffffffffU, v[n], o);
  }
}

template <int N>
__device__ __forceinline__ void block_max(float (&v)[N], float* shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warps = (static_cast<int>(blockDim.x) + 31) >> 5;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v[n] = fmaxf(v[n], __shfl_xor_sync(0xffffffffU, v[n], o));
    if (lane == 0) shared[n * 32 + warp] = v[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    v[n] = lane < warps ? shared[n * 32 + lane] : 0.0F;
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v[n] = fmaxf(v[n], __shfl_xor_sync(0xffffffffU, v[n], o));
  }
}

// Sum of a double over the block in a fixed order; the result is for thread 0. `shared`: 32
// doubles.
__device__ __forceinline__ double block_sum_double(double v, double* shared) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warps = (static_cast<int>(blockDim.x) + 31) >> 5;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffU, v, o);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = lane < warps ? shared[lane] : 0.0;
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffU, v, o);
  return v;
}

}  // namespace mmfree::cuda
