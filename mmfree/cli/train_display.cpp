#include "mmfree/cli/train_display.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace mmfree {
namespace {

constexpr double kKeep = 0.95;  // of the smoothed values, each step
constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kPlainLine{10};

std::string duration(double seconds) {
  const idx s = static_cast<idx>(std::clamp(seconds, 0.0, 1e9));
  if (s >= 86400) return fmt::format("{}d {:02}h", s / 86400, s / 3600 % 24);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string health_line(const MetricsRow& row) {
  const Health& h = *row.health;
  std::string line = fmt::format("step {}: codes -1 {:.1f}%  0 {:.1f}%  +1 {:.1f}%", row.step,
                                 100 * h.all.minus, 100 * h.all.zero, 100 * h.all.plus);
  if (h.all.flips)
    line += fmt::format("  flipped since step {} {:.2f}%", h.flips_since_step, 100 * *h.all.flips);
  double worst = 0;
  std::size_t where = 0;
  for (std::size_t l = 0; l < h.layers.size(); ++l) {
    const LayerSaturation& s = h.layers[l].saturation;
    const double v = std::max({s.mixer_in, s.mixer_out, s.mlp_in, s.mlp_out});
    if (v > worst) {
      worst = v;
      where = l;
    }
  }
  return line + fmt::format("  saturation at most {:.2f}% (layer {})", 100 * worst, where);
}

}  // namespace

TrainDisplay::TrainDisplay(idx steps, idx batch_tokens, bool quiet)
    : steps_(steps),
      batch_tokens_(batch_tokens),
      quiet_(quiet),
      live_(!quiet && isatty(STDERR_FILENO) != 0) {}

void TrainDisplay::message(std::string_view text) {
  if (!quiet_) print(text);
}

std::string TrainDisplay::status(const MetricsRow& row) const {
  std::string s =
      fmt::format("step {}/{}  loss {:.4f}  lr {:.2e}  |g| {:.3f}  {:.0f} tok/s  ETA {}", row.step,
                  steps_, loss_, row.lr, row.grad_norm, row.tokens_per_s,
                  duration(step_s_ * static_cast<double>(steps_ - row.step)));
  if (row.mfu) s += fmt::format("  MFU {:.0f}%", 100 * *row.mfu);
  if (device_gib_ >= 0) s += fmt::format("  {:.1f} GiB", device_gib_);
  if (val_bits_per_byte_ >= 0) s += fmt::format("  val {:.4f} bits/byte", val_bits_per_byte_);
  return s;
}

void TrainDisplay::step(const MetricsRow& row) {
  loss_weight_ = kKeep * loss_weight_ + (1 - kKeep);
  loss_ += (1 - kKeep) / loss_weight_ * (row.loss - loss_);
  const double took = last_elapsed_s_ >= 0 ? row.elapsed_s - last_elapsed_s_
                                           : static_cast<double>(batch_tokens_) / row.tokens_per_s;
  step_s_ = step_s_ == 0 ? took : kKeep * step_s_ + (1 - kKeep) * took;
  last_elapsed_s_ = row.elapsed_s;
  if (row.val_bits_per_byte) val_bits_per_byte_ = *row.val_bits_per_byte;
  if (row.device_bytes) device_gib_ = static_cast<double>(*row.device_bytes) / 0x1p30;
  if (quiet_) return;

  const Clock::time_point now = Clock::now();
  const bool last = row.step == steps_;
  if (live_) {
    if (row.health) print(health_line(row));
    if (last || row.health || now - last_shown_ >= kRedraw) {
      draw(status(row));
      last_shown_ = now;
    }
    return;
  }
  if (last || row.val_bits_per_byte || now - last_shown_ >= kPlainLine) {
    print(status(row));
    last_shown_ = now;
  }
  if (row.health) print(health_line(row));
}

void TrainDisplay::sample(idx step, std::string_view text) {
  if (!quiet_) print(fmt::format("step {} sample: {}", step, text));
}

void TrainDisplay::finish() {
  if (!line_.empty()) fmt::print(stderr, "\n");
  line_.clear();
}

void TrainDisplay::draw(const std::string& line) {
  struct winsize size {};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  const std::size_t columns = known ? size.ws_col : 80;  // a wrapped line could not be redrawn
  fmt::print(stderr, "\r{}\033[K", std::string_view(line).substr(0, columns - 1));
  std::fflush(stderr);
  line_ = line;
}

void TrainDisplay::print(std::string_view line) {
  if (!line_.empty()) fmt::print(stderr, "\r\033[K");
  fmt::print(stderr, "{}\n", line);
  if (!line_.empty()) draw(line_);
}

}  // namespace mmfree
