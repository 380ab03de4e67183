// What the input gradients in e4m3 need besides their producers: transposed weights, and rows of
// gradients whose kernel does not see whole rows.
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/rows.cuh"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

// ---- kernels ----

constexpr int kTile = 64;

// Four codes as e4m3: 0 -> 0x00, 1 -> 0x38, -1 -> 0xb8.
__device__ __forceinline__ std::uint32_t ternary_e4m3(std::uint32_t codes) {
  return (codes & 0x80808080U) | (codes & 0x01010101U) * 0x38U;
}

// A tile of 64 x 64 codes; a thread reads 16 neighbouring inputs and writes 16 neighbouring
// outputs.
__global__ void __launch_bounds__(256)
    transpose_codes_kernel(int out, int in, const std::int8_t* codes, e4m3* values) {
  constexpr int kStride = kTile + 4;  // bytes; the padding spreads the rows over the banks
  __shared__ std::uint32_t tile[kTile * kStride / 4];
  const int in0 = static_cast<int>(blockIdx.x) * kTile, out0 = static_cast<int>(blockIdx.y) * kTile;
  const int t = static_cast<int>(threadIdx.x);
  {
    const int row = t / 4, column = t % 4 * 16;
    if (out0 + row < out && in0 + column < in) {
      const uint4 raw = *reinterpret_cast<const uint4*>(codes + static_cast<idx>(out0 + row) * in +
                                                        in0 + column);
      std::uint32_t* to = tile + (row * kStride + column) / 4;
      to[0] = ternary_e4m3(raw.x);
      to[1] = ternary_e4m3(raw.y);
      to[2] = ternary_e4m3(raw.z);
      to[3] = ternary_e4m3(raw.w);
    }
  }
  __syncthreads();
  const int column = t % kTile, row = t / kTile * 16;
  if (in0 + column >= in || out0 + row >= out) return;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(tile);
  std::uint32_t word[4] = {};
#pragma unroll
  for (int i = 0; i < 16; ++i)
    word[i / 4] |= static_cast<std::uint32_t>(bytes[(row + i) * kStride + column]) << (8 * (i % 4));
  *reinterpret_cast<uint4*>(values + static_cast<idx>(in0 + column) * out + out0 + row) =
      make_uint4(word[0], word[1], word[2], word[3]);
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
    quantize_rows_kernel<Row><<<static_cast<unsigned>(rows), threads, 0, l.stream>>>(
        static_cast<int>(width), x, y);
  });
  check(cudaGetLastError(), "gradients in e4m3");
}

}  // namespace mmfree::cuda
