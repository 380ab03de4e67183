#include "mmfree/core/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mmfree {

int exit_code(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::usage:
    case ErrorKind::config:
    case ErrorKind::format:
    case ErrorKind::io:
      return 2;
    case ErrorKind::resource:
    case ErrorKind::numeric:
      return 1;
  }
  return 1;
}

void fail(ErrorKind kind, std::string message) {
  throw Error(kind, std::move(message));
}

void fail_errno(std::string_view action, std::string_view path) {
  const int code = errno;
  std::string message;
  message.append(path).append(": cannot ").append(action).append(": ").append(std::strerror(code));
  throw Error(ErrorKind::io, std::move(message));
}

#ifdef MMFREE_ASSERTIONS
void assertion_failed(const char* text, const char* file, int line) noexcept {
  std::fprintf(stderr, "%s:%d: impossible state: %s\n", file, line, text);
  std::abort();
}
#endif

}  // namespace mmfree
