// BitLinear's product for many rows on the int8 tensor cores, from the same tiles that decoding
// reads: weights go from memory to registers and become bytes there, codes go through shared
// memory. A block makes 16 MT WM outputs by 8 NT rows; KS groups of its warps share the inputs.
#include <algorithm>

#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

template <int MT, int NT, int WM, int KS>
struct Shape {
  static constexpr int kThreads = 32 * WM * KS;
  static constexpr int kRows = 8 * NT;
  static constexpr int kStages = KS >= 4 ? 3 : 4;
  static constexpr int kStageBytes = kRows * 128 * KS;
  static constexpr int kSumBytes = KS > 1 ? WM* KS* MT* NT * 4 * 32 * 4 : 0;
  static constexpr int kShared =
      kStages * kStageBytes > kSumBytes ? kStages* kStageBytes : kSumBytes;
};

template <int MT, int NT, int WM, int KS>
__global__ void __launch_bounds__(Shape<MT, NT, WM, KS>::kThreads)
    rows_product_kernel(const RowsProduct a) {
  using S = Shape<MT, NT, WM, KS>;
  extern __shared__ __align__(128) char shared[];
  const int tid = static_cast<int>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const int wm = warp % WM, kw = warp / WM;
  const int member = static_cast<int>(blockIdx.z);
  const int row0 = static_cast<int>(blockIdx.y) * S::kRows;
  const int unit = static_cast<int>(blockIdx.x) * WM + wm;
  const int tile_count = static_cast<int>(row_tiles(a.out)) * a.pairs;
  const int steps = (a.k_tiles + KS - 1) / KS;

  const uint4* weights[MT];
#pragma unroll
  for (int i = 0; i < MT; ++i) {
    // Units past the end read the last one's weights and store nothing.
    const int t = min(unit * MT + i, tile_count - 1) * a.members + member;
    weights[i] =
        reinterpret_cast<const uint4*>(a.tiles) + static_cast<idx>(t) * a.k_tiles * 32 + lane;
  }
  const std::int8_t* codes = a.codes[member];
  const auto fetch_codes = [&](int step, int stage) {
    constexpr int kUnits = S::kRows * 8 * KS;
    for (int n = tid; n < kUnits; n += S::kThreads) {
      const int u = n % 8, k = n / 8 % KS, r = n / (8 * KS);
      const int tile = step * KS + k;
      const bool there = tile < a.k_tiles && row0 + r < a.rows;
      const idx from = there ? static_cast<idx>(row0 + r) * a.code_stride + tile * 128 + u * 16 : 0;
      copy_16(shared + stage * S::kStageBytes + (k * S::kRows + r) * 128 + (u ^ (r & 1)) * 16,
              codes + from, there);
    }
    end_copies();
  };
  const auto fetch_weights = [&](int step, uint4(&w)[MT]) {
    const int tile = step * KS + kw;
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      w[i] = make_uint4(0, 0, 0, 0);
      if (tile < a.k_tiles) w[i] = load_weights(weights[i] + static_cast<idx>(tile) * 32);
    }
  };

  int acc[MT][NT][4];
#pragma unroll
  for (int i = 0; i < MT; ++i)
#pragma unroll
    for (int n = 0; n < NT; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][n][e] = 0;

  uint4 w[MT], w_next[MT];
  fetch_weights(0, w);
#pragma unroll
  for (int s = 0; s < S::kStages - 1; ++s) {
    if (s < steps) {
      fetch_codes(s, s);
    } else {
      end_copies();
    }
  }
  for (int step = 0; step < steps; ++step) {
    fetch_weights(step + 1, w_next);
    wait_copies<S::kStages - 2>();
    __syncthreads();
    if (step + S::kStages - 1 < steps) {
      fetch_codes(step + S::kStages - 1, (step + S::kStages - 1) % S::kStages);
    } else {
      end_copies();
    }
    const char* b = shared + step % S::kStages * S::kStageBytes + kw * S::kRows * 128;
    const int flip = lane / 4 & 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {  // planes 2 half, 2 half + 1
      unsigned x[MT][2][4];
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const int shift = 2 * (2 * half + p);
          x[i][p][0] = w[i].x >> shift & 0x03030303U;
          x[i][p][1] = w[i].y >> shift & 0x03030303U;
          x[i][p][2] = w[i].z >> shift & 0x03030303U;
          x[i][p][3] = w[i].w >> shift & 0x03030303U;
        }
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint4 v = *reinterpret_cast<const uint4*>(b + (n * 8 + lane / 4) * 128 +
                                                        ((lane % 4 * 2 + half) ^ flip) * 16);
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          multiply_tile(acc[i][n], x[i][0][0], x[i][0][1], x[i][0][2], x[i][0][3], v.x, v.y);
          multiply_tile(acc[i][n], x[i][1][0], x[i][1][1], x[i][1][2], x[i][1][3], v.z, v.w);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < MT; ++i) w[i] = w_next[i];
  }

  if constexpr (KS > 1) {
    wait_copies<0>();
    __syncthreads();
    int* sums = reinterpret_cast<int*>(shared);  // (KS, WM, MT, NT, 4, 32)
    const auto at = [&](int k, int i, int n, int e) {
      return ((((k * WM + wm) * MT + i) * NT + n) * 4 + e) * 32 + lane;
    };
    if (kw > 0) {
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[at(kw, i, n, e)] = acc[i][n][e];
    }
    __syncthreads();
    if (kw > 0) return;
#pragma unroll
    for (int k = 1; k < KS; ++k)
#pragma unroll
      for (int i = 0; i < MT; ++i)
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[i][n][e] += sums[at(k, i, n, e)];
  }

  const float* x_scale = a.x_scale[member];
  const int* code_sum = a.code_sum[member];
  float* y = a.y[member];
