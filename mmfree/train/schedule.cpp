#include "mmfree/train/schedule.h"

#include <fmt/core.h>

#include <cmath>
#include <numbers>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {

bool second_half(const Schedule& s, idx done) {
  return 2 * done >= s.steps;
}

}  // namespace

std::string_view schedule_name(ScheduleKind kind) {
  return kind == ScheduleKind::paper ? "paper" : "cosine";
}

ScheduleKind find_schedule(std::string_view name) {
  if (name == "paper") return ScheduleKind::paper;
  if (name == "cosine") return ScheduleKind::cosine;
  fail(ErrorKind::usage, fmt::format("unknown schedule '{}'; expected paper or cosine", name));
}

double default_lr_floor(ScheduleKind kind) {
  return kind == ScheduleKind::paper ? 0.0 : 0.1;
}

double learning_rate(const Schedule& s, idx done) {
  double share = 1;
  if (done < s.warmup_steps) {
    share = static_cast<double>(done + 1) / static_cast<double>(s.warmup_steps);
  } else {
    const double p =
        static_cast<double>(done - s.warmup_steps) / static_cast<double>(s.steps - s.warmup_steps);
    share = s.lr_floor + (1 - s.lr_floor) * 0.5 * (1 + std::cos(std::numbers::pi * p));
  }
  const bool halved = s.kind == ScheduleKind::paper && second_half(s, done);
  return s.peak_lr * share * (halved ? 0.5 : 1.0);
}

double weight_decay(const Schedule& s, idx done) {
  return s.kind == ScheduleKind::paper && second_half(s, done) ? 0.0 : s.weight_decay;
}

}  // namespace mmfree
