#pragma once
// Norm and quantisation of decode_cluster.cu: each warp makes the codes that it multiplies. All of
// this lies between an output of one block and the next outputs of all, so what counts is how many
// instructions follow one another.
#include "mmfree/cuda/decode_shared.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

// A width as a divisor, with its reciprocal.
struct Divisor {
  float n, reciprocal;
  __device__ __forceinline__ explicit Divisor(int width)
      : n(static_cast<float>(width)), reciprocal(1.0F / n) {}
};
// a / n rounded correctly, a >= 0, where the quotient and a * 2^-48 are normal numbers or a is 0; a
// quotient this side of that is too small to matter beside an eps.
__device__ __forceinline__ float divide(float a, const Divisor& d) {
  float q = a * d.reciprocal;
  q = __fmaf_rn(__fmaf_rn(-q, d.n, a), d.reciprocal, q);
  return __fmaf_rn(__fmaf_rn(-q, d.n, a), d.reciprocal, q);
}
// As reciprocal_rms_device() for a mean + eps above 2^-100, without branches; where that is not
// finite the result is NaN.
__device__ __forceinline__ float reciprocal_rms_of(float sum_of_squares, const Divisor& d,
                                                   float eps) {
  const float v = divide(sum_of_squares, d) + eps;
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  const float near = v * y;
  const float root = __fmaf_rn(__fmaf_rn(-near, near, v), 0.5F * y, near);
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(root));
  return __fmaf_rn(__fmaf_rn(-root, r, 1.0F), r, r);
}

// The code of v, |v| < 128, and 1.5 * 2^23: the lowest byte is the code. As code_of(), without a
// conversion, which runs at an eighth of the rate.
__device__ __forceinline__ float shifted_code_of(float v) {
  const float magnitude =
      __fadd_rz(fabsf(v) + __uint_as_float(0x3effffffU), 8388608.0F) - 8388608.0F;
  return copysignf(magnitude, v) + 12582912.0F;
}

// 127 / v rounded correctly, v >= 1e-5, with a branch for the largest v only.
__device__ __forceinline__ float code_factor(float v) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
  r = __fmaf_rn(__fmaf_rn(-v, r, 1.0F), r, r);
  float q = 127.0F * r;
  q = __fmaf_rn(__fmaf_rn(-v, q, 127.0F), r, q);
  if (v > 1e30F) q = 127.0F / v;
  return q;
}

// A stage's row and gains, for this warp.
struct NormInput {
  const float* row;  // in shared memory; zeros from its width to a multiple of 32
  const float (&sums)[2][kSumGroups];
  const float* outer;    // null: no outer norm
  const float* gain[3];  // by matrix
  const Divisor& width;
  float eps;  // of the outer norm
};

// Four neighbouring elements a lane and tile: 4 lane .. 4 lane + 3 of tile first + t, in the order
// of memory, as CodeBits::take() wants them.
template <int T>
using TileItems = float4[T];

template <int T>
__device__ __forceinline__ void load_tiles(const float* from, const Share& share,
                                           TileItems<T>& to) {
#pragma unroll
  for (int t = 0; t < T; ++t)
    to[t] =
        t < share.count
            ? __ldg(reinterpret_cast<const float4*>(from + (share.k + t) * 128) + threadIdx.x % 32)
            : make_float4(0, 0, 0, 0);
}
template <class F>
__device__ __forceinline__ void each(float4& v, const F& f) {
  f(v.x, 0), f(v.y, 1), f(v.z, 2), f(v.w, 3);
}
__device__ __forceinline__ float at(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Codes of this warp's tiles for P matrices, their rows `stride` bytes apart, to its own part of
// codes; and the scales of the whole rows, NaN if the row is not finite. All kThreads call it;
// wait_for_row comes when all is loaded that does not need the row. Gains are read up to the end of
// the last tile (device_weights.cpp leaves room).
template <int P, bool kOuter, int T, class Wait>
__device__ __forceinline__ void make_codes(const NormInput& in, const Share& share,
                                           std::int8_t* codes, int stride, Common& common,
                                           float (&scale)[3], const Wait& wait_for_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  TileItems<T> gain[P], outer, x;
#pragma unroll
  for (int p = 0; p < P; ++p) load_tiles<T>(in.gain[p], share, gain[p]);
  if constexpr (kOuter) load_tiles<T>(in.outer, share, outer);
  wait_for_row();
  const int end = (static_cast<int>(in.width.n) + 31) / 32 * 32;
#pragma unroll
  for (int t = 0; t < T; ++t) {
    const int k = (share.k + t) * 128 + lane * 4;
    x[t] = t < share.count && k < end ? *reinterpret_cast<const float4*>(in.row + k)
                                      : make_float4(0, 0, 0, 0);
  }
  // The tops of the canonical sums: half of the warp one term, half the other.
  float top[kSumGroups];
#pragma unroll
  for (int q = 0; q < kSumGroups / 4; ++q) {
    const float4 f = reinterpret_cast<const float4*>(in.sums[kOuter ? lane / 16 : 0])[q];
    top[4 * q] = f.x;
    top[4 * q + 1] = f.y;
    top[4 * q + 2] = f.z;
    top[4 * q + 3] = f.w;
  }
  fold_registers<kSumGroups / 2>(top);
  float squares = top[0];
  if constexpr (kOuter) {
    const float swapped = __shfl_xor_sync(0xffffffffU, top[0], 16);
    const float of_x = lane < 16 ? top[0] : swapped, of_u = lane < 16 ? swapped : top[0];
    const float rstd = reciprocal_rms_of(of_x, in.width, in.eps);
    squares = of_u * rstd * rstd;
#pragma unroll
    for (int t = 0; t < T; ++t)
      each(x[t], [&](float& v, int i) { v = v * rstd * at(outer[t], i); });
  }
  const float rstd = reciprocal_rms_of(squares, in.width, kInnerEps);
#pragma unroll
  for (int t = 0; t < T; ++t) each(x[t], [&](float& v, int) { v *= rstd; });
#pragma unroll
  for (int p = 0; p < P; ++p) {
    unsigned largest = 0;
#pragma unroll
    for (int t = 0; t < T; ++t)
      each(gain[p][t], [&](float& g, int i) {
        g *= at(x[t], i);
        largest = max(largest, __float_as_uint(g) & 0x7fffffffU);
      });
    largest = warp_max(largest);
    if (lane == 0) common.maxima[p][warp] = largest;
  }
  sync_warps();
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const auto* maxima = reinterpret_cast<const uint4*>(common.maxima[p]);
    const uint4 u = maxima[0], v = maxima[1];
    const float largest =
        __uint_as_float(max(max(max(u.x, u.y), max(u.z, u.w)), max(max(v.x, v.y), max(v.z, v.w))));
    const float bounded = largest > 1e-5F ? largest : 1e-5F;
    const float factor = code_factor(bounded);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      unsigned c[4];
      each(gain[p][t],
           [&](float& y, int i) { c[i] = __float_as_uint(shifted_code_of(y * factor)); });
      const unsigned word =
          __byte_perm(__byte_perm(c[0], c[1], 0x0040), __byte_perm(c[2], c[3], 0x0040), 0x5410);
      if (t < share.count)
        *reinterpret_cast<unsigned*>(codes + p * stride + (share.k + t) * 128 + lane * 4) = word;
    }
    scale[p] = (bounded + (squares - squares)) / 127.0F;
  }
  __syncwarp();
}

}  // namespace mmfree::cuda

#endif
