// Row kernels of batches and prefill: embedding, norms with quantisation, the recurrence, the most
// likely token. A block takes a row.
#include <type_traits>

#include "mmfree/cuda/embedding_rows.cuh"
#include "mmfree/cuda/hopper.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- norms and quantisation ----
// A block of 512 / V threads takes a row; thread t holds the elements 512 j + V t .. V t + V - 1,
// which are terms of V lanes of the canonical sum (core/fastmath.h), so vectors of V are loaded and
// 32 / V threads hold one of its groups. V is 4, or 1 where rows are few and their threads may be
// more.

constexpr int kNormSpan = 512;
static_assert(kNormSpan == kSumLanes && kSumGroup == 32);

template <int V, int J>
using RowParts = float[J][V];

template <int V, int J>
__device__ __forceinline__ int part_place(int j) {
  return j * kNormSpan + V * static_cast<int>(threadIdx.x);
}

// Elements past the end are 0. Vectors where the width allows; then all rows start at one.
template <int V, int J>
__device__ __forceinline__ void load_parts(const float* v, int width, RowParts<V, J>& x) {
#pragma unroll
  for (int j = 0; j < J; ++j) {
    const int k = part_place<V, J>(j);
    if (width % 4 == 0) {
      if constexpr (V == 4) {
        const float4 q = k < width ? *reinterpret_cast<const float4*>(v + k) : float4{0, 0, 0, 0};
        x[j][0] = q.x;
        x[j][1] = q.y;
        x[j][2] = q.z;
        x[j][3] = q.w;
      } else {
        x[j][0] = k < width ? v[k] : 0.0F;
      }
    } else {
#pragma unroll
      for (int c = 0; c < V; ++c) x[j][c] = k + c < width ? v[k + c] : 0.0F;
    }
  }
}

template <int V, int J>
__device__ __forceinline__ void sum_squares(const RowParts<V, J>& x, float (&sums)[V]) {
#pragma unroll
  for (int c = 0; c < V; ++c) {
    sums[c] = x[0][c] * x[0][c];
#pragma unroll
    for (int j = 1; j < J; ++j) sums[c] += x[j][c] * x[j][c];
  }
}

// The tree over one group, lanes 16, 8, 4, 2, 1 apart in turn: those V and more apart are in other
// threads. Threads share the work by the lanes they go on with.
__device__ __forceinline__ float fold_group(const float (&v)[4]) {
  constexpr unsigned kAll = 0xffffffffU;
  const bool upper = (threadIdx.x & 4) != 0, odd = (threadIdx.x & 2) != 0;
  float a = upper ? v[2] : v[0], b = upper ? v[3] : v[1];
  a += __shfl_xor_sync(kAll, upper ? v[0] : v[2], 4);
  b += __shfl_xor_sync(kAll, upper ? v[1] : v[3], 4);
  float s = odd ? b : a;
  s += __shfl_xor_sync(kAll, odd ? a : b, 2);
  s += __shfl_xor_sync(kAll, s, 1);
  s += __shfl_xor_sync(kAll, s, 4);
  s += __shfl_xor_sync(kAll, s, 2);
  return s;
}
__device__ __forceinline__ float fold_group(const float (&v)[1]) {
  float s = v[0];
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(0xffffffffU, s, o);
  return s;
}

