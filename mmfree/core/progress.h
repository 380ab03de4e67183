#pragma once
// A sink for progress of long work: the library calls it, the command line draws it.
#include <cstdint>
#include <functional>
#include <string_view>

namespace mmfree {

// done and total in units of `what` (bytes, tokens, steps); total 0 = unknown.
using Progress =
    std::function<void(std::string_view what, std::uint64_t done, std::uint64_t total)>;

}  // namespace mmfree
