#pragma once
// Owning, 64-byte aligned, zero-initialised storage for plain element types.
#include <cstddef>
#include <type_traits>
#include <utility>

#include "mmfree/core/types.h"

namespace mmfree {

// Zeroed pages, huge ones where the system has them; throws a resource Error naming the size.
void* allocate_zeroed(std::size_t bytes);
void release(void* p, std::size_t bytes) noexcept;

template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(idx n)
      : data_(static_cast<T*>(allocate_zeroed(static_cast<std::size_t>(n) * sizeof(T)))),
        size_(n) {}
  Buffer(Buffer&& o) noexcept
      : data_(std::exchange(o.data_, nullptr)), size_(std::exchange(o.size_, 0)) {}
  Buffer& operator=(Buffer&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(size_, o.size_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { release(data_, static_cast<std::size_t>(size_) * sizeof(T)); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  idx size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](idx i) { return data_[i]; }
  const T& operator[](idx i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }

 private:
  T* data_ = nullptr;
  idx size_ = 0;
};

}  // namespace mmfree
