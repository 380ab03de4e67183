// Damaged files: a few thousand mutations of valid ones for each parser. A parser must either
// accept the bytes, and then everything it points to must be readable, or throw Error. The address
// and undefined-behaviour sanitizers (preset asan) see the rest. The seed is fixed;
// MMFREE_TEST_SEED sets another.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/core/rng.h"
#include "mmfree/io/gguf.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/ternary/pack.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

constexpr std::uint64_t kMutations = 20000;
constexpr std::uint64_t kIndexMutations = 1500;  // these touch the file system

std::uint64_t seed() {
  const char* text = std::getenv("MMFREE_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 1;
}

// The random numbers of one mutation.
class Dice {
 public:
  Dice(std::uint64_t seed, std::uint64_t mutation) : seed_(seed), mutation_(mutation) {}
  std::size_t below(std::size_t n) {
    return n == 0 ? 0 : static_cast<std::size_t>(random_bits(seed_, mutation_, next_++) % n);
  }

 private:
  std::uint64_t seed_;
  std::uint64_t mutation_;
  std::uint64_t next_ = 0;
};

template <class T>
void overwrite(std::string& bytes, std::size_t at, T value) {
  if (at + sizeof value <= bytes.size()) std::memcpy(bytes.data() + at, &value, sizeof value);
}

// One to three damages, mostly within the first `header` bytes.
std::string damaged(std::string bytes, std::size_t header, Dice& dice) {
  constexpr std::uint64_t kNumbers[] = {0,
                                        1,
                                        2,
                                        31,
                                        33,
                                        255,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        0x100000000,
                                        0x3fffffffffffffff,
                                        0x7fffffffffffffff,
                                        0x8000000000000000,
                                        0xfffffffffffffff8,
                                        0xffffffffffffffff};
  constexpr char kText[] = "0123456789-.eE[]{}\",:ntfFIBU\\ \xc3";
  const std::size_t damages = 1 + dice.below(3);
  for (std::size_t i = 0; i < damages && !bytes.empty(); ++i) {
    const std::size_t region = dice.below(8) == 0 ? bytes.size() : std::min(header, bytes.size());
    const std::size_t at = dice.below(region);
    const std::size_t length = std::min(1 + dice.below(16), bytes.size() - at);
    switch (dice.below(9)) {
      case 0:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << dice.below(8)));
        break;
      case 1:
        bytes[at] = static_cast<char>(dice.below(256));
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        overwrite(bytes, at, kNumbers[dice.below(std::size(kNumbers))]);
        break;
      case 4:
        overwrite(bytes, at, static_cast<std::uint32_t>(kNumbers[dice.below(std::size(kNumbers))]));
        break;
      case 5:
        bytes.erase(at, length);
        break;
      case 6:
        bytes.insert(at, bytes.substr(dice.below(bytes.size()), length));
        break;
      case 7:
        bytes[at] = kText[dice.below(sizeof kText - 1)];
        break;
      default:
        bytes.append(dice.below(100), '\0');
        break;
    }
  }
  return bytes;
}

unsigned sum_of(const std::byte* data, std::size_t bytes) {
  unsigned sum = 0;
  for (std::size_t i = 0; i < bytes; ++i) sum += static_cast<unsigned>(data[i]);
  return sum;
}

// Reads everything that an accepted file offers, as a loader would.
unsigned use(const TensorView& t) {
  const idx count = element_count(t.shape);
  EXPECT_EQ(static_cast<std::size_t>(count) * dtype_size(t.dtype), t.bytes);
  unsigned sum = sum_of(t.data, t.bytes);
  if (t.dtype == DType::f32 || t.dtype == DType::f16 || t.dtype == DType::bf16 ||
      t.dtype == DType::f64) {
    std::vector<float> values(static_cast<std::size_t>(count));
    read_as_f32(t, values.data(), 0, count);
  }
  return sum;
}

