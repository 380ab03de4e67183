#pragma once
// Draws the progress of long work on standard error: one line with an estimate of the time left,
// redrawn in place on a terminal and silent elsewhere.
#include <chrono>
#include <string>

#include "mmfree/core/progress.h"
#include "mmfree/model/tiled.h"

namespace mmfree {

// "loading  45.0 %  360.0 of 800.0 MB  720.0 MB/s  0.6 s left"; other units are counted as they
// are. Without a total: what is done and how fast.
std::string progress_text(std::string_view label, std::string_view what, std::uint64_t done,
                          std::uint64_t total, double seconds);

class ProgressLine {
 public:
  explicit ProgressLine(std::string label);
  ~ProgressLine();  // clears the line
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;
  Progress sink();  // valid as long as this object

 private:
  void draw(std::string_view what, std::uint64_t done, std::uint64_t total);
  using Clock = std::chrono::steady_clock;
  std::string label_;
  bool terminal_;
  bool drawn_ = false;
  std::uint64_t seen_ = 0;
  Clock::time_point start_, last_;
};

// load_model() with a line: ternarising a large run directory takes a while.
TiledModel load_with_progress(const Ctx& ctx, const std::filesystem::path& path);

}  // namespace mmfree
