// Image, assembler and simulator: the simulator equals the integer network on random models of odd
// shapes, damaged images are refused, programs survive their text.
#include "mmfree/hw/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <tuple>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/hw/compile.h"
#include "mmfree/hw/cycles.h"
#include "mmfree/hw/fixed_network.h"

namespace mmfree::hw {
namespace {

MatmulFreeConfig small_config(idx d, idx f, idx layers, idx vocab) {
  MatmulFreeConfig c;
  c.hidden_size = d;
  c.intermediate_size = f;
  c.num_hidden_layers = layers;
  c.vocab_size = vocab;
  c.bos_token_id.reset();
  c.eos_token_id.reset();
  return c;
}

struct TemporaryImage {
  std::filesystem::path path = std::filesystem::temp_directory_path() /
                               ("mmfree_image_" + std::to_string(getpid()) + ".mmh");
  ~TemporaryImage() { std::filesystem::remove(path); }
  std::vector<std::byte> bytes() const {
    std::ifstream in(path, std::ios::binary);
    const std::vector<char> c{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    std::vector<std::byte> b(c.size());
    std::memcpy(b.data(), c.data(), c.size());
    return b;
  }
};

std::vector<std::byte> make_image(const FixedModel& model, int streams = 1, int ports = 1) {
  const TemporaryImage file;
  write_image(Ctx{2}, model, file.path, streams, {}, ports);
  return file.bytes();
}

TEST(Machine, EqualsTheIntegerNetworkBitForBit) {
  const std::tuple<idx, idx, idx, idx> shapes[] = {
      {64, 64, 1, 1}, {64, 128, 2, 7}, {128, 320, 3, 33}, {192, 64, 2, 100}, {320, 832, 2, 257}};
  int ports = 1;
  for (const auto& [d, f, layers, vocab] : shapes) {
    const FixedModel model = random_fixed_model(small_config(d, f, layers, vocab), 7);
    FixedNetwork network(Ctx{2}, model);
    const std::vector<std::byte> bytes = make_image(model, 1, ports);
    ports = ports == kMaxPorts ? 1 : 2 * ports;
    const Image image(bytes, "test");
    Machine machine(Ctx{2}, image);
    std::vector<std::int32_t> state(static_cast<std::size_t>(layers * d));
    std::int32_t token = 0;
    bool moved = false;
    for (int t = 0; t < 12; ++t) {
      network.step(token, state, true);
      const TokenInput input{token, t == 0};
      machine.run({&input, 1}, true);
      const StreamMemory& m = machine.memory(0);
      ASSERT_TRUE(std::equal(state.begin(), state.end(), m.h.begin())) << d << " token " << t;
      ASSERT_TRUE(std::equal(m.x.begin(), m.x.end(), network.residual().begin()))
          << d << " token " << t;
      ASSERT_EQ(machine.next_token(0), network.best());
      ASSERT_EQ(m.best_key, network.sums()[static_cast<std::size_t>(network.best())]);
      moved = moved || m.x[0] != network.model().embedding[0];
      token = static_cast<std::int32_t>((network.best() + t) % vocab);
    }
    EXPECT_TRUE(moved);
    // With a temperature the simulator draws what the network draws; other seeds and positions draw
    // something else.
    int different = 0;
    for (std::uint32_t k = 0; k < 12; ++k) {
      Sampling s = sampling(k % 2 == 0 ? 1 : 4, k / 4);
      s.position = k;
      network.step(token, state, true);
      const TokenInput input{token, false, s};
      machine.run({&input, 1}, true);
      ASSERT_EQ(machine.next_token(0), network.draw(s)) << d << " draw " << k;
      different += network.draw(s) == network.best() ? 0 : 1;
      token = machine.next_token(0);
    }
    EXPECT_GT(different, vocab > 30 ? 3 : -1);
    // A fresh stream forgets: the first token again gives the first result again.
    const TokenInput again{0, true};
    machine.run({&again, 1}, true);
    std::fill(state.begin(), state.end(), 0);
    network.step(0, state, true);
    ASSERT_EQ(machine.next_token(0), network.best());
    ASSERT_TRUE(std::equal(state.begin(), state.end(), machine.memory(0).h.begin()));
  }
}

TEST(Machine, StreamsAreIndependent) {
  const FixedModel model = random_fixed_model(small_config(128, 192, 2, 50), 3);
  const std::vector<std::byte> one = make_image(model), three = make_image(model, 3, 2);
  const Image image1(one, "one"), image3(three, "three");
  Machine together(Ctx{1}, image3, 3);
  std::vector<Machine> alone;
  for (int s = 0; s < 3; ++s) alone.emplace_back(Ctx{1}, image1);
  std::vector<TokenInput> inputs = {{3, true}, {44, true}, {3, true}};
  for (int t = 0; t < 6; ++t) {
    together.run(inputs, true);
    for (int s = 0; s < 3; ++s) {
      alone[static_cast<std::size_t>(s)].run({&inputs[static_cast<std::size_t>(s)], 1}, true);
      ASSERT_EQ(together.next_token(s), alone[static_cast<std::size_t>(s)].next_token(0));
      ASSERT_EQ(together.memory(s).h, alone[static_cast<std::size_t>(s)].memory(0).h);
      inputs[static_cast<std::size_t>(s)] = {(together.next_token(s) + s) % 50, t == 3 && s == 1};
    }
  }
}

TEST(Machine, TileSumsEqualTheDefinition) {
  std::uint64_t n = 0;
  for (const idx beats : {1, 2, 5, 108}) {
    std::vector<std::uint8_t> weights(static_cast<std::size_t>(beats * 64));
    std::vector<std::int8_t> codes(weights.size());
    std::int64_t expected[kRows] = {};
    for (std::size_t k = 0; k < codes.size(); ++k) {
      std::int8_t t[kRows];
      for (std::int8_t& v : t)
        v = static_cast<std::int8_t>(static_cast<int>(random_bits(5, 0, n++) % 3) - 1);
      weights[k] = encode_trits(t);
      codes[k] = k % 7 == 0 ? -128 : static_cast<std::int8_t>(random_bits(5, 1, n) & 255U);
      for (int r = 0; r < kRows; ++r) expected[r] += t[r] * codes[k];
    }
    std::int32_t sums[kRows];
    tile_sums(weights.data(), beats, codes.data(), sums);
    for (int r = 0; r < kRows; ++r) ASSERT_EQ(sums[r], expected[r]) << beats;
  }
}

TEST(Image, AnyDamagedByteIsRefused) {
  const std::vector<std::byte> good = make_image(random_fixed_model(small_config(64, 64, 1, 5), 1));
  EXPECT_NO_THROW(Image(good, "good"));
  int refused = 0, tried = 0;
  for (std::size_t at = 0; at < good.size(); at += at < 512 ? 1 : 61) {
    std::vector<std::byte> bad = good;
    bad[at] ^= std::byte{static_cast<unsigned char>(1U << (at % 8))};
    ++tried;
    try {
      const Image image(bad, "bad");
    } catch (const Error& e) {
      ++refused;
      EXPECT_EQ(e.kind(), ErrorKind::format);
      continue;
    }
    // Only padding between sections may change unnoticed: nothing reads it.
    const Image image(good, "good");
    bool padding = at >= sizeof(ImageHeader) && at < static_cast<std::size_t>(kPageBytes);
    for (int s = 0; s < kSections; ++s) {
      const SectionEntry& e = image.header().sections[static_cast<std::size_t>(s)];
      const std::uint64_t end = (e.offset + e.bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
      padding = padding || (at >= e.offset + e.bytes && at < end);
    }
    EXPECT_TRUE(padding) << "byte " << at;
  }
  EXPECT_GT(refused, tried / 4);
  for (const std::size_t size : {std::size_t{0}, std::size_t{7}, sizeof(ImageHeader) - 1,
                                 sizeof(ImageHeader), std::size_t{4096}, good.size() - 1}) {
    std::vector<std::byte> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_THROW(Image(cut, "cut"), Error) << size;
  }
  std::vector<std::byte> longer = good;
  longer.resize(longer.size() + 5000);
  EXPECT_THROW(Image(longer, "longer"), Error);
}

// Gives a changed image right checksums, so that what lies behind them is tested.
void seal(std::vector<std::byte>& bytes) {
  ImageHeader h;
  std::memcpy(&h, bytes.data(), sizeof h);
  for (SectionEntry& s : h.sections)
    if (s.offset <= bytes.size() && s.bytes <= bytes.size() - s.offset)
      s.crc = crc32c(0, bytes.data() + s.offset, s.bytes);
  h.crc = crc32c(0, &h, offsetof(ImageHeader, crc));
  std::memcpy(bytes.data(), &h, sizeof h);
}

TEST(Image, HostileHeadersAndProgramsNeverReachMemory) {
  const std::vector<std::byte> good =
      make_image(random_fixed_model(small_config(64, 128, 2, 9), 1));
  ImageHeader h;
  std::memcpy(&h, good.data(), sizeof h);
  const std::size_t code = h.sections[0].offset, code_bytes = h.sections[0].bytes;
  int ran = 0, refused = 0;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    std::vector<std::byte> bad = good;
    const bool header = i % 4 == 0;
    for (std::uint64_t k = 0; k <= i % 3; ++k) {
      const std::size_t at = header ? random_bits(i, 0, k) % sizeof(ImageHeader)
                                    : code + random_bits(i, 1, k) % code_bytes;
      bad[at] =
          i % 2 == 0
              ? std::byte{static_cast<unsigned char>(random_bits(i, 2, k))}
              : bad[at] ^ std::byte{static_cast<unsigned char>(1U << (random_bits(i, 3, k) % 8))};
    }
    seal(bad);
    try {
      const Image image(bad, "hostile");
      Machine machine(Ctx{1}, image);
      const TokenInput input{static_cast<std::int32_t>(i % 9), true};
      machine.run({&input, 1}, i % 5 != 0);
      ++ran;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 5000);
  EXPECT_GT(ran, 100);
}

TEST(Image, OtherVersionsAndPortsAreRefused) {
  const std::vector<std::byte> good = make_image(random_fixed_model(small_config(64, 64, 1, 9), 1));
  const auto refused = [&](std::size_t at, const char* message) {
    std::vector<std::byte> bad = good;
    bad[at] ^= std::byte{3};
    seal(bad);
    try {
      const Image image(bad, "bad");
      FAIL() << message;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(message), std::string::npos) << e.what();
    }
  };
  refused(offsetof(ImageHeader, version), "image's version is 1, expected 2");
  refused(offsetof(ImageHeader, isa), "instruction set's version is 1, expected 2");
  refused(offsetof(ImageHeader, ports), "section layers has");
  const auto refused_ports = [&](std::uint32_t n) {
    std::vector<std::byte> bad = good;
    std::memcpy(bad.data() + offsetof(ImageHeader, ports), &n, 4);
    seal(bad);
    try {
      const Image image(bad, "bad");
      FAIL() << n;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("number of memory ports is " + std::to_string(n) +
                                           ", expected 1, 2, 4 or 8"),
                std::string::npos)
          << e.what();
    }
  };
  for (const std::uint32_t n : {0U, 3U, 6U, 16U, 0x80000001U}) refused_ports(n);
  EXPECT_THROW(make_image(random_fixed_model(small_config(64, 64, 1, 9), 1), 1, 3), Error);
}

TEST(Image, TheRunQueueIsNotOverfilled) {
  // Behind LOOP: with the layers' run and the head's more wait than the hardware's queue holds.
  const std::vector<std::byte> good = make_image(random_fixed_model(small_config(64, 64, 1, 9), 1));
  const Image image(good, "good");
  ImageHeader h;
  std::memcpy(&h, good.data(), sizeof h);
  std::vector<std::byte> bad = good;
  for (std::size_t pc = 4; pc <= 6; ++pc) {
    const Instruction wst =
        make_instruction(Op::WST, {{"page", h.sections[2].offset / kPageBytes}, {"beats", 1}});
    std::memcpy(bad.data() + h.sections[0].offset + 16 * pc, &wst.low, 8);
    std::memcpy(bad.data() + h.sections[0].offset + 16 * pc + 8, &wst.high, 8);
  }
  seal(bad);
  const Image damaged(bad, "bad");
  try {
    Machine machine(Ctx{1}, damaged);
    const TokenInput input{0, true};
    machine.run({&input, 1}, true);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("runs of beats wait"), std::string::npos) << e.what();
  }
}

TEST(Isa, ProgramsSurviveTheirText) {
  const Shape shape{128, 192, 320, 3, 77};
  const std::vector<Instruction> program = make_program(shape, 3, {2, 5, 9}, 2);
  EXPECT_EQ(assemble(disassemble(program), "text"), program);
  // Random values in all fields of all operations.
  for (std::uint64_t i = 0; i < 3000; ++i) {
    const OpInfo& o = ops()[i % ops().size()];
    Instruction a;
    a.set_bits(0, 8, static_cast<std::uint64_t>(o.op));
    a.set_bits(8, 8, random_bits(1, 5, i) & 1U);
    for (std::size_t k = 0; k < fields().size(); ++k) {
      const FieldInfo& f = fields()[k];
      if (f.op != o.op) continue;
      std::uint64_t v = random_bits(1, k, i) & ((std::uint64_t{1} << f.width) - 1);
      if (f.kind == Kind::MODE) v = 1 + v % 3;
      if (f.kind == Kind::VEC) v %= 2;
      if (f.kind == Kind::FN) v %= 5;
      if (f.kind == Kind::EPI) v %= 8;
      a.set_bits(f.low, f.width, v);
    }
    EXPECT_EQ(assemble_line(disassemble(a), "line"), a) << disassemble(a);
  }
}

TEST(Isa, BadTextAndWordsAreRefused) {
  for (const char* text :
       {"frob a=1", "tmm epi=NOTHING", "tmm a", "tmm a=256", "ldc dst=1 dst=2", "wst beats=-1",
        "halt now", "stat mode=0 len=1", "tmm rows=16777216", "nop LOGITS dst=1"})
    EXPECT_THROW(assemble_line(text, "line"), Error) << text;
  Instruction i;
  i.set_bits(0, 8, 0xee);
  EXPECT_THROW(check_instruction(i, "word"), Error);
  i = Instruction{};
  i.set_bits(100, 1, 1);
  EXPECT_THROW(check_instruction(i, "word"), Error);
  i = Instruction{};
  i.set_bits(8, 8, 2);
  EXPECT_THROW(check_instruction(i, "word"), Error);
}

TEST(Crc, KnownValue) {
  EXPECT_EQ(crc32c(0, "123456789", 9), 0xe3069283U);
  EXPECT_EQ(crc32c(crc32c(0, "12345", 5), "6789", 4), 0xe3069283U);
}

TEST(Compile, UnsupportedShapesAreRefused) {
  for (const auto& c :
       {small_config(100, 128, 1, 5), small_config(128, 100, 1, 5), small_config(64, 16448, 1, 5)})
    EXPECT_THROW(random_fixed_model(c, 1), Error);
}

TEST(Cycles, StayNearTheStreamAndCountEveryBeat) {
  const Shape shape{1024, 1024, 2816, 24, 32000};
  const std::vector<Instruction> program = make_program(shape, 2, place_sections(shape, 2000));
  const CycleReport r = count_cycles(program, shape, true, {}, {});
  const auto beats = static_cast<std::uint64_t>(24 * shape.layer_beats() + shape.head_beats() +
                                                shape.embedding_row_beats());
  EXPECT_EQ(r.beats, beats);
  EXPECT_LT(r.cycles, r.weight_beats * 105 / 100);
  EXPECT_EQ(r.cycles, r.weight_beats + r.idle_codes + r.idle_memory + r.idle_epilogue);
  // Half the bandwidth: the stream is the bound.
  const CycleReport half =
      count_cycles(program, shape, true, {}, {.latency = 100, .beats_per_cycle = 0.5});
  EXPECT_GE(half.cycles, 2 * beats);
  EXPECT_LT(half.cycles, 2 * beats + 20000);
  // Two ports: half the floor, and the same between the matrices.
  Shape wide = shape;
  wide.ports = 2;
  const CycleReport two =
      count_cycles(make_program(wide, 2, place_sections(wide, 2000)), wide, true, {}, {});
  EXPECT_LT(two.weight_beats, r.weight_beats / 2 * 101 / 100);
  EXPECT_GE(two.weight_beats, r.weight_beats / 2);
  EXPECT_EQ(two.beats, static_cast<std::uint64_t>(24 * wide.layer_beats() + wide.head_beats() +
                                                  wide.embedding_row_beats()));
  EXPECT_LT(two.cycles, two.weight_beats * 108 / 100);
  // A prompt token skips the head.
  EXPECT_LT(count_cycles(program, shape, false, {}, {}).beats, beats - 102400);
}

}  // namespace
}  // namespace mmfree::hw
