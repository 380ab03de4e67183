#pragma once
// The one exception type of the library. The library never prints, exits or aborts: it throws
// Error, and the command line turns the kind into an exit code.
#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace mmfree {

enum class ErrorKind {
  usage,     // wrong options or arguments
  config,    // a configuration that contradicts itself, the weights or this program
  format,    // a file that is not what it claims to be
  io,        // the operating system refused to read or write
  resource,  // out of memory, threads, ...
  numeric,   // a computation left the finite numbers
};

class Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  ErrorKind kind() const noexcept { return kind_; }

 private:
  ErrorKind kind_;
  std::string message_;
};

// Exit code of the program: 2 for wrong usage or bad input (the user can mend it), 1 when a run
// failed.
int exit_code(ErrorKind kind) noexcept;

// Messages say what was wrong, what was found and what was expected.
[[noreturn]] void fail(ErrorKind kind, std::string message);

// "path: strerror(errno)" as an io Error.
[[noreturn]] void fail_errno(std::string_view action, std::string_view path);

}  // namespace mmfree

// For states that no input can reach; active in the dev and sanitizer presets.
#ifdef MMFREE_ASSERTIONS
namespace mmfree {
[[noreturn]] void assertion_failed(const char* text, const char* file, int line) noexcept;
}
#define MMFREE_ASSERT(cond) \
  ((cond) ? static_cast<void>(0) : ::mmfree::assertion_failed(#cond, __FILE__, __LINE__))
#else
#define MMFREE_ASSERT(cond) static_cast<void>(0)
#endif
