#include "mmfree/io/quote.h"

#include <fmt/format.h>

namespace mmfree {

std::string quote_name(std::string_view name) {
  constexpr std::size_t kLimit = 80;
  std::string text = "'";
  for (const char c : name.substr(0, kLimit)) {
    const unsigned char u = static_cast<unsigned char>(c);
    if (u < 0x20 || u == 0x7f)
      text += fmt::format("\\x{:02x}", u);
    else
      text += c;
  }
  text += name.size() > kLimit ? "'..." : "'";
  return text;
}

}  // namespace mmfree
