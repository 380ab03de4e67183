#pragma once
// The sub-commands. Each parses its own options (args[0] is the command's name), does its work and returns an exit code;
// bad input is thrown as mmfree::Error and turned into a message and a code by main.
#include <span>

namespace mmfree {

using Args = std::span<char*>;

}  // namespace mmfree
