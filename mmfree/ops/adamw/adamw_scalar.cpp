#include "mmfree/ops/adamw/adamw_loop.h"

namespace mmfree::scalar {

void adamw(const AdamWArgs& a, std::int64_t begin, std::int64_t end) noexcept {
  adamw_loop(a, begin, end);
}

}  // namespace mmfree::scalar
