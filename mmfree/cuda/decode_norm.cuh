#pragma once
// The norm warps of decode_cluster.cu: from the exchange between blocks to codes for the product
// warps. Every block does the norms of whole rows for itself. All of this lies between an output
// of one block and the next outputs of all, so what counts is how many instructions follow one
// another, and how many warps of a scheduler do the same ones.
#include "mmfree/cuda/decode_device.cuh"
#include "mmfree/cuda/decode_exchange.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

namespace mmfree::cuda {

// Thread t of the norm warps holds the elements 256 i + t: two lanes of the canonical sum.
template <int E>
using NormItems = float[kNormLanes * E];

__device__ __forceinline__ int norm_thread() {
  return static_cast<int>(threadIdx.x) - kProductThreads;
}
__device__ __forceinline__ int norm_place(int i) {
  return i * kNormThreads + norm_thread();
}
// Elements past the end are 0.
template <int N>
__device__ __forceinline__ void load_elements(const float* from, int width, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = norm_place(i) < width ? from[norm_place(i)] : 0.0F;
}

// A width as a divisor, with its reciprocal.
struct Divisor {
  float n, reciprocal;
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

// Canonical sums of two terms, of which v[term][lane of the thread] are this thread's. parts: 32
// floats that nobody reads any more.
__device__ __forceinline__ float2 norm_sums(float (&v)[2][kNormLanes], float* parts) {
  static_assert(kNormLanes == 2 && kNormWarps * kNormLanes == kSumGroups);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool second_term = lane & 16, second_lane = lane & 8;
  // Half of the lanes go on with one term, half of these with one of the thread's two lanes: the
  // tree of core/fastmath.h for four sums at once.
  float a[2];
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const float mine = second_term ? v[1][u] : v[0][u], other = second_term ? v[0][u] : v[1][u];
    a[u] = mine + __shfl_xor_sync(0xffffffffU, other, 16);
  }
  const float mine = second_lane ? a[1] : a[0], other = second_lane ? a[0] : a[1];
  float sum = mine + __shfl_xor_sync(0xffffffffU, other, 8);
#pragma unroll
  for (int o = 4; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffU, sum, o);
  if (lane % 8 == 0)
    parts[lane / 16 * kSumGroups + lane / 8 % 2 * kNormWarps + norm_thread() / 32] = sum;
  sync_warps<kNormThreads>(kNormBarrier);
  float top[kSumGroups];
#pragma unroll
  for (int q = 0; q < kSumGroups / 4; ++q) {
    const float4 f = reinterpret_cast<const float4*>(parts + lane / 16 * kSumGroups)[q];
    top[4 * q] = f.x;
    top[4 * q + 1] = f.y;
    top[4 * q + 2] = f.z;
    top[4 * q + 3] = f.w;
  }
  fold_registers<kSumGroups / 2>(top);
  const float swapped = __shfl_xor_sync(0xffffffffU, top[0], 16);
  return second_term ? make_float2(swapped, top[0]) : make_float2(top[0], swapped);
}

// x becomes x normalised, before a matrix's own gain. Returns 0, or NaN if the row is not finite.
template <bool kOuter, int N>
__device__ __forceinline__ float normalize(float (&x)[N], const float (&outer)[N],
                                           const Divisor& width, float eps, Common& common) {
  float of[2][kNormLanes] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) {
    of[0][i % 2] += x[i] * x[i];
    if constexpr (kOuter) {
      const float u = x[i] * outer[i];
      of[1][i % 2] += u * u;
    }
  }
  const float2 sums = norm_sums(of, common.parts);
  float squares = sums.x;
  if constexpr (kOuter) {
    const float rstd = reciprocal_rms_of(sums.x, width, eps);
    squares = sums.y * rstd * rstd;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = x[i] * rstd * outer[i];
  }
  const float rstd = reciprocal_rms_of(squares, width, kInnerEps);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] *= rstd;
  return squares - squares;
}

