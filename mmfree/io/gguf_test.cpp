#include "mmfree/io/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/ternary/pack.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

// Builds file images by hand, also wrong ones.
struct Image {
  std::string bytes;
  template <class T>
  Image& n(T v) {
    bytes.append(reinterpret_cast<const char*>(&v), sizeof v);
    return *this;
  }
  Image& u32(std::uint32_t v) { return n(v); }
  Image& u64(std::uint64_t v) { return n(v); }
  Image& text(const std::string& s) {
    u64(s.size());
    bytes += s;
    return *this;
  }
  Image& raw(const std::string& s) {
    bytes += s;
    return *this;
  }
  Image& pad(std::size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  // One tensor info; dims fastest first.
  Image& tensor(const std::string& name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t d : dims) u64(d);
    return u32(type).u64(offset);
  }
};

Image head(std::uint64_t tensors, std::uint64_t keys) {
  Image i;
  i.raw("GGUF").u32(3).u64(tensors).u64(keys);
  return i;
}

GgufHeader parse(const std::string& bytes) {
  return parse_gguf(std::as_bytes(std::span(bytes.data(), bytes.size())), "f");
}

template <class F>
std::string error_of(const F& f, ErrorKind kind = ErrorKind::format) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  return "no error";
}

void expect_refused(const std::string& bytes, const std::string& part) {
  const std::string message = error_of([&] { parse(bytes); });
  EXPECT_NE(message.find(part), std::string::npos)
      << message << "\n  expected to mention: " << part;
}

// Two tensors and two keys; valid.
std::string small_file() {
  return head(2, 2)
      .text("a.b")
      .u32(8)
      .text("value")
      .text("n")
      .u32(4)
      .u32(7)
      .tensor("x", {3, 2}, 0, 0)
      .tensor("y", {2}, 1, 32)
      .pad()
      .raw(std::string(24, 'x'))
      .pad()
      .raw("yyyy")
      .bytes;
}

TEST(Gguf, ReadsKeysAndTensorsWithRowMajorShapes) {
  const std::string bytes = small_file();
  const GgufHeader h = parse(bytes);
  EXPECT_EQ(get_string(h, "a.b"), "value");
  EXPECT_EQ(get_u32(h, "n"), 7U);
  const GgufTensor& x = get_tensor(h, "x");
  EXPECT_EQ(x.shape, (std::vector<idx>{2, 3}));
  EXPECT_EQ(x.bytes, 24U);
  EXPECT_EQ(std::memcmp(x.data, std::string(24, 'x').data(), 24), 0);
  EXPECT_EQ(std::memcmp(get_tensor(h, "y").data, "yyyy", 4), 0);
  EXPECT_EQ(find_tensor(h, "z"), nullptr);
  EXPECT_NE(error_of([&] { get_tensor(h, "z"); }).find("f: has no tensor 'z'"), std::string::npos);
}

TEST(Gguf, AcceptsAFileWithoutTensorsAndWithoutPadding) {
  EXPECT_TRUE(parse(head(0, 0).bytes).tensors.empty());
  EXPECT_TRUE(parse(head(0, 0).pad().bytes).tensors.empty());
  EXPECT_EQ(parse(head(1, 0).tensor("e", {0}, 0, 0).bytes).tensors[0].bytes, 0U);
}

TEST(Gguf, RefusesOtherMagicsAndVersions) {
  expect_refused("", "not a GGUF file");
  expect_refused("GGU", "not a GGUF file");
  expect_refused("GGML" + head(0, 0).bytes.substr(4), "not a GGUF file");
  for (const std::uint32_t v : {0U, 1U, 2U, 4U})
    expect_refused(Image().raw("GGUF").u32(v).u64(0).u64(0).bytes,
                   "version is " + std::to_string(v) + ", expected 3");
  expect_refused(Image().raw("GGUF").u32(0x03000000).u64(0).u64(0).bytes, "big-endian");
}

