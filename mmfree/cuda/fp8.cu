// What the input gradients in e4m3 need besides their producers: transposed weights, and rows of
// gradients whose kernel does not see whole rows.
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/rows.cuh"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

constexpr int kTile = 128;

// Four codes as e4m3: 0 -> 0x00, 1 -> 0x38, -1 -> 0xb8.
__device__ __forceinline__ std::uint32_t ternary_e4m3(std::uint32_t codes) {
  return (codes & 0x80808080U) | (codes & 0x01010101U) * 0x38U;
}

// A tile of 128 x 128 codes; a thread turns a block of 16 outputs by 4 inputs around. Groups of 16
// bytes lie in shared memory where their row's sixteenth says, so that neither side meets bank
// conflicts.
__global__ void __launch_bounds__(256)
    transpose_codes_kernel(int out, int in, const std::int8_t* codes, e4m3* values) {
  __shared__ uint4 tile[kTile * kTile / 16];
  const int in0 = static_cast<int>(blockIdx.x) * kTile, out0 = static_cast<int>(blockIdx.y) * kTile;
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int n = t; n < kTile * kTile / 16; n += 256) {
    const int row = n / 8, group = n % 8;
    if (out0 + row >= out || in0 + group * 16 >= in) continue;
    const uint4 raw = *reinterpret_cast<const uint4*>(codes + static_cast<idx>(out0 + row) * in +
                                                      in0 + group * 16);
    tile[row * 8 + (group ^ row / 16)] = make_uint4(ternary_e4m3(raw.x), ternary_e4m3(raw.y),
                                                    ternary_e4m3(raw.z), ternary_e4m3(raw.w));
  }
  __syncthreads();
  const int rows = t % 8, columns = t / 8;  // blocks of 16 outputs, of 4 inputs
  if (out0 + rows * 16 >= out || in0 + columns * 4 >= in) return;
  const auto* words = reinterpret_cast<const std::uint32_t*>(tile);
  std::uint32_t w[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) w[i] = words[(rows * 16 + i) * 32 + (columns ^ rows * 4)];
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const std::uint32_t pick = static_cast<std::uint32_t>(c | (4 + c) << 4);
    std::uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      v[i] = __byte_perm(__byte_perm(w[4 * i], w[4 * i + 1], pick),
                         __byte_perm(w[4 * i + 2], w[4 * i + 3], pick), 0x5410);
    *reinterpret_cast<uint4*>(values + static_cast<idx>(in0 + columns * 4 + c) * out + out0 +
                              rows * 16) = make_uint4(v[0], v[1], v[2], v[3]);
  }
}

template <class Row>
__global__ void __launch_bounds__(Row::kMaxThreads)
    quantize_rows_kernel(int width, const bf16* x, const Fp8Rows y) {
  constexpr int V = Row::kVec;
  __shared__ float maxima[32];
  const idx base = static_cast<idx>(blockIdx.x) * width;
  float v[Row::kItems][V];
  float largest[1] = {kLeastLargest};
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) {
      load<V>(x + base + k, v[i]);
      include_magnitudes<V>(v[i], largest[0]);
    }
  }
  block_max<1>(largest, maxima);
  const float scale = kLargestE4m3 / largest[0];
#pragma unroll
  for (int i = 0; i < Row::kItems; ++i) {
    const int k = Row::column(i);
    if (k < width) store_e4m3<V>(y.values + base + k, v[i], scale);
  }
  if (threadIdx.x == 0) y.largest[blockIdx.x] = largest[0];
}

}  // namespace

// ---- launchers ----

void transpose_codes(const Launch& l, idx out, idx in, const std::int8_t* codes, e4m3* values) {
  const dim3 grid(static_cast<unsigned>((in + kTile - 1) / kTile),
                  static_cast<unsigned>((out + kTile - 1) / kTile));
  transpose_codes_kernel<<<grid, 256, 0, l.stream>>>(static_cast<int>(out), static_cast<int>(in),
                                                     codes, values);
  check(cudaGetLastError(), "transposing codes");
}

void quantize_rows(const Launch& l, idx rows, idx width, const bf16* x, const Fp8Rows& y) {
  if (rows == 0) return;
  with_row_layout(width, [&]<class Row>(Row, unsigned threads) {
    quantize_rows_kernel<Row>
        <<<static_cast<unsigned>(rows), threads, 0, l.stream>>>(static_cast<int>(width), x, y);
  });
  check(cudaGetLastError(), "gradients in e4m3");
}

}  // namespace mmfree::cuda