// Canonical sums of S statistics; parts: (S, 16) of shared memory that nobody reads any more.
template <int S, int V>
__device__ __forceinline__ void row_sums(const float (&lanes)[S][V], float* parts,
                                         float (&totals)[S]) {
  constexpr int kTogether = kSumGroup / V;
#pragma unroll
  for (int n = 0; n < S; ++n) {
    const float group = fold_group(lanes[n]);
    if (threadIdx.x % kTogether == 0)
      parts[n * kSumGroups + static_cast<int>(threadIdx.x) / kTogether] = group;
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < S; ++n) {
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

enum class NormKind {
  plain,  // x is quantised
  outer,  // x goes through an outer norm first
  gated,  // norm(x) * silu(h) is quantised
  step,   // the same, and h is made here from one step of the recurrence
};

template <int V, int P, NormKind kKind, int J>
__global__ void __launch_bounds__(kNormSpan / V) norm_rows_kernel(const NormRows a) {
  constexpr int kNormWarps = kNormSpan / V / 32;
  __shared__ alignas(16) float parts[3 * kSumGroups];
  __shared__ unsigned maxima[P][kNormWarps];
  __shared__ int code_sums[P][kNormWarps];
  constexpr bool kKeep = P * J * V <= 64;  // gains stay in registers; else they are loaded twice
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const idx row = blockIdx.x;
  RowParts<V, J> x, outer, gain[kKeep ? P : 1];
  allow_next_kernel();
  if (kKind != NormKind::plain) load_parts<V, J>(a.outer, a.width, outer);
  if constexpr (kKeep)
#pragma unroll
    for (int p = 0; p < P; ++p) load_parts<V, J>(a.gain[p], a.width, gain[p]);
  wait_for_previous_kernel();  // what it needed before this are weights
  const idx from = a.row_of != nullptr ? a.row_of[row] : row;
  load_parts<V, J>(a.x + from * a.width, a.width, x);

  float squares;
  if constexpr (kKind == NormKind::gated || kKind == NormKind::step) {
    RowParts<V, J> h;
    if constexpr (kKind == NormKind::gated) {
      load_parts<V, J>(a.h + from * a.width, a.width, h);
    } else {
      RowParts<V, J> i, f, bound;
      float* const state = a.step.segments[from].state + a.step.layer_offset;
      load_parts<V, J>(a.step.i + from * a.width, a.width, i);
      load_parts<V, J>(a.step.f + from * a.width, a.width, f);
      load_parts<V, J>(a.step.bound, a.width, bound);
      load_parts<V, J>(state, a.width, h);
#pragma unroll
      for (int j = 0; j < J; ++j) {
#pragma unroll
        for (int c = 0; c < V; ++c) {
          const float gate = forget_gate(f[j][c], bound[j][c]);
          h[j][c] = gate * h[j][c] + gated_input(i[j][c], gate);
          const int k = part_place<V, J>(j) + c;
          if (k < a.width) state[k] = h[j][c];
        }
      }
    }
    float lanes[1][V], sums[1];
    sum_squares<V, J>(x, lanes[0]);
    row_sums(lanes, parts + 2 * kSumGroups, sums);
    const float rstd = reciprocal_rms_device(sums[0], a.width, a.outer_eps);
#pragma unroll
    for (int j = 0; j < J; ++j) {
#pragma unroll
      for (int c = 0; c < V; ++c) x[j][c] = x[j][c] * rstd * outer[j][c] * silu(h[j][c]);
    }
  }
  if constexpr (kKind == NormKind::outer) {
    float lanes[2][V], sums[2];
    RowParts<V, J> v;
#pragma unroll
    for (int j = 0; j < J; ++j)
#pragma unroll
      for (int c = 0; c < V; ++c) v[j][c] = x[j][c] * outer[j][c];
    sum_squares<V, J>(x, lanes[0]);
    sum_squares<V, J>(v, lanes[1]);
    row_sums(lanes, parts, sums);
    const float rstd = reciprocal_rms_device(sums[0], a.width, a.outer_eps);
    squares = sums[1] * rstd * rstd;
#pragma unroll
    for (int j = 0; j < J; ++j)
#pragma unroll
      for (int c = 0; c < V; ++c) x[j][c] = x[j][c] * rstd * outer[j][c];
  } else {
    float lanes[1][V], sums[1];
    sum_squares<V, J>(x, lanes[0]);
    row_sums(lanes, parts, sums);
    squares = sums[0];
  }

  const float rstd = reciprocal_rms_device(squares, a.width, kInnerEps);
  const float poison = squares - squares;  // NaN if the row is not finite
#pragma unroll
  for (int j = 0; j < J; ++j)
#pragma unroll
    for (int c = 0; c < V; ++c) x[j][c] = x[j][c] * rstd;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    if constexpr (!kKeep) load_parts<V, J>(a.gain[p], a.width, gain[0]);
    unsigned top = 0;
#pragma unroll
    for (int j = 0; j < J; ++j)
#pragma unroll
      for (int c = 0; c < V; ++c)
        top = max(top, __float_as_uint(x[j][c] * gain[kKeep ? p : 0][j][c]) & 0x7fffffffU);
    top = warp_max(top);
    if (lane == 0) maxima[p][warp] = top;
  }
  __syncthreads();
  const int padded = static_cast<int>(input_tiles(a.width) * kTileInputs);
  // Codes are stored V at a time, each 128 of them in the order of the product.
  using Stored = std::conditional_t<V == 4, std::uint32_t, std::uint8_t>;
  const int within = V * static_cast<int>(threadIdx.x) % 128;
  const int word = a.order == CodeOrder::hopper ? hopper_word(within / 4) : within / 4;
  const int place = V * static_cast<int>(threadIdx.x) / 128 * 128 + 4 * word + within % 4;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    unsigned top = 0;
#pragma unroll
    for (int w = 0; w < kNormWarps; ++w) top = max(top, maxima[p][w]);
    const float largest = __uint_as_float(top);
    const float bounded = largest > 1e-5F ? largest : 1e-5F;
    const float inverse = 127.0F / bounded;
    if constexpr (!kKeep) load_parts<V, J>(a.gain[p], a.width, gain[0]);
    std::int8_t* const to = a.codes[p] + row * a.code_stride + place;
    int sum = 0;
#pragma unroll
    for (int j = 0; j < J; ++j) {
      unsigned word_of_codes = 0;
#pragma unroll
      for (int c = 0; c < V; ++c) {
        const int code = code_of(x[j][c] * gain[kKeep ? p : 0][j][c] * inverse);
        word_of_codes |= (static_cast<unsigned>(code) & 0xffU) << 8 * c;
        sum += code;
      }
      // The place and the elements are of the same 128.
      if (part_place<V, J>(j) < padded)
        *reinterpret_cast<Stored*>(to + j * kNormSpan) = static_cast<Stored>(word_of_codes);
    }
    sum = warp_sum(sum);
    if (lane == 0) code_sums[p][warp] = sum;
    if (threadIdx.x == 0) a.scale[p][row] = (bounded + poison) / 127.0F;
  }
  __syncthreads();
  if (threadIdx.x < P) {
    const int p = static_cast<int>(threadIdx.x);
    int sum = 0;
#pragma unroll
    for (int w = 0; w < kNormWarps; ++w) sum += code_sums[p][w];
    // Which p is known to the compiler nowhere here: a table in registers would go to memory.
    int* const to = p == 0 ? a.code_sum[0] : p == 1 ? a.code_sum[1] : a.code_sum[2];
    to[row] = sum;
  }
}

