#include "mmfree/io/safetensors.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

// A file image: header length, header, data.
std::string image(const std::string& header, const std::string& data = "") {
  const std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  return bytes + header + data;
}

SafetensorsHeader parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())), "f");
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

std::string parse_error(const std::string& bytes) {
  return error_of([&] { parse(bytes); });
}

void expect_refused(const std::string& bytes, const std::string& part) {
  const std::string message = parse_error(bytes);
  EXPECT_NE(message.find(part), std::string::npos)
      << message << "\n  expected to mention: " << part;
}

const std::string kTwo =
    R"({"__metadata__":{"format":"pt","a":"b"},"x":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
    R"("y":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}   )";

TEST(Safetensors, ReadsTensorsMetadataAndPaddedHeader) {
  const std::string bytes = image(kTwo, "0123456789");
  const SafetensorsHeader h = parse(bytes);
  ASSERT_EQ(h.tensors.size(), 2U);
  EXPECT_EQ(h.tensors[0].name, "x");
  EXPECT_EQ(h.tensors[0].shape, (std::vector<idx>{1, 2}));
  EXPECT_EQ(h.tensors[1].dtype, DType::bf16);
  EXPECT_EQ(h.tensors[1].bytes, 2U);
  EXPECT_EQ(std::memcmp(h.tensors[1].data, "89", 2), 0);
  EXPECT_EQ(h.metadata.at("format"), "pt");
  EXPECT_EQ(h.metadata.at("a"), "b");
}

TEST(Safetensors, AcceptsAFileWithoutTensorsAndEmptyTensors) {
  EXPECT_TRUE(parse(image("{}")).tensors.empty());
  const SafetensorsHeader h =
      parse(image(R"({"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},)"
                  R"("b":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},)"
                  R"("c":{"dtype":"F32","shape":[3,0],"data_offsets":[2,2]}})",
                  "xy"));
  EXPECT_EQ(h.tensors.size(), 3U);
  EXPECT_EQ(h.tensors[h.index.find("a")->second].bytes, 0U);
}

TEST(Safetensors, SortsTensorsByTheirDataWhateverTheHeadersOrder) {
  const SafetensorsHeader h = parse(image(R"({"b":{"dtype":"I8","shape":[2],"data_offsets":[3,5]},)"
                                          R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})",
                                          "abcde"));
  EXPECT_EQ(h.tensors[0].name, "a");
  EXPECT_EQ(h.index.find("b")->second, 1U);
}

TEST(Safetensors, RefusesLyingHeaderLengths) {
  expect_refused("", "has 0 bytes");
  expect_refused("1234567", "has 7 bytes");
  expect_refused(image("{}").substr(0, 9), "only 1 bytes follow");
  std::string huge = image("{}");
  std::memset(huge.data(), 0xff, 8);
  expect_refused(huge, "expected at most 100000000");
  expect_refused(image(""), "does not begin with '{'");
  expect_refused(image(" {}"), "does not begin with '{'");
}

