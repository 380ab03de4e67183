#pragma once
// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.
#include <cstddef>
#include <string_view>

namespace mmfree {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Status { complete, incomplete, invalid };

struct Utf8Char {
  Utf8Status status;
  std::size_t length;  // bytes of the character; 1 if invalid; what is there if incomplete
};

// What the non-empty text starts with. `incomplete`: more bytes may still make it a character.
Utf8Char first_utf8_char(std::string_view text);

// Offset of the first byte that does not belong to a well-formed character; npos if all do.
std::size_t find_invalid_utf8(std::string_view text);

}  // namespace mmfree