// ---- embedding ----

// An id of -1 follows logits that were not finite, which the host reports; it reads row 0.
__global__ void embed_rows_kernel(const void* table, int bits, int width, const std::int32_t* ids,
                                  float* x) {
  const idx row = blockIdx.x;
  for (int k = static_cast<int>(threadIdx.x); k < width; k += static_cast<int>(blockDim.x))
    x[row * width + k] =
        embedding_value(table, bits, static_cast<idx>(max(ids[row], 0)) * width + k);
}

// ---- the recurrence over rows of one sequence, in order of time ----
// A block takes 16 channels. Eight warps fetch what the products gave some chunks of rows ahead,
// make gates of it one chunk ahead and put the results away; one warp goes through the rows, a
// thread a channel.

constexpr int kScanChannels = 16;
constexpr int kScanRows = 64;      // of a chunk
constexpr int kScanHelpers = 256;  // threads, with four channels of a row each
constexpr int kScanAhead = 4;      // chunks
static_assert(kScanHelpers * 4 == kScanChannels * kScanRows);

struct ScanShared {
  float4 i[kScanAhead][kScanHelpers], f[kScanAhead][kScanHelpers];
  alignas(16) float gate[2][kScanRows][kScanChannels];
  alignas(16) float h[2][kScanRows][kScanChannels];  // first what is added to it
};