TEST(Safetensors, RefusesHeadersThatAreNotTheOneStructure) {
  expect_refused(image("{"), "not valid JSON");
  expect_refused(image("{} x"), "not valid JSON");
  expect_refused(image("{\"\xff\":1}"), "not valid JSON");
  expect_refused(image(R"({"a":1})"), "tensor 'a': found the number 1");
  expect_refused(image(R"({"a":[]})"), "found an array");
  expect_refused(image(R"({"a":{}})"), "tensor 'a': has no dtype");
  expect_refused(image(R"({"a":{"dtype":"F32"}})"), "has no shape");
  expect_refused(image(R"({"a":{"dtype":"F32","shape":[]}})"), "has no data_offsets");
  expect_refused(image(R"({"a":{"dtype":"F32","dtype":"F32"}})"), "found key 'dtype'");
  expect_refused(image(R"({"a":{"more":1}})"), "found key 'more'");
  expect_refused(image(R"({"a":{"dtype":5}})"), "expected dtype to be a string");
  expect_refused(image(R"({"a":{"shape":"x"}})"), "expected shape to be an array");
  expect_refused(image(R"({"a":{"shape":[[1]]}})"), "found an array");
  expect_refused(image(R"({"a":{"shape":[-1]}})"), "found the number -1");
  expect_refused(image(R"({"a":{"shape":[1.5]}})"), "found the number 1.5");
  expect_refused(image(R"({"a":{"shape":[null]}})"), "found null");
  expect_refused(image(R"({"a":{"shape":[1e999]}})"), "not valid JSON");
  expect_refused(image(R"({"a":{"shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,)"
                       R"(1,1,1,1,1]}})"),
                 "more than 32 extents");
  expect_refused(image(R"({"a":{"shape":[9223372036854775808]}})"), "is too large");
  expect_refused(image(R"({"a":{"shape":[99999999999999999999]}})"), "found the number 9999");
  expect_refused(image(R"({"a":{"data_offsets":[0]}})"), "has 1 numbers");
  expect_refused(image(R"({"a":{"data_offsets":[0,1,2]}})"), "found the number 2");
  expect_refused(image(R"({"a":{"data_offsets":[0,true]}})"), "found a boolean");
  expect_refused(image(R"({"__metadata__":{"a":1}})"), "expected strings in __metadata__");
  expect_refused(image(R"({"__metadata__":{"a":{}}})"), "expected strings in __metadata__");
  expect_refused(image(R"({"__metadata__":[]})"), "expected __metadata__ to be an object");
  expect_refused(image(R"({"__metadata__":{"a":"1","a":"2"}})"), "key 'a' appears twice");
  expect_refused(image(R"({"__metadata__":{},"__metadata__":{}})"), "__metadata__ appears twice");
  expect_refused(image("{\"a\":" + std::string(100000, '[')), "found an array");
}

TEST(Safetensors, RefusesUnknownElementTypesByName) {
  expect_refused(image(R"({"w.q":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}})", "x"),
                 "tensor 'w.q': dtype is 'F8_E4M3'");
}

TEST(Safetensors, RefusesOffsetsThatLie) {
  const auto one = [](const std::string& shape, const std::string& offsets,
                      const std::string& data) {
    return image(R"({"a":{"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
                 data);
  };
  EXPECT_EQ(parse_error(one("[2]", "[0,8]", "01234567")), "no error");
  expect_refused(one("[2]", "[0,8]", "0123456"), "the file's 7 data bytes");
  expect_refused(one("[2]", "[8,0]", "01234567"), "data_offsets are [8, 0]");
  expect_refused(one("[2]", "[0,18446744073709551615]", "01234567"), "data_offsets are [0, 1844");
  expect_refused(one("[2]", "[18446744073709551612,4]", "01234567"), "data_offsets are [1844");
  expect_refused(one("[1]", "[0,8]", "01234567"), "needs 4");
  expect_refused(one("[3]", "[0,8]", "01234567"), "needs 12");
  expect_refused(one("[2]", "[0,8]", "012345678"), "the file has 9 data bytes");
  expect_refused(one("[1]", "[4,8]", "01234567"), "unused bytes between tensors");
  // Products that wrap around to something small.
  expect_refused(one("[4294967296,4294967296]", "[0,0]", ""), "more elements than can be counted");
  expect_refused(one("[4611686018427387904]", "[0,0]", ""), "more than memory can hold");
  expect_refused(one("[0,4294967296,4294967296]", "[0,0]", ""),
                 "more elements than can be counted");
}