TEST(Gguf, RefusesCountsAndLengthsThatLie) {
  expect_refused(head(0, ~std::uint64_t{0}).bytes, "keys cannot fit");
  expect_refused(head(~std::uint64_t{0}, 0).bytes, "tensors cannot fit");
  expect_refused(head(0, 1).raw(std::string(12, '\0')).bytes, "keys cannot fit");
  expect_refused(head(0, 1).u64(~std::uint64_t{0}).raw(std::string(20, 'k')).bytes,
                 "needs 18446744073709551615 bytes");
  expect_refused(head(0, 1).text("k").u32(8).u64(100).raw("short").bytes, "needs 100 bytes");
  expect_refused(head(0, 1).text("k").u32(9).u32(8).u64(std::uint64_t{1} << 61).bytes,
                 "array of 2305843009213693952 elements");
  expect_refused(head(0, 1).text("k").u32(9).u32(12).u64(std::uint64_t{1} << 61).bytes,
                 "array of 2305843009213693952 elements");
  // One tensor fewer than there is: the rest of the header would be taken for data.
  std::string fewer = small_file();
  fewer[8] = 1;
  expect_refused(fewer, "but the file has");
  expect_refused(small_file() + std::string(64, '\0'), "but the file has");
}

TEST(Gguf, RefusesUnknownAndNestedValueTypes) {
  expect_refused(head(0, 1).text("k").u32(13).u64(0).bytes, "key 'k' has unknown type 13");
  expect_refused(head(0, 1).text("k").u32(9).u32(13).u64(0).bytes, "array of unknown type 13");
  expect_refused(head(0, 1).text("k").u32(9).u32(9).u64(0).bytes, "array of arrays");
  expect_refused(head(0, 1).text("k").u32(7).n(std::uint8_t{2}).bytes, "is 2, expected a bool");
}

TEST(Gguf, RefusesDuplicates) {
  expect_refused(head(0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1).bytes,
                 "key 'k' appears twice");
  expect_refused(
      head(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).pad().raw(std::string(64, 0)).bytes,
      "tensor 't' appears twice");
}

TEST(Gguf, RefusesTensorInfosThatLie) {
  const auto one = [](const std::vector<std::uint64_t>& dims, std::uint32_t type,
                      std::uint64_t offset, std::size_t data) {
    return head(1, 0).tensor("t", dims, type, offset).pad().raw(std::string(data, 'd')).bytes;
  };
  EXPECT_EQ(error_of([&] { parse(one({4, 2}, 0, 0, 32)); }), "no error");
  expect_refused(one({}, 0, 0, 32), "has 0 dimensions, expected 1 to 4");
  expect_refused(one({1, 1, 1, 1, 1}, 0, 0, 32), "has 5 dimensions");
  expect_refused(one({~std::uint64_t{0}}, 0, 0, 32), "extent 18446744073709551615 is too large");
  expect_refused(one({std::uint64_t{1} << 32, std::uint64_t{1} << 32}, 0, 0, 32),
                 "more elements than can be counted");
  expect_refused(one({std::uint64_t{1} << 62}, 0, 0, 32), "is too large");
  expect_refused(one({8}, 12, 0, 32), "has type 12 (Q4_K)");
  expect_refused(one({8}, 4, 0, 32), "has type 4 (unknown)");
  expect_refused(one({8}, 99, 0, 32), "has type 99 (unknown)");
  expect_refused(one({100}, 34, 0, 54), "expected a multiple of 256 for TQ1_0");
  expect_refused(one({128, 2}, 35, 0, 66), "expected a multiple of 256 for TQ2_0");
  expect_refused(one({8}, 0, 1, 33), "no multiple of the alignment 32");
  expect_refused(one({8}, 0, 0, 31), "32 bytes at offset 0 of the data, which have only 31");
  expect_refused(one({8}, 0, 64, 32), "32 bytes at offset 64");
  expect_refused(one({8}, 0, ~std::uint64_t{31}, 32), "at offset 18446744073709551584");
  expect_refused(one({8}, 0, 32, 64), "unused bytes between tensors");
  EXPECT_EQ(parse(one({256, 3}, 34, 0, 162)).tensors[0].bytes, 162U);
  EXPECT_EQ(parse(one({512, 3}, 35, 0, 396)).tensors[0].bytes, 396U);
}

