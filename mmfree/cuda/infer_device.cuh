#pragma once
// What the inference kernels share: products of tiles (tile_layout.h) with int8 codes, and the
// canonical sums, norms and quantisation of a row by one block. Every float operation is the CPU's
// (core/fastmath.h, ops/*_kernels.h) in the CPU's order, compiled without contraction, so results
// are the CPU's bits.
#include <cuda_runtime.h>

#include <cstdint>

#include "mmfree/core/fastmath.h"
#include "mmfree/core/types.h"
#include "mmfree/cuda/tile_layout.h"
#include "mmfree/ops/rmsnorm_quant/rmsnorm_quant.h"

namespace mmfree::cuda {

// ---- products ----

// d += a * b: a 16 x 32 unsigned (rows of weights), b 32 x 8 signed (columns of codes).
__device__ __forceinline__ void multiply_tile(int (&d)[4], unsigned a0, unsigned a1, unsigned a2,
                                              unsigned a3, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, "
      "%9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  const auto quarter = [](int& x, int& y, unsigned a, unsigned b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(x), "+r"(y)
                 : "r"(a), "r"(b));
  };
  quarter(d[0], d[1], a0, b0);
  quarter(d[2], d[3], a1, b0);
  quarter(d[0], d[1], a2, b1);
  quarter(d[2], d[3], a3, b1);
#endif
}

// Weights are read once: past the first-level cache, where they would push out what is reused.
__device__ __forceinline__ uint4 load_weights(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 16 bytes to shared memory; before sm_80 at once. `there` false: zeros.
__device__ __forceinline__ void copy_16(void* to, const void* from, bool there = true) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(to) = there ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
#endif
}
// The same for weights that are read once a token: they are the first to leave the cache again.
__device__ __forceinline__ std::uint64_t evict_first() {
  std::uint64_t policy = 0;
#if __CUDA_ARCH__ >= 800
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
  return policy;
}
__device__ __forceinline__ void copy_weights(void* to, const void* from, std::uint64_t policy) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(to))),
               "l"(from), "l"(policy)
               : "memory");
#else
  static_cast<void>(policy);
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void end_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most N groups of this thread's copies are under way.
template <int N>
__device__ __forceinline__ void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Sums of the four digit planes, each scaled by 4^p, so that masking replaces shifting.
struct PlaneSums {
  int of[4][4];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int p = 0; p < 4; ++p)
#pragma unroll
      for (int i = 0; i < 4; ++i) of[p][i] = 0;
  }
  // One tile with this lane's 32 codes of column lane / 4.
  __device__ __forceinline__ void add(const uint4& w, const uint4& codes0, const uint4& codes1) {
    const unsigned b[8] = {codes0.x, codes0.y, codes0.z, codes0.w,
                           codes1.x, codes1.y, codes1.z, codes1.w};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const unsigned mask = 0x03030303U << (2 * p);
      multiply_tile(of[p], w.x & mask, w.y & mask, w.z & mask, w.w & mask, b[2 * p], b[2 * p + 1]);
    }
  }
  // The sum of element i of the accumulators; the shifts are exact.
  __device__ __forceinline__ int total(int i) const {
    return of[0][i] + (of[1][i] >> 2) + (of[2][i] >> 4) + (of[3][i] >> 6);
  }
};

// ---- a row in a block of kRowThreads threads ----
// Thread t holds the elements k = t, t + 512, ...: a thread is a lane of the canonical sum and a
// warp one of its groups (core/fastmath.h).

inline constexpr int kRowThreads = 512;
inline constexpr int kRowWarps = kRowThreads / 32;
inline constexpr int kRowLanes = static_cast<int>(kSumLanes) / kRowThreads;  // of a thread
inline constexpr int kSumGroups = static_cast<int>(kSumLanes / kSumGroup);
static_assert(kSumGroup == 32 && kSumLanes % kRowThreads == 0);

template <int E>
using RowItems = float[E];

__device__ __forceinline__ int row_place(int j) {
  return j * kRowThreads + static_cast<int>(threadIdx.x);
}

// Elements past the end are 0.
template <int E>
__device__ __forceinline__ void load_row(const float* v, int width, RowItems<E>& x) {
#pragma unroll
  for (int j = 0; j < E; ++j) x[j] = row_place(j) < width ? v[row_place(j)] : 0.0F;
}

