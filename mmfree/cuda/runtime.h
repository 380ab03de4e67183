#pragma once
// Internal to mmfree/cuda: the CUDA runtime with every call checked, and device memory that is
// planned once. No header outside this folder includes it.
#include <cuda_runtime_api.h>

#include <string>

#include "mmfree/core/types.h"

namespace mmfree::cuda {

// Throws a resource Error "what: CUDA says ..." unless the code is success.
void check(cudaError_t code, const char* what);

// The device that this process uses. Throws a resource Error that says why there is none, or that
// it is older than `oldest` needs (75 for 7.5; training needs bf16 products, 80).
struct Device {
  std::string name;
  int compute_capability;  // 90 for 9.0
  int multiprocessors;
  std::size_t free_bytes, total_bytes;  // when asked
  double peak_flops;                    // of dense bf16 products at the highest clock; 0: not known
};
Device select_device(int oldest = 80);

// Memory handed out in one order, twice: a first pass counts (memory absent, pointers are offsets
// that nobody may follow), allocate() gets it all at once, a second pass hands out the pointers.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  template <class T>
  T* take(idx n) {
    char* p = base_ + used_;
    used_ += (static_cast<std::size_t>(n) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    if (used_ > peak_) peak_ = used_;
    return reinterpret_cast<T*>(p);
  }
  // Buffers whose lives do not overlap share memory: rewind(mark()) gives back what was taken
  // since.
  std::size_t mark() const { return used_; }
  void rewind(std::size_t to) { used_ = to; }

  std::size_t peak() const { return peak_; }
  // Allocates the peak, or throws a resource Error naming both sizes and `remedy`.
  void allocate(const std::string& remedy);

 private:
  static constexpr std::size_t kAlign = 256;
  char* base_ = nullptr;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
  std::size_t size_ = 0;
};

}  // namespace mmfree::cuda
