// Decoding on GPUs whose blocks form clusters (sm_90): as decode.cu one kernel that stays, in which
// every block owns the same outputs of every matrix and four exchanges a layer remain. A token is a
// chain of dependent instructions much longer than reading the weights takes, so:
//   - a cluster reads each value of an exchange once: two exchange warps a block look for an eighth
//     of the row and hand it to all blocks with the sums of its squares (decode_exchange.cuh);
//   - eight warps divide the inputs of a row among them: each normalises and quantises what it then
//     multiplies (decode_norm.cuh), by bits of codes on tensor cores (decode_products.cuh);
//   - weights stream into shared memory all the while.
//
// Who may be how far ahead: there are no more clusters than rows of tiles, so in every stage some
// block of each cluster makes outputs, for which it needs the parts of the row of all blocks of its
// cluster; and every later stage needs these outputs. So nobody is more than one exchange behind,
// and what a stage of one layer wrote has been read when the same stage of the next layer writes.
#include <algorithm>

#include "mmfree/cuda/decode_exchange.cuh"
#include "mmfree/cuda/decode_norm.cuh"
#include "mmfree/cuda/decode_products.cuh"
#include "mmfree/cuda/decode_shared.cuh"
#include "mmfree/cuda/embedding_rows.cuh"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

// ED: elements of D and M a lane of the canonical sum has, EF: of F.
template <int ED, int EF>
__global__ void __launch_bounds__(kBlockThreads, 1)
    decode_cluster_kernel(const __grid_constant__ Decode a, const __grid_constant__ Layout at) {
  extern __shared__ __align__(128) char shared[];
  __shared__ Common common;
  const int tid = static_cast<int>(threadIdx.x);
  for (int i = tid; i < kWarps * kDecodeStages; i += kBlockThreads) {
    const int warp = i / kDecodeStages, s = i % kDecodeStages;
    const StageShape& shape = at.stage[s];
    const Part part = part_of(shape.row_tiles);
    const int begin = shape.depth * warp / kWarps;
    const int end = shape.depth * (warp + 1) / kWarps;
    reinterpret_cast<Share*>(shared + at.shares)[i] = {
        shape.tile + part.first_group * shape.group * shape.depth + begin, begin, end - begin,
        part.groups * shape.group};
    if (warp == 0) {
      common.first_group[s] = part.first_group;
      common.groups[s] = part.groups;
    }
  }
  if (tid == 0) {
    for (ClusterBarrier& b : common.on_row) init_barrier(&b, 1 + kWarps);
    init_barrier(&common.on_first, 1);
    for (ClusterBarrier& b : common.on_weights) init_barrier(&b, 1);
    publish_barriers();
  }
  if (tid < 3 * kDecodeStages) common.clocks[tid] = 0;
  __syncthreads();
  sync_cluster();
  if (tid < kThreads) {
    run_warp<ED, EF>(a, at, common, shared);
  } else {
    run_exchange_warp<ED, EF>(a, at, common, shared);
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

Layout layout_of(const DeviceWeights& w, int blocks, std::size_t* shared) {
  const LayerTiles tiles(w.hidden, w.mixer, w.mlp);
  const auto padded = [](int n) { return (n + 127) / 128 * 128; };
  const auto most = [&](int width) {
    return static_cast<int>((row_tiles(width) + blocks - 1) / blocks);
  };
  Layout at{{}, LayerParams(w.hidden, w.mixer, w.mlp), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  at.x1 = 16 * padded(w.mixer);
  at.z = at.x1 + 8 * padded(w.hidden);
  at.x2 = at.z + 8 * padded(w.mlp);
  at.best = at.x2 + 8 * padded(w.hidden);
  int next = kWarps * kSlots * static_cast<int>(kTileBytes);
  const auto take = [&](int bytes) {
    const int first = next;
    next = (next + bytes + 15) / 16 * 16;
    return first;
  };
  const auto stage = [&](StageIndex s, idx offset, int out, int in, int group) {
    at.stage[s] = {static_cast<int>(row_tiles(out)), group, static_cast<int>(input_tiles(in)),
                   static_cast<int>(offset / kTileBytes)};
  };
  stage(kMixerIn, tiles.mixer_in.offset, w.mixer, w.hidden, 3);
  stage(kMixerOut, tiles.mixer_out.offset, w.hidden, w.mixer, 1);
  stage(kMlpIn, tiles.mlp_in.offset, w.mlp, w.hidden, 2);
  stage(kMlpOut, tiles.mlp_out.offset, w.hidden, w.mlp, 1);
  stage(kHead, 0, w.vocab, w.hidden, 1);
  at.code_stride = padded(w.hidden);
  at.own_x = take(4 * 16 * most(w.hidden));
  at.codes = take(std::max({3 * padded(w.hidden), padded(w.mixer), padded(w.mlp)}));
  at.row_floats = std::max({padded(w.hidden), 2 * padded(w.mixer), padded(w.mlp)});
  at.rows = take(2 * 4 * at.row_floats);
  at.shares = take(kWarps * kDecodeStages * static_cast<int>(sizeof(Share)));
  at.stage_sums =
      16 * std::max({3 * most(w.mixer), most(w.hidden), 2 * most(w.mlp), most(w.vocab)});
  at.sums = take(kWarps * (4 * at.stage_sums + 8));
  *shared = static_cast<std::size_t>(next);
  return at;
}

// clusters 0: returns how many there is room for.
template <int ED, int EF>
int launch(const Launch& l, const Decode& a, int clusters) {
  const auto kernel = decode_cluster_kernel<ED, EF>;
  const int blocks = (clusters > 0 ? clusters : l.multiprocessors / kCluster) * kCluster;
  std::size_t shared = 0;
  const Layout at = layout_of(a.w, blocks, &shared);
  int device = 0, room = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&room, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking for the shared memory of a block");
  if (clusters == 0 && shared + sizeof(Common) > static_cast<std::size_t>(room)) return 0;
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
  return launch<8, 16>(l, a, clusters);
}

}  // namespace

int decode_clusters(const Launch& l, const DeviceWeights& w) {
  int device = 0, major = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "asking for the compute capability");
  if (major != 9) return 0;
  // What the kernel takes; the other one takes the rest.
  if (std::max(input_tiles(w.hidden), input_tiles(w.mixer)) > kMostTilesOfThree * kWarps ||
      input_tiles(w.mlp) > kMostTiles * kWarps || w.eps < kLeastEps)
    return 0;
  Decode a = {};
  a.w = w;
  return std::min(launch(l, a, 0),
                  static_cast<int>(row_tiles(std::min({w.hidden, w.mixer, w.mlp}))));
}

idx cluster_exchange_packets(const DeviceWeights& w, int blocks) {
  std::size_t shared;
  return layout_of(w, blocks, &shared).best / static_cast<idx>(sizeof(Packet)) + blocks;
}

void decode_in_clusters(const Launch& l, const Decode& a) {
  launch(l, a, a.clusters);
}

}  // namespace mmfree::cuda