// The code of v, |v| < 128, and 1.5 * 2^23: the lowest byte is the code. As code_of(), without a
// conversion, which runs at an eighth of the rate.
__device__ __forceinline__ float shifted_code_of(float v) {
  const float magnitude = __fadd_rz(fabsf(v) + __uint_as_float(0x3effffffU), 8388608.0F) - 8388608.0F;
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

// Codes of P matrices of the normalised x, rows of codes `stride` apart, with their scales.
template <int P, int N>
__device__ __forceinline__ void quantize(const float (&x)[N], const float (&gain)[3][N],
                                         float poison, int padded, std::int8_t* codes, int stride,
                                         Common& common) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = norm_thread() / 32;
  float y[P][N];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    unsigned top = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      y[p][i] = x[i] * gain[p][i];
      top = max(top, __float_as_uint(y[p][i]) & 0x7fffffffU);
    }
    top = warp_max(top);
    if (lane == 0) common.maxima[p][warp] = top;
  }
  sync_warps<kNormThreads>(kNormBarrier);
  float bounded[P];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const auto* maxima = reinterpret_cast<const uint4*>(common.maxima[p]);
    const uint4 u = maxima[0], v = maxima[1];
    const unsigned top = max(max(max(u.x, u.y), max(u.z, u.w)), max(max(v.x, v.y), max(v.z, v.w)));
    const float largest = __uint_as_float(top);
    bounded[p] = largest > 1e-5F ? largest : 1e-5F;
    const float inverse = code_factor(bounded[p]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const unsigned code = __float_as_uint(shifted_code_of(y[p][i] * inverse));
      if (norm_place(i) < padded)
        codes[p * stride + norm_place(i)] = static_cast<std::int8_t>(code & 0xffU);
    }
  }
  if (warp == 0 && lane == 0)
#pragma unroll
    for (int p = 0; p < P; ++p) common.scale[p] = (bounded[p] + poison) / 127.0F;
}

