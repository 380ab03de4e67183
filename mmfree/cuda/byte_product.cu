// Products of 8-bit operands on Hopper's tensor cores: int8 in the forward, e4m3 for the input
// gradients. A cluster of two blocks makes a tile of 256 rows by 256 outputs: each block loads its
// own 128 rows of x and half of the weights, which the copy engine delivers to both. In a block one
// warp asks for tiles four steps of 128 inputs ahead; two warpgroups multiply 64 rows by 256
// outputs each, scale their sums and store bf16.
#include <cuda.h>

#include <algorithm>

#include "mmfree/core/error.h"
#include "mmfree/cuda/device_math.cuh"
#include "mmfree/cuda/hopper.cuh"
#include "mmfree/cuda/products.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/cuda/tensor_map.h"

namespace mmfree::cuda {
namespace {

constexpr int kRows = 128;     // of x, a block
constexpr int kOutputs = 256;  // a cluster
constexpr int kDepth = 128;    // inputs a step: one 128-byte swizzled line
constexpr int kStages = 4;
constexpr int kCluster = 2;
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = 128 * (kConsumers + 1);
constexpr int kPieceColumns = 64;                // of the result, staged at a time by each warp
constexpr int kPieceStride = kPieceColumns + 8;  // bf16 elements; the padding avoids bank conflicts

struct Shared {
  std::uint8_t x[kStages][kRows * kDepth];
  std::uint8_t w[kStages][kOutputs * kDepth];
  bf16 piece[kConsumers * 4][16 * kPieceStride];
  alignas(8) std::uint64_t full[kStages];
  std::uint64_t empty[kStages];
};
constexpr std::size_t kSharedBytes = sizeof(Shared) + 1024;  // tiles start at multiples of 1024

struct Product {
  idx rows;
  int in, out;
  const float* largest;  // of each row of x: its scale is largest / limit
  float limit;
  const float* w_scale;  // or null: 1
  bf16* y;
};

// ---- kernel ----

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

constexpr int kGroupPairs =
    8;  // pairs of row tiles that go through all outputs together, for the L2

// d (64 x 256) = x (64 x 32) * w (256 x 32)^T, added to d when `add`.
__device__ __forceinline__ void multiply(int (&d)[128], std::uint64_t x, std::uint64_t w, int add) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
        "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
        "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
        "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
        "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
        "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]),
        "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
        "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]),
        "+r"(d[63]), "+r"(d[64]), "+r"(d[65]), "+r"(d[66]), "+r"(d[67]), "+r"(d[68]), "+r"(d[69]),
        "+r"(d[70]), "+r"(d[71]), "+r"(d[72]), "+r"(d[73]), "+r"(d[74]), "+r"(d[75]), "+r"(d[76]),
        "+r"(d[77]), "+r"(d[78]), "+r"(d[79]), "+r"(d[80]), "+r"(d[81]), "+r"(d[82]), "+r"(d[83]),
        "+r"(d[84]), "+r"(d[85]), "+r"(d[86]), "+r"(d[87]), "+r"(d[88]), "+r"(d[89]), "+r"(d[90]),
        "+r"(d[91]), "+r"(d[92]), "+r"(d[93]), "+r"(d[94]), "+r"(d[95]), "+r"(d[96]), "+r"(d[97]),
        "+r"(d[98]), "+r"(d[99]), "+r"(d[100]), "+r"(d[101]), "+r"(d[102]), "+r"(d[103]),
        "+r"(d[104]), "+r"(d[105]), "+r"(d[106]), "+r"(d[107]), "+r"(d[108]), "+r"(d[109]),
        "+r"(d[110]), "+r"(d[111]), "+r"(d[112]), "+r"(d[113]), "+r"(d[114]), "+r"(d[115]),
        "+r"(d[116]), "+r"(d[117]), "+r"(d[118]), "+r"(d[119]), "+r"(d[120]), "+r"(d[121]),
        "+r"(d[122]), "+r"(d[123]), "+r"(d[124]), "+r"(d[125]), "+r"(d[126]), "+r"(d[127])
      : "l"(x), "l"(w), "r"(add));
}
__device__ __forceinline__ void multiply(float (&d)[128], std::uint64_t x, std::uint64_t w,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p, 1, 1;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63]), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]),
        "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]),
        "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]),
        "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]),
        "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), "+f"(d[97]),
        "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]),
        "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]),
        "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]),
        "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]),
        "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(x), "l"(w), "r"(add));
}

