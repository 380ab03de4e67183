#include "mmfree/cuda/runtime.h"

#include <fmt/core.h>

#include "mmfree/core/error.h"

namespace mmfree::cuda {
namespace {
constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

// Dense bf16 tensor-core operations a clock and multiprocessor, float32 sums (NVIDIA's papers on
// its architectures: A100 2048, GA102 and AD102 512, H100 4096).
int flops_a_clock(int compute_capability) {
  switch (compute_capability) {
    case 80:
      return 2048;
    case 86:
    case 89:
      return 512;
    case 90:
      return 4096;
    default:
      return 0;
  }
}
}  // namespace

void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  fail(ErrorKind::resource, fmt::format("{}: CUDA says {} ({})", what, cudaGetErrorString(code),
                                        cudaGetErrorName(code)));
}

Device select_device(int oldest) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess || count == 0)
    fail(ErrorKind::resource,
         fmt::format("--device cuda: no usable NVIDIA GPU here ({}); expected a GPU and a driver "
                     "for CUDA {}; --device cpu works without",
                     found != cudaSuccess ? cudaGetErrorString(found) : "the driver lists none",
                     CUDART_VERSION / 1000));
  int id = 0;
  check(cudaGetDevice(&id), "choosing the GPU");
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, id), "asking for the GPU's properties");
  Device d;
  d.name = p.name;
  d.compute_capability = 10 * p.major + p.minor;
  d.multiprocessors = p.multiProcessorCount;
  if (d.compute_capability < oldest)
    fail(ErrorKind::resource,
         fmt::format("--device cuda: {} has compute capability {}.{}, expected at least {}.{}",
                     d.name, p.major, p.minor, oldest / 10, oldest % 10));
  check(cudaMemGetInfo(&d.free_bytes, &d.total_bytes), "asking for the GPU's memory");
  int khz = 0;
  check(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, id), "asking for the GPU's clock");
  d.peak_flops = 1e3 * khz * d.multiprocessors * flops_a_clock(d.compute_capability);
  return d;
}

Arena::~Arena() {
  cudaFree(base_);
}

void Arena::allocate(const std::string& remedy) {
  size_ = peak_;
  used_ = 0;
  peak_ = 0;
  std::size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the GPU's memory");
  void* p = nullptr;
  const cudaError_t code = size_ <= free_bytes ? cudaMalloc(&p, size_) : cudaErrorMemoryAllocation;
  if (code == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // an allocation that failed leaves no lasting error
    fail(ErrorKind::resource,
         fmt::format("out of GPU memory: {:.2f} GiB needed, {:.2f} of {:.2f} GiB free; {}",
                     static_cast<double>(size_) / kGib, static_cast<double>(free_bytes) / kGib,
                     static_cast<double>(total_bytes) / kGib, remedy));
  }
  check(code, "allocating GPU memory");
  base_ = static_cast<char*>(p);
}

}  // namespace mmfree::cuda
