#include "mmfree/hw/cycles.h"

#include <algorithm>
#include <cmath>

#include "mmfree/hw/fixed.h"

namespace mmfree::hw {
namespace {

using Time = std::int64_t;

// Else a matrix could end before the ARGMAX or SAMPLE that is ahead of it.
static_assert(kChoiceStages - kEpilogueStages < kFewestRows);

// Resources that hazards are about.
enum Resource : int {
  rX,
  rZ,
  rT,
  rH,
  rQ,
  rC = rQ + kCodeBanks,
  rS = rC + kConstBanks,
  kResources = rS + kScalars
};

// The stream of a port as it arrives: runs are read in bursts, the memory answers in order. Ports
// are all alike, so this is the stream of wide beats too, and pages are the port's.
class Stream {
 public:
  Stream(const CoreModel& core, const MemoryModel& memory)
      : core_(core), memory_(memory), taken_(kRing), burst_end_(kRing) {}

  void append(std::uint64_t page_beat, std::uint64_t beats, Time now) {
    if (beats > 0) runs_.push_back({page_beat, beats, now});
  }
  // Time at which the next beat is in the FIFO.
  Time arrival() {
    if (next_ == burst_last_) request();
    const Time before = next_ == 0 ? 0 : taken_[(next_ - 1) % kRing];
    return std::max(next_arrival(), before + 1);
  }
  void take(Time at) {
    taken_[next_ % kRing] = at;
    ++next_;
  }
  std::uint64_t taken() const { return next_; }
  // When the run that was appended `back` runs ago is fully requested: the queue's room.
  Time room(int queue) const {
    if (runs_.size() < static_cast<std::size_t>(queue)) return 0;
    return runs_[runs_.size() - static_cast<std::size_t>(queue)].requested;
  }

 private:
  static constexpr std::size_t kRing = 4096;
  struct Run {
    std::uint64_t at, beats;
    Time appended;
    Time requested = 0;
    bool started = false;
  };
  void request() {
    while (runs_[run_].beats == 0) ++run_;
    Run& r = runs_[run_];
    const auto burst = static_cast<std::uint64_t>(core_.burst_beats);
    const std::uint64_t n = std::min({r.beats, burst, 64 - r.at % 64});  // within 4 KiB
    Time at = std::max(r.appended + core_.request, last_request_ + core_.again);
    if (!r.started) at = std::max(at, last_request_ + core_.again + 1);  // the run is loaded first
    r.started = true;
    // Room in the FIFO for the whole burst, counting what is under way.
    const auto fifo = static_cast<std::uint64_t>(core_.fifo_beats);
    if (burst_last_ + n > fifo) at = std::max(at, taken_[(burst_last_ + n - fifo - 1) % kRing] + 3);
    if (bursts_ >= static_cast<std::uint64_t>(core_.bursts))
      at = std::max(at,
                    burst_end_[(bursts_ - static_cast<std::uint64_t>(core_.bursts)) % kRing] + 2);
    last_request_ = at;
    start_ = std::max(static_cast<double>(at) + memory_.latency, free_);
    free_ = start_ + static_cast<double>(n) / memory_.beats_per_cycle;
    burst_end_[bursts_ % kRing] = static_cast<Time>(std::ceil(free_));
    ++bursts_;
    burst_first_ = burst_last_;
    burst_last_ += n;
    r.at += n;
    r.beats -= n;
    if (r.beats == 0) r.requested = at;
  }
  Time next_arrival() const {
    return core_.arrive +
           static_cast<Time>(std::ceil(start_ + static_cast<double>(next_ - burst_first_) /
                                                    memory_.beats_per_cycle));
  }
  const CoreModel& core_;
  const MemoryModel& memory_;
  std::vector<Run> runs_;
  std::size_t run_ = 0;
  std::vector<Time> taken_, burst_end_;
  std::uint64_t next_ = 0, burst_first_ = 0, burst_last_ = 0, bursts_ = 0;
  double start_ = 0, free_ = 0;
  Time last_request_ = 0;
};

// Until when each unit writes and reads each resource.
struct Scoreboard {
  Time writes[5][kResources] = {};
  Time reads[5][kResources] = {};
  Time wait(int unit, int resource, bool writing) const {
    Time t = 0;
    for (int u = 0; u < 5; ++u) {
      if (u == unit) continue;
      t = std::max(t, writes[u][resource]);
      if (writing) t = std::max(t, reads[u][resource]);
    }
    return t;
  }
};

struct Uses {
  int reads[6];
  int n_reads = 0;
  int writes[18];
  int n_writes = 0;
  void read(int r) { reads[n_reads++] = r; }
  void write(int r) { writes[n_writes++] = r; }
};

Uses uses(const Instruction& i) {
  Uses u;
  const auto s = [](std::uint64_t r) { return rS + static_cast<int>(r); };
  const auto vec = [&] { return i.a() == kVEC_X ? rX : rZ; };
  switch (i.op()) {
    case Op::EMB:
      u.write(rX);
      break;
    case Op::LDC:
      u.write(rC + static_cast<int>(i.dst()));
      break;
    case Op::LDS:
      for (unsigned k = 0; k < 16; ++k) u.write(s(i.dst() + k));
      break;
    case Op::STAT:
      u.read(vec());
      u.read(rC + static_cast<int>(i.b()));
      if ((i.field("mode") & kMODE_SS) != 0) u.write(s(i.dst()));
      if ((i.field("mode") & kMODE_MX) != 0) u.write(s(i.field("mx")));
      break;
    case Op::QNT:
      u.read(vec());
      u.read(rC + static_cast<int>(i.b()));
      u.read(s(i.field("r")));
      u.write(rQ + static_cast<int>(i.dst()));
      break;
    case Op::SFU:
      u.read(s(i.a()));
      if (i.field("fn") == kFN_MUL || i.field("fn") == kFN_SCL) u.read(s(i.b()));
      u.write(s(i.dst()));
      break;
    case Op::TMM: {
      u.read(rQ + static_cast<int>(i.a()));
      switch (static_cast<unsigned>(i.field("epi"))) {
        case kEPI_SIGF:
          u.read(rC + static_cast<int>(i.field("bank")));
          u.read(s(i.b()));
          u.write(rT);
          break;
        case kEPI_STATE:
          u.read(rT);
          u.read(s(i.b()));
          u.write(rH);
          break;
        case kEPI_SWISHG:
          u.read(rH);
          u.write(rZ);
          break;
        case kEPI_RESADD:
          u.read(s(i.b()));
          u.write(rX);
          break;
        case kEPI_SILU:
          u.read(s(i.b()));
          u.write(rT);
          break;
        case kEPI_MULT:
          u.read(rT);
          u.write(rZ);
          break;
        case kEPI_SAMPLE:
          u.read(s(i.b()));
          break;
        default:
          break;
      }
      break;
    }
    default:
      break;
  }
  return u;
}

class Core {
 public:
  Core(const Shape& shape, const CoreModel& core, const MemoryModel& memory)
      : ports_(static_cast<std::uint64_t>(shape.ports)), c_(core), stream_(core, memory) {}
  CycleReport report;