__global__ void __launch_bounds__(kScanHelpers + 32) scan_rows_kernel(const ScanRows a) {
  __shared__ ScanShared s;
  allow_next_kernel();
  wait_for_previous_kernel();
  const Segment segment = a.segments[blockIdx.y];
  const int first = static_cast<int>(blockIdx.x) * kScanChannels;
  const int rows = segment.end - segment.begin;
  const int chunks = (rows + kScanRows - 1) / kScanRows;
  const int thread = static_cast<int>(threadIdx.x);

  if (thread >= kScanHelpers) {
    const int channel = thread - kScanHelpers;
    const bool scans = channel < kScanChannels && first + channel < a.width;
    float* const state = segment.state + a.layer_offset + first + channel;
    float h = scans ? *state : 0.0F;
    __syncthreads();
    for (int chunk = 0; chunk < chunks; ++chunk) {
      const int count = min(kScanRows, rows - chunk * kScanRows);
      constexpr int kTogether = 16;
      for (int t0 = 0; scans && t0 < count; t0 += kTogether) {
        const auto& gate = s.gate[chunk & 1];
        auto& of = s.h[chunk & 1];
        float g[kTogether], x[kTogether];
#pragma unroll
        for (int t = 0; t < kTogether; ++t) {
          g[t] = gate[t0 + t][channel];
          x[t] = of[t0 + t][channel];
        }
#pragma unroll
        for (int t = 0; t < kTogether; ++t)
          if (t0 + t < count) {
            h = g[t] * h + x[t];
            of[t0 + t][channel] = h;
          }
      }
      __syncthreads();
    }
    if (scans) *state = h;
    return;
  }

  const int r = thread / 4, part = thread % 4 * 4;
  const int channels = min(4, a.width - first - part);  // below 1: none
  const bool whole = a.width % 4 == 0 && channels > 0;
  // Rows past the end are read as the last one and not used.
  const auto row_of = [&](int chunk) {
    return static_cast<idx>(segment.begin + min(chunk * kScanRows + r, rows - 1));
  };
  const auto fetch = [&](int chunk) {
    if (chunk < chunks) {
      const idx at = row_of(chunk) * a.width + first + part;
      float4 &i = s.i[chunk % kScanAhead][thread], &f = s.f[chunk % kScanAhead][thread];
      if (whole) {
        copy_16(&i, a.i + at);
        copy_16(&f, a.f + at);
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          reinterpret_cast<float*>(&i)[c] = c < channels ? a.i[at + c] : 0.0F;
          reinterpret_cast<float*>(&f)[c] = c < channels ? a.f[at + c] : 0.0F;
        }
      }
    }
    end_copies();
  };
  float bound[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) bound[c] = c < channels ? a.bound[first + part + c] : 0.0F;
  // Of the oldest chunk under way.
  const auto make_gates = [&](int chunk) {
    wait_copies<kScanAhead - 1>();
    if (chunk >= chunks) return;
    const float keep = a.mask != nullptr && a.mask[row_of(chunk)] == 0 ? 0.0F : 1.0F;
    const float4 i = s.i[chunk % kScanAhead][thread], f = s.f[chunk % kScanAhead][thread];
    const float i_pre[4] = {i.x, i.y, i.z, i.w}, f_pre[4] = {f.x, f.y, f.z, f.w};
    float gate[4], input[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      gate[c] = forget_gate(f_pre[c], bound[c]);
      input[c] = gated_input(i_pre[c], gate[c]);
      if (a.mask != nullptr) input[c] = input[c] * keep;
    }
    *reinterpret_cast<float4*>(&s.gate[chunk & 1][r][part]) =
        make_float4(gate[0], gate[1], gate[2], gate[3]);
    *reinterpret_cast<float4*>(&s.h[chunk & 1][r][part]) =
        make_float4(input[0], input[1], input[2], input[3]);
  };
  const auto put_away = [&](int chunk) {
    if (chunk < 0 || chunk * kScanRows + r >= rows) return;
    float* const to = a.i + row_of(chunk) * a.width + first + part;
    const float* const h = &s.h[chunk & 1][r][part];
    if (whole) {
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(h);
    } else {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (c < channels) to[c] = h[c];
    }
  };
#pragma unroll
  for (int chunk = 0; chunk < kScanAhead; ++chunk) fetch(chunk);
  make_gates(0);
  __syncthreads();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    fetch(chunk + kScanAhead);
    put_away(chunk - 1);
    make_gates(chunk + 1);  // where the chunk that was put away lay
    __syncthreads();
  }
  put_away(chunks - 1);
}

// ---- the most likely token ----

