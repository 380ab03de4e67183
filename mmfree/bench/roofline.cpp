#include "mmfree/bench/roofline.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <string>

#include "mmfree/bench/roofline_variants.h"
#include "mmfree/core/team.h"

namespace mmfree {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

const RooflineLoops& loops() {
  return *pick(roofline_variants, active_isa());
}

// Operations per second of all threads together, for about 50 ms after as long a start.
double rate(const Ctx& ctx, double (*loop)(idx rounds) noexcept) {
  idx rounds = 100000;
  double best = 0;
  for (int attempt = 0; attempt < 6; ++attempt) {
    double operations = 0;
    const Clock::time_point start = Clock::now();
    run_team(ctx, [&](const Team& team) {
      const double per_round = loop(rounds);
      team.sync();
      if (team.rank == 0) operations = per_round * static_cast<double>(rounds) * team.size;
    });
    const double seconds = seconds_since(start);
    best = std::max(best, operations / seconds);
    if (seconds < 0.02)
      rounds = static_cast<idx>(static_cast<double>(rounds) * 0.05 / std::max(seconds, 1e-5));
  }
  return best;
}

// Processor seconds of the whole machine: used by anybody (time stolen by other guests included),
// and all.
bool machine_seconds(double& busy, double& total) {
  std::ifstream file("/proc/stat");
  std::string cpu;
  double v[8] = {};
  file >> cpu;
  for (double& x : v) file >> x;
  if (!file || cpu != "cpu") return false;
  const double tick = static_cast<double>(sysconf(_SC_CLK_TCK));
  total = 0;
  for (const double x : v) total += x / tick;
  busy = total - (v[3] + v[4]) / tick;
  return true;
}

double own_seconds() {
  rusage u{};
  getrusage(RUSAGE_SELF, &u);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(u.ru_utime) + seconds(u.ru_stime);
}

constexpr idx kReadStep = 256;

}  // namespace

MemoryProbe::MemoryProbe(const Ctx& ctx, idx bytes) {
  const idx part = kReadStep * ctx.threads;
  buffer_ = Buffer<std::uint8_t>((bytes + part - 1) / part * part);
  // Each thread touches first what it will read.
  run_team(ctx, [&](const Team& team) {
    const idx steps = buffer_.size() / kReadStep;
    std::memset(buffer_.data() + team.begin(steps) * kReadStep, 1,
                static_cast<std::size_t>((team.end(steps) - team.begin(steps)) * kReadStep));
  });
}

double MemoryProbe::read(const Ctx& ctx) {
  double best = 0;
  for (const auto loop : {loops().read, loops().read_ahead}) {
    const Clock::time_point start = Clock::now();
    run_team(ctx, [&](const Team& team) {
      const idx steps = buffer_.size() / kReadStep;
      volatile std::uint64_t sink = loop(buffer_.data() + team.begin(steps) * kReadStep,
                                         (team.end(steps) - team.begin(steps)) * kReadStep);
      static_cast<void>(sink);
      team.sync();
    });
    best = std::max(best, static_cast<double>(buffer_.size()) / seconds_since(start));
  }
  return best;
}

double int8_ops_per_s(const Ctx& ctx) {
  return rate(ctx, loops().int8);
}

Isa roofline_isa() {
  for (const auto& v : roofline_variants)
    if (v.isa <= active_isa()) return v.isa;
  return Isa::scalar;
}

double f32_ops_per_s(const Ctx& ctx) {
  return rate(ctx, loops().f32);
}

Bystanders::Bystanders() {
  if (!machine_seconds(busy_, total_)) total_ = -1;
  own_ = own_seconds();
}

std::optional<double> Bystanders::share() const {
  double busy = 0, total = 0;
  if (total_ < 0 || !machine_seconds(busy, total) || total <= total_) return std::nullopt;
  const double others = busy - busy_ - (own_seconds() - own_);
  return std::clamp(others / (total - total_), 0.0, 1.0);
}

std::optional<double> package_joules() {
  double joules = 0;
  int packages = 0;
  for (;; ++packages) {
    std::ifstream file("/sys/class/powercap/intel-rapl:" + std::to_string(packages) + "/energy_uj");
    double microjoules = 0;
    if (!(file >> microjoules)) break;
    joules += microjoules * 1e-6;
  }
  if (packages == 0) return std::nullopt;
  return joules;
}

}  // namespace mmfree
