// BitLinear's product for many rows on Hopper; rows_product.cu says what it computes and runs
// elsewhere. Weights come from the same tiles: a warp's part of a wide product's first operand is
// one tile, unpacked in registers by masks and shifts. Codes are the second operand, from shared
// memory, where the copy engine puts them; their words are in the order of hopper_word(), in which
// they meet the weights as these lie in a tile. One warp of a block asks for tiles and codes some
// steps of 128 inputs ahead.
#include <algorithm>

#include "mmfree/cuda/hopper.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"
#include "mmfree/cuda/runtime.h"
#include "mmfree/cuda/tensor_map.h"

namespace mmfree::cuda {
namespace {

// A warpgroup makes 64 MT outputs of N rows. CO warpgroups of a block make different outputs, each
// of them CK times, from every CK-th step; B blocks share a multiprocessor.
template <int MT, int N, int CO, int CK, int B>
struct Wide {
  static constexpr int kWarps = 4 * CO * CK;  // that multiply
  // Large sums need more registers than each thread could get: a whole warpgroup gives up its own,
  // although one warp of it does the asking.
  static constexpr bool kLarge = MT * N > 160;
  static constexpr int kThreads = 32 * kWarps + (kLarge ? 128 : 32);
  static constexpr int kTiles = 4 * MT * CO;      // of a step
  static constexpr int kPitch = 16 * kTiles + 4;  // of sums; 4: the lanes of a warp in all banks
  static constexpr int kCodeBytes = N * static_cast<int>(kTileInputs);
  static constexpr int kStageBytes = kCodeBytes + kTiles * static_cast<int>(kTileBytes);
  static constexpr int kSmallBytes = N * 8 + 1024;  // scales and sums; stages start at 1024 n
  static constexpr int kStages =
      std::min(12, (227 * 1024 / B - 1024 - 256 - kSmallBytes) / kStageBytes);
  static constexpr int kShared = kStages * kStageBytes + kSmallBytes;
  static_assert(kTiles <= 32 && kStages >= 2 * CK);
  static_assert(CK * N * kPitch * 4 <= kStages * kStageBytes);
};

// Of the members.
struct Maps {
  CUtensorMap tiles[3], codes[3];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Of a thread that asks and one that multiplies, where both are not the same.
inline constexpr int kFewRegisters = 40;
constexpr int many_registers(int threads, int blocks) {
  const int equal = 65536 / blocks / threads / 8 * 8;
  return std::min(240, (equal + (equal - kFewRegisters) * 128 / (threads - 128)) / 8 * 8);
}

// d (64 x N) = w (64 x 32, of each warp 16 x 32) * codes (N x 32)^T, added to d when `add`.
__device__ __forceinline__ void multiply(int (&d)[8], const unsigned (&w)[4], std::uint64_t codes,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, {%8, %9, %10, %11}, %12, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(codes), "r"(add));
}

__device__ __forceinline__ void multiply(int (&d)[16], const unsigned (&w)[4], std::uint64_t codes,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
      "}, {%16, %17, %18, %19}, %20, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
        "+r"(d[14]), "+r"(d[15])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(codes), "r"(add));
}

__device__ __forceinline__ void multiply(int (&d)[32], const unsigned (&w)[4], std::uint64_t codes,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
        "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
        "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
        "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(codes), "r"(add));
}

__device__ __forceinline__ void multiply(int (&d)[48], const unsigned (&w)[4], std::uint64_t codes,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
      "}, {%48, %49, %50, %51}, %52, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
        "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
        "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
        "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
        "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
        "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(codes), "r"(add));
}

__device__ __forceinline__ void multiply(int (&d)[64], const unsigned (&w)[4], std::uint64_t codes,
                                         int add) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.u8.s8 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, p;\n}\n"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]),
        "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]),
        "+r"(d[14]), "+r"(d[15]), "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]), "+r"(d[20]),
        "+r"(d[21]), "+r"(d[22]), "+r"(d[23]), "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
        "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31]), "+r"(d[32]), "+r"(d[33]), "+r"(d[34]),
        "+r"(d[35]), "+r"(d[36]), "+r"(d[37]), "+r"(d[38]), "+r"(d[39]), "+r"(d[40]), "+r"(d[41]),
        "+r"(d[42]), "+r"(d[43]), "+r"(d[44]), "+r"(d[45]), "+r"(d[46]), "+r"(d[47]), "+r"(d[48]),
        "+r"(d[49]), "+r"(d[50]), "+r"(d[51]), "+r"(d[52]), "+r"(d[53]), "+r"(d[54]), "+r"(d[55]),
        "+r"(d[56]), "+r"(d[57]), "+r"(d[58]), "+r"(d[59]), "+r"(d[60]), "+r"(d[61]), "+r"(d[62]),
        "+r"(d[63])
      : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(codes), "r"(add));
}

