#pragma once
// What the parts of decode_cluster.cu share: shapes of the stages, places in a block's shared
// memory, and what its threads count alike.
#include "mmfree/cuda/cluster.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"

namespace mmfree::cuda {

enum StageIndex { kMixerIn, kMixerOut, kMlpIn, kMlpOut, kHead };

inline constexpr int kCluster = 8;  // blocks
inline constexpr int kNormWarps = 8;
inline constexpr int kNormThreads = 32 * kNormWarps;
inline constexpr int kNormLanes = static_cast<int>(kSumLanes) / kNormThreads;  // of a thread
inline constexpr int kProductWarps = 8;
inline constexpr int kProductThreads = 32 * kProductWarps;
inline constexpr int kBlockThreads = kProductThreads + kNormThreads;
inline constexpr int kSlots = 32;  // of a warp's ring of tiles

// Tiles of a row that a warp has at most, and where a block's rows have three rows of codes.
inline constexpr int kMostTiles = 8, kMostTilesOfThree = 4;

struct StageShape {
  int row_tiles, group, depth;  // rows of tiles of each of `group` matrices, tiles a row
  int tile;                     // the first, in units of 512 bytes from the layer's first
};
struct Layout {
  StageShape stage[kDecodeStages];
  LayerParams params;
  int x1, z, x2, best;  // bytes of the exchange
  // Bytes of shared memory behind the rings; code_stride: bytes from a matrix's codes to the
  // next's; stage_sums: ints of a warp; row_floats: of one of two.
  int own_x, sums, stage_sums, rows, row_floats, codes, code_stride, shares;
};

// What a warp multiplies in a stage: tiles k .. k + count - 1 of each of the block's rows.
struct Share {
  int tile;  // the first row's first, in units of 512 bytes from the layer's or the head's first
  int k, count, rows;
};

struct Common {
  // Of the norm warps: sums of the groups of lanes, of a first norm and of the next; maxima by
  // matrix and warp.
  alignas(16) float first[2 * kSumGroups];
  alignas(16) float parts[2 * kSumGroups];
  alignas(16) unsigned maxima[3][kNormWarps];
  // Of codes, by matrix.
  alignas(16) float scale[4];
  int first_group[kDecodeStages], groups[kDecodeStages];  // of 16 outputs, this block's
  std::int32_t token;
  ClusterBarrier on_row[2], on_weights[kProductWarps];
  unsigned long long clocks[3 * kDecodeStages];  // as Decode::clocks, of this block
};

// Named barriers of a block.
enum BarrierIndex { kNormBarrier = 1, kProductBarrier, kCodesBarrier };
template <int kThreads>
__device__ __forceinline__ void sync_warps(BarrierIndex b) {
  asm volatile("bar.sync %0, %1;" ::"r"(static_cast<int>(b)), "n"(kThreads) : "memory");
}
__device__ __forceinline__ void announce_codes() {
  asm volatile("bar.arrive %0, %1;" ::"n"(static_cast<int>(kCodesBarrier)), "n"(kBlockThreads) : "memory");
}
__device__ __forceinline__ void wait_for_codes() {
  asm volatile("bar.sync %0, %1;" ::"n"(static_cast<int>(kCodesBarrier)), "n"(kBlockThreads) : "memory");
}

// What all threads count alike.
struct Course {
  const Decode& a;
  int layers, first_head;
  __device__ __forceinline__ explicit Course(const Decode& d)
      : a(d),
        layers(static_cast<int>(d.w.layers)),
        first_head(d.chosen != nullptr ? d.given_count - 1 : d.steps) {}
  __device__ __forceinline__ std::uint32_t epoch(int step, int layer) const {
    return a.first_epoch + static_cast<std::uint32_t>(step * layers + layer);
  }
  __device__ __forceinline__ int stages(int step, int layer) const {
    return layer + 1 == layers && step >= first_head ? 5 : 4;
  }
  __device__ __forceinline__ bool ends_with(std::int32_t token) const {
    return token < 0 || token == a.eos;
  }
  // One block's time is taken; where there are fewer rows of tiles than blocks, one that has some.
  __device__ __forceinline__ bool measured() const {
    return a.clocks != nullptr && blockIdx.x == (gridDim.x / 2 | 1U);
  }
};

}  // namespace mmfree::cuda