  // Issues one instruction at the earliest and moves `now` to the next issue slot.
  void issue(const Instruction& i) {
    const int unit = static_cast<int>(find_op(static_cast<std::uint8_t>(i.op()))->unit);
    const Uses u = uses(i);
    Time at = std::max(now_, free_[unit]);
    for (int k = 0; k < u.n_reads; ++k) at = std::max(at, board_.wait(unit, u.reads[k], false));
    for (int k = 0; k < u.n_writes; ++k) at = std::max(at, board_.wait(unit, u.writes[k], true));
    if (i.op() == Op::WST) at = std::max(at, stream_.room(c_.run_queue));
    if (i.op() == Op::HALT || i.op() == Op::FENCE || i.op() == Op::TOK)
      for (const Time t : done_) at = std::max(at, t);
    at += c_.decide;
    ++report.instructions;
    now_ = at + 1;
    Time done = at + 1;
    Time codes_free = 0;
    switch (i.op()) {
      case Op::WST:
        append(i, i.field("beats") / ports_, at);
        break;
      case Op::ENDL:
        now_ = at + c_.loop;
        break;
      case Op::EMB:
        append(i, (i.len() + ports_ - 1) / ports_,
               at);  // the token's row; which one does not matter
        done = free_[unit] = load(at, i.len());
        break;
      case Op::LDC:
        done = free_[unit] = load(at, i.len());
        break;
      case Op::LDS:
        done = free_[unit] = load(at, 1);
        break;
      case Op::STAT:
        done = free_[unit] = at + pass(i) + c_.stat_tail;
        break;
      case Op::QNT:
        done = free_[unit] = at + pass(i) + c_.quantize_tail;
        break;
      case Op::SFU: {
        const int delay[] = {c_.root, c_.reciprocal, c_.multiply, c_.scale, c_.scale};
        done = free_[unit] = at + delay[i.field("fn")];
        break;
      }
      case Op::TMM:
        done = matrix(at, i);
        free_[unit] = codes_free = last_beat_ + 1;
        break;
      default:
        break;
    }
    done_[unit] = std::max(done_[unit], done);
    report.busy[static_cast<std::size_t>(unit)] += static_cast<std::uint64_t>(done - at);
    for (int k = 0; k < u.n_reads; ++k) {
      const bool codes = u.reads[k] >= rQ && u.reads[k] < rC;
      board_.reads[unit][u.reads[k]] = codes ? codes_free : done;
    }
    for (int k = 0; k < u.n_writes; ++k) board_.writes[unit][u.writes[k]] = done;
  }

