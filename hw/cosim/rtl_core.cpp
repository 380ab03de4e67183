#include "hw/cosim/rtl_core.h"

#include <fmt/core.h>
#include <verilated.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "Vmmf_core.h"
#include "Vmmf_core___024root.h"
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree::hw {
namespace {

// Of the compiled core: hw/cosim/CMakeLists.txt gives both the same numbers.
constexpr idx kWidth = MMF_RTL_WIDTH;
constexpr idx kStateSize = MMF_RTL_STATE;
constexpr std::size_t kProgram = MMF_RTL_PROGRAM;

struct Burst {
  std::uint64_t address;
  unsigned beats;
  double ready;  // cycle of its first beat
};

}  // namespace

struct RtlCore::Impl {
  Impl(const Image& i, const RtlMemory& m) : image(i), memory(m), top(&context) {}

  const Image& image;
  RtlMemory memory;
  VerilatedContext context;
  Vmmf_core top;
  RtlCounters counters;
  std::deque<Burst> bursts;
  unsigned beat = 0;  // of the first burst
  double port_free = 0;
  std::uint64_t cycle = 0;
  std::deque<Retired> expected[4];  // LD, VEC, SFU, TMM

  Vmmf_core___024root& root() { return *top.rootp; }

  bool stall(std::uint64_t stream) const {
    return memory.jitter > 0 && random_uniform(memory.seed, stream, cycle) < memory.jitter;
  }

  void clock() {
    // What the memory shows in this cycle.
    top.rvalid_i = 0;
    top.rlast_i = 0;
    double ideal = port_free;
    if (!bursts.empty()) ideal = std::max(ideal, bursts.front().ready);
    const auto now = static_cast<double>(cycle);
    const bool give = !bursts.empty() && now >= ideal && !stall(0);
    if (give) {
      const Burst& b = bursts.front();
      const std::uint64_t at = b.address + std::uint64_t{beat} * kBeatBytes;
      std::memcpy(&top.rdata_i, image.bytes().data() + at, kBeatBytes);
      top.rvalid_i = 1;
      top.rlast_i = beat + 1 == b.beats;
    }
    top.arready_i = !stall(1);
    top.eval();
    const bool ask = top.arvalid_o != 0 && top.arready_i != 0;
    const std::uint64_t address = top.araddr_o;
    const unsigned beats = top.arlen_o + 1U;
    top.clk_i = 1;
    top.eval();
    top.clk_i = 0;
    top.eval();
    if (give) {
      port_free = (now - ideal < 1 ? ideal : now) + 1 / memory.beats_per_cycle;
      if (++beat == bursts.front().beats) {
        bursts.pop_front();
        beat = 0;
      }
    }
    if (ask) {
      const std::uint64_t end = address + std::uint64_t{beats} * kBeatBytes;
      if (end > image.bytes().size())
        fail(ErrorKind::numeric,
             fmt::format("the RTL reads {} beats at byte {}, outside the image", beats, address));
      if (address / kPageBytes != (end - 1) / kPageBytes)
        fail(ErrorKind::numeric,
             fmt::format("the RTL's burst of {} beats at byte {} crosses 4 KiB", beats, address));
      bursts.push_back({address, beats, now + memory.latency});
    }
    ++cycle;
  }

  std::uint32_t digest(const Instruction& i, idx layer) {
    Vmmf_core___024root& r = root();
    const idx n = static_cast<idx>(i.len()) * kLanes;
    const auto words = [](const auto& wide, idx count) {  // 32 elements of 32 bits a word
      std::vector<std::uint32_t> v(static_cast<std::size_t>(count));
      for (idx k = 0; k < count; ++k)
        v[static_cast<std::size_t>(k)] =
            wide[static_cast<std::size_t>(k / 32)][static_cast<std::size_t>(k % 32)];
      return v;
    };
    const auto sum = [](const std::vector<std::uint32_t>& v) {
      return crc32c(0, v.data(), v.size() * 4);
    };
    const auto reg = [&](std::uint64_t s) { return r.mmf_core__DOT__s_regs[s]; };
    switch (i.op()) {
      case Op::EMB:
        return sum(words(r.mmf_core__DOT__x_mem, image.shape().d));
      case Op::LDC: {
        std::uint32_t crc = 0;
        for (unsigned k = 0; k < i.len(); ++k)
          crc =
              crc32c(crc, r.mmf_core__DOT__c_mem[i.dst() * bank_words(32) + k].data(), kBeatBytes);
        return crc;
      }
      case Op::LDS:
        return crc32c(0, &r.mmf_core__DOT__s_regs[i.dst()], kBeatBytes);
      case Op::QNT: {
        std::uint32_t crc = 0;
        for (idx k = 0; k < n / kLanes; ++k)
          crc = crc32c(
              crc,
              r.mmf_core__DOT__q_mem[i.dst() * bank_words(64) + static_cast<std::size_t>(k)].data(),
              64);
        return crc;
      }
      case Op::STAT: {
        std::vector<std::uint32_t> v;
        if ((i.field("mode") & kMODE_SS) != 0) v.push_back(reg(i.dst()));
        if ((i.field("mode") & kMODE_MX) != 0) v.push_back(reg(i.field("mx")));
        return sum(v);
      }
      case Op::SFU:
        return sum({reg(i.dst())});
      case Op::TMM:
        return matrix_digest(i, layer);
      default:
        return 0;
    }
  }

  std::uint32_t matrix_digest(const Instruction& i, idx layer) {
    Vmmf_core___024root& r = root();
    const auto rows = static_cast<std::size_t>(i.field("rows"));
    std::vector<std::int32_t> v(rows);
    const auto extend = [](std::uint32_t x, int bits) {
      return static_cast<std::int32_t>(x << (32 - bits)) >> (32 - bits);
    };
    switch (static_cast<unsigned>(i.field("epi"))) {
      case kEPI_SIGF:
      case kEPI_SILU:
        for (std::size_t k = 0; k < rows; ++k) v[k] = extend(r.mmf_core__DOT__t_mem[k], kActBits);
        break;
      case kEPI_STATE:
        for (std::size_t k = 0; k < rows; ++k)
          v[k] =
              extend(r.mmf_core__DOT__h_mem[static_cast<std::size_t>(layer * image.shape().m) + k],
                     kHBits);
        break;
      case kEPI_SWISHG:
      case kEPI_MULT:
        for (std::size_t k = 0; k < rows; ++k)
          v[k] = static_cast<std::int32_t>(r.mmf_core__DOT__z_mem[k / 32][k % 32]);
        break;
      case kEPI_RESADD:
        for (std::size_t k = 0; k < rows; ++k)
          v[k] = static_cast<std::int32_t>(r.mmf_core__DOT__x_mem[k / 32][k % 32]);
        break;
      default:
        v = {static_cast<std::int32_t>(r.mmf_core__DOT__best_row),
             extend(r.mmf_core__DOT__best_sum, kAccBits)};
    }
    return crc32c(0, v.data(), v.size() * 4);
  }

  static std::size_t bank_words(idx elements) {
    idx depth = 1;
    while (depth < kWidth) depth *= 2;
    return static_cast<std::size_t>(depth / elements);
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
};

RtlCore::RtlCore(const Image& image, const RtlMemory& memory)
    : impl_(std::make_unique<Impl>(image, memory)) {
  const Shape n = image.shape();
  const idx widest = std::max({n.d, n.m, n.f});
  if (widest > kWidth || n.layers * n.m > kStateSize || image.program().size() > kProgram)
    fail(ErrorKind::config, fmt::format("{}: vectors of {}, a state of {} and {} instructions; the "
                                        "compiled core has {}, {} and {}",
                                        image.name(), widest, n.layers * n.m,
                                        image.program().size(), kWidth, kStateSize, kProgram));
  Impl& s = *impl_;
  s.top.clk_i = 0;
  s.top.rst_ni = 0;
  s.top.start_i = 0;
  s.top.prog_we_i = 0;
  s.top.mixer_i = static_cast<std::uint32_t>(n.m);
  for (int k = 0; k < 4; ++k) s.clock();
  s.top.rst_ni = 1;
  for (std::size_t pc = 0; pc < image.program().size(); ++pc) {
    const Instruction& i = image.program()[pc];
    s.top.prog_we_i = 1;
    s.top.prog_addr_i = static_cast<std::uint8_t>(pc);
    const std::uint64_t words[2] = {i.low, i.high};
    std::memcpy(&s.top.prog_data_i, words, 16);
    s.clock();
  }
  s.top.prog_we_i = 0;
}

RtlCore::~RtlCore() = default;

const RtlCounters& RtlCore::counters() const {
  return impl_->counters;
}

std::int32_t RtlCore::run(const TokenInput& input, bool with_logits, Machine* lockstep) {
  Impl& s = *impl_;
  for (auto& e : s.expected) e.clear();
  if (lockstep != nullptr)
    lockstep->run({&input, 1}, with_logits, [&](const Retired& r) {
      const Unit unit = find_op(static_cast<std::uint8_t>(s.image.program()[r.pc].op()))->unit;
      if (unit != Unit::SEQ) s.expected[static_cast<std::size_t>(unit) - 1].push_back(r);
    });
  s.top.token_i = static_cast<std::uint32_t>(input.token);
  s.top.fresh_i = input.fresh;
  s.top.logits_i = with_logits;
  s.top.start_i = 1;
  s.clock();
  s.top.start_i = 0;
  constexpr std::uint64_t kQuiet = 100000;  // no sign of life for so long: it hangs
  std::uint64_t last_sign = s.cycle;
  while (s.top.done_o == 0) {
    if (s.top.rvalid_i != 0 || s.top.retire_o != 0) last_sign = s.cycle;
    if (s.cycle - last_sign > kQuiet)
      fail(ErrorKind::numeric, "the RTL hangs: no beat and no result for 100000 cycles");
    s.clock();
    if (lockstep != nullptr) s.compare_retired();
  }
  if (s.top.error_o != 0)
    fail(ErrorKind::numeric, "the RTL stopped at an instruction that it does not know");
  if (lockstep != nullptr)
    for (const auto& e : s.expected)
      if (!e.empty())
        fail(ErrorKind::numeric,
             fmt::format("the RTL is done, and instruction {} has not retired", e.front().pc));
  s.counters.cycles = s.top.cycles_o;
  s.counters.tile_beats = s.top.tile_beats_o;
  s.counters.wait_stream = s.top.wait_stream_o;
  s.counters.wait_results = s.top.wait_results_o;
  return static_cast<std::int32_t>(s.top.token_o);
}

}  // namespace mmfree::hw
