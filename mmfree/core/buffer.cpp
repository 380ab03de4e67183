#include "mmfree/core/buffer.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {
// Above this size memory comes from the system directly, so that it can use huge pages and goes
// back when released.
constexpr std::size_t kMapThreshold = std::size_t{4} << 20;
constexpr std::size_t kAlignment = 64;
}  // namespace

void* allocate_zeroed(std::size_t bytes) {
  if (bytes == 0) return nullptr;
  void* p = nullptr;
  if (bytes >= kMapThreshold) {
    p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) p = nullptr;
    if (p != nullptr) madvise(p, bytes, MADV_HUGEPAGE);  // advice only: failure changes nothing
  } else {
    p = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    if (p != nullptr) std::memset(p, 0, bytes);
  }
  if (p == nullptr)
    fail(ErrorKind::resource,
         "out of memory: " + std::to_string(bytes) +
             " bytes were asked for in one piece; a smaller batch or model needs less");
  return p;
}

void release(void* p, std::size_t bytes) noexcept {
  if (p == nullptr) return;
  if (bytes >= kMapThreshold) {
    munmap(p, bytes);
  } else {
    std::free(p);
  }
}

}  // namespace mmfree
