#pragma once
// For the tests of this folder: skipping where there is no GPU, and vectors on the device.
#include <gtest/gtest.h>

#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::test {

// Why there is no GPU to test on; empty if there is one.
inline std::string no_gpu() {
  try {
    cuda::select_device();
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string why = no_gpu();
    if (!why.empty()) GTEST_SKIP() << why;
  }
};

inline cuda::Launch default_launch() {
  return {nullptr, cuda::select_device().multiprocessors};
}

// Elements on the device, one guard element after them that must stay as it was.
template <class T>
class DeviceVector {
 public:
  explicit DeviceVector(const std::vector<T>& v) : size_(v.size()) {
    cuda::check(cudaMalloc(&data_, (size_ + 1) * sizeof(T)), "cudaMalloc");
    cuda::check(cudaMemset(data_, 0xff, (size_ + 1) * sizeof(T)), "cudaMemset");
    cuda::check(cudaMemcpy(data_, v.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
                "cudaMemcpy");
  }
  // Not initialised: every byte is 0xff, a NaN in floats.
  explicit DeviceVector(idx n) : DeviceVector(filled(n)) {}
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;
  ~DeviceVector() { cudaFree(data_); }

  T* data() { return static_cast<T*>(data_); }
  std::vector<T> get() const {
    std::vector<T> v(size_ + 1);
    cuda::check(cudaDeviceSynchronize(), "kernel");
    cuda::check(cudaMemcpy(v.data(), data_, v.size() * sizeof(T), cudaMemcpyDeviceToHost),
                "cudaMemcpy");
    const std::vector<T> guard = filled(1);
    EXPECT_EQ(std::memcmp(&v.back(), guard.data(), sizeof(T)), 0) << "written past the end";
    v.pop_back();
    return v;
  }

 private:
  static std::vector<T> filled(idx n) {
    std::vector<T> v(static_cast<std::size_t>(n));
    std::memset(static_cast<void*>(v.data()), 0xff, v.size() * sizeof(T));
    return v;
  }
  void* data_ = nullptr;
  std::size_t size_;
};

}  // namespace mmfree::test
