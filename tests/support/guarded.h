#pragma once
// Tensors between guards: the byte after the last element lies in a page that must not be touched
// (reading or writing it ends the test), the bytes before the first one hold a pattern that is
// checked, and inputs can be sealed.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree::test {

class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t bytes);
  GuardedBytes(GuardedBytes&& o) noexcept;
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  GuardedBytes& operator=(GuardedBytes&&) = delete;
  ~GuardedBytes();

  unsigned char* data() const { return data_; }
  bool front_is_intact() const;

 private:
  unsigned char* map_ = nullptr;  // pattern, data, forbidden page
  std::size_t map_bytes_ = 0;
  unsigned char* data_ = nullptr;
};

// n elements that end at the forbidden page, so they are aligned to sizeof(T) only (64 n bytes: to
// 64).
template <class T>
class Guarded {
 public:
  // An output: every byte is 0xa5, so a missing write shows.
  explicit Guarded(idx n)
      : bytes_(static_cast<std::size_t>(n) * sizeof(T)), size_(static_cast<std::size_t>(n)) {
    std::memset(bytes_.data(), 0xa5, size_ * sizeof(T));
  }
  // An input (sealed), or the start of something accumulated.
  explicit Guarded(const std::vector<T>& v)
      : bytes_(v.size() * sizeof(T)), size_(v.size()), sealed_(v) {
    if (!v.empty()) std::memcpy(bytes_.data(), v.data(), v.size() * sizeof(T));
  }

  T* data() { return reinterpret_cast<T*>(bytes_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(bytes_.data()); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data()[i]; }
  const T& operator[](std::size_t i) const { return data()[i]; }
  const T* begin() const { return data(); }
  const T* end() const { return data() + size_; }
  std::vector<T> values() const { return std::vector<T>(begin(), end()); }

  // Nothing before the first element was written.
  bool intact() const { return bytes_.front_is_intact(); }
  // Nor was any element changed since the construction from a vector.
  bool unchanged() const {
    return intact() && sealed_.size() == size_ &&
           (size_ == 0 || std::memcmp(bytes_.data(), sealed_.data(), size_ * sizeof(T)) == 0);
  }

 private:
  GuardedBytes bytes_;
  std::size_t size_;
  std::vector<T> sealed_;
};

}  // namespace mmfree::test
