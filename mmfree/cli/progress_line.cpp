#include "mmfree/cli/progress_line.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace mmfree {
namespace {
constexpr std::chrono::milliseconds kRedraw{100};
}

std::string progress_text(std::string_view label, std::string_view what, std::uint64_t done,
                          std::uint64_t total, double seconds) {
  const bool bytes = what == "bytes";
  const double unit = bytes ? 1e6 : 1;
  const std::string_view name = bytes ? "MB" : what;
  const int digits = bytes ? 1 : 0;
  const double n = static_cast<double>(done);
  const double all = static_cast<double>(total);
  const double rate = seconds > 0 ? n / seconds : 0;
  const std::string speed = fmt::format("{:.{}f} {}/s", rate / unit, digits, name);
  if (total == 0) return fmt::format("{}  {:.{}f} {}  {}", label, n / unit, digits, name, speed);
  const std::string left =
      rate > 0 ? fmt::format("  {:.1f} s left", std::max(0.0, all - n) / rate) : "";
  return fmt::format("{} {:5.1f} %  {:.{}f} of {:.{}f} {}  {}{}", label, 100 * n / all, n / unit,
                     digits, all / unit, digits, name, speed, left);
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
  if (done < seen_) start_ = now;  // another stage begins
  seen_ = done;
  if (!terminal_ || now - last_ < kRedraw) return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  fmt::print(stderr, "\r\033[K{}", progress_text(label_, what, done, total, elapsed));
  std::fflush(stderr);
  drawn_ = true;
}

TiledModel load_with_progress(const Ctx& ctx, const std::filesystem::path& path) {
  ProgressLine line("loading");
  return load_model(ctx, path, line.sink());
}

}  // namespace mmfree