// The tree of core/fastmath.h's fold() with every index known, so that it stays in registers.
template <int kHalf, int N>
__device__ __forceinline__ void fold_registers(float (&a)[N]) {
#pragma unroll
  for (int l = 0; l < kHalf; ++l) a[l] += a[l + kHalf];
  if constexpr (kHalf > 1) fold_registers<kHalf / 2>(a);
}

// Canonical sums of N terms at once; v: the sums of the thread's own lanes. parts: (N, 16) of
// shared memory that nobody reads any more, 16-byte aligned.
template <int N>
__device__ __forceinline__ void block_sums_canonical(float (&v)[N][kRowLanes], float* parts,
                                                     float (&totals)[N]) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int u = 0; u < kRowLanes; ++u) v[n][u] += __shfl_xor_sync(0xffffffffU, v[n][u], o);
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int u = 0; u < kRowLanes; ++u)
        parts[n * kSumGroups + u * kRowWarps + static_cast<int>(threadIdx.x) / 32] = v[n][u];
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    float top[kSumGroups];
#pragma unroll
    for (int q = 0; q < kSumGroups / 4; ++q) {
      const float4 f = reinterpret_cast<const float4*>(parts + n * kSumGroups)[q];
      top[4 * q] = f.x;
      top[4 * q + 1] = f.y;
      top[4 * q + 2] = f.z;
      top[4 * q + 3] = f.w;
    }
    fold_registers<kSumGroups / 2>(top);
    totals[n] = top[0];
  }
}

__device__ __forceinline__ float reciprocal_rms_device(float sum_of_squares, int n, float eps) {
  return __frcp_rn(__fsqrt_rn(sum_of_squares / static_cast<float>(n) + eps));
}

__device__ __forceinline__ unsigned warp_max(unsigned v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffU, v);
#else
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffU, v, o));
  return v;
#endif
}
__device__ __forceinline__ int warp_sum(int v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_add_sync(0xffffffffU, v);
#else
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffU, v, o);
  return v;
#endif
}

// As quantise() of ops/rmsnorm_quant: halves away from zero.
__device__ __forceinline__ int code_of(float v) {
  const unsigned sign = __float_as_uint(v) & 0x80000000U;
  return static_cast<int>(v + __uint_as_float(0x3effffffU | sign));
}

// Shared memory for the reductions of one row with P projections.
template <int P>
struct RowScratch {
  alignas(16) float parts[3 * kSumGroups];
  unsigned maxima[P * kRowWarps];
  int code_sums[P * kRowWarps];
};

// Sums of squares of a thread's lanes.
template <int E>
__device__ __forceinline__ void square_sums(const RowItems<E>& x, float (&sums)[kRowLanes]) {
  static_assert(E % kRowLanes == 0);
#pragma unroll
  for (int u = 0; u < kRowLanes; ++u) sums[u] = 0.0F;
#pragma unroll
  for (int j = 0; j < E; ++j) sums[j % kRowLanes] += x[j] * x[j];
}

