#pragma once
// A thread's part of a stage, from which threads that are done may take: cores are not equally fast
// when they share a machine, and a stage is over when the last one is.
#include <atomic>
#include <cstdint>

#include "mmfree/core/types.h"

namespace mmfree {

class alignas(64) Share {
 public:
  // By the owner, when nothing of the last part is left: pieces [first, end) to do.
  void deal(idx first, idx end) noexcept {
    range_.store(pack(first, end), std::memory_order_release);
  }
  // The owner works from the front, others take from the back. -1: nothing left.
  idx take_first() noexcept {
    std::uint64_t r = range_.load(std::memory_order_acquire);
    while (first(r) < end(r))
      if (range_.compare_exchange_weak(r, pack(first(r) + 1, end(r)))) return first(r);
    return -1;
  }
  idx take_last() noexcept {
    std::uint64_t r = range_.load(std::memory_order_acquire);
    while (first(r) < end(r))
      if (range_.compare_exchange_weak(r, pack(first(r), end(r) - 1))) return end(r) - 1;
    return -1;
  }

 private:
  static idx first(std::uint64_t r) { return static_cast<idx>(r >> 32); }
  static idx end(std::uint64_t r) { return static_cast<idx>(r & 0xffffffffU); }
  static std::uint64_t pack(idx first, idx end) {
    return static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint64_t>(end);
  }
  std::atomic<std::uint64_t> range_{0};
};

}  // namespace mmfree
