// The accelerator through its registers: loads an image from memory, runs tokens, and refuses bad
// images and programs with the status that says why.
#include <gtest/gtest.h>
#include <unistd.h>
#include <verilated.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <string>

#ifdef MMF_RTL_ONE_TOP
#include "Vmmf_top.h"
#else
#include "Vmmf_top_p1.h"
#include "Vmmf_top_p2.h"
#endif
#include "mmfree/core/error.h"
#include "mmfree/hw/compile.h"
#include "mmfree/hw/machine.h"

namespace mmfree::hw {
namespace {

constexpr int kStreams = 2;
constexpr std::uint64_t kStart = 1, kLoad = 2, kLogits = 4;
constexpr std::uint32_t kControl = 0, kStatus = 4, kBytes = 8, kFresh = 0x10, kToken = 0x400,
                        kDraws = 0x1000;

template <class Verilated, std::size_t n>
struct Kind {
  using Top = Verilated;
  static constexpr std::size_t ports = n;
};

// A host with a memory of its own at each port: port p has beats p, p + ports, ... of the image.
template <class T>
struct Accelerator {
  static constexpr std::size_t kPorts = T::ports;
  explicit Accelerator(std::vector<std::byte> bytes) : memory(std::move(bytes)), top(&context) {
    top.rst_ni = 0;
    for (int k = 0; k < 3; ++k) clock();
    top.rst_ni = 1;
    clock();
  }
#if VM_COVERAGE
  ~Accelerator() {
    static int n = 0;
    if (const char* folder = std::getenv("MMF_COVERAGE"))
      context.coveragep()->write(
          (std::string(folder) + "/top_" + std::to_string(n++) + ".dat").c_str());
  }
#endif
  VerilatedContext context;
  std::vector<std::byte> memory;
  typename T::Top top;
  std::deque<std::pair<std::uint64_t, bool>> beats[kPorts];  // address, last of its burst

