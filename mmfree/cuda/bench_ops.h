#pragma once
// Times the kernels of the training step one by one, at the shapes of a configuration.
#include <string>
#include <vector>

#include "mmfree/model/config.h"

namespace mmfree {

struct GpuOpTime {
  std::string name;
  double seconds;
  double bytes;       // that must move at least: each input read once, each output written once
  double operations;  // of products, else 0
};
struct GpuOps {
  std::string device;
  double copy_bytes_per_s;  // read plus written, of a large copy
  double bf16_ops_per_s;    // of a square product of 8192
  std::vector<GpuOpTime> ops;
};
GpuOps bench_gpu_ops(const MatmulFreeConfig& config, idx batch, idx length, idx repeats);

}  // namespace mmfree