// The id of the largest logit of each row, the lowest of equals; -1 where one is not finite.
__global__ void __launch_bounds__(1024)
    choose_rows_kernel(int vocab, const float* logits, std::int32_t* ids) {
  __shared__ unsigned long long best[32];
  const float* row = logits + static_cast<idx>(blockIdx.x) * vocab;
  unsigned long long key = 0;
  for (int k = static_cast<int>(threadIdx.x); k < vocab; k += static_cast<int>(blockDim.x)) {
    const unsigned long long mine = rank_key(row[k], k);
    key = mine > key ? mine : key;
  }
  key = warp_max64(key);
  if (threadIdx.x % 32 == 0) best[threadIdx.x / 32] = key;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  key = warp_max64(threadIdx.x < blockDim.x / 32 ? best[threadIdx.x] : 0ULL);
  if (threadIdx.x == 0) ids[blockIdx.x] = chosen_id(key);
}

// Launched so that it may begin while the kernel before it ends.
template <class Kernel, class Arguments>
void launch_early(const Launch& l, Kernel kernel, dim3 grid, int threads, const Arguments& a) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = static_cast<unsigned>(threads);
  config.stream = l.stream;
  config.attrs = &early;
  config.numAttrs = starts_early() ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, a), "launching a kernel of rows");
}

template <int P, NormKind kKind>
void launch_norm(const Launch& l, const NormRows& a) {
  const auto run = [&]<int J>(std::integral_constant<int, J>) {
    const auto rows = static_cast<unsigned>(a.rows);
    if constexpr (J <= 11)  // more do not fit into registers
      if (a.rows > 2 * l.multiprocessors)
        return launch_early(l, norm_rows_kernel<4, P, kKind, J>, rows, kNormSpan / 4, a);
    launch_early(l, norm_rows_kernel<1, P, kKind, J>, rows, kNormSpan, a);
  };
  const int parts = (a.width + kNormSpan - 1) / kNormSpan;
  if (parts <= 1) return run(std::integral_constant<int, 1>{});
  if (parts <= 2) return run(std::integral_constant<int, 2>{});
  if (parts <= 4) return run(std::integral_constant<int, 4>{});
  if (parts <= 6) return run(std::integral_constant<int, 6>{});
  if (parts <= 11) return run(std::integral_constant<int, 11>{});
  if (kKind != NormKind::plain || parts <= 16) return run(std::integral_constant<int, 16>{});
  if constexpr (kKind == NormKind::plain) run(std::integral_constant<int, 32>{});  // decode_fits
}

}  // namespace

void norm_rows(const Launch& l, const NormRows& a) {
  if (a.rows == 0) return;
  if (a.step.segment_count > 0) {
    launch_norm<1, NormKind::step>(l, a);
  } else if (a.h != nullptr) {
    launch_norm<1, NormKind::gated>(l, a);
  } else if (a.outer == nullptr) {
    launch_norm<1, NormKind::plain>(l, a);
  } else if (a.projections == 1) {
    launch_norm<1, NormKind::outer>(l, a);
  } else {
    launch_norm<3, NormKind::outer>(l, a);
  }
}

void embed_rows(const Launch& l, const DeviceWeights& w, idx rows, const std::int32_t* ids,
                float* x) {
  if (rows == 0) return;
  embed_rows_kernel<<<static_cast<unsigned>(rows), 256, 0, l.stream>>>(
      w.embedding, w.embedding_bits, w.hidden, ids, x);
  check(cudaGetLastError(), "embedding");
}

void scan_rows(const Launch& l, const ScanRows& a) {
  if (a.segment_count == 0) return;
  const dim3 grid((static_cast<unsigned>(a.width) + kScanChannels - 1) / kScanChannels,
                  static_cast<unsigned>(a.segment_count));
  launch_early(l, scan_rows_kernel, grid, kScanHelpers + 32, a);
}

void choose_rows(const Launch& l, idx rows, int vocab, const float* logits, std::int32_t* ids) {
  if (rows == 0) return;
  choose_rows_kernel<<<static_cast<unsigned>(rows), 1024, 0, l.stream>>>(vocab, logits, ids);
  check(cudaGetLastError(), "most likely tokens");
}

}  // namespace mmfree::cuda
