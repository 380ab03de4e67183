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
  TestImage(idx d, idx f, idx layers, idx vocab, std::uint64_t seed) {
    MatmulFreeConfig c;
    c.hidden_size = d;
    c.intermediate_size = f;
    c.num_hidden_layers = layers;
    c.vocab_size = vocab;
    c.bos_token_id.reset();
    c.eos_token_id.reset();
    write_image(Ctx{1}, random_fixed_model(c, seed), path);
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
};

TEST(RtlCore, EqualsTheSimulatorAfterEveryInstruction) {
  const Case cases[] = {
      {64, 64, 1, 3, {}},
      {64, 192, 2, 7, {.latency = 3}},
      {128, 320, 2, 33, {.latency = 60, .beats_per_cycle = 0.85}},
      {320, 832, 2, 257, {.latency = 100, .beats_per_cycle = 1, .jitter = 0.3, .seed = 5}},
      {192, 64, 3, 100, {.latency = 400, .beats_per_cycle = 0.3, .jitter = 0.1, .seed = 6}},
  };
  for (const Case& c : cases) {
    const TestImage t(c.d, c.f, c.layers, c.vocab, 11);
    Machine machine(Ctx{1}, t.file->image);
    RtlCore core(t.file->image, c.memory);
    std::int32_t token = 0;
    for (int n = 0; n < 6; ++n) {
      const bool logits = n != 1;
      const std::int32_t next = core.run({token, n == 0 || n == 4}, logits, &machine);
      if (!logits) continue;
      ASSERT_EQ(next, machine.next_token(0)) << c.d;
      token = static_cast<std::int32_t>((next + n) % c.vocab);
    }
    EXPECT_GT(core.counters().compared, 100U);
  }
}

TEST(RtlCore, TakesTheCyclesOfTheCycleModel) {
  const Case cases[] = {
      {128, 320, 2, 33, {}}, {512, 1536, 2, 600, {}}, {320, 832, 2, 257, {.latency = 30}}};
  for (const Case& c : cases) {
    const TestImage t(c.d, c.f, c.layers, c.vocab, 2);
    RtlCore core(t.file->image, c.memory);
    for (const bool logits : {true, false}) {
      core.run({1, true}, logits, nullptr);
      const CycleReport model =
          count_cycles(t.file->image.program(), t.file->image.shape(), logits, {},
                       {.latency = c.memory.latency, .beats_per_cycle = 1});
      EXPECT_EQ(core.counters().tile_beats, model.weight_beats);
      const auto cycles = static_cast<double>(core.counters().cycles);
      EXPECT_NEAR(cycles, static_cast<double>(model.cycles), 0.005 * cycles + 4)
          << c.d << " " << logits;
    }
  }
}

TEST(RtlCore, ReportsImagesThatDoNotFit) {
  const TestImage t(64, 64, 1, 3, 1);
  EXPECT_NO_THROW(RtlCore(t.file->image, {}));
  const TestImage wide(64, 8256, 1, 3, 1);
  EXPECT_THROW(RtlCore(wide.file->image, {}), Error);
}

}  // namespace
}  // namespace mmfree::hw
