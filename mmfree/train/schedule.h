#pragma once
// Learning rate and weight decay as pure functions of the step. With k updates done out of N and W
// of warm-up:
//
//   ramp(k)  = (k + 1) / W                                     for k < W
//   curve(k) = floor + (1 - floor) * (1 + cos(pi * p)) / 2     p = (k - W) / (N - W), for k >= W
//
//   cosine   lr = peak * ramp or curve;                   decay constant
//   paper    the same, times 1/2 in the second half;      decay given in the first half, 0 in the
//   second
//
// The second half is the updates with 2 k >= N, warm-up included in N. Defaults: floor 0.1 for
// cosine and 0 for paper. Paper section 5.2; spec 5.1, 5.2.
#include <string_view>
#include <vector>

#include "mmfree/core/types.h"

namespace mmfree {

enum class ScheduleKind { paper, cosine };

struct Schedule {
  ScheduleKind kind = ScheduleKind::paper;
  idx steps = 0;         // N
  idx warmup_steps = 0;  // W, less than N
  double peak_lr = 0;
  double lr_floor = 0;        // share of the peak that the cosine ends at
  double weight_decay = 0.1;  // of the first half
};

std::string_view schedule_name(ScheduleKind kind);
ScheduleKind find_schedule(std::string_view name);  // a usage Error names the known ones
double default_lr_floor(ScheduleKind kind);

double learning_rate(const Schedule& schedule, idx done);  // done = k, in [0, N)
double weight_decay(const Schedule& schedule, idx done);

}  // namespace mmfree
