#include "mmfree/cli/progress_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <cstdio>

namespace mmfree {
namespace {
constexpr std::chrono::milliseconds kRedraw{100};
}

ProgressLine::ProgressLine(std::string label)
    : label_(std::move(label)),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      last_(start_) {}

ProgressLine::~ProgressLine() {
  if (drawn_) fmt::print(stderr, "\r\033[K");
}

Progress ProgressLine::sink() {
  return [this](std::string_view what, std::uint64_t done, std::uint64_t total) {
    draw(what, done, total);
  };
}

void ProgressLine::draw(std::string_view what, std::uint64_t done, std::uint64_t total) {
  const Clock::time_point now = Clock::now();
  if (!terminal_ || now - last_ < kRedraw) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const double left = done > 0 && total > done
                          ? elapsed * static_cast<double>(total - done) / static_cast<double>(done)
                          : 0;
  const double share =
      total > 0 ? 100.0 * static_cast<double>(done) / static_cast<double>(total) : 0;
  fmt::print(stderr, "\r\033[K{} {:5.1f} %  {} of {} {}  {:.0f} s left", label_, share, done, total,
             what, left);
  std::fflush(stderr);
  drawn_ = true;
}

TiledModel load_with_progress(const Ctx& ctx, const std::filesystem::path& path) {
  ProgressLine line("loading");
  return load_model(ctx, path, line.sink());
}

}  // namespace mmfree