TEST(Gguf, RefusesOverlappingTensors) {
  const auto two = [](std::uint64_t a, std::uint64_t b) {
    return head(2, 0)
        .tensor("a", {16}, 0, a)
        .tensor("b", {8}, 0, b)
        .pad()
        .raw(std::string(96, 'd'))
        .bytes;
  };
  EXPECT_EQ(error_of([&] { parse(two(0, 64)); }), "no error");
  EXPECT_EQ(error_of([&] { parse(two(32, 0)); }), "no error");  // any order
  expect_refused(two(0, 32), "tensor 'b': its data begin at 32, expected 64 (overlap)");
  expect_refused(two(0, 0), "overlap");
}

TEST(Gguf, UsesAndChecksTheAlignmentKey) {
  const auto with = [](std::uint32_t alignment) {
    return head(1, 1)
        .text("general.alignment")
        .u32(4)
        .u32(alignment)
        .tensor("a", {2}, 0, 0)
        .pad(64)
        .raw("12345678")
        .bytes;
  };
  EXPECT_EQ(parse(with(64)).data_offset % 64, 0U);
  for (const std::uint32_t bad : {0U, 1U, 24U, 48U, 1U << 31, ~0U})
    expect_refused(with(bad), "general.alignment is " + std::to_string(bad));
  expect_refused(head(0, 1).text("general.alignment").u32(8).text("32").bytes,
                 "has type string, expected u32");
}

TEST(Gguf, IsRefusedWhenTruncatedAnywhere) {
  const std::string bytes = small_file();
  for (std::size_t n = 0; n < bytes.size(); ++n)
    EXPECT_NE(error_of([&] { parse(bytes.substr(0, n)); }), "no error") << n;
  EXPECT_EQ(error_of([&] { parse(bytes); }), "no error");
}

std::vector<GgufKv> every_type() {
  return {
      {"general.architecture", std::string("mmfree")},
      {"u8", std::uint8_t{200}},
      {"i8", std::int8_t{-100}},
      {"u16", std::uint16_t{60000}},
      {"i16", std::int16_t{-30000}},
      {"u32", std::uint32_t{4000000000}},
      {"i32", std::int32_t{-2000000000}},
      {"f32", 1.25F},
      {"true", true},
      {"false", false},
      {"u64", std::uint64_t{1} << 63},
      {"i64", -(std::int64_t{1} << 62)},
      {"f64", 0.1},
      {"strings", GgufArray(std::vector<std::string>{"a", "", std::string("\0\xff", 2)})},
      {"scores", GgufArray(std::vector<float>{0.5F, -1.0F})},
      {"types", GgufArray(std::vector<std::int32_t>{1, -2, 3})},
      {"bytes", GgufArray(std::vector<std::uint8_t>{1, 255})},
      {"u32s", GgufArray(std::vector<std::uint32_t>{7})},
      {"bools", GgufArray(std::vector<bool>{true, false, true})},
      {"doubles", GgufArray(std::vector<double>{})},
      {"i64s", GgufArray(std::vector<std::int64_t>{-1})},
  };
}

