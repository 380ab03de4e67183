#pragma once
// What `mmfree train` shows on stderr: a live line on a terminal, plain lines otherwise.
#include <chrono>
#include <string>
#include <string_view>

#include "mmfree/train/metrics.h"

namespace mmfree {

class TrainDisplay {
 public:
  TrainDisplay(idx steps, idx batch_tokens, bool quiet);
  void message(std::string_view text);
  void step(const MetricsRow& row);
  void sample(idx step, std::string_view text);
  void finish();  // leaves the live line on the screen

 private:
  using Clock = std::chrono::steady_clock;
  std::string status(const MetricsRow& row) const;
  void draw(const std::string& line);
  void print(std::string_view line);

  idx steps_;
  idx batch_tokens_;
  bool quiet_;
  bool live_;
  std::string line_;  // the live line on the screen
  Clock::time_point last_shown_{};
  double loss_ = 0;  // smoothed
  double loss_weight_ = 0;
  double step_s_ = 0;           // smoothed seconds a step
  double last_elapsed_s_ = -1;  // none yet
  double val_bits_per_byte_ = -1;
  double device_gib_ = -1;
};

}  // namespace mmfree