void use(const GgufTensor& t) {
  const idx count = element_count(t.shape);
  EXPECT_EQ(
      static_cast<std::size_t>(count / ggml_block_elements(t.type)) * ggml_block_bytes(t.type),
      t.bytes);
  sum_of(t.data, t.bytes);
  const std::optional<TernaryFormat> format = ggml_ternary_format(t.type);
  const idx cols = t.shape.back();
  if (!format || cols == 0) return;
  const idx rows = count / cols;
  std::vector<std::int8_t> codes(static_cast<std::size_t>(cols));
  for (idx r = 0; r < rows; ++r)
    unpack_row(*format, t.data + static_cast<std::size_t>(r) * ternary_row_bytes(*format, cols),
               cols, codes.data());
  validate_rows(*format, t.data, rows, cols, std::nullopt, t.name);
}

// Runs `parse` on mutations of `valid`; returns how many were accepted. The bytes lie in a heap
// block of exactly their size, so that a sanitizer sees a read past the end.
template <class Parse>
std::uint64_t fuzz(const std::string& valid, std::size_t header, const Parse& parse) {
  std::uint64_t accepted = 0;
  for (std::uint64_t m = 0; m < kMutations; ++m) {
    Dice dice(seed(), m);
    const std::string text = damaged(valid, header, dice);
    std::vector<std::byte> bytes(text.size());
    if (!text.empty()) std::memcpy(bytes.data(), text.data(), text.size());
    try {
      parse(std::span<const std::byte>(bytes));
      ++accepted;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::format) << e.what();
      EXPECT_LT(std::strlen(e.what()), 1000U);
    } catch (const std::exception& e) {
      ADD_FAILURE() << "mutation " << m << " of seed " << seed() << ": " << e.what();
      return accepted;
    }
  }
  return accepted;
}

std::string valid_safetensors(const std::filesystem::path& path) {
  const float x[] = {1, 2, 3, 4, 5, 6};
  const std::uint16_t y[] = {1, 2, 3, 4};
  const double z[] = {1, 2};
  const TensorToWrite tensors[] = {{"model.embeddings.weight", DType::f32, {2, 3}, x},
                                   {"model.lower_bounds", DType::f64, {2, 1}, z},
                                   {"y", DType::bf16, {4}, y},
                                   {"empty", DType::i64, {0, 5}, nullptr},
                                   {"h", DType::f16, {}, y}};
  write_safetensors(path, tensors, {{"format", "pt"}, {"note", "a \"quoted\" word"}});
  return read_text_file(path);
}

std::string valid_gguf(const std::filesystem::path& path) {
  const std::vector<GgufKv> kv = {
      {"general.architecture", std::string("mmfree")},
      {"general.alignment", std::uint32_t{32}},
      {"mmfree.block_count", std::uint32_t{2}},
      {"mmfree.flag", true},
      {"tokenizer.ggml.tokens", GgufArray(std::vector<std::string>{"<s>", "a", "bc"})},
      {"tokenizer.ggml.scores", GgufArray(std::vector<float>{0, -1, -2})},
  };
  std::vector<std::int8_t> codes(256);
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::int8_t>(static_cast<int>(i % 3) - 1);
  std::vector<std::byte> t1(2 * kTq1BlockBytes);
  std::vector<std::byte> t2(kTq2BlockBytes);
  for (std::size_t r = 0; r < 2; ++r)
    pack_row(TernaryFormat::tq1_0, codes.data(), 256, 0x3c00, t1.data() + r * kTq1BlockBytes);
  pack_row(TernaryFormat::tq2_0, codes.data(), 256, 0x3c00, t2.data());
  GgufWriter w(path, kv,
               {{"blk.0.attn_i.weight", GgmlType::tq1_0, {2, 256}},
                {"blk.0.attn_i.scale", GgmlType::f32, {1}},
                {"blk.0.ffn_down.weight", GgmlType::tq2_0, {1, 256}},
                {"output.weight", GgmlType::i8, {3, 5}}});
  const float scale = 1;
  w.write("blk.0.attn_i.weight", t1.data(), t1.size());
  w.write("blk.0.attn_i.scale", &scale, sizeof scale);
  w.write("blk.0.ffn_down.weight", t2.data(), t2.size());
  w.write("output.weight", codes.data(), 15);
  w.commit();
  return read_text_file(path);
}

