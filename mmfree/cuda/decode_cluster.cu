// Decoding on GPUs whose blocks form clusters (sm_90): as decode.cu one kernel that stays, but a
// cluster shares the work of a row. Its blocks divide the 16 groups of the canonical sum among
// themselves: a warp of a group asks for that group's values only, adds them up, and tells the
// other blocks sums, maxima and codes through their shared memory (decode_norm.cuh). So a block
// neither reads nor normalises whole rows, and its product warps do nothing but products and what
// follows them (decode_products.cuh).
//
// Both kinds of warps run one body of code for all stages: a stage is short, and so is what there
// is to fetch for it.
//
// Who may be how far ahead: every cluster makes outputs in every stage (there are no more clusters
// than rows of tiles), all its norm warps are needed for these, and every later stage needs these
// outputs. So nobody is more than one exchange ahead of anybody's norm warps, and what a stage of
// one layer wrote has been read when the same stage of the next layer writes.
#include <algorithm>

#include "mmfree/cuda/decode_norm.cuh"
#include "mmfree/cuda/decode_products.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

template <int ED, int EF>
__global__ void __launch_bounds__(kBlockThreads, 1)
    decode_cluster_kernel(const __grid_constant__ Decode a, const __grid_constant__ Layout at) {
  extern __shared__ __align__(128) char shared[];
  __shared__ Common common;
  const int tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < kProductWarps * kDecodeStages; i += kBlockThreads) {
    const int warp = i / kDecodeStages, s = i % kDecodeStages;
    const StageShape& shape = at.stage[s];
    const Part part = part_of(shape.row_tiles);
    const int items = part.groups * shape.group * shape.depth;
    const int begin = items * warp / kProductWarps, end = items * (warp + 1) / kProductWarps;
    const int row = begin / shape.depth;
    reinterpret_cast<Share*>(shared + at.shares)[i] = {
        shape.tile + part.first_group * shape.group * shape.depth + begin, end - begin,
        row | row % shape.group << 16, begin % shape.depth};
    if (warp == 0) {
      common.first_group[s] = part.first_group;
      common.groups[s] = part.groups;
    }
  }
  if (tid == 0) {
    for (int s = 0; s < kDecodeStages; ++s) {
      Room& room = common.rooms[s];
      init_barrier(&room.on_first, 1);
      init_barrier(&room.on_sums, 1);
      for (ClusterBarrier& b : room.on_maxima) init_barrier(&b, 1);
      init_barrier(&room.on_codes, s == kMixerIn ? 3 : 1);
    }
    init_barrier(&common.on_token, 1);
    for (ClusterBarrier& b : common.on_row) init_barrier(&b, 1);
    for (ClusterBarrier& b : common.on_weights) init_barrier(&b, 1);
    publish_barriers();
  }
  if (tid < 3 * kDecodeStages) common.clocks[tid] = 0;
  int* sums = reinterpret_cast<int*>(shared + at.sums);
  for (int i = tid; i < 2 * at.stage_sums; i += kBlockThreads) sums[i] = 0;
  __syncthreads();
  sync_cluster();
  if (tid < kProductThreads) {
    run_product_warp(a, at, common, shared);
  } else {
    run_norm_warp<ED, EF>(a, at, common, shared);
  }
  __syncthreads();
  if (Course(a).measured() && tid < 3 * kDecodeStages) a.clocks[tid] += common.clocks[tid];
  sync_cluster();  // others may still write to this block's memory
}

#else

template <int ED, int EF>
__global__ void decode_cluster_kernel(const __grid_constant__ Decode,
                                      const __grid_constant__ Layout) {}

#endif

