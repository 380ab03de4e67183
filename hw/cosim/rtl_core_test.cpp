// The RTL core against the instruction-set simulator, instruction by instruction, on random models
// of odd shapes and under memories of different manners; and against the cycle model.
#include "hw/cosim/rtl_core.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "mmfree/core/error.h"
#include "mmfree/hw/compile.h"
#include "mmfree/hw/cycles.h"

namespace mmfree::hw {
namespace {

struct TestImage {
  TestImage(idx d, idx f, idx layers, idx vocab, std::uint64_t seed, int streams = 1,
            int ports = 1) {
    MatmulFreeConfig c;
    c.hidden_size = d;
    c.intermediate_size = f;
    c.num_hidden_layers = layers;
    c.vocab_size = vocab;
    c.bos_token_id.reset();
    c.eos_token_id.reset();
    write_image(Ctx{1}, random_fixed_model(c, seed), path, streams, {}, ports);
    file = std::make_unique<ImageFile>(path);
  }
  ~TestImage() { std::filesystem::remove(path); }
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("mmfree_rtl_" + std::to_string(getpid()) + ".mmh");
  std::unique_ptr<ImageFile> file;
};

struct Case {
  idx d, f, layers, vocab;
  RtlMemory memory;
  RtlSize size = RtlSize::large;
};

// Numbers of ports that a core for one stream is compiled for.
std::vector<int> ports_of_one_stream() {
  std::vector<int> r;
  for (const RtlCore::Kind& k : RtlCore::kKinds)
    if (k.streams == 1) r.push_back(k.ports);
  return r;
}

TEST(RtlCore, EqualsTheSimulatorAfterEveryInstruction) {
  const Case cases[] = {
      {64, 64, 1, 3, {}},
      {64, 192, 2, 7, {.latency = 3}},
      {128, 320, 2, 33, {.latency = 60, .beats_per_cycle = 0.85, .skew = 3}},
      {320, 832, 2, 257, {.latency = 100, .beats_per_cycle = 1, .jitter = 0.3, .seed = 5}},
      {192,
       64,
       3,
       100,
       {.latency = 400, .beats_per_cycle = 0.3, .jitter = 0.1, .skew = 150, .seed = 6}},
      {64, 192, 2, 7, {.latency = 3}, RtlSize::small},
      {256, 256, 3, 100, {.latency = 60, .beats_per_cycle = 0.85, .jitter = 0.2}, RtlSize::small},
  };
  for (const int ports : ports_of_one_stream())
    for (const Case& c : cases) {
      if (c.size == RtlSize::small && (ports != 1 || RtlCore::kKinds.size() == 1)) continue;
      SCOPED_TRACE(ports);
      const TestImage t(c.d, c.f, c.layers, c.vocab, 11, 1, ports);
      Machine machine(Ctx{1}, t.file->image);
      RtlCore core(t.file->image, c.memory, 1, c.size);
      std::int32_t token = 0;
      for (int n = 0; n < 6; ++n) {
        const bool logits = n != 1;
        Sampling draws = sampling(n % 3 == 2 ? 0 : 0.5 * n, 7);  // tokens 0, 2, 5: the likeliest
        draws.position = static_cast<std::uint32_t>(n);
        const std::int32_t next = core.run({token, n == 0 || n == 4, draws}, logits, &machine);
        if (!logits) continue;
        ASSERT_EQ(next, machine.next_token(0)) << c.d;
        token = static_cast<std::int32_t>((next + n) % c.vocab);
      }
      EXPECT_GT(core.counters().compared, 100U);
    }
}

TEST(RtlCore, TakesTheCyclesOfTheCycleModel) {
  const Case cases[] = {{128, 320, 2, 33, {}},
                        {512, 1536, 2, 600, {}},
                        {320, 832, 2, 257, {.latency = 30}},
                        {128, 256, 2, 33, {}, RtlSize::small},
                        {256, 192, 3, 257, {.latency = 30}, RtlSize::small}};
  for (const int ports : ports_of_one_stream())
    for (const Case& c : cases) {
      if (c.size == RtlSize::small && (ports != 1 || RtlCore::kKinds.size() == 1)) continue;
      const TestImage t(c.d, c.f, c.layers, c.vocab, 2, 1, ports);
      RtlCore core(t.file->image, c.memory, 1, c.size);
      CoreModel build;
      if (c.size == RtlSize::small) {
        build.lanes = RtlCore::kSmallLanes;
        build.vector_lanes = RtlCore::kSmallVectorLanes;
        build.fifo_beats = RtlCore::kSmallFifo;
      }
      for (const bool logits : {true, false}) {
        core.run({1, true}, logits, nullptr);
        const CycleReport model =
            count_cycles(t.file->image.program(), t.file->image.shape(), logits, build,
                         {.latency = c.memory.latency, .beats_per_cycle = 1});
        EXPECT_EQ(core.counters().tile_beats, model.weight_beats);
        const auto cycles = static_cast<double>(core.counters().cycles);
        EXPECT_NEAR(cycles, static_cast<double>(model.cycles), 0.005 * cycles + 4)
            << c.d << " " << logits << " " << ports;
      }
    }
}

// Streams that began at different times, and one that starts anew, share every weight beat.
TEST(RtlCore, StreamsShareTheWeights) {
  for (const auto& [streams, ports] : RtlCore::kKinds) {
    if (streams == 1) continue;
    const auto n = static_cast<std::size_t>(streams);
    const TestImage t(192, 320, 2, 50, 4, streams, ports);
    Machine machine(Ctx{1}, t.file->image, streams);
    RtlCore core(t.file->image, {.latency = 40, .beats_per_cycle = 0.9, .jitter = 0.1}, streams);
    std::vector<TokenInput> inputs(n);
    for (std::size_t b = 0; b < n; ++b)
      inputs[b] = {static_cast<std::int32_t>(b * 7 % 50), true, sampling(b % 2 == 0 ? 0 : 1, b)};
    bool differ = false;
    for (int step = 0; step < 5; ++step) {
      core.run(inputs, step != 1, &machine);
      for (std::size_t b = 0; b < n; ++b) {
        const int stream = static_cast<int>(b);
        if (step != 1) {
          ASSERT_EQ(core.next_token(stream), machine.next_token(stream));
        }
        differ = differ || machine.next_token(stream) != machine.next_token(0);
        inputs[b] = {(machine.next_token(stream) + step + stream) % 50, step == 2 && b == 1,
                     inputs[b].sampling};
        ++inputs[b].sampling.position;
      }
    }
    EXPECT_TRUE(differ);
    EXPECT_GT(core.counters().compared, 100U);
    EXPECT_EQ(
        core.counters().tile_beats,
        count_cycles(t.file->image.program(), t.file->image.shape(), true, {}, {}).weight_beats);
  }
}

TEST(RtlCore, ReportsImagesThatDoNotFit) {
  const TestImage t(64, 64, 1, 3, 1);
  EXPECT_NO_THROW(RtlCore(t.file->image, {}));
  const TestImage wide(64, 8256, 1, 3, 1);
  EXPECT_THROW(RtlCore(wide.file->image, {}), Error);
  EXPECT_THROW(RtlCore(t.file->image, {}, 3), Error);
  EXPECT_NO_THROW(RtlCore(t.file->image, {}, 1, RtlSize::small));
  EXPECT_THROW(RtlCore(t.file->image, {}, 2, RtlSize::small), Error);
  const TestImage wider(64, 320, 1, 3, 1);
  EXPECT_THROW(RtlCore(wider.file->image, {}, 1, RtlSize::small), Error);
}

TEST(RtlCore, RefusesPortsThatNoCoreHas) {
  const TestImage t(64, 64, 1, 3, 1, 1, 8);
  try {
    RtlCore core(t.file->image, {});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("8 memory port(s)"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace mmfree::hw