TEST(Fuzz, DamagedSafetensorsAreAcceptedOrRefused) {
  const test::TempDir dir;
  const std::string valid = valid_safetensors(dir.path() / "m.safetensors");
  std::uint64_t length = 0;
  std::memcpy(&length, valid.data(), sizeof length);
  const std::uint64_t accepted =
      fuzz(valid, sizeof length + length, [](std::span<const std::byte> bytes) {
        const SafetensorsHeader h = parse_safetensors(bytes, "f");
        for (const TensorView& t : h.tensors) use(t);
      });
  // Damage to data and names is not an error; most damage is.
  EXPECT_GT(accepted, kMutations / 100);
  EXPECT_LT(accepted, kMutations / 2);
}

TEST(Fuzz, DamagedGgufFilesAreAcceptedOrRefused) {
  const test::TempDir dir;
  const std::string valid = valid_gguf(dir.path() / "m.gguf");
  const std::size_t header =
      parse_gguf(std::as_bytes(std::span(valid.data(), valid.size())), "f").data_offset;
  const std::uint64_t accepted = fuzz(valid, header, [](std::span<const std::byte> bytes) {
    const GgufHeader h = parse_gguf(bytes, "f");
    for (const GgufTensor& t : h.tensors) use(t);
  });
  EXPECT_GT(accepted, kMutations / 100);
  EXPECT_LT(accepted, kMutations / 2);
}

TEST(Fuzz, FilesTruncatedAtEveryByteAreRefused) {
  const test::TempDir dir;
  for (const bool gguf : {false, true}) {
    const std::string valid =
        gguf ? valid_gguf(dir.path() / "m.gguf") : valid_safetensors(dir.path() / "m.safetensors");
    // The padding after the last tensor of a GGUF file may be missing.
    const std::size_t needed = gguf ? valid.size() - (32 - 15) : valid.size();
    for (std::size_t n = 0; n <= valid.size(); ++n) {
      std::vector<std::byte> bytes(n);
      if (n > 0) std::memcpy(bytes.data(), valid.data(), n);
      bool refused = false;
      try {
        if (gguf)
          parse_gguf(bytes, "f");
        else
          parse_safetensors(bytes, "f");
      } catch (const Error&) {
        refused = true;
      }
      EXPECT_EQ(refused, n < needed) << (gguf ? "gguf" : "safetensors") << " cut to " << n;
    }
  }
}

TEST(Fuzz, DamagedShardIndexesAreAcceptedOrRefused) {
  const test::TempDir dir;
  valid_safetensors(dir.path() / "s1.safetensors");
  const std::string valid =
      R"({"metadata":{"total_size":64},"weight_map":{"model.embeddings.weight":"s1.safetensors",)"
      R"("model.lower_bounds":"s1.safetensors","y":"s1.safetensors","empty":"s1.safetensors",)"
      R"("h":"s1.safetensors"}})";
  const auto index = dir.path() / "model.safetensors.index.json";
  std::uint64_t accepted = 0;
  for (std::uint64_t m = 0; m < kIndexMutations; ++m) {
    Dice dice(seed(), m);
    const std::string text = damaged(valid, valid.size(), dice);
    std::ofstream(index, std::ios::binary) << text;
    try {
      const SafetensorsSet set(dir.path());
      for (const TensorView* t : set.tensors()) use(*t);
      ++accepted;
    } catch (const Error& e) {
      EXPECT_TRUE(e.kind() == ErrorKind::format || e.kind() == ErrorKind::io) << e.what();
    } catch (const std::exception& e) {
      FAIL() << "mutation " << m << " of seed " << seed() << ": " << e.what();
    }
  }
  EXPECT_GT(accepted, 0U);
  EXPECT_LT(accepted, kIndexMutations / 2);
}

}  // namespace
}  // namespace mmfree