TEST(Safetensors, RefusesOverlapsHolesAndDuplicates) {
  const auto two = [](const std::string& a, const std::string& b, const std::string& second) {
    return image(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a + R"(},")" + second +
                     R"(":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}",
                 "01234567");
  };
  EXPECT_EQ(parse_error(two("[0,4]", "[4,8]", "b")), "no error");
  expect_refused(two("[0,4]", "[3,7]", "b"), "overlap");
  expect_refused(two("[0,4]", "[0,4]", "b"), "overlap");
  expect_refused(two("[0,4]", "[4,8]", "a"), "tensor 'a': appears twice");
  expect_refused(two("[0,4]", "[4,8]", R"(\u0061)"), "tensor 'a': appears twice");
}

TEST(Safetensors, IsRefusedWhenTruncatedAnywhere) {
  const std::string bytes = image(kTwo, "0123456789");
  for (std::size_t n = 0; n < bytes.size(); ++n)
    EXPECT_NE(parse_error(bytes.substr(0, n)), "no error") << n;
  EXPECT_EQ(parse_error(bytes), "no error");
}

TEST(Safetensors, MessagesCutLongNamesAndEscapeControlBytes) {
  const std::string message =
      parse_error(image("{\"\\n" + std::string(10000, 'n') + R"(":{"dtype":"?"}})"));
  EXPECT_LT(message.size(), 300U);
  EXPECT_NE(message.find("'\\x0ann"), std::string::npos) << message;
}

TEST(ReadAsF32, ConvertsEveryFloatTypeAtAnyAlignment) {
  const float values[] = {0.0F, -1.5F, 65504.0F, 0x1p-14F, -0x1p-24F, 3.0F};
  std::string data[4];
  for (const float v : values) {
    const double d = static_cast<double>(v);
    const std::uint16_t h = float_to_f16(v);
    const std::uint16_t b = float_to_bf16(v);
    data[0].append(reinterpret_cast<const char*>(&v), 4);
    data[1].append(reinterpret_cast<const char*>(&h), 2);
    data[2].append(reinterpret_cast<const char*>(&b), 2);
    data[3].append(reinterpret_cast<const char*>(&d), 8);
  }
  const DType types[] = {DType::f32, DType::f16, DType::bf16, DType::f64};
  for (int t = 0; t < 4; ++t) {
    const std::string moved = "x" + data[t];
    TensorView view;
    view.name = "t";
    view.dtype = types[t];
    view.shape = {6};
    view.data = std::as_bytes(std::span(moved.data(), moved.size())).data() + 1;
    view.bytes = data[t].size();
    float out[4] = {9, 9, 9, 9};
    read_as_f32(view, out, 2, 3);
    for (int i = 0; i < 3; ++i) {
      const float expected =
          types[t] == DType::bf16 ? bf16_to_float(float_to_bf16(values[i + 2])) : values[i + 2];
      EXPECT_EQ(out[i], expected) << t << " " << i;
    }
    EXPECT_EQ(out[3], 9.0F);
    const auto range = [&](idx begin, idx count) {
      return error_of([&] { read_as_f32(view, out, begin, count); }, ErrorKind::usage);
    };
    EXPECT_NE(range(4, 3), "no error");
    EXPECT_NE(range(-1, 1), "no error");
    EXPECT_NE(range(1, std::numeric_limits<idx>::max()), "no error");
    EXPECT_EQ(range(6, 0), "no error");
  }
}

