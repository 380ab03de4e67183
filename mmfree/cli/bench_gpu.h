#pragma once
// mmfree bench decode | prefill | batch | stream --device cuda.
#include <string>
#include <vector>

#include "mmfree/core/parallel.h"
#include "mmfree/core/types.h"

namespace mmfree {

struct BenchGpu {
  std::string what, model, size;  // model: a path; empty: random weights of `size`
  idx vocab = 32000, tokens = 512, rounds = 9;
  idx gpu_layers = -1;  // decode and prefill: blocks on the GPU, the others on the CPU; -1: all
  std::vector<idx> batches;
  bool json = false;
};
int bench_gpu(const Ctx& ctx, const BenchGpu& o);

}  // namespace mmfree