// Of the warps that multiply.
template <int kWarps>
__device__ __forceinline__ void consumers_barrier() {
  asm volatile("bar.sync 1, %0;" ::"n"(32 * kWarps) : "memory");
}

// scaled_product() with float(n) by bits: 1.5 * 2^23 + n has n in its low bits, exactly for |n| <
// 2^22, which 16384 codes stay below; conversion instructions are four times as slow.
__device__ __forceinline__ float scaled(int sum, int code_sum, float x_scale, float w_scale) {
  return (__int_as_float(0x4b400000 + (sum - code_sum)) - 12582912.0F) * x_scale * w_scale;
}
__device__ __forceinline__ float4 scaled(const int4& v, int code_sum, float x_scale,
                                         float w_scale) {
  return make_float4(
      scaled(v.x, code_sum, x_scale, w_scale), scaled(v.y, code_sum, x_scale, w_scale),
      scaled(v.z, code_sum, x_scale, w_scale), scaled(v.w, code_sum, x_scale, w_scale));
}

// How the results of a block go out: four outputs a thread, kTogether times at once.
template <class W, int kPairs, int kRows>
struct Quads {
  static constexpr int kPerRow = W::kTiles * 4 / kPairs;
  static constexpr int kTogether = kPairs == 2 ? 2 : 4;
  static constexpr int kStep = 32 * W::kWarps;  // threads
  // All at once: then what they are added to is asked for before the products.
  static constexpr bool kOnce = kPairs == 1 && kRows * kPerRow <= kTogether * kStep;
};
template <class Q>
__device__ __forceinline__ void load_old(const RowsProduct& a, const float* y, int row0,
                                         int column0, int total, int first,
                                         float4 (&old)[Q::kTogether]) {
#pragma unroll
  for (int u = 0; u < Q::kTogether; ++u) {
    const int n = first + u * Q::kStep, o = column0 + 4 * (n % Q::kPerRow);
    if (a.add && a.out % 4 == 0 && n < total && o < a.out)
      old[u] =
          *reinterpret_cast<const float4*>(y + static_cast<idx>(row0 + n / Q::kPerRow) * a.out + o);
  }
}

