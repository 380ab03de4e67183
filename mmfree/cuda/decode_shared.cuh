#pragma once
// What the warps of decode_cluster.cu's blocks know of each other.
#include "mmfree/cuda/cluster.cuh"
#include "mmfree/cuda/infer_device.cuh"
#include "mmfree/cuda/infer_kernels.h"

namespace mmfree::cuda {

enum StageIndex { kMixerIn, kMixerOut, kMlpIn, kMlpOut, kHead };

inline constexpr int kCluster = 8;                         // blocks
inline constexpr int kGroupsHere = kSumGroups / kCluster;  // of the canonical sum, a block
inline constexpr int kNormWarps = 3 * kGroupsHere;         // a matrix of i, f, g each
inline constexpr int kProductWarps = 8;
inline constexpr int kProductThreads = 32 * kProductWarps;
inline constexpr int kBlockThreads = kProductThreads + 32 * kNormWarps;
inline constexpr int kSlots = 24;  // of a warp's ring of tiles

struct StageShape {
  int row_tiles, group, depth;  // rows of tiles of each of `group` matrices, tiles a row
  int tile;                     // the first, in units of 512 bytes from the layer's first
  int codes, stride;            // bytes of shared memory; from one matrix's codes to the next's
};
struct Layout {
  StageShape stage[kDecodeStages];
  LayerParams params;
  int x1, z, x2, best;  // bytes of the exchange
  // Bytes of shared memory behind the rings; stage_sums: ints of one of two buffers.
  int own_x, sums, stage_sums, rows, staging, shares;
};

// Where a stage's norm warps of a cluster meet, one in each block. code_sums and scale are for the
// product warps.
struct Room {
  alignas(16) float2 sums[kSumGroups];
  alignas(16) float first[kSumGroups];  // of the gated norm
  alignas(16) unsigned maxima[3][kSumGroups];
  alignas(16) int code_sums[3][kSumGroups];
  float scale[3];
  ClusterBarrier on_first, on_sums, on_maxima[3], on_codes;
};

// What a product warp multiplies in a stage.
struct Share {
  int tile, count;  // the first in units of 512 bytes, from the layer's or the head's first
  int row, k;       // of the first: row of tiles in the block | its matrix << 16
};

struct Common {
  Room rooms[kDecodeStages];
  int first_group[kDecodeStages], groups[kDecodeStages];  // of 16 outputs, this block's
  std::int32_t token;
  ClusterBarrier on_token, on_row[kGroupsHere], on_weights[kProductWarps];
  unsigned long long clocks[3 * kDecodeStages];  // as Decode::clocks, of this block
};

// What both kinds of warps count alike.
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
