#pragma once
// The limits of the GPU, measured: what an inference speed is compared with.
namespace mmfree {

struct GpuRoofline {
  double read_bytes_per_s;  // plain wide loads of 2 GiB
  double int8_ops_per_s;    // independent 16 x 8 x 32 products in registers (mma.sync)
};
GpuRoofline measure_gpu_roofline();

}  // namespace mmfree