// sums: (kParts, kRows, kPitch), of W's outputs from column0 on, halves of the gate projection in
// turns of
// 16. Four outputs a thread at a time.
template <class W, int kPairs, int kRows, int kParts>
__device__ __forceinline__ void store_rows(const RowsProduct& a, int member, int row0, int column0,
                                           const int* sums, const float* x_scale,
                                           const int* code_sum,
                                           float4 (&old)[Quads<W, kPairs, kRows>::kTogether]) {
  using Q = Quads<W, kPairs, kRows>;
  constexpr int kPerRow = Q::kPerRow, kTogether = Q::kTogether, kStep = Q::kStep;
  const int rows = min(kRows, static_cast<int>(a.rows) - row0);
  const bool whole = a.out % 4 == 0;
  float* const y = a.y[member];
  const float w_scale = a.w_scale[member];
  const float q_scale = a.w_scale[kPairs - 1];
  const auto sum_of = [&](int r, int place) {
    int4 v = *reinterpret_cast<const int4*>(sums + r * W::kPitch + place);
#pragma unroll
    for (int k = 1; k < kParts; ++k) {
      const int4 m = *reinterpret_cast<const int4*>(sums + (k * kRows + r) * W::kPitch + place);
      v = make_int4(v.x + m.x, v.y + m.y, v.z + m.z, v.w + m.w);
    }
    return v;
  };
  const int total = rows * kPerRow;
  for (int first = static_cast<int>(threadIdx.x); first < total; first += kTogether * kStep) {
    if constexpr (!Q::kOnce) load_old<Q>(a, y, row0, column0 / kPairs, total, first, old);
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int n = first + u * kStep, r = n / kPerRow, quad = n % kPerRow;
      const int o = column0 / kPairs + 4 * quad;
      if (n >= total || o >= a.out) continue;
      const float xs = x_scale[r];
      const int cs = code_sum[r];
      float4 v;
      if constexpr (kPairs == 2) {
        const int place = quad / 4 * 32 + quad % 4 * 4;
        const float4 p = scaled(sum_of(r, place), cs, xs, w_scale);
        const float4 q = scaled(sum_of(r, place + 16), cs, xs, q_scale);
        v = make_float4(silu(p.x) * q.x, silu(p.y) * q.y, silu(p.z) * q.z, silu(p.w) * q.w);
      } else {
        v = scaled(sum_of(r, 4 * quad), cs, xs, w_scale);
      }
      float* const to = y + static_cast<idx>(row0 + r) * a.out + o;
      if (whole) {
        if (a.add) v = make_float4(old[u].x + v.x, old[u].y + v.y, old[u].z + v.z, old[u].w + v.w);
        *reinterpret_cast<float4*>(to) = v;
      } else {
        const float each[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int c = 0; c < 4; ++c)
          if (o + c < a.out) to[c] = a.add ? to[c] + each[c] : each[c];
      }
    }
  }
}

#endif

