#pragma once
// Names that come from a file, fit for a message.
#include <string>
#include <string_view>

namespace mmfree {

// 'name', cut after 80 bytes, with control bytes as \xNN.
std::string quote_name(std::string_view name);

}  // namespace mmfree