TEST(ReadAsF32, ConvertsEveryHalfExactly) {
  std::vector<std::uint16_t> halves(65536);
  for (std::size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<std::uint16_t>(i);
  TensorView view;
  view.dtype = DType::f16;
  view.data = std::as_bytes(std::span(halves)).data();
  view.bytes = 2 * halves.size();
  std::vector<float> out(halves.size());
  read_as_f32(view, out.data(), 0, 65536);
  for (std::size_t i = 0; i < halves.size(); ++i) {
    const float expected = f16_to_float(halves[i]);
    if (std::isnan(expected))
      ASSERT_TRUE(std::isnan(out[i])) << i;
    else
      ASSERT_EQ(std::bit_cast<std::uint32_t>(out[i]), std::bit_cast<std::uint32_t>(expected)) << i;
  }
}

TEST(ReadAsF32, RefusesIntegers) {
  TensorView view;
  view.name = "ids";
  view.dtype = DType::i64;
  view.bytes = 8;
  float out = 0;
  EXPECT_NE(error_of([&] { read_as_f32(view, &out, 0, 1); }).find("tensor 'ids': dtype is I64"),
            std::string::npos);
}

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const test::TempDir dir;
  const auto path = dir.path() / "a.safetensors";
  const std::vector<float> x = {1, 2, 3, 4, 5, 6};
  const std::uint8_t y[] = {7, 8, 9};
  const std::int64_t z = -5;
  const TensorToWrite tensors[] = {{"x", DType::f32, {2, 3}, x.data()},
                                   {"nothing", DType::f16, {0, 4}, nullptr},
                                   {"y\"\n", DType::u8, {3}, y},
                                   {"z", DType::i64, {}, &z}};
  write_safetensors(path, tensors, {{"format", "pt"}});
  const SafetensorsFile f(path);
  ASSERT_EQ(f.tensors().size(), 4U);
  EXPECT_EQ(f.metadata().at("format"), "pt");
  EXPECT_EQ(f.tensors()[2].name, "y\"\n");
  EXPECT_EQ(f.get("x").shape, (std::vector<idx>{2, 3}));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(f.get("x").data) % 8, 0U);
  EXPECT_EQ(std::memcmp(f.get("x").data, x.data(), 24), 0);
  EXPECT_EQ(std::memcmp(f.get("y\"\n").data, y, 3), 0);
  EXPECT_EQ(std::memcmp(f.get("z").data, &z, 8), 0);
  EXPECT_EQ(f.find("w"), nullptr);
  EXPECT_NE(error_of([&] { f.get("w"); }).find("has no tensor 'w'"), std::string::npos);
  f.release_pages(f.get("x"));
  EXPECT_EQ(std::memcmp(f.get("x").data, x.data(), 24), 0);
}

TEST(SafetensorsWriter, TakesDataInPiecesAndRefusesTheWrongOnes) {
  const test::TempDir dir;
  const auto path = dir.path() / "a.safetensors";
  const auto usage = [](const auto& f) { return error_of(f, ErrorKind::usage); };
  {
    SafetensorsWriter w(path, {{"a", DType::u8, {5}}, {"b", DType::u8, {2}}});
    w.write("a", "01", 2);
    EXPECT_NE(usage([&] { w.write("b", "xy", 2); }), "no error");
    EXPECT_NE(usage([&] { w.write("a", "2345", 4); }), "no error");
    EXPECT_NE(usage([&] { w.commit(); }).find("'a'"), std::string::npos);
    w.write("a", "234", 3);
    w.write("b", "xy", 2);
    EXPECT_NE(usage([&] { w.write("b", "z", 1); }), "no error");
    w.commit();
  }
  const SafetensorsFile f(path);
  EXPECT_EQ(std::memcmp(f.get("a").data, "01234", 5), 0);
  EXPECT_EQ(std::memcmp(f.get("b").data, "xy", 2), 0);
  const auto other = dir.path() / "b.safetensors";
  EXPECT_NE(usage([&] {
              SafetensorsWriter(other, {{"a", DType::u8, {5}}, {"a", DType::u8, {2}}});
            }),
            "no error");
  EXPECT_NE(usage([&] { SafetensorsWriter(other, {{"\xff", DType::u8, {5}}}); }), "no error");
  SafetensorsWriter(other, {{"a", DType::u8, {5}}}).write("a", "0", 1);
  EXPECT_FALSE(std::filesystem::exists(other));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1);
}