Layout layout_of(const DeviceWeights& w, int blocks, int ed, int ef, std::size_t* shared) {
  const LayerTiles tiles(w.hidden, w.mixer, w.mlp);
  const auto padded = [](int n) { return (n + 127) / 128 * 128; };
  const auto most = [&](int width) {
    return static_cast<int>((row_tiles(width) + blocks - 1) / blocks);
  };
  Layout at{{}, LayerParams(w.hidden, w.mixer, w.mlp), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  at.x1 = 16 * padded(w.mixer);
  at.z = at.x1 + 8 * padded(w.hidden);
  at.x2 = at.z + 8 * padded(w.mlp);
  at.best = at.x2 + 8 * padded(w.hidden);
  int next = kProductWarps * kSlots * static_cast<int>(kTileBytes);
  const auto take = [&](int bytes) {
    const int first = next;
    next = (next + bytes + 15) / 16 * 16;
    return first;
  };
  const auto stage = [&](StageIndex s, idx offset, int out, int in, int group, int code_rows) {
    at.stage[s] = {static_cast<int>(row_tiles(out)),  group,
                   static_cast<int>(input_tiles(in)), static_cast<int>(offset / kTileBytes),
                   take(code_rows * padded(in)),      code_rows == 1 ? 0 : padded(in)};
  };
  stage(kMixerIn, tiles.mixer_in.offset, w.mixer, w.hidden, 3, 3);
  stage(kMixerOut, tiles.mixer_out.offset, w.hidden, w.mixer, 1, 1);
  stage(kMlpIn, tiles.mlp_in.offset, w.mlp, w.hidden, 2, 1);
  stage(kMlpOut, tiles.mlp_out.offset, w.hidden, w.mlp, 1, 1);
  stage(kHead, 0, w.vocab, w.hidden, 1, 1);
  at.own_x = take(4 * 16 * most(w.hidden));
  at.rows = take(kGroupsHere * 4 * (32 * ed + 1));
  at.staging = take(kNormWarps * 32 * std::max(ed, ef));
  at.shares = take(kProductWarps * kDecodeStages * static_cast<int>(sizeof(Share)));
  at.stage_sums =
      16 * std::max({3 * most(w.mixer), most(w.hidden), 2 * most(w.mlp), most(w.vocab)});
  at.sums = take(2 * 4 * at.stage_sums + 8 * kProductWarps);
  *shared = static_cast<std::size_t>(next);
  return at;
}

// clusters 0: returns how many there is room for.
template <int ED, int EF>
int launch(const Launch& l, const Decode& a, int clusters) {
  const auto kernel = decode_cluster_kernel<ED, EF>;
  const int blocks = (clusters > 0 ? clusters : l.multiprocessors / kCluster) * kCluster;
  std::size_t shared = 0;
  const Layout at = layout_of(a.w, blocks, ED, EF, &shared);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "reserving shared memory");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {kCluster, 1, 1};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kBlockThreads);
  config.dynamicSmemBytes = shared;
  config.stream = l.stream;
  config.attrs = attributes;
  config.numAttrs = clusters == 0 ? 1 : 2;
  if (clusters == 0) {
    int most = 0;
    check(cudaOccupancyMaxActiveClusters(&most, kernel, &config), "counting clusters");
    return most;
  }
  check(cudaLaunchKernelEx(&config, kernel, a, at), "decoding");
  return clusters;
}

int launch(const Launch& l, const Decode& a, int clusters) {
  const int lanes = static_cast<int>(kSumLanes);
  const int wide = (std::max(a.w.hidden, a.w.mixer) + lanes - 1) / lanes;
  const int mlp = (a.w.mlp + lanes - 1) / lanes;
  if (wide <= 2 && mlp <= 6) return launch<2, 6>(l, a, clusters);
  if (wide <= 4 && mlp <= 11) return launch<4, 11>(l, a, clusters);
  if (wide <= 5 && mlp <= 14) return launch<5, 14>(l, a, clusters);
  if (wide <= 8 && mlp <= 16) return launch<8, 16>(l, a, clusters);
  return launch<16, 32>(l, a, clusters);
}

}  // namespace

int decode_clusters(const Launch& l, const DeviceWeights& w) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "asking for the compute capability");
  if (major != 9) return 0;
  Decode a = {};
  a.w = w;
  return std::min(launch(l, a, 0),
                  static_cast<int>(row_tiles(std::min({w.hidden, w.mixer, w.mlp}))));
}

idx cluster_exchange_packets(const DeviceWeights& w, int blocks) {
  std::size_t shared;
  return layout_of(w, blocks, 1, 1, &shared).best / static_cast<idx>(sizeof(Packet)) + blocks;
}

void decode_in_clusters(const Launch& l, const Decode& a) {
  launch(l, a, a.clusters);
}

}  // namespace mmfree::cuda