// ED: elements of D and M a lane of the canonical sum has, EF: of F.
template <int ED, int EF>
__device__ __forceinline__ void run_norm_warp(const Decode& a, const Layout& at, Common& common,
                                              char* shared) {
  const DeviceWeights& w = a.w;
  const Course course(a);
  const Neighbours near(shared);
  const int warp = norm_thread() / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const auto divisor = [](int n) {
    return Divisor{static_cast<float>(n), 1.0F / static_cast<float>(n)};
  };
  const Divisor hidden = divisor(w.hidden), mixer = divisor(w.mixer), mlp = divisor(w.mlp);
  const char* const exchange = reinterpret_cast<const char*>(a.exchange);
  auto* const codes = reinterpret_cast<std::int8_t*>(shared + at.codes);
  const bool timed = norm_thread() == 0 && course.measured();
  std::int32_t token = a.first;
  unsigned received = 0;  // rows, from the other blocks
  for (int step = 0; step < a.steps; ++step) {
    if (step > 0 && step < a.given_count) token = a.given[step];
    for (int layer = 0; layer < course.layers; ++layer) {
      const std::uint32_t epoch = course.epoch(step, layer);
      const float* params = w.params + static_cast<idx>(layer) * at.params.floats;
#pragma unroll 1
      for (int stage = 0; stage < course.stages(step, layer); ++stage) {
        const bool embedded = stage == kMixerIn && layer == 0;
        const bool needed = common.groups[stage] > 0 || stage == kHead;
        const int width = stage == kMixerOut ? w.mixer : stage == kMlpOut ? w.mlp : w.hidden;
        const int padded = (width + 127) / 128 * 128;
        float* const row =
            reinterpret_cast<float*>(shared + at.rows) + (received & 1U) * at.row_floats;
        ClusterBarrier* const on_row = &common.on_row[received & 1U];
        const unsigned parity = received >> 1 & 1U;
        if (!embedded) {
          if (norm_thread() == 0)
            arrive_and_expect(on_row, row_bytes(width) * (stage == kMixerOut ? 2 : 1));
          ++received;
        }
        long long ready = 0;
        if (stage == kMlpOut) {
          NormItems<EF> gain[3], x;
          load_elements(params + at.params.down_norm, width, gain[0]);
          receive<kTurns<EF>>(near, warp, exchange + at.z, width, epoch, row, on_row);
          wait(on_row, parity);
          if (!needed) continue;
          if (timed) ready = clock64();
          load_elements(row, width, x);
          const float poison = normalize<false>(x, x, mlp, 0.0F, common);
          quantize<1>(x, gain, poison, padded, codes, 0, common);
        } else {
          NormItems<ED> gain[3], outer, x;
          const float* const outer_from = stage == kMixerIn    ? params + at.params.attn_norm
                                          : stage == kMixerOut ? params + at.params.g_norm
                                          : stage == kMlpIn    ? params + at.params.mlp_norm
                                                               : w.norm;
          const float* const gain_from = stage == kMixerIn    ? params + at.params.i_norm
                                         : stage == kMixerOut ? params + at.params.o_norm
                                         : stage == kMlpIn    ? params + at.params.gate_norm
                                                              : w.head_norm;
          load_elements(outer_from, width, outer);
          load_elements(gain_from, width, gain[0]);
          if (stage == kMixerIn) {
            load_elements(params + at.params.f_norm, width, gain[1]);
            load_elements(params + at.params.g_in_norm, width, gain[2]);
          }
          if (stage == kMixerOut) {
            receive_two<kTurns<ED>>(near, warp, a.exchange, width, epoch, row,
                                    row + at.row_floats / 2, on_row);
          } else if (!embedded) {
            receive<kTurns<ED>>(near, warp, exchange + (stage == kMlpIn ? at.x1 : at.x2), width,
                                stage == kMixerIn ? epoch - 1 : epoch, row, on_row);
          }
          if (!embedded) wait(on_row, parity);
          if (!needed) continue;
          if (timed) ready = clock64();
          if (embedded) {
#pragma unroll
            for (int i = 0; i < kNormLanes * ED; ++i)
              x[i] = norm_place(i) < width
                         ? embedding_value(w.embedding, w.embedding_bits,
                                           static_cast<idx>(token) * width + norm_place(i))
                         : 0.0F;
          } else {
            load_elements(row, width, x);
          }
          float poison;
          if (stage == kMixerOut) {
            NormItems<ED> h;
            load_elements(row + at.row_floats / 2, width, h);
            float of[2][kNormLanes] = {};
#pragma unroll
            for (int i = 0; i < kNormLanes * ED; ++i) of[0][i % 2] += x[i] * x[i];
            const float rstd =
                reciprocal_rms_of(norm_sums(of, common.first).x, mixer, w.eps);
#pragma unroll
            for (int i = 0; i < kNormLanes * ED; ++i) x[i] = x[i] * rstd * outer[i] * h[i];
            poison = normalize<false>(x, x, mixer, 0.0F, common);
          } else {
            poison = normalize<true>(x, outer, hidden, w.eps, common);
          }
          if (stage == kMixerIn) {
            quantize<3>(x, gain, poison, padded, codes, at.code_stride, common);
          } else {
            quantize<1>(x, gain, poison, padded, codes, 0, common);
          }
        }
        announce_codes();
        if (timed)
          common.clocks[2 * kDecodeStages + stage] +=
              static_cast<unsigned long long>(clock64() - ready);
      }
    }
    if (step < course.first_head) {
      // The next row comes from no other block, so only this says that the codes have been used.
      __syncthreads();
      continue;
    }
    if (warp == 0) {
      const std::uint32_t epoch = course.epoch(step, course.layers - 1);
      const auto* bests = reinterpret_cast<const Packet*>(exchange + at.best);
      unsigned long long key = 0;
      for (int b = lane; b < static_cast<int>(gridDim.x); b += 32) {
        uint4 v = look_at_packet(bests + b);
        while (v.w != epoch) v = look_at_packet(bests + b);
        const unsigned long long other = static_cast<unsigned long long>(v.x) << 32 | v.y;
        key = other > key ? other : key;
      }
      key = warp_max64(key);
      if (lane == 0) {
        common.token = chosen_id(key);
        if (blockIdx.x == 0) a.chosen[step + 1 - a.given_count] = common.token;
      }
    }
    __syncthreads();
    token = common.token;
    if (course.ends_with(token)) break;
  }
}

}  // namespace mmfree::cuda

#endif