TEST(GgufWriter, WritesWhatTheReaderReadsForEveryValueType) {
  const test::TempDir dir;
  const auto path = dir.path() / "m.gguf";
  const std::vector<GgufKv> kv = every_type();
  std::vector<std::int8_t> codes(512);
  for (std::size_t i = 0; i < codes.size(); ++i)
    codes[i] = static_cast<std::int8_t>(static_cast<int>(i * i % 3) - 1);
  std::string t1(ternary_row_bytes(TernaryFormat::tq1_0, 512), '\0');
  std::string t2(ternary_row_bytes(TernaryFormat::tq2_0, 512), '\0');
  pack_row(TernaryFormat::tq1_0, codes.data(), 512, 0x3c00,
           reinterpret_cast<std::byte*>(t1.data()));
  pack_row(TernaryFormat::tq2_0, codes.data(), 512, 0x3c00,
           reinterpret_cast<std::byte*>(t2.data()));
  const float f[] = {1, 2, 3, 4, 5, 6};
  GgufWriter w(path, kv,
               {{"f", GgmlType::f32, {2, 3}},
                {"empty", GgmlType::f16, {0}},
                {"t1", GgmlType::tq1_0, {2, 256}},
                {"t2", GgmlType::tq2_0, {1, 512}},
                {"i", GgmlType::i8, {1, 1, 2, 2}}});
  w.write("f", f, 8);
  w.write("f", f + 2, 16);
  w.write("t1", t1.data(), t1.size());
  w.write("t2", t2.data(), t2.size());
  w.write("i", "0123", 4);
  EXPECT_FALSE(std::filesystem::exists(path));
  w.commit();

  const GgufFile file(path);
  const GgufHeader& h = file.header();
  ASSERT_EQ(h.kv.size(), kv.size());
  for (std::size_t i = 0; i < kv.size(); ++i) EXPECT_EQ(h.kv[i], kv[i]) << kv[i].first;
  EXPECT_EQ(file.size_bytes() % 32, 0U);
  const GgufTensor& tf = get_tensor(h, "f");
  EXPECT_EQ(tf.shape, (std::vector<idx>{2, 3}));
  EXPECT_EQ(std::memcmp(tf.data, f, 24), 0);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tf.data) % 32, 0U);
  EXPECT_EQ(get_tensor(h, "t1").type, GgmlType::tq1_0);
  EXPECT_EQ(std::memcmp(get_tensor(h, "t1").data, t1.data(), t1.size()), 0);
  EXPECT_EQ(std::memcmp(get_tensor(h, "t2").data, t2.data(), t2.size()), 0);
  EXPECT_EQ(get_tensor(h, "i").shape, (std::vector<idx>{1, 1, 2, 2}));
  file.release_pages(tf);
  EXPECT_EQ(std::memcmp(tf.data, f, 24), 0);
}