template <int kPairs, int MT, int N, int CO, int CK, int B>
__global__ void __launch_bounds__(Wide<MT, N, CO, CK, B>::kThreads, B)
    rows_product_hopper_kernel(const __grid_constant__ Maps maps, const RowsProduct a) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using W = Wide<MT, N, CO, CK, B>;
  extern __shared__ char raw[];
  __shared__ alignas(8) std::uint64_t full[W::kStages], empty[W::kStages];
  char* const shared = raw + (1024 - (address(raw) & 1023U)) % 1024;
  float* const x_scale = reinterpret_cast<float*>(shared + W::kStages * W::kStageBytes);
  int* const code_sum = reinterpret_cast<int*>(x_scale + N);

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int member = static_cast<int>(blockIdx.z);
  const int row0 = static_cast<int>(blockIdx.y) * N;
  // The place of warpgroup co's tile i of warp w among the block's. The halves of the gate
  // projection take turns, and a warp has both halves of its outputs.
  const auto place_of = [&](int co, int i, int w) {
    return kPairs == 2 ? (co * 4 + w) * 2 + i : (co * MT + i) * 4 + w;
  };
  const int first_tile = static_cast<int>(blockIdx.x) * W::kTiles;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < W::kStages; ++i) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&full[i])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(&empty[i])),
                   "n"(CO * 4));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  allow_next_kernel();

  if (warp >= W::kWarps) {
    if constexpr (W::kLarge)
      asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFewRegisters));
    if (warp == W::kWarps && lane == 0) {
      const CUtensorMap *tiles = &maps.tiles[member], *codes = &maps.codes[member];
      const auto ask_for_tiles = [&](int k, int stage) {
        expect(&full[stage], W::kStageBytes);
        load_tile(shared + stage * W::kStageBytes + W::kCodeBytes, tiles,
                  k * static_cast<int>(kTileBytes / 4), first_tile, &full[stage]);
      };
      asm volatile("prefetch.tensormap [%0];" ::"l"(codes) : "memory");
      for (int k = 0; k < min(W::kStages, a.k_tiles); ++k) ask_for_tiles(k, k);
      wait_for_previous_kernel();  // which makes the codes
      int stage = 0, parity = 0;
      for (int k = 0; k < a.k_tiles; ++k) {
        if (k >= W::kStages) {
          wait(&empty[stage], parity ^ 1);
          ask_for_tiles(k, stage);
        }
        load_tile(shared + stage * W::kStageBytes, codes, k * static_cast<int>(kTileInputs), row0,
                  &full[stage]);
        if (++stage == W::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
    }
  } else {
    if constexpr (W::kLarge)
      asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(many_registers(W::kThreads, B)));
    const int co = warp / 4 % CO, kw = warp / (4 * CO);
    wait_for_previous_kernel();
    for (int n = static_cast<int>(threadIdx.x); n < N; n += 32 * W::kWarps) {
      x_scale[n] = row0 + n < a.rows ? a.x_scale[member][row0 + n] : 0.0F;
      code_sum[n] = row0 + n < a.rows ? a.code_sum[member][row0 + n] : 0;
    }
    using Q = Quads<W, kPairs, N>;
    float4 old[Q::kTogether];
    if constexpr (Q::kOnce)
      load_old<Q>(a, a.y[member], row0, first_tile * 16,
                  min(N, static_cast<int>(a.rows) - row0) * Q::kPerRow,
                  static_cast<int>(threadIdx.x), old);
    int acc[MT][N / 2];
    constexpr int kSets = MT * N >= 128 ? 2 : 4;  // of unpacked weights, one being unpacked
    unsigned x[kSets][MT][4];
    int stage = kw, parity = 0, before = -1;
    for (int k = kw; k < a.k_tiles; k += CK) {
      wait(&full[stage], parity);
      const char* const from = shared + stage * W::kStageBytes;
      uint4 w[MT];
#pragma unroll
      for (int i = 0; i < MT; ++i)
        w[i] = *reinterpret_cast<const uint4*>(from + W::kCodeBytes +
                                               place_of(co, i, warp % 4) * kTileBytes + lane * 16);
      const std::uint64_t codes = matrix_descriptor(from);
#pragma unroll
      for (int p = 0; p < 4; ++p) {
#pragma unroll
        for (int i = 0; i < MT; ++i) {
          x[p % kSets][i][0] = w[i].x >> 2 * p & 0x03030303U;
          x[p % kSets][i][1] = w[i].y >> 2 * p & 0x03030303U;
          x[p % kSets][i][2] = w[i].z >> 2 * p & 0x03030303U;
          x[p % kSets][i][3] = w[i].w >> 2 * p & 0x03030303U;
        }
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < MT; ++i)
          multiply(acc[i], x[p % kSets][i], codes + static_cast<std::uint64_t>(2 * p),
                   p > 0 || before >= 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        // The products that read the set which is unpacked next are done; so, at this p, are
        // those of the step before.
        asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kSets - 1) : "memory");
        if (p == kSets - 2 && before >= 0 && lane == 0) arrive(&empty[before]);
      }
      before = stage;
      if ((stage += CK) >= W::kStages) {
        stage -= W::kStages;
        parity ^= 1;
      }
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");

    // Through shared memory, so that results leave as vectors of one row, by a short loop.
    consumers_barrier<W::kWarps>();  // no stage is read any more
    // Where there are fewer steps than parts, some parts are 0.
    int* const sums = reinterpret_cast<int*>(shared);  // (CK, N, kPitch)
    int* const mine = sums + kw * N * W::kPitch + lane % 4 * 2 * W::kPitch + lane / 4;
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      int* const to = mine + place_of(co, i, warp % 4) * 16;
#pragma unroll
      for (int n = 0; n < N / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          to[(8 * n + e % 2) * W::kPitch + e / 2 * 8] = before >= 0 ? acc[i][4 * n + e] : 0;
    }
    consumers_barrier<W::kWarps>();
    store_rows<W, kPairs, N, CK>(a, member, row0, first_tile * 16, sums, x_scale, code_sum, old);
  }
