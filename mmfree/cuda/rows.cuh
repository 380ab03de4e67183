#pragma once
// How one block walks over one row that it keeps in registers: kItems groups of kVec neighbouring
// elements a thread, group `item` of thread t starting at (item * blockDim.x + t) * kVec.
#include <cuda_runtime.h>

#include <algorithm>
#include <string>

#include "mmfree/core/error.h"
#include "mmfree/core/types.h"
#include "mmfree/cuda/runtime.h"

namespace mmfree::cuda {

template <int V, int ITEMS, int MAX_THREADS>
struct RowLayout {
  static constexpr int kVec = V;
  static constexpr int kItems = ITEMS;
  static constexpr int kMaxThreads = MAX_THREADS;
  static __device__ __forceinline__ int column(int item) {
    return (item * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * V;
  }
};

inline constexpr idx kWidestRow = 16384;    // multiples of 8
inline constexpr idx kWidestOddRow = 4096;  // any width

// Calls f(layout, threads) with the layout that a row of `width` elements needs.
template <class F>
void with_row_layout(idx width, const F& f) {
  const auto threads = [](idx groups) { return static_cast<unsigned>((groups + 31) / 32 * 32); };
  if (width % 8 == 0 && width <= 8 * 256) return f(RowLayout<8, 1, 256>{}, threads(width / 8));
  if (width % 8 == 0 && width <= 8 * 320) return f(RowLayout<8, 1, 320>{}, threads(width / 8));
  if (width % 8 == 0 && width <= 8 * 768) return f(RowLayout<8, 1, 768>{}, threads(width / 8));
  if (width % 8 == 0 && width <= 8 * 896) return f(RowLayout<8, 1, 896>{}, threads(width / 8));
  if (width % 8 == 0 && width <= 8 * 1024) return f(RowLayout<8, 1, 1024>{}, threads(width / 8));
  if (width % 8 == 0 && width <= kWidestRow)
    return f(RowLayout<8, 2, 1024>{}, threads((width / 8 + 1) / 2));
  if (width <= kWidestOddRow) return f(RowLayout<1, 4, 1024>{}, threads((width + 3) / 4));
  fail(ErrorKind::config, "--device cuda: rows of " + std::to_string(width) +
                              " elements, expected at most " + std::to_string(kWidestRow) +
                              " and a multiple of 8, or at most " + std::to_string(kWidestOddRow));
}

// Blocks of a kernel whose blocks take rows in turn and leave one partial sum each: as many as run
// at a time, at most most_row_blocks.
inline idx most_row_blocks(idx rows, unsigned threads, int multiprocessors) {
  const idx resident = std::clamp<idx>(1024 / static_cast<idx>(threads), 1, 12);
  return std::min<idx>(rows, resident * multiprocessors);
}
template <class Kernel>
unsigned row_blocks(const Kernel& kernel, idx rows, unsigned threads, int multiprocessors) {
  int resident = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, static_cast<int>(threads),
                                                      0),
        "asking how many blocks fit");
  return static_cast<unsigned>(
      std::min<idx>(most_row_blocks(rows, threads, multiprocessors),
                    static_cast<idx>(std::max(resident, 1)) * multiprocessors));
}

}  // namespace mmfree::cuda