  template <class V>
  static std::uint32_t field(const V& v, std::size_t at, std::size_t width) {
    std::uint64_t r = 0;
    if constexpr (std::is_integral_v<V>) {
      r = std::uint64_t{v} >> at;
    } else {
      r = (std::uint64_t{v[at / 32]} | std::uint64_t{v[at / 32 + 1]} << 32) >> at % 32;
    }
    return static_cast<std::uint32_t>(r & ((std::uint64_t{1} << width) - 1));
  }
  void clock() {
    top.rvalid_i = top.rlast_i = 0;
    for (std::size_t p = 0; p < kPorts; ++p) {
      if (beats[p].empty()) continue;
      const auto [address, last] = beats[p].front();
      const std::size_t at = (address / 64 * kPorts + p) * 64;
      std::uint32_t data[16] = {};
      if (at < memory.size())
        std::memcpy(data, memory.data() + at, std::min<std::size_t>(64, memory.size() - at));
      for (std::size_t k = 0; k < 16; ++k) top.rdata_i[16 * p + k] = data[k];
      top.rvalid_i |= 1U << p;
      top.rlast_i |= (last ? 1U : 0U) << p;
      beats[p].pop_front();
    }
    top.arready_i = (1U << kPorts) - 1;
    top.eval();
    for (std::size_t p = 0; p < kPorts; ++p) {
      if ((top.arvalid_o >> p & 1U) == 0) continue;
      const std::uint64_t address = field(top.araddr_o, 38 * p, 32);
      const unsigned length = field(top.arlen_o, 8 * p, 8);
      for (unsigned k = 0; k <= length; ++k) beats[p].emplace_back(address + 64 * k, k == length);
    }
    top.clk_i = 1;
    top.eval();
    top.clk_i = 0;
    top.eval();
  }
  // Returns the response: 0 is OKAY.
  unsigned write(std::uint32_t at, std::uint64_t value) {
    top.awvalid_i = top.wvalid_i = 1;
    top.awaddr_i = static_cast<std::uint16_t>(at);
    top.wdata_i = static_cast<std::uint32_t>(value);
    clock();
    top.awvalid_i = top.wvalid_i = 0;
    top.bready_i = 1;
    EXPECT_EQ(top.bvalid_o, 1);
    const unsigned response = top.bresp_o;
    clock();
    EXPECT_EQ(top.bvalid_o, 0);
    return response;
  }
  std::uint32_t read(std::uint32_t at, unsigned expected = 0) {
    top.s_arvalid_i = 1;
    top.s_araddr_i = static_cast<std::uint16_t>(at);
    clock();
    top.s_arvalid_i = 0;
    top.s_rready_i = 1;
    EXPECT_EQ(top.s_rvalid_o, 1);
    EXPECT_EQ(top.s_rresp_o, expected);
    const std::uint32_t value = top.s_rdata_o;
    clock();
    return value;
  }
  // Runs a command to its end; the error.
  unsigned command(std::uint64_t what) {
    EXPECT_EQ(write(kControl, what), 0U);
    for (int k = 0; k < 2000000 && top.irq_o == 0; ++k) clock();
    EXPECT_EQ(top.irq_o, 1);
    const std::uint32_t status = read(kStatus);
    EXPECT_EQ(status & 1U, 0U);
    return status >> 8 & 255U;
  }
  // The registers that say how a stream draws, written and read back.
  void set_draws(std::uint32_t stream, const Sampling& s) {
    const Scalar t = s.inverse_temperature;
    const std::uint32_t values[4] = {
        static_cast<std::uint32_t>(s.seed), static_cast<std::uint32_t>(s.seed >> 32), s.position,
        t.mantissa | static_cast<std::uint32_t>(static_cast<std::uint16_t>(t.exponent)) << 16};
    for (std::uint32_t k = 0; k < 4; ++k) {
      const std::uint32_t at = kDraws + 16 * stream + 4 * k;
      EXPECT_EQ(write(at, values[k]), 0U);
      EXPECT_EQ(read(at), values[k]);
    }
  }
  unsigned load() {
    write(kBytes, memory.size());
    write(kBytes + 4, static_cast<std::uint64_t>(memory.size()) >> 32);
    return command(kLoad);
  }
};

std::vector<std::byte> image_bytes(idx d, idx f, idx layers, idx vocab, int ports,
                                   int streams = kStreams) {
  MatmulFreeConfig c;
  c.hidden_size = d;
  c.intermediate_size = f;
  c.num_hidden_layers = layers;
  c.vocab_size = vocab;
  c.bos_token_id.reset();
  c.eos_token_id.reset();
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("mmfree_top_" + std::to_string(getpid()) + ".mmh");
  write_image(Ctx{1}, random_fixed_model(c, 3), path, streams, {}, ports);
  std::vector<std::byte> bytes;
  {
    const MappedFile file(path);
    bytes.assign(file.bytes().begin(), file.bytes().end());
  }
  std::filesystem::remove(path);
  return bytes;
}

// Right checksums for a changed image.
void seal(std::vector<std::byte>& bytes) {
  ImageHeader h;
  std::memcpy(&h, bytes.data(), sizeof h);
  for (SectionEntry& s : h.sections)
    if (s.offset <= bytes.size() && s.bytes <= bytes.size() - s.offset)
      s.crc = crc32c(0, bytes.data() + s.offset, s.bytes);
  h.crc = crc32c(0, &h, offsetof(ImageHeader, crc));
  std::memcpy(bytes.data(), &h, sizeof h);
}

#ifdef MMF_RTL_ONE_TOP
using Kinds = testing::Types<Kind<Vmmf_top, MMF_RTL_ONE_TOP>>;
#else
using Kinds = testing::Types<Kind<Vmmf_top_p1, 1>, Kind<Vmmf_top_p2, 2>>;
#endif
template <class T>
struct RtlTop : testing::Test {
  using Host = Accelerator<T>;
  static constexpr int kPorts = T::ports;
};
TYPED_TEST_SUITE(RtlTop, Kinds);

TYPED_TEST(RtlTop, LoadsAnImageAndRunsTokens) {
  using Host = typename TestFixture::Host;
  constexpr int kPorts = TestFixture::kPorts;
  const std::vector<std::byte> bytes = image_bytes(128, 192, 2, 40, kPorts);
  const Image image(bytes, "test");
  Machine machine(Ctx{1}, image, kStreams);
  Host host(bytes);
  EXPECT_EQ(host.command(kStart), kERROR_NOT_LOADED);
  ASSERT_EQ(host.load(), kERROR_NONE);
  EXPECT_EQ(host.read(kStatus) >> 1 & 1U, 1U);
  EXPECT_EQ(host.read(0x14), static_cast<unsigned>(kStreams | kPorts << 8));
  std::vector<TokenInput> inputs = {{3, true}, {17, true}};
  for (int t = 0; t < 6; ++t) {
    std::uint32_t fresh = 0;
    for (std::size_t s = 0; s < kStreams; ++s) {
      host.write(kToken + 4 * static_cast<std::uint32_t>(s),
                 static_cast<std::uint64_t>(inputs[s].token));
      fresh |= (inputs[s].fresh ? 1U : 0U) << s;
      // The first tokens as after reset: the likeliest. Then the streams draw.
      if (t >= 2) {
        inputs[s].sampling = sampling(s == 0 ? 0.9 : 2.5, (std::uint64_t{5} << 32) + s);
        inputs[s].sampling.position = static_cast<std::uint32_t>(t);
        host.set_draws(static_cast<std::uint32_t>(s), inputs[s].sampling);
      }
    }
    host.write(kFresh, fresh);
    EXPECT_EQ(host.read(kFresh), fresh);
    ASSERT_EQ(host.command(kStart | kLogits), kERROR_NONE);
    machine.run(inputs, true);
    for (int s = 0; s < kStreams; ++s) {
      ASSERT_EQ(host.read(kToken + 4 * static_cast<std::uint32_t>(s)),
                static_cast<std::uint32_t>(machine.next_token(s)));
      inputs[static_cast<std::size_t>(s)] = {machine.next_token(s), false};
    }
    EXPECT_GT(host.read(0x40), host.read(0x48));
    EXPECT_GT(host.read(0x48), 0U);
    for (const std::uint32_t at : {0x44U, 0x4cU, 0x50U, 0x54U, 0x58U, 0x5cU}) host.read(at);
  }
  // Registers that do not exist, and commands while it is busy.
  EXPECT_EQ(host.write(0x7fc, 1), 2U);
  EXPECT_EQ(host.write(kToken + 4 * kStreams, 1), 2U);
  EXPECT_EQ(host.write(kDraws + 16 * kStreams, 1), 2U);
  EXPECT_EQ(host.write(kDraws + 2, 1), 2U);
  host.read(kDraws + 16 * kStreams + 4, 2);
  host.read(0x0c);
  host.read(0x08);
  for (const std::uint32_t at : {0x18U, 0x1cU, 0x20U}) EXPECT_GT(host.read(at), 0U);
  host.read(kToken + 4 * kStreams, 2);
  host.write(kControl, kStart);
  EXPECT_EQ(host.write(kControl, kStart), 2U);
  EXPECT_EQ(host.read(kStatus) & 1U, 1U);
}

TYPED_TEST(RtlTop, RefusesBadImages) {
  using Host = typename TestFixture::Host;
  constexpr int kPorts = TestFixture::kPorts;
  const std::vector<std::byte> good = image_bytes(64, 64, 1, 9, kPorts);
  ImageHeader h;
  std::memcpy(&h, good.data(), sizeof h);
  const auto changed = [&](std::size_t at, bool sealed) {
    std::vector<std::byte> bad = good;
    bad[at] ^= std::byte{4};
    if (sealed) seal(bad);
    return Host(bad).load();
  };
  EXPECT_EQ(Host(good).load(), kERROR_NONE);
  EXPECT_EQ(changed(0, false), kERROR_MAGIC);
  EXPECT_EQ(changed(8, true), kERROR_VERSION);
  EXPECT_EQ(changed(12, true), kERROR_VERSION);
  EXPECT_EQ(changed(40, false), kERROR_HEADER_CRC);
  EXPECT_EQ(changed(190, false), kERROR_HEADER_CRC);
  EXPECT_EQ(changed(16, true), kERROR_SHAPE);
  EXPECT_EQ(changed(52, true), kERROR_PORTS);
  EXPECT_EQ(changed(24, true), kERROR_SHAPE);
  for (const std::size_t s : {0U, 1U, 2U, 3U}) {
    EXPECT_EQ(changed(h.sections[s].offset, false), kERROR_SECTION_CRC) << s;
    EXPECT_EQ(changed(h.sections[s].offset + h.sections[s].bytes - 1, false), kERROR_SECTION_CRC);
    // Its place: not at a page, beyond the end.
    EXPECT_EQ(changed(56 + 24 * s, true), kERROR_LENGTH) << s;
    EXPECT_EQ(changed(56 + 24 * s + 5, true), kERROR_LENGTH) << s;
  }
  for (const std::size_t size : {std::size_t{0}, std::size_t{191}}) {
    std::vector<std::byte> cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    EXPECT_EQ(Host(cut).load(), kERROR_LENGTH);
  }
  const std::vector<std::byte> cut(good.begin(), good.end() - 1);
  EXPECT_EQ(Host(cut).load(), kERROR_LENGTH);
  for (const int ports : {1, 2, 4, 8})
    EXPECT_EQ(Host(image_bytes(64, 64, 1, 9, ports)).load(),
              ports == kPorts ? kERROR_NONE : kERROR_PORTS);
  // Sound images that this core is too small for: too wide, too many layers.
  EXPECT_EQ(Host(image_bytes(64, 448, 1, 5, kPorts)).load(), kERROR_SHAPE);
  EXPECT_EQ(Host(image_bytes(128, 64, 9, 5, kPorts)).load(), kERROR_SHAPE);
}

TYPED_TEST(RtlTop, RefusesBadPrograms) {
  using Host = typename TestFixture::Host;
  constexpr int kPorts = TestFixture::kPorts;
  const std::vector<std::byte> good = image_bytes(64, 64, 1, 9, kPorts);
  ImageHeader h;
  std::memcpy(&h, good.data(), sizeof h);
  const Image image(good, "good");
  const auto at = [&](Op op) {
    for (std::size_t pc = 0;; ++pc)
      if (image.program()[pc].op() == op) return pc;
  };
  const auto changed = [&](std::size_t pc, const Instruction& i, unsigned expected) {
    std::vector<std::byte> bad = good;
    std::memcpy(bad.data() + h.sections[0].offset + 16 * pc, &i.low, 8);
    std::memcpy(bad.data() + h.sections[0].offset + 16 * pc + 8, &i.high, 8);
    seal(bad);
    Host host(bad);
    ASSERT_EQ(host.load(), kERROR_NONE);
    host.write(kToken, 1);
    host.write(kToken + 4, 2);
    EXPECT_EQ(host.command(kStart | kLogits), expected) << pc << " " << disassemble(i);
    if (expected != kERROR_STREAM) {
      EXPECT_EQ(host.read(kStatus) >> 16, pc);
    }
    EXPECT_EQ(host.command(kStart), kERROR_NOT_LOADED);  // it does not go on
  };
  const auto with = [&](Op op, int low, int width, std::uint64_t value, unsigned expected) {
    Instruction i = image.program()[at(op)];
    i.set_bits(low, width, value);
    changed(at(op), i, expected);
  };
  for (const unsigned code : {0x0eU, 0x7fU, 0xffU}) with(Op::LDC, 0, 8, code, kERROR_OPCODE);
  with(Op::TMM, 56, 4, 9, kERROR_OPCODE);
  with(Op::SFU, 56, 4, 5, kERROR_OPERAND);
  with(Op::EMB, 24, 8, kStreams, kERROR_OPERAND);
  with(Op::EMB, 40, 16, 100, kERROR_OPERAND);
  with(Op::LDC, 16, 8, 4, kERROR_OPERAND);
  with(Op::LDC, 40, 16, 0, kERROR_OPERAND);
  with(Op::LDS, 16, 8, 17, kERROR_OPERAND);
  with(Op::STAT, 32, 8, 4, kERROR_OPERAND);
  with(Op::QNT, 40, 16, 77, kERROR_OPERAND);
  with(Op::SFU, 24, 8, 32, kERROR_OPERAND);
  with(Op::TMM, 60, 24, 5, kERROR_OPERAND);
  with(Op::TMM, 84, 8, 4, kERROR_OPERAND);
  with(Op::HALT, 0, 8, 0, kERROR_PROGRAM);
  with(Op::WST, 80, 32, 0, kERROR_STREAM);
  Instruction more = image.program()[at(Op::WST)];
  more.set_bits(80, 32, more.field("beats") + kPorts);
  changed(at(Op::WST), more, kERROR_STREAM);
  if (kPorts > 1) with(Op::WST, 80, 32, kPorts + 1, kERROR_OPERAND);
}

}  // namespace
}  // namespace mmfree::hw