// ops/rmsnorm_quant for one row that the block holds: x is the row (0 past the end), outer and gain
// its gains. Codes go to codes[p], with zeros up to the next multiple of 128. largest[p] / 127 is
// their scale; it is NaN if the row is not finite. Ends with a barrier, behind which code_sum() has
// the sums of the codes.
template <int P, bool kOuter, int E, int Q>
__device__ __forceinline__ void quantize_row(RowItems<E>& x, int width, const RowItems<E>& outer,
                                             const RowItems<E> (&gain)[P], float outer_eps,
                                             RowScratch<Q>& s, std::int8_t* const (&codes)[P],
                                             float (&largest_of)[P]) {
  static_assert(P <= Q);
  float squares;
  if constexpr (kOuter) {
    float lanes[2][kRowLanes], sums[2];
    square_sums<E>(x, lanes[0]);
    RowItems<E> v;
#pragma unroll
    for (int j = 0; j < E; ++j) v[j] = x[j] * outer[j];
    square_sums<E>(v, lanes[1]);
    block_sums_canonical(lanes, s.parts, sums);
    const float rstd0 = reciprocal_rms_device(sums[0], width, outer_eps);
    squares = sums[1] * rstd0 * rstd0;
#pragma unroll
    for (int j = 0; j < E; ++j) x[j] = x[j] * rstd0 * outer[j];
  } else {
    float lanes[1][kRowLanes], sums[1];
    square_sums<E>(x, lanes[0]);
    block_sums_canonical(lanes, s.parts, sums);
    squares = sums[0];
  }
  const float rstd1 = reciprocal_rms_device(squares, width, kInnerEps);
  const float poison = squares - squares;  // NaN if the row is not finite
  unsigned top[P];
#pragma unroll
  for (int p = 0; p < P; ++p) top[p] = 0;
#pragma unroll
  for (int j = 0; j < E; ++j) {
    x[j] = x[j] * rstd1;
#pragma unroll
    for (int p = 0; p < P; ++p)
      top[p] = max(top[p], __float_as_uint(x[j] * gain[p][j]) & 0x7fffffffU);
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    top[p] = warp_max(top[p]);
    if (lane == 0) s.maxima[p * kRowWarps + warp] = top[p];
  }
  __syncthreads();
  const int padded = (width + static_cast<int>(kTileInputs) - 1) / static_cast<int>(kTileInputs) *
                     static_cast<int>(kTileInputs);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const float largest = __uint_as_float(warp_max(s.maxima[p * kRowWarps + lane % kRowWarps]));
    const float bounded = largest > 1e-5F ? largest : 1e-5F;
    const float inverse = 127.0F / bounded;
    int sum = 0;
#pragma unroll
    for (int j = 0; j < E; ++j) {
      const int code = code_of(x[j] * gain[p][j] * inverse);
      if (row_place(j) < padded) codes[p][row_place(j)] = static_cast<std::int8_t>(code);
      sum += code;
    }
    sum = warp_sum(sum);
    if (lane == 0) s.code_sums[p * kRowWarps + warp] = sum;
    largest_of[p] = bounded + poison;
  }
  __syncthreads();
}

// The sum of projection p's codes. Whole warps call it.
template <int Q>
__device__ __forceinline__ int code_sum(const RowScratch<Q>& s, int p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return warp_sum(lane < kRowWarps ? s.code_sums[p * kRowWarps + lane] : 0);
}

// float(sum of codes times t) * x_scale * w_scale from the sum over t + 1.
__device__ __forceinline__ float scaled_product(int sum, int code_sum, float x_scale,
                                                float w_scale) {
  return static_cast<float>(sum - code_sum) * x_scale * w_scale;
}

// ops/mlgru, one step of one channel; `bound` 0: none.
__device__ __forceinline__ float forget_gate(float f_pre, float bound) {
  return bound + (1.0F - bound) * sigmoid_f32(f_pre);
}
__device__ __forceinline__ float gated_input(float i_pre, float f) {
  return i_pre * sigmoid_f32(i_pre) * (1.0F - f);
}
__device__ __forceinline__ float silu(float x) {
  return x * sigmoid_f32(x);
}

// ---- the most likely token ----

// Largest first; equal values by lower id. Values that are not finite are larger than all.
__device__ __forceinline__ unsigned long long rank_key(float v, int id) {
  const int bits = __float_as_int(v);
  unsigned ordered = static_cast<unsigned>(bits ^ ((bits >> 31) & 0x7fffffff)) ^ 0x80000000U;
  if ((static_cast<unsigned>(bits) & 0x7f800000U) == 0x7f800000U) ordered = 0xffffffffU;
  return static_cast<unsigned long long>(ordered) << 32 | (0xffffffffU - static_cast<unsigned>(id));
}
__device__ __forceinline__ unsigned long long warp_max64(unsigned long long v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    const unsigned long long other = __shfl_xor_sync(0xffffffffU, v, o);
    v = other > v ? other : v;
  }
  return v;
}
__device__ __forceinline__ std::int32_t chosen_id(unsigned long long key) {
  const bool finite = static_cast<unsigned>(key >> 32) != 0xffffffffU;
  return finite ? static_cast<std::int32_t>(0xffffffffU - static_cast<unsigned>(key)) : -1;
}

}  // namespace mmfree::cuda