class Sharded : public testing::Test {
 protected:
  void SetUp() override {
    write("s1.safetensors", {"a", "b"});
    write("s2.safetensors", {"c"});
  }
  void write(const std::string& file, const std::vector<std::string>& names) {
    std::vector<TensorToWrite> tensors;
    for (const std::string& n : names) tensors.push_back({n, DType::u8, {1}, n.data()});
    write_safetensors(dir_.path() / file, tensors);
  }
  std::string error(const std::string& index) {
    write_file_atomically(dir_.path() / "model.safetensors.index.json", index);
    return error_of([&] { SafetensorsSet set(dir_.path()); });
  }
  void expect_error(const std::string& index, const std::string& part) {
    const std::string message = error(index);
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  test::TempDir dir_;
};

TEST_F(Sharded, OpensWithAllTensors) {
  EXPECT_EQ(error(R"({"metadata":{"total_size":3},"weight_map":{"a":"s1.safetensors",)"
                  R"("b":"s1.safetensors","c":"s2.safetensors"}})"),
            "no error");
  for (const auto& path : {dir_.path(), dir_.path() / "model.safetensors.index.json"}) {
    const SafetensorsSet set(path);
    EXPECT_EQ(set.tensors().size(), 3U);
    for (const std::string n : {"a", "b", "c"})
      EXPECT_EQ(static_cast<char>(*set.get(n).data), n[0]);
    set.release_pages(set.get("c"));
    EXPECT_EQ(set.find("d"), nullptr);
  }
  EXPECT_EQ(SafetensorsSet(dir_.path() / "s1.safetensors").tensors().size(), 2U);
}

TEST_F(Sharded, RefusesAnIndexThatContradictsItsShards) {
  expect_error(R"({"weight_map":{"a":"s1.safetensors","c":"s2.safetensors"}})", "tensor 'b': ");
  expect_error(R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","c":"s2.safetensors"}})",
               "lists it in 's2.safetensors'");
  expect_error(R"({"weight_map":{"a":"s1.safetensors","b":"s1.safetensors","c":"s2.safetensors",)"
               R"("d":"s2.safetensors"}})",
               "has no tensor 'd'");
}

TEST_F(Sharded, RefusesAMalformedIndex) {
  expect_error("{", "not valid JSON");
  expect_error(R"({"metadata":1e999,"weight_map":{}})", "not valid JSON");
  expect_error(std::string(100000, '['), "nested too deeply");
  expect_error("[]", "'weight_map'");
  expect_error(R"({"weight_map":[]})", "'weight_map'");
  expect_error(R"({"weight_map":{}})", "is empty");
  expect_error(R"({"weight_map":{"a":1}})", "expected a file name");
  expect_error(R"({"weight_map":{"a":"x","a":"y"}})", "key 'a' appears twice");
  for (const char* bad : {"../s1.safetensors", "/etc/passwd", "..", ".", "", "d\\\\s", "a\\u0000"})
    expect_error(std::string(R"({"weight_map":{"a":")") + bad + R"("}})", "in the same folder");
  write_file_atomically(dir_.path() / "model.safetensors.index.json",
                        R"({"weight_map":{"a":"missing.safetensors"}})");
  EXPECT_NE(error_of([&] { SafetensorsSet set(dir_.path()); }, ErrorKind::io), "no error");
}

TEST_F(Sharded, SingleFileWinsOverAnIndex) {
  write_file_atomically(dir_.path() / "model.safetensors.index.json", "garbage");
  write("model.safetensors", {"z"});
  EXPECT_NE(SafetensorsSet(dir_.path()).find("z"), nullptr);
}

TEST(SafetensorsSet, FolderWithoutModelIsAnIoError) {
  const test::TempDir dir;
  EXPECT_NE(error_of([&] { SafetensorsSet set(dir.path()); }, ErrorKind::io)
                .find("has neither model.safetensors nor"),
            std::string::npos);
  EXPECT_NE(error_of([&] { SafetensorsSet set(dir.path() / "no"); }, ErrorKind::io), "no error");
}

}  // namespace
}  // namespace mmfree