  void skip() { ++now_; }

  void finish() {
    report.cycles = static_cast<std::uint64_t>(now_);
    report.beats = stream_.taken() * ports_;
    report.idle_codes =
        report.cycles - report.weight_beats - report.idle_memory - report.idle_epilogue;
  }

 private:
  Time pass(const Instruction& i) const {
    return (static_cast<Time>(i.len()) * kLanes + c_.vector_lanes - 1) / c_.vector_lanes;
  }
  // Beats of a port for the 64 bytes that instructions count in; more than one only with one port.
  std::uint64_t split() const { return static_cast<std::uint64_t>(kLanes / c_.lanes); }
  void append(const Instruction& i, std::uint64_t beats, Time at) {
    stream_.append(i.field("page") * 64 / ports_ * split(), beats * split(), at);
  }
  Time load(Time at, std::uint64_t beats) {
    Time t = at;
    for (std::uint64_t k = 0; k < beats * split(); ++k) {
      t = k % ports_ == 0 ? std::max(t + 1, stream_.arrival()) : t + 1;
      if (k % ports_ + 1 == ports_ || k + 1 == beats * split())
        stream_.take(t);  // all of the wide beat
    }
    return t + c_.load_tail;
  }
  Time matrix(Time at, const Instruction& i) {
    const std::uint64_t group_rows = kRows * ports_;
    const std::uint64_t groups = (i.field("rows") + group_rows - 1) / group_rows;
    Time t = at + c_.tile_start - 1;
    Time last_row = t;
    const std::uint64_t beats = i.len() * split();  // of a group
    for (std::uint64_t g = 0; g < groups; ++g, ++group_) {
      for (std::uint64_t k = 0; k < beats; ++k) {
        const Time next = t + 1;
        Time beat = std::max(next, stream_.arrival());
        report.idle_memory += static_cast<std::uint64_t>(beat - next);
        const auto room = static_cast<std::uint64_t>(c_.result_groups);
        if (k + 1 == beats && group_ >= room) {
          const Time free = left_[(group_ - room) % 64];
          if (free > beat) {
            report.idle_epilogue += static_cast<std::uint64_t>(free - beat);
            beat = free;
          }
        }
        stream_.take(beat);
        t = beat;
      }
      const Time start = std::max(t + c_.tile_depth, epilogue_free_);
      epilogue_free_ = start + static_cast<Time>(group_rows);
      left_[group_ % 64] = epilogue_free_;
      last_row = start + static_cast<Time>((i.field("rows") - 1) % group_rows);
    }
    report.weight_beats += groups * beats;
    last_beat_ = t;
    if (keeps_row(static_cast<unsigned>(i.field("epi")))) last_row += c_.choice_depth;
    return last_row + c_.epilogue_depth;
  }
  std::uint64_t ports_;
  const CoreModel& c_;
  Stream stream_;
  Scoreboard board_;
  Time now_ = 0;
  Time free_[5] = {};
  Time done_[5] = {};
  Time last_beat_ = 0, epilogue_free_ = 0;
  std::uint64_t group_ = 0;
  Time left_[64] = {};
};

}  // namespace

CycleReport count_cycles(std::span<const Instruction> program, const Shape& shape, bool with_logits,
                         const CoreModel& core, const MemoryModel& memory) {
  Core c(shape, core, memory);
  std::uint64_t count = 0, round = 0;
  for (std::size_t pc = 0; pc < program.size(); ++pc) {
    const Instruction& i = program[pc];
    if ((i.flags() & kFLAG_LOGITS) != 0 && !with_logits) {
      c.skip();
      continue;
    }
    c.issue(i);
    if (i.op() == Op::LOOP) {
      count = i.field("count");
      round = 0;
    }
    if (i.op() == Op::ENDL && ++round < count) pc = static_cast<std::size_t>(i.field("target")) - 1;
    if (i.op() == Op::HALT) break;
  }
  c.finish();
  return c.report;
}

}  // namespace mmfree::hw
