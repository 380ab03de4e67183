#include "hw/cosim/rtl_core.h"

#include <fmt/core.h>
#include <verilated.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <type_traits>
#include <vector>

#include "Vmmf_core.h"
#include "Vmmf_core___024root.h"
#ifndef MMF_RTL_ONE_CORE
#include "Vmmf_core_b2.h"
#include "Vmmf_core_b2___024root.h"
#include "Vmmf_core_b2p2.h"
#include "Vmmf_core_b2p2___024root.h"
#include "Vmmf_core_b8.h"
#include "Vmmf_core_b8___024root.h"
#include "Vmmf_core_p2.h"
#include "Vmmf_core_p2___024root.h"
#include "Vmmf_core_p4.h"
#include "Vmmf_core_p4___024root.h"
#include "Vmmf_core_small.h"
#include "Vmmf_core_small___024root.h"
#endif
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree::hw {
namespace {

// Of the compiled cores: hw/cosim/CMakeLists.txt gives both the same numbers.
struct Build {
  int streams, ports;
  std::size_t lanes;  // bytes of a beat of a port
  idx width, state;
};
constexpr std::size_t kProgram = MMF_RTL_PROGRAM;
constexpr Build large(int streams, int ports) {
  return {streams, ports, kLanes, MMF_RTL_WIDTH, MMF_RTL_STATE};
}

struct Burst {
  std::uint64_t address;
  unsigned beats;
  double ready;  // cycle of its first beat
};

// The memory at a port.
struct Port {
  std::deque<Burst> bursts;
  unsigned beat = 0;  // of the first burst
  double free = 0;    // cycle in which the next beat may come
  double ideal = 0;
  bool gives = false;  // in this cycle
};

// `width` (at most 32) bits of a port or a memory's word from bit `at`, whatever type Verilator
// gave it.
template <class T>
std::uint32_t bits_at(const T& v, std::size_t at, std::size_t width) {
  std::uint64_t r = 0;
  if constexpr (std::is_integral_v<T>) {
    r = std::uint64_t{v} >> at;
  } else {
    r = std::uint64_t{v[at / 32]} >> (at % 32);
    if (at % 32 + width > 32) r |= std::uint64_t{v[at / 32 + 1]} << (32 - at % 32);
  }
  return static_cast<std::uint32_t>(r & ((std::uint64_t{1} << width) - 1));
}
template <class T>
void set_bits_at(T& v, std::size_t at, std::size_t width, std::uint32_t value) {
  for (std::size_t k = 0; k < width; ++k) {
    const bool bit = ((value >> k) & 1U) != 0;
    if constexpr (std::is_integral_v<T>) {
      const T mask = static_cast<T>(T{1} << (at + k));
      v = static_cast<T>(bit ? v | mask : v & ~mask);
    } else {
      const std::uint32_t mask = 1U << ((at + k) % 32);
      v[(at + k) / 32] = bit ? v[(at + k) / 32] | mask : v[(at + k) / 32] & ~mask;
    }
  }
}

}  // namespace

struct RtlCore::Impl {
  virtual ~Impl() = default;
  virtual void start() = 0;  // reset and the program
  virtual void run(std::span<const TokenInput> inputs, bool with_logits, Machine* lockstep) = 0;
  virtual std::int32_t next_token(int stream) const = 0;
  RtlCounters counters;
  StallCounts stalls{};
};

namespace {

template <class Top, Build build>
struct Core final : RtlCore::Impl {
  Core(const Image& i, const RtlMemory& m) : image(i), memory(m), top(&context) {}

  ~Core() override {
    // The model's scopes leave the context that is current, which may be that of a core made later.
    Verilated::threadContextp(&context);
#if VM_COVERAGE
    // Coverage builds (coverage.sh): a file for each core, merged afterwards.
    static int n = 0;
    if (const char* folder = std::getenv("MMF_COVERAGE"))
      context.coveragep()->write(fmt::format("{}/core_{}.dat", folder, n++).c_str());
#endif
  }
  static constexpr auto kB = static_cast<std::size_t>(build.streams);
  static constexpr auto kP = static_cast<std::size_t>(build.ports);
  static constexpr std::size_t kBeat = build.lanes;
  static constexpr std::size_t kElements = kBeat / 2;  // of a word of X, Z or constants
  const Image& image;
  RtlMemory memory;
  VerilatedContext context;
  Top top;
  std::array<Port, kP> port;
  std::uint64_t cycle = 0;
  std::deque<Retired> expected[4];  // LD, VEC, SFU, TMM

  auto& root() {
    return *top.rootp;
  }

  bool stall(std::uint64_t stream) const {
    return memory.jitter > 0 && random_uniform(memory.seed, stream, cycle) < memory.jitter;
  }

  void clock() {
    top.rvalid_i = 0;
    top.rlast_i = 0;
    top.arready_i = 0;
    for (std::size_t p = 0; p < kP; ++p) show(p);
    top.eval();
    for (std::size_t p = 0; p < kP; ++p)
      if (bits_at(top.arvalid_o, p, 1) != 0 && bits_at(top.arready_i, p, 1) != 0) accept(p);
    top.clk_i = 1;
    top.eval();
    top.clk_i = 0;
    top.eval();
    for (Port& m : port) {
      if (!m.gives) continue;
      m.free = (static_cast<double>(cycle) - m.ideal < 1 ? m.ideal : static_cast<double>(cycle)) +
               1 / memory.beats_per_cycle;
      if (++m.beat == m.bursts.front().beats) {
        m.bursts.pop_front();
        m.beat = 0;
      }
    }
    ++cycle;
  }

  // What the memory at port p shows in this cycle. It holds beats p, p + ports, ... of the image,
  // with zeros behind the end.
  void show(std::size_t p) {
    Port& m = port[p];
    m.ideal = m.bursts.empty() ? m.free : std::max(m.free, m.bursts.front().ready);
    m.gives = !m.bursts.empty() && static_cast<double>(cycle) >= m.ideal && !stall(2 * p);
    if (m.gives) {
      const Burst& b = m.bursts.front();
      const std::uint64_t at = ((b.address / kBeat + m.beat) * kP + p) * kBeat;
      std::uint32_t data[kBeat / 4] = {};
      if (at < image.bytes().size())
        std::memcpy(data, image.bytes().data() + at,
                    std::min<std::size_t>(kBeat, image.bytes().size() - at));
      for (std::size_t k = 0; k < kBeat / 4; ++k) top.rdata_i[kBeat / 4 * p + k] = data[k];
      set_bits_at(top.rvalid_i, p, 1, 1);
      set_bits_at(top.rlast_i, p, 1, m.beat + 1 == b.beats ? 1 : 0);
    }
    set_bits_at(top.arready_i, p, 1, stall(2 * p + 1) ? 0 : 1);
  }

  void accept(std::size_t p) {
    const std::uint64_t address = bits_at(top.araddr_o, 38 * p, 32) |
                                  std::uint64_t{bits_at(top.araddr_o, 38 * p + 32, 6)} << 32;
    const unsigned beats = bits_at(top.arlen_o, 8 * p, 8) + 1U;
    const std::uint64_t end = address + std::uint64_t{beats} * kBeat;
    // Sections are padded to pages and wide beats are part of pages, so that only the last may go
    // beyond the end.
    if (end > (image.bytes().size() + kP * kBeat - 1) / (kP * kBeat) * kBeat)
      fail(ErrorKind::numeric,
           fmt::format("the RTL reads {} beats at byte {} of port {}, outside the image", beats,
                       address, p));
    if (address / kPageBytes != (end - 1) / kPageBytes)
      fail(ErrorKind::numeric,
           fmt::format("the RTL's burst of {} beats at byte {} of port {} crosses 4 KiB", beats,
                       address, p));
    const double latency = memory.latency + memory.skew * static_cast<double>(p);
    port[p].bursts.push_back({address, beats, static_cast<double>(cycle) + latency});
  }

  // The sequencer's state in this cycle, before the clock edge.
  void count_stall() {
    const auto& r = root();
    if (r.mmf_core__DOT__run_q == 0) return;
    const auto op = static_cast<std::size_t>(r.mmf_core__DOT__op);
    if (op >= stalls.size()) return;
    Stall cause = Stall::none;
    if (r.mmf_core__DOT__waits != 0) {
      cause = Stall::loop;
    } else if (r.mmf_core__DOT__skip != 0) {
      cause = Stall::skip;
    } else if (r.mmf_core__DOT__unit_free == 0) {
      cause = Stall::unit;
    } else if (r.mmf_core__DOT__hazard != 0) {
      cause = Stall::hazard;
    }
    ++stalls[op][static_cast<std::size_t>(cause)];
  }

  std::uint32_t digest(const Instruction& i, idx layer) {
    auto& r = root();
    if (i.op() == Op::LDC) {
      std::uint32_t crc = 0;
      for (std::size_t k = 0; k < i.len() * kBeatBytes / kBeat; ++k)
        crc =
            crc32c(crc, r.mmf_core__DOT__c_mem[i.dst() * bank_words(kElements) + k].data(), kBeat);
      return crc;
    }
    if (i.op() == Op::EMB) {
      const auto d = static_cast<std::size_t>(image.shape().d);
      return vector_digest(r.mmf_core__DOT__x_mem, d, i.a(), 0);
    }
    std::uint32_t crc = 0;
    for (std::size_t b = 0; b < kB; ++b) crc = digest(i, layer, b, crc);
    return crc;
  }

  template <class Memory>
  std::uint32_t vector_digest(const Memory& m, std::size_t n, std::size_t b, std::uint32_t crc) {
    std::vector<std::uint32_t> v(n);
    for (std::size_t k = 0; k < n; ++k) v[k] = m[k / kElements][kElements * b + k % kElements];
    return crc32c(crc, v.data(), n * 4);
  }

  std::uint32_t digest(const Instruction& i, idx layer, std::size_t b, std::uint32_t crc) {
    auto& r = root();
    const auto reg = [&](std::uint64_t s) {
      const std::uint32_t v = r.mmf_core__DOT__s_regs[32 * b + s];
      crc = crc32c(crc, &v, 4);
    };
    switch (i.op()) {
      case Op::LDS:
        return crc32c(crc, &r.mmf_core__DOT__s_regs[32 * b + i.dst()], kBeatBytes);
      case Op::QNT:
        for (std::size_t k = 0; k < i.len() * kLanes / kBeat; ++k)
          crc = crc32c(
              crc, r.mmf_core__DOT__q_mem[i.dst() * bank_words(kBeat) + k].data() + kBeat / 4 * b,
              kBeat);
        return crc;
      case Op::STAT:
        if ((i.field("mode") & kMODE_SS) != 0) reg(i.dst());
        if ((i.field("mode") & kMODE_MX) != 0) reg(i.field("mx"));
        return crc;
      case Op::SFU:
        reg(i.dst());
        return crc;
      case Op::TMM:
        return matrix_digest(i, layer, b, crc);
      default:
        return crc;
    }
  }

  std::uint32_t matrix_digest(const Instruction& i, idx layer, std::size_t b, std::uint32_t crc) {
    auto& r = root();
    const auto rows = static_cast<std::size_t>(i.field("rows"));
    std::vector<std::int32_t> v(rows);
    const auto extend = [](std::uint32_t x, int bits) {
      return static_cast<std::int32_t>(x << (32 - bits)) >> (32 - bits);
    };
    switch (static_cast<unsigned>(i.field("epi"))) {
      case kEPI_SIGF:
      case kEPI_SILU:
        for (std::size_t k = 0; k < rows; ++k)
          v[k] = extend(bits_at(r.mmf_core__DOT__t_mem[k], kActBits * b, kActBits), kActBits);
        break;
      case kEPI_STATE: {
        const auto base = static_cast<std::size_t>(layer * image.shape().m);
        for (std::size_t k = 0; k < rows; ++k)
          v[k] = extend(bits_at(r.mmf_core__DOT__h_mem[base + k], kHBits * b, kHBits), kHBits);
        break;
      }
      case kEPI_SWISHG:
      case kEPI_MULT:
        return vector_digest(r.mmf_core__DOT__z_mem, rows, b, crc);
      case kEPI_RESADD:
        return vector_digest(r.mmf_core__DOT__x_mem, rows, b, crc);
      default:
        return choice_digest(b, crc);
    }
    return crc32c(crc, v.data(), v.size() * 4);
  }

  std::uint32_t choice_digest(std::size_t b, std::uint32_t crc) {
    auto& r = root();
    const std::uint32_t row = bits_at(r.mmf_core__DOT__best_row, 24 * b, 24);
    static_assert(kKeyBits == 33);
    const std::int64_t low = bits_at(r.mmf_core__DOT__best_key, kKeyBits * b, 32);
    const bool negative = bits_at(r.mmf_core__DOT__best_key, kKeyBits * b + 32, 1) != 0;
    const std::int64_t key = negative ? low - (std::int64_t{1} << 32) : low;
    return crc32c(crc32c(crc, &row, 4), &key, 8);
  }

  static std::size_t bank_words(std::size_t elements) {
    std::size_t depth = 1;
    while (depth < static_cast<std::size_t>(build.width)) depth *= 2;
    return depth / elements;
  }

  void compare_retired() {
    for (std::size_t u = 0; u < 4; ++u) {
      if (((top.retire_o >> u) & 1U) == 0) continue;
      const auto pc = static_cast<std::size_t>((top.retire_pc_o >> (16 * u)) & 0xffffU);
      if (expected[u].empty())
        fail(
            ErrorKind::numeric,
            fmt::format("the RTL retires instruction {}, and the simulator none of this unit", pc));
      const Retired e = expected[u].front();
      expected[u].pop_front();
      const Instruction& i = image.program()[e.pc];
      const std::uint32_t found = pc == e.pc ? digest(i, e.layer) : 0;
      if (pc != e.pc || found != e.digest)
        fail(ErrorKind::numeric,
             fmt::format("the RTL differs from the simulator at cycle {}: instruction {} of layer "
                         "{}, {}: expected {:08x}, got "
                         "instruction {} with {:08x}",
                         cycle, e.pc, e.layer, disassemble(i), e.digest, pc, found));
      ++counters.compared;
    }
  }

  void start() override {
    top.clk_i = 0;
    top.rst_ni = 0;
    top.start_i = 0;
    top.prog_we_i = 0;
    top.prog_last_i = static_cast<std::uint8_t>(image.program().size() - 1);
    top.ext_run_valid_i = 0;
    top.ext_beat_pop_i = 0;
    top.mixer_i = static_cast<std::uint32_t>(image.shape().m);
    for (int k = 0; k < 4; ++k) clock();
    top.rst_ni = 1;
    for (std::size_t pc = 0; pc < image.program().size(); ++pc) {
      const Instruction& i = image.program()[pc];
      top.prog_we_i = 1;
      top.prog_addr_i = static_cast<std::uint8_t>(pc);
      const std::uint64_t words[2] = {i.low, i.high};
      std::memcpy(&top.prog_data_i, words, 16);
      clock();
    }
    top.prog_we_i = 0;
    for (int k = 0; k < 3; ++k) clock();
  }

  void run(std::span<const TokenInput> inputs, bool with_logits, Machine* lockstep) override {
    for (auto& e : expected) e.clear();
    if (lockstep != nullptr)
      lockstep->run(inputs, with_logits, [&](const Retired& r) {
        const Unit unit = find_op(static_cast<std::uint8_t>(image.program()[r.pc].op()))->unit;
        if (unit != Unit::SEQ) expected[static_cast<std::size_t>(unit) - 1].push_back(r);
      });
    for (std::size_t b = 0; b < kB; ++b) {
      set_bits_at(top.token_i, 24 * b, 24, static_cast<std::uint32_t>(inputs[b].token));
      set_bits_at(top.fresh_i, b, 1, inputs[b].fresh ? 1 : 0);
      const Sampling& s = inputs[b].sampling;
      const auto exponent = static_cast<std::uint16_t>(s.inverse_temperature.exponent);
      set_bits_at(top.temperature_i, 32 * b, 32,
                  s.inverse_temperature.mantissa | static_cast<std::uint32_t>(exponent) << 16);
      set_bits_at(top.seed_i, 64 * b, 32, static_cast<std::uint32_t>(s.seed));
      set_bits_at(top.seed_i, 64 * b + 32, 32, static_cast<std::uint32_t>(s.seed >> 32));
      set_bits_at(top.position_i, 32 * b, 32, s.position);
    }
    top.logits_i = with_logits;
    top.start_i = 1;
    clock();
    top.start_i = 0;
    constexpr std::uint64_t kQuiet = 100000;  // no sign of life for so long: it hangs
    std::uint64_t last_sign = cycle;
    while (top.done_o == 0) {
      if (top.rvalid_i != 0 || top.retire_o != 0) last_sign = cycle;
      if (cycle - last_sign > kQuiet)
        fail(ErrorKind::numeric, "the RTL hangs: no beat and no result for 100000 cycles");
      if (lockstep != nullptr) count_stall();
      clock();
      if (lockstep != nullptr) compare_retired();
    }
    if (top.error_o != 0)
      fail(ErrorKind::numeric, fmt::format("the RTL stops at instruction {} with error {}",
                                           top.error_pc_o, top.error_o));
    if (lockstep != nullptr)
      for (const auto& e : expected)
        if (!e.empty())
          fail(ErrorKind::numeric,
               fmt::format("the RTL is done, and instruction {} has not retired", e.front().pc));
    counters.cycles = top.cycles_o;
    counters.tile_beats = top.tile_beats_o;
    counters.wait_stream = top.wait_stream_o;
    counters.wait_results = top.wait_results_o;
  }

  std::int32_t next_token(int stream) const override {
    return static_cast<std::int32_t>(
        bits_at(top.token_o, 24 * static_cast<std::size_t>(stream), 24));
  }
};

template <class Top, Build build>
std::unique_ptr<RtlCore::Impl> make(const Image& image, const RtlMemory& memory) {
  const Shape n = image.shape();
  const idx widest = std::max({n.d, n.m, n.f});
  if (widest > build.width || n.layers * n.m > build.state || image.program().size() > kProgram)
    fail(ErrorKind::config,
         fmt::format("{}: vectors of {}, a state of {} and {} instructions; the "
                     "compiled core has {}, {} and {}",
                     image.name(), widest, n.layers * n.m, image.program().size(), build.width,
                     build.state, kProgram));
  return std::make_unique<Core<Top, build>>(image, memory);
}

std::unique_ptr<RtlCore::Impl> make_core(const Image& image, const RtlMemory& memory, int streams,
                                         RtlSize size) {
  const RtlCore::Kind kind{streams, static_cast<int>(image.header().ports)};
#ifdef MMF_RTL_ONE_CORE
  if (size == RtlSize::large && RtlCore::exists(kind))
    return make<Vmmf_core, large(1, MMF_RTL_ONE_CORE)>(image, memory);
#else
  const auto is = [&](int s, int p) {
    return size == RtlSize::large && kind == RtlCore::Kind{s, p};
  };
  if (size == RtlSize::small && kind == RtlCore::Kind{1, 1})
    return make<Vmmf_core_small, Build{1, 1, RtlCore::kSmallLanes, RtlCore::kSmallWidth,
                                       RtlCore::kSmallState}>(image, memory);
  if (is(1, 1)) return make<Vmmf_core, large(1, 1)>(image, memory);
  if (is(2, 1)) return make<Vmmf_core_b2, large(2, 1)>(image, memory);
  if (is(8, 1)) return make<Vmmf_core_b8, large(8, 1)>(image, memory);
  if (is(1, 2)) return make<Vmmf_core_p2, large(1, 2)>(image, memory);
  if (is(2, 2)) return make<Vmmf_core_b2p2, large(2, 2)>(image, memory);
  if (is(1, 4)) return make<Vmmf_core_p4, large(1, 4)>(image, memory);
#endif
  std::string compiled;
  for (const RtlCore::Kind& k : RtlCore::kKinds)
    compiled += fmt::format("{}{} and {}", compiled.empty() ? "" : ", ", k.streams, k.ports);
  fail(ErrorKind::config,
       fmt::format("{}: {} stream(s) and {} memory port(s); RTL cores are "
                   "compiled for streams and ports {}; the small one for 1 and 1",
                   image.name(), kind.streams, kind.ports, compiled));
}

}  // namespace

RtlCore::RtlCore(const Image& image, const RtlMemory& memory, int streams, RtlSize size)
    : impl_(make_core(image, memory, streams, size)) {
  impl_->start();
}

RtlCore::~RtlCore() = default;

bool RtlCore::exists(Kind kind) {
  return std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end();
}

const RtlCounters& RtlCore::counters() const {
  return impl_->counters;
}
const StallCounts& RtlCore::stalls() const {
  return impl_->stalls;
}
std::int32_t RtlCore::next_token(int stream) const {
  return impl_->next_token(stream);
}
void RtlCore::run(std::span<const TokenInput> inputs, bool with_logits, Machine* lockstep) {
  impl_->run(inputs, with_logits, lockstep);
}
std::int32_t RtlCore::run(const TokenInput& input, bool with_logits, Machine* lockstep) {
  impl_->run({&input, 1}, with_logits, lockstep);
  return impl_->next_token(0);
}

}  // namespace mmfree::hw
