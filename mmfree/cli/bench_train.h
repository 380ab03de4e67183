#pragma once
// mmfree bench train --device cuda: speed and memory of the training step of a size with random
// weights and tokens.
#include <string>

#include "mmfree/model/config.h"

namespace mmfree {

struct BenchTrain {
  std::string size_name;
  MatmulFreeConfig config;
  idx batch = 16;  // sequences a step
  idx seq = 2048;  // tokens a sequence
  idx rounds = 9;  // steps measured; the median is reported
  double memory_gib = 0;
  std::string precision = "bf16";
  std::string backward = "bf16";    // or fp8
  std::string moments = "float32";  // or bf16
  bool int8 = true;
  bool json = false;
};
int bench_train(const BenchTrain& o);
// mmfree bench ops --device cuda: each kernel of the step against the roofline.
int bench_gpu_kernels(const BenchTrain& o);

}  // namespace mmfree