#else
  __trap();  // rows_product_hopper_fits keeps other devices away
#endif
}

template <int kPairs, int MT, int N, int CO, int CK, int B>
void launch_wide(const Launch& l, const RowsProduct& a) {
  using W = Wide<MT, N, CO, CK, B>;
  static const bool configured = [] {
    check(cudaFuncSetAttribute(rows_product_hopper_kernel<kPairs, MT, N, CO, CK, B>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize, W::kShared),
          "reserving shared memory");
    return true;
  }();
  static_cast<void>(configured);
  const idx tiles = row_tiles(a.out) * a.pairs, row_bytes = a.k_tiles * kTileBytes;
  Maps maps{};
  for (int m = 0; m < a.members; ++m) {
    maps.tiles[m] = plain_tensor_map(a.tiles + m * row_bytes, tiles, row_bytes,
                                     a.members * row_bytes, W::kTiles);
    maps.codes[m] = tensor_map(a.codes[m], a.rows, a.code_stride, a.code_stride, N);
  }
  const auto blocks = static_cast<unsigned>((tiles + W::kTiles - 1) / W::kTiles);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      dim3(blocks, (static_cast<unsigned>(a.rows) + N - 1) / N, static_cast<unsigned>(a.members));
  config.blockDim = W::kThreads;
  config.dynamicSmemBytes = W::kShared;
  config.stream = l.stream;
  config.attrs = &early;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, rows_product_hopper_kernel<kPairs, MT, N, CO, CK, B>, maps, a),
        "product of codes and ternary weights");
}

}  // namespace

// Shapes by measurement on an H200 (1.3B, 16 to 2048 rows): large tiles where these fill the GPU,
// else smaller ones, and several warpgroups for the same sums where even those are few.
void rows_product_hopper(const Launch& l, const RowsProduct& a) {
  const idx groups = (row_tiles(a.out) * a.pairs + 3) / 4 * a.members;  // of 64 outputs
  const auto blocks = [&](idx outputs, idx rows) {
    return (64 * groups + outputs - 1) / outputs * ((a.rows + rows - 1) / rows);
  };
  const bool pairs = a.pairs == 2;
  if (a.rows <= 16)
    return pairs ? launch_wide<2, 2, 16, 1, 2, 1>(l, a) : launch_wide<1, 1, 16, 1, 4, 1>(l, a);
  if (a.rows <= 32)
    return pairs ? launch_wide<2, 2, 32, 1, 2, 1>(l, a) : launch_wide<1, 1, 32, 1, 4, 1>(l, a);
  if (a.rows <= 64) {
    if (pairs) return launch_wide<2, 2, 64, 1, 2, 1>(l, a);
    if (2 * blocks(64, 64) < l.multiprocessors) return launch_wide<1, 1, 32, 1, 4, 1>(l, a);
  } else {
    if (a.rows > 512 || 2 * blocks(128, 128) >= 3 * l.multiprocessors)
      return pairs ? launch_wide<2, 2, 128, 1, 1, 2>(l, a) : launch_wide<1, 2, 128, 1, 1, 2>(l, a);
    if (pairs) return launch_wide<2, 2, 96, 1, 1, 2>(l, a);
    return blocks(64, 64) > 2 * l.multiprocessors ? launch_wide<1, 1, 128, 2, 1, 1>(l, a)
                                                  : launch_wide<1, 1, 64, 1, 4, 1>(l, a);
  }
  blocks(64, 64) > 2 * l.multiprocessors ? launch_wide<1, 1, 64, 1, 1, 3>(l, a)
                                         : launch_wide<1, 1, 64, 1, 2, 1>(l, a);
}

}  // namespace mmfree::cuda