// Tile `n` of the grid: pairs of row tiles in groups, outputs within a group.
__device__ __forceinline__ int2 tile_of(int n, int pairs, int output_tiles) {
  const int group = n / (kGroupPairs * output_tiles);
  const int first = group * kGroupPairs;
  const int height = min(kGroupPairs, pairs - first);
  const int within = n - group * kGroupPairs * output_tiles;
  return make_int2(first + within % height, within / height);
}

template <class Sum>
__device__ void store_tile(const Product& a, const Sum (&d)[128], bf16* piece, idx row0,
                           int output0) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const float w_scale = a.w_scale != nullptr ? *a.w_scale : 1.0F;
  float scale[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const idx row = row0 + lane / 4 + 8 * i;
    scale[i] = row < a.rows ? a.largest[row] / a.limit : 0.0F;
  }
#pragma unroll
  for (int part = 0; part < kOutputs / kPieceColumns; ++part) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kPieceColumns / 8; ++j) {
      const Sum* v = d + 4 * (part * (kPieceColumns / 8) + j);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        *reinterpret_cast<__nv_bfloat162*>(piece + (lane / 4 + 8 * i) * kPieceStride + 8 * j +
                                           2 * (lane % 4)) =
            __floats2bfloat162_rn(static_cast<float>(v[2 * i]) * scale[i] * w_scale,
                                  static_cast<float>(v[2 * i + 1]) * scale[i] * w_scale);
    }
    __syncwarp();
#pragma unroll
    for (int n = lane; n < 16 * (kPieceColumns / 8); n += 32) {
      const int r = n / (kPieceColumns / 8), c = n % (kPieceColumns / 8) * 8;
      const idx row = row0 + r;
      const int output = output0 + part * kPieceColumns + c;
      if (row < a.rows && output < a.out)
        *reinterpret_cast<uint4*>(a.y + row * a.out + output) =
            *reinterpret_cast<const uint4*>(piece + r * kPieceStride + c);
    }
  }
}

#endif

