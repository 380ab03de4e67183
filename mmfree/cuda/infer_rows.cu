// Row kernels of batches and prefill: embedding, norms with quantisation, the recurrence, the most
// likely token. A block takes a row, as decode.cu's blocks do, so the bits are the same.
#include <type_traits>

#include "mmfree/cuda/embedding_rows.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// P projections of one row. Gated: x holds g, and o = norm(g) * silu(h) is quantised.
template <int P, bool kOuter, bool kGated, int E>
__global__ void __launch_bounds__(kRowThreads) norm_rows_kernel(const NormRows a) {
  __shared__ RowScratch<P> scratch;
  const idx row = blockIdx.x;
  const idx from = a.row_of != nullptr ? a.row_of[row] : row;
  RowItems<E> x, outer, gain[P];
  load_row<E>(a.x + from * a.width, a.width, x);
  if (kOuter || kGated) load_row<E>(a.outer, a.width, outer);
#pragma unroll
  for (int p = 0; p < P; ++p) load_row<E>(a.gain[p], a.width, gain[p]);
  if constexpr (kGated) {
    RowItems<E> h;
    load_row<E>(a.h + from * a.width, a.width, h);
    float lanes[1][kRowLanes], sums[1];
    square_sums<E>(x, lanes[0]);
    block_sums_canonical(lanes, scratch.parts + 2 * kSumGroups, sums);
    const float rstd = reciprocal_rms_device(sums[0], a.width, a.outer_eps);
#pragma unroll
    for (int j = 0; j < E; ++j) x[j] = x[j] * rstd * outer[j] * silu(h[j]);
  }
  std::int8_t* codes[P];
#pragma unroll
  for (int p = 0; p < P; ++p) codes[p] = a.codes[p] + row * a.code_stride;
  float largest[P];
  quantize_row<P, kOuter, E>(x, a.width, outer, gain, a.outer_eps, scratch, codes, largest);
  if (threadIdx.x >= 32) return;
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const int sum = code_sum(scratch, p);
    if (threadIdx.x == 0) {
      a.scale[p][row] = largest[p] / 127.0F;
      a.code_sum[p][row] = sum;
    }
  }
}

// An id of -1 follows logits that were not finite, which the host reports; it reads row 0.
__global__ void embed_rows_kernel(const void* table, int bits, int width, const std::int32_t* ids,
                                  float* x) {
  const idx row = blockIdx.x;
  for (int k = static_cast<int>(threadIdx.x); k < width; k += static_cast<int>(blockDim.x))
    x[row * width + k] =
        embedding_value(table, bits, static_cast<idx>(max(ids[row], 0)) * width + k);
}

// One step of each of n sequences.
__global__ void step_rows_kernel(const ScanRows a) {
  const int c = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (c >= a.width) return;
  const idx row = blockIdx.y;
  float* state = a.segments[row].state + a.layer_offset + c;
  const idx at = row * a.width + c;
  const float f = a.f[at];
  const float h = f * *state + a.i[at] * (1.0F - f);
  *state = h;
  a.i[at] = h;
}

// The recurrence over rows of one sequence, in order of time: exact, and cheap beside the products.
// A thread has a channel and asks for kScanAhead steps before it goes through the ones it has.
constexpr int kScanThreads = 32;
constexpr int kScanAhead = 16;

__global__ void __launch_bounds__(kScanThreads) scan_rows_kernel(const ScanRows a) {
  const Segment s = a.segments[blockIdx.y];
  const int c = static_cast<int>(blockIdx.x) * kScanThreads + static_cast<int>(threadIdx.x);
  if (c >= a.width) return;
  float* state = s.state + a.layer_offset + c;
  float h = *state;
  float f[kScanAhead], i[kScanAhead];
  // Rows past the end are read as the last one and not used.
  const auto load = [&](int begin) {
#pragma unroll
    for (int t = 0; t < kScanAhead; ++t) {
      const idx at = static_cast<idx>(min(begin + t, s.end - 1)) * a.width + c;
      f[t] = __ldg(a.f + at);
      i[t] = __ldcg(a.i + at);
    }
  };
  load(s.begin);
  for (int begin = s.begin; begin < s.end; begin += kScanAhead) {
    float gate[kScanAhead], input[kScanAhead];
#pragma unroll
    for (int t = 0; t < kScanAhead; ++t) {
      gate[t] = f[t];
      input[t] = i[t] * (1.0F - f[t]);
    }
    if (a.mask != nullptr)
#pragma unroll
      for (int t = 0; t < kScanAhead; ++t)
        input[t] = input[t] * (a.mask[min(begin + t, s.end - 1)] != 0 ? 1.0F : 0.0F);
    load(begin + kScanAhead);
#pragma unroll
    for (int t = 0; t < kScanAhead; ++t)
      if (begin + t < s.end) {
        h = gate[t] * h + input[t];
        a.i[static_cast<idx>(begin + t) * a.width + c] = h;
      }
  }
  *state = h;
}

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

template <int P, bool kOuter, bool kGated>
void launch_norm(const Launch& l, const NormRows& a) {
  const auto run = [&]<int E>(std::integral_constant<int, E>) {
    norm_rows_kernel<P, kOuter, kGated, E>
        <<<static_cast<unsigned>(a.rows), kRowThreads, 0, l.stream>>>(a);
  };
  const int items = (a.width + kRowThreads - 1) / kRowThreads;
  if (items <= 2) return run(std::integral_constant<int, 2>{});
  if (items <= 4) return run(std::integral_constant<int, 4>{});
  if (items <= 6) return run(std::integral_constant<int, 6>{});
  if (items <= 11) return run(std::integral_constant<int, 11>{});
  if (items <= 16) return run(std::integral_constant<int, 16>{});
  run(std::integral_constant<int, 32>{});
}

}  // namespace

void norm_rows(const Launch& l, const NormRows& a) {
  if (a.rows == 0) return;
  if (a.h != nullptr) {
    launch_norm<1, false, true>(l, a);
  } else if (a.outer == nullptr) {
    launch_norm<1, false, false>(l, a);
  } else if (a.projections == 1) {
    launch_norm<1, true, false>(l, a);
  } else {
    launch_norm<3, true, false>(l, a);
  }
  check(cudaGetLastError(), "norm and quantisation of rows");
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
  if (a.single_steps) {
    const dim3 grid((static_cast<unsigned>(a.width) + 255) / 256,
                    static_cast<unsigned>(a.segment_count));
    step_rows_kernel<<<grid, 256, 0, l.stream>>>(a);
  } else {
    const dim3 grid((static_cast<unsigned>(a.width) + kScanThreads - 1) / kScanThreads,
                    static_cast<unsigned>(a.segment_count));
    scan_rows_kernel<<<grid, kScanThreads, 0, l.stream>>>(a);
  }
  check(cudaGetLastError(), "recurrence");
}

void choose_rows(const Launch& l, idx rows, int vocab, const float* logits, std::int32_t* ids) {
  if (rows == 0) return;
  choose_rows_kernel<<<static_cast<unsigned>(rows), 1024, 0, l.stream>>>(vocab, logits, ids);
  check(cudaGetLastError(), "most likely tokens");
}

}  // namespace mmfree::cuda
