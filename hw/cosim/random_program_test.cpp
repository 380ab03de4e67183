// Random legal programs on the RTL core under random memories, in lock-step with the simulator.
// MMF_PROGRAMS=5000 MMF_SEED=1 build/hw/tests/hw_rtl_random_test runs more of them.
#include "hw/cosim/random_program.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>

#include "hw/cosim/rtl_core.h"
#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"

namespace mmfree::hw {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

// A third of the streams take the likeliest row.
Sampling random_sampling(std::uint64_t seed, std::uint64_t token, std::uint64_t stream) {
  const std::uint64_t at = token * 16 + stream;
  const double temperatures[] = {0, 0.03125, 0.7, 1, 3, 1000};
  const auto pick = static_cast<std::size_t>(random_bits(seed, 11, at) % 6);
  Sampling s = sampling(pick < 2 ? 0 : temperatures[pick], random_bits(seed, 12, at));
  s.position = static_cast<std::uint32_t>(random_bits(seed, 13, at));
  return s;
}

RtlCore::Kind kind_of(std::uint64_t seed) {
  if (RtlCore::kKinds.size() == 1) return RtlCore::kKinds[0];
  if (seed % 16 == 1) return {8, 1};
  if (seed % 4 == 0) return {2, seed % 8 == 0 ? 2 : 1};
  if (seed % 4 == 1) return {1, 2};
  return {1, seed % 8 == 3 ? 4 : 1};
}

// The same on the small core if the image fits it; instructions compared.
std::uint64_t run_small(const Image& image, const RtlMemory& memory, int streams,
                        std::uint64_t seed) {
  const Shape n = image.shape();
  if (RtlCore::kKinds.size() == 1 || streams != 1 || n.ports != 1 ||
      std::max({n.d, n.m, n.f}) > RtlCore::kSmallWidth || n.layers * n.m > RtlCore::kSmallState)
    return 0;
  Machine machine(Ctx{1}, image);
  RtlCore core(image, memory, 1, RtlSize::small);
  for (std::uint64_t t = 0; t < 2; ++t) {
    const auto token =
        static_cast<std::int32_t>(random_bits(seed, 14, t) % static_cast<std::uint64_t>(n.vocab));
    try {
      const std::int32_t next =
          core.run({token, t == 0, random_sampling(seed, t, 1)}, true, &machine);
      EXPECT_EQ(next, machine.next_token(0));
    } catch (const Error& e) {
      ADD_FAILURE() << e.what() << "\n" << disassemble(image.program());
    }
  }
  return core.counters().compared;
}

TEST(RandomPrograms, AgreeWithTheSimulator) {
  const std::uint64_t first = from_environment("MMF_SEED", 1);
  const std::uint64_t count = from_environment("MMF_PROGRAMS", 60);
  fmt::print("seeds {} to {}\n", first, first + count - 1);
  std::uint64_t compared = 0, small = 0, wait_stream = 0, wait_results = 0;
  StallCounts stalls{};
  std::map<std::pair<Kind, std::uint64_t>, int> used;  // named values in instructions
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    SCOPED_TRACE(fmt::format("MMF_PROGRAMS=1 MMF_SEED={}", seed));
    const auto [streams, ports] = kind_of(seed);
    const std::vector<std::byte> bytes = random_program_image(seed, streams, 128, ports);
    const Image image(bytes, "random program");
    RtlMemory memory;
    memory.seed = seed;
    memory.latency = static_cast<double>(1 + random_bits(seed, 7, 0) % 200);
    memory.beats_per_cycle = random_bits(seed, 7, 1) % 2 == 0 ? 1 : 0.25;
    memory.jitter = static_cast<double>(random_bits(seed, 7, 2) % 4) * 0.2;
    memory.skew = static_cast<double>(random_bits(seed, 7, 3) % 40);
    Machine machine(Ctx{1}, image, streams);
    RtlCore core(image, memory, streams);
    std::vector<TokenInput> inputs(static_cast<std::size_t>(streams));
    for (std::uint64_t t = 0; t < 3; ++t) {
      for (std::size_t b = 0; b < inputs.size(); ++b)
        inputs[b] = {static_cast<std::int32_t>(random_bits(seed, 8 + 16 * b, t) %
                                               static_cast<std::uint64_t>(image.shape().vocab)),
                     t == 0 || random_bits(seed, 10, t + 8 * b) % 4 == 0,
                     random_sampling(seed, t, b)};
      const bool logits = random_bits(seed, 9, t) % 3 != 0;
      try {
        core.run(inputs, logits, &machine);
        for (int b = 0; b < streams; ++b) ASSERT_EQ(core.next_token(b), machine.next_token(b));
      } catch (const Error& e) {
        FAIL() << e.what() << "\n" << disassemble(image.program());
      }
    }
    compared += core.counters().compared;
    small += run_small(image, memory, streams, seed);
    wait_stream += core.counters().wait_stream;
    wait_results += core.counters().wait_results;
    for (const Instruction& i : image.program()) {
      ++used[{Kind::FLAG, i.flags()}];
      for (const FieldInfo& f : fields())
        if (f.op == i.op() && f.kind != Kind::INT && i.flags() == 0)
          ++used[{f.kind, i.field(f.name)}];
    }
    for (std::size_t op = 0; op < stalls.size(); ++op)
      for (std::size_t k = 0; k < kStalls; ++k) stalls[op][k] += core.stalls()[op][k];
  }
  fmt::print("{} instructions compared, {} on the small core\n", compared, small);
  EXPECT_GT(compared, count * 100);
  if (count < 40) return;
  if (RtlCore::kKinds.size() > 1) {
    EXPECT_GT(small, 1000U);
  }
  // Every operation has been issued, and skipped where it may be; every function, epilogue, mode
  // and vector was used; every cause of waiting was seen.
  EXPECT_GT(wait_stream, 0U);
  EXPECT_GT(wait_results, 0U);
  for (const ValueInfo& v : values()) {
    if (v.kind == Kind::ERROR) continue;
    EXPECT_GT((used[{v.kind, v.value}]), 0) << v.name;
  }
  std::uint64_t loops = 0;
  for (const OpInfo& o : ops()) {
    const auto& cycles = stalls[static_cast<std::size_t>(o.op)];
    std::string line;
    for (std::size_t k = 0; k < kStalls; ++k)
      line += fmt::format(" {} {}", kStallNames[k], cycles[k]);
    fmt::print("{}:{}\n", o.name, line);
    EXPECT_GT(cycles[0], 0U) << o.name;
    const auto waits = [&](Stall s) { return cycles[static_cast<std::size_t>(s)]; };
    if (o.unit != Unit::SEQ) {
      EXPECT_GT(waits(Stall::unit), 0U) << o.name;
      EXPECT_GT(waits(Stall::hazard), 0U) << o.name;
    }
    // HALT, FENCE and TOK wait for all units, WST for room in the queue of runs.
    const bool waits_for_units =
        o.op == Op::HALT || o.op == Op::FENCE || o.op == Op::TOK || o.op == Op::WST;
    if (waits_for_units) {
      EXPECT_GT(waits(Stall::unit), 0U) << o.name;
    }
    // LOOP, ENDL and HALT cannot be skipped, EMB is not by this generator.
    const bool skips = o.op != Op::LOOP && o.op != Op::ENDL && o.op != Op::HALT && o.op != Op::EMB;
    EXPECT_EQ(waits(Stall::skip) > 0, skips) << o.name;
    loops += waits(Stall::loop);
  }
  EXPECT_GT(loops, 0U);
}

}  // namespace
}  // namespace mmfree::hw