#pragma unroll
  for (int n = 0; n < NT; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {  // column 2 q + e
      const int r = row0 + n * 8 + lane % 4 * 2 + e;
      if (r >= a.rows) continue;
      const float xs = x_scale[r];
      const int cs = code_sum[r];
#pragma unroll
      for (int half = 0; half < 2; ++half) {  // output g, g + 8
        if (a.pairs == 2) {
          if constexpr (MT == 2) {
            const int o = unit * 16 + lane / 4 + 8 * half;
            if (o >= a.out) continue;
            const float p = scaled_product(acc[0][n][2 * half + e], cs, xs, a.w_scale[0]);
            const float q = scaled_product(acc[1][n][2 * half + e], cs, xs, a.w_scale[1]);
            y[static_cast<idx>(r) * a.out + o] = silu(p) * q;
          }
          continue;
        }
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          const int o = (unit * MT + i) * 16 + lane / 4 + 8 * half;
          if (o >= a.out) continue;
          const float v = scaled_product(acc[i][n][2 * half + e], cs, xs, a.w_scale[member]);
          float* to = y + static_cast<idx>(r) * a.out + o;
          *to = a.add ? *to + v : v;
        }
      }
    }
}

template <int MT, int NT, int WM, int KS>
void launch(const Launch& l, const RowsProduct& a) {
  using S = Shape<MT, NT, WM, KS>;
  static const bool configured = [] {
    check(cudaFuncSetAttribute(rows_product_kernel<MT, NT, WM, KS>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, S::kShared),
          "reserving shared memory");
    return true;
  }();
  static_cast<void>(configured);
  const auto tiles = static_cast<unsigned>(row_tiles(a.out)) * static_cast<unsigned>(a.pairs);
  const dim3 grid((tiles + MT * WM - 1) / (MT * WM),
                  (static_cast<unsigned>(a.rows) + S::kRows - 1) / S::kRows,
                  static_cast<unsigned>(a.members));
  rows_product_kernel<MT, NT, WM, KS><<<grid, S::kThreads, S::kShared, l.stream>>>(a);
}

int compute_capability() {
  static const int found = [] {
    int id = 0, major = 0, minor = 0;
    check(cudaGetDevice(&id), "choosing the GPU");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id),
          "asking for the GPU's properties");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id),
          "asking for the GPU's properties");
    return 10 * major + minor;
  }();
  return found;
}

}  // namespace

bool starts_early() {
  return compute_capability() >= 90;
}

CodeOrder code_order(idx rows) {
  return compute_capability() == 90 && rows > 8 ? CodeOrder::hopper : CodeOrder::natural;
}

void rows_product(const Launch& l, const RowsProduct& a) {
  if (a.rows == 0) return;
  if (a.order == CodeOrder::hopper) return rows_product_hopper(l, a);
  const bool two = a.pairs == 2;
  if (a.rows <= 8) {
    two ? launch<2, 1, 1, 8>(l, a) : launch<1, 1, 1, 8>(l, a);
  } else if (a.rows <= 16) {
    two ? launch<2, 2, 1, 8>(l, a) : launch<1, 2, 1, 8>(l, a);
  } else if (a.rows <= 32) {
    two ? launch<2, 4, 1, 8>(l, a) : launch<1, 4, 1, 8>(l, a);
  } else {
    // Enough blocks for all multiprocessors come first.
    const idx tiles = row_tiles(a.out) * a.pairs * a.members;
    const idx blocks = (tiles + 7) / 8 * ((a.rows + 63) / 64);
    if (blocks >= 2 * l.multiprocessors || two) {
      launch<2, 8, 4, 1>(l, a);
    } else {
      launch<1, 8, 4, 2>(l, a);
    }
  }
  check(cudaGetLastError(), "product of codes and ternary weights");
}

}  // namespace mmfree::cuda
