#pragma once
// What the parts of decode_cluster.cu share: shapes of the stages, places in a block's shared
// memory, and what its threads count alike.
#include "mmfree/cuda/cluster.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"

namespace mmfree::cuda {

enum StageIndex { kMixerIn, kMixerOut, kMlpIn, kMlpOut, kHead };

inline constexpr int kCluster = 8;  // blocks
inline constexpr int kWarps = 8;    // that normalise and multiply
inline constexpr int kThreads = 32 * kWarps;
inline constexpr int kExchangeWarps = kSumGroups / kCluster;  // one for each group of the sums
inline constexpr int kBlockThreads = kThreads + 32 * kExchangeWarps;
inline constexpr int kSlots = 32;  // of a warp's ring of tiles

// Tiles of a row that a warp has at most, and where a block's rows have three rows of codes.
inline constexpr int kMostTiles = 8, kMostTilesOfThree = 4;

// Below, square roots of sums could leave what reciprocal_rms_of() takes.
inline constexpr float kLeastEps = 1e-12F;

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

// Sums are by group of lanes.
struct Common {
  alignas(16) float sums[2][2][kSumGroups];               // of two rows in turn: x^2, (x * outer)^2
  alignas(16) float first[kSumGroups];                    // of the gated norm, among exchange warps
  alignas(16) unsigned maxima[3][kWarps];                 // by matrix
  int first_group[kDecodeStages], groups[kDecodeStages];  // of 16 outputs, this block's
  std::int32_t token;
  ClusterBarrier on_row[2], on_first, on_weights[kWarps];
  unsigned long long clocks[3 * kDecodeStages];  // as Decode::clocks, of this block
};

// Of the warps that normalise and multiply.
__device__ __forceinline__ void sync_warps() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
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
  __device__ __forceinline__ int width(int stage) const {
    return stage == kMixerOut ? a.w.mixer : stage == kMlpOut ? a.w.mlp : a.w.hidden;
  }
  // One block's time is taken; where there are fewer rows of tiles than blocks, one that has some.
  __device__ __forceinline__ bool measured() const {
    return a.clocks != nullptr && blockIdx.x == (gridDim.x / 2 | 1U);
  }
};

}  // namespace mmfree::cuda