// Sum: int for int8 operands, float for e4m3.
template <class Sum>
__global__ void __launch_bounds__(kThreads, 1)
    byte_product_kernel(const __grid_constant__ CUtensorMap x_map,
                        const __grid_constant__ CUtensorMap w_map, const Product a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char raw[];
  Shared& s = *reinterpret_cast<Shared*>(raw + (1024 - (address(raw) & 1023U)) % 1024);
  const int group = static_cast<int>(threadIdx.x) / 128;
  const int rank = static_cast<int>(blockIdx.x) % kCluster;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kStages; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&s.full[i])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&s.empty[i])),
                   "n"(kCluster * kConsumers));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  cluster_barrier();

  const int pairs = static_cast<int>((a.rows + kCluster * kRows - 1) / (kCluster * kRows));
  const int output_tiles = (a.out + kOutputs - 1) / kOutputs;
  const int steps = (a.in + kDepth - 1) / kDepth;
  const int clusters = static_cast<int>(gridDim.x) / kCluster;
  int stage = 0, parity = 0;
  const auto advance = [&] {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  };
  if (group == kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (static_cast<int>(threadIdx.x) == kConsumers * 128) {
      for (int n = static_cast<int>(blockIdx.x) / kCluster; n < pairs * output_tiles;
           n += clusters) {
        const int2 tile = tile_of(n, pairs, output_tiles);
        const int row = (tile.x * kCluster + rank) * kRows;
        const int output = tile.y * kOutputs + rank * (kOutputs / kCluster);
        for (int k = 0; k < steps; ++k) {
          wait(&s.empty[stage], parity ^ 1);  // both blocks' consumers are done with it
          expect(&s.full[stage], (kRows + kOutputs) * kDepth);
          load_tile(s.x[stage], &x_map, k * kDepth, row, &s.full[stage]);
          load_tile_for_all<kCluster>(s.w[stage] + rank * (kOutputs / kCluster) * kDepth, &w_map,
                                      k * kDepth, output, &s.full[stage]);
          advance();
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const bool speaks = threadIdx.x % 128 < kCluster;  // one thread for each block of the cluster
    const int to = static_cast<int>(threadIdx.x) % 128;
    for (int n = static_cast<int>(blockIdx.x) / kCluster; n < pairs * output_tiles; n += clusters) {
      const int2 tile = tile_of(n, pairs, output_tiles);
      Sum d[128];
      int before = 0;
      for (int k = 0; k < steps; ++k) {
        wait(&s.full[stage], parity);
        const std::uint64_t x = matrix_descriptor(s.x[stage] + group * 64 * kDepth);
        const std::uint64_t w = matrix_descriptor(s.w[stage]);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < kDepth / 32; ++i)
          multiply(d, x + static_cast<std::uint64_t>(i * 2), w + static_cast<std::uint64_t>(i * 2),
                   k > 0 || i > 0 ? 1 : 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // One step stays in flight; the one before it has read its stage.
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (k > 0 && speaks) arrive(&s.empty[before], to);
        before = stage;
        advance();
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (speaks) arrive(&s.empty[before], to);
      const idx row0 = static_cast<idx>(tile.x * kCluster + rank) * kRows + warp * 16;
      store_tile(a, d, s.piece[warp], row0, tile.y * kOutputs);
    }
  }
  cluster_barrier();  // a block's barriers outlive the last arrival of its neighbour
#else
  __trap();  // byte_product_fits keeps other devices away
#endif
}

// ---- launcher ----

template <class Sum>
void byte_product(const Launch& l, idx rows, idx in, idx out, const void* x, const void* t,
                  const float* largest, float limit, const float* w_scale, bf16* y) {
  if (rows == 0) return;
  static const bool configured = [] {
    check(
        cudaFuncSetAttribute(byte_product_kernel<Sum>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(kSharedBytes)),
        "reserving shared memory");
    return true;
  }();
  static_cast<void>(configured);
  const CUtensorMap x_map = tensor_map(x, rows, in, in, kRows);
  const CUtensorMap w_map = tensor_map(t, out, in, in, kOutputs / kCluster);
  const idx tiles =
      (rows + kCluster * kRows - 1) / (kCluster * kRows) * ((out + kOutputs - 1) / kOutputs);
  const auto clusters = static_cast<unsigned>(std::min<idx>(tiles, l.multiprocessors / kCluster));
  const Product a{rows, static_cast<int>(in), static_cast<int>(out), largest, limit, w_scale, y};
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = clusters * kCluster;
  config.blockDim = kThreads;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = l.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, byte_product_kernel<Sum>, x_map, w_map, a),
        "product of 8-bit operands");
}

}  // namespace

bool byte_product_fits(int compute_capability, idx in, idx out) {
  return compute_capability == 90 && in % 16 == 0 && out % 8 == 0;
}

void int8_product(const Launch& l, idx rows, idx in, idx out, const std::int8_t* x,
                  const std::int8_t* t, const float* largest, const float* w_scale, bf16* y) {
  byte_product<int>(l, rows, in, out, x, t, largest, 127.0F, w_scale, y);
}

void fp8_product(const Launch& l, idx rows, idx in, idx out, const e4m3* x, const e4m3* t,
                 const float* largest, bf16* y) {
  byte_product<float>(l, rows, in, out, x, t, largest, kLargestE4m3, nullptr, y);
}

}  // namespace mmfree::cuda
