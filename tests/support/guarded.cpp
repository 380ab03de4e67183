#include "tests/support/guarded.h"

#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>
#include <utility>

namespace mmfree::test {
namespace {

constexpr unsigned char kPattern = 0x5a;
constexpr std::size_t kFrontBytes = 256;  // at least this much pattern lies before the data

}  // namespace

GuardedBytes::GuardedBytes(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t usable = (kFrontBytes + bytes + page - 1) / page * page;
  map_bytes_ = usable + page;
  void* map = mmap(nullptr, map_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) throw std::runtime_error("mmap failed");
  map_ = static_cast<unsigned char*>(map);
  data_ = map_ + usable - bytes;
  std::memset(map_, kPattern, usable - bytes);
  if (mprotect(map_ + usable, page, PROT_NONE) != 0) throw std::runtime_error("mprotect failed");
}

GuardedBytes::GuardedBytes(GuardedBytes&& o) noexcept
    : map_(std::exchange(o.map_, nullptr)), map_bytes_(o.map_bytes_), data_(o.data_) {}

GuardedBytes::~GuardedBytes() {
  if (map_ != nullptr) munmap(map_, map_bytes_);
}

bool GuardedBytes::front_is_intact() const {
  for (const unsigned char* p = map_; p < data_; ++p)
    if (*p != kPattern) return false;
  return true;
}

}  // namespace mmfree::test