TEST(GgufKv, AccessorsCheckTypesAndRanges) {
  const test::TempDir dir;
  const auto path = dir.path() / "m.gguf";
  const std::vector<GgufKv> kv = every_type();
  GgufWriter(path, kv, {}).commit();
  const GgufFile file(path);
  const GgufHeader& h = file.header();
  EXPECT_EQ(get_u32(h, "u8"), 200U);
  EXPECT_EQ(get_u32(h, "u32"), 4000000000U);
  EXPECT_EQ(get_i64(h, "i32"), -2000000000);
  EXPECT_EQ(get_f32(h, "f32"), 1.25F);
  EXPECT_EQ(get_f64(h, "f32"), 1.25);
  EXPECT_EQ(get_f64(h, "f64"), 0.1);
  EXPECT_TRUE(get_bool(h, "true"));
  EXPECT_FALSE(get_bool(h, "false"));
  EXPECT_EQ(get_string_array(h, "strings")[2], std::string("\0\xff", 2));
  EXPECT_EQ(get_f32_array(h, "scores")[1], -1.0F);
  EXPECT_EQ(get_i32_array(h, "types")[1], -2);
  EXPECT_EQ(get_u8_array(h, "bytes")[1], 255);
  EXPECT_EQ(get_u32_array(h, "u32s")[0], 7U);
  const auto expect = [&](const auto& f, const std::string& part) {
    const std::string message = error_of(f);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  expect([&] { get_u32(h, "none"); }, "has no key 'none'");
  expect([&] { get_string(h, "none"); }, "has no key 'none'");
  expect([&] { get_u32(h, "i8"); }, "out of range");
  expect([&] { get_u32(h, "u64"); }, "out of range");
  expect([&] { get_i64(h, "u64"); }, "out of range");
  expect([&] { get_u32(h, "f32"); }, "has type f32");
  expect([&] { get_u32(h, "true"); }, "has type bool");
  expect([&] { get_f32(h, "f64"); }, "has type f64, expected f32");
  expect([&] { get_f64(h, "u32"); }, "has type u32");
  expect([&] { get_bool(h, "u8"); }, "has type u8, expected bool");
  expect([&] { get_string(h, "strings"); }, "has type array, expected string");
  expect([&] { get_string_array(h, "general.architecture"); }, "has type string");
  expect([&] { get_string_array(h, "scores"); },
         "is an array of f32, expected an array of strings");
  EXPECT_EQ(find_kv(h, "none"), nullptr);
}

TEST(GgufWriter, RefusesWrongDeclarationsAndData) {
  const test::TempDir dir;
  const auto path = dir.path() / "m.gguf";
  const auto refused = [&](const std::vector<GgufKv>& kv,
                           const std::vector<GgufTensorSpec>& specs) {
    return error_of([&] { GgufWriter(path, kv, specs); }, ErrorKind::usage) != "no error";
  };
  EXPECT_TRUE(refused({{"a", true}, {"a", true}}, {}));
  EXPECT_TRUE(refused({{"general.alignment", std::uint32_t{33}}}, {}));
  EXPECT_TRUE(refused({}, {{"a", GgmlType::f32, {1}}, {"a", GgmlType::f32, {1}}}));
  EXPECT_TRUE(refused({}, {{"a", GgmlType::f32, {}}}));
  EXPECT_TRUE(refused({}, {{"a", GgmlType::f32, {1, 1, 1, 1, 1}}}));
  EXPECT_TRUE(refused({}, {{"a", GgmlType::tq2_0, {256, 4}}}));
  EXPECT_TRUE(refused({}, {{"a", GgmlType::f32, {idx{1} << 62}}}));
  GgufWriter w(path, {}, {{"a", GgmlType::i8, {3}}, {"b", GgmlType::i8, {1}}});
  const auto usage = [](const auto& f) { return error_of(f, ErrorKind::usage); };
  EXPECT_NE(usage([&] { w.write("b", "0", 1); }), "no error");
  EXPECT_NE(usage([&] { w.write("a", "0123", 4); }), "no error");
  EXPECT_NE(usage([&] { w.commit(); }).find("'a'"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(GgmlType, MapsToElementTypesAndTernaryFormats) {
  EXPECT_EQ(ggml_type_name(GgmlType::tq1_0), "TQ1_0");
  EXPECT_EQ(ggml_dtype(GgmlType::bf16), DType::bf16);
  EXPECT_EQ(ggml_dtype(GgmlType::tq2_0), std::nullopt);
  EXPECT_EQ(ggml_type(DType::f16), GgmlType::f16);
  EXPECT_NE(error_of([] { ggml_type(DType::boolean); }, ErrorKind::usage), "no error");
  for (const TernaryFormat f : {TernaryFormat::i8, TernaryFormat::tq1_0, TernaryFormat::tq2_0}) {
    const GgmlType type = ggml_type(f);
    EXPECT_EQ(ggml_ternary_format(type), f);
    EXPECT_EQ(static_cast<std::size_t>(512 / ggml_block_elements(type)) * ggml_block_bytes(type),
              ternary_row_bytes(f, 512));
  }
  EXPECT_EQ(ggml_ternary_format(GgmlType::f32), std::nullopt);
}

}  // namespace
}  // namespace mmfree
