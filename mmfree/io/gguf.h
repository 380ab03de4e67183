#pragma once
// GGUF version 3, little-endian: typed key-value pairs and aligned tensors in one file. Reading
// maps the file and checks the whole header before anything else sees it; writing is complete or
// absent.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/types.h"
#include "mmfree/ternary/formats.h"

namespace mmfree {

// Element types, with the numbers of the format. Others are refused by name.
enum class GgmlType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
};

std::string_view ggml_type_name(GgmlType type);  // "F32", "TQ1_0", ...
idx ggml_block_elements(GgmlType type);          // 1, or 256 for the TQ types
std::size_t ggml_block_bytes(GgmlType type);
// The DType of a type without blocks (f32, f16, ...); nullopt for the TQ types.
std::optional<DType> ggml_dtype(GgmlType type);
GgmlType ggml_type(DType dtype);  // usage Error for u8 and boolean, which the format lacks
GgmlType ggml_type(TernaryFormat format);
std::optional<TernaryFormat> ggml_ternary_format(GgmlType type);  // i8, tq1_0, tq2_0

// Value of a key. The position in the variant is the format's number for the type; arrays hold
// elements of one type (arrays of arrays are refused).
using GgufArray =
    std::variant<std::vector<std::uint8_t>, std::vector<std::int8_t>, std::vector<std::uint16_t>,
                 std::vector<std::int16_t>, std::vector<std::uint32_t>, std::vector<std::int32_t>,
                 std::vector<float>, std::vector<bool>, std::vector<std::string>, std::monostate,
                 std::vector<std::uint64_t>, std::vector<std::int64_t>, std::vector<double>>;
using GgufValue = std::variant<std::uint8_t, std::int8_t, std::uint16_t, std::int16_t,
                               std::uint32_t, std::int32_t, float, bool, std::string, GgufArray,
                               std::uint64_t, std::int64_t, double>;
using GgufKv = std::pair<std::string, GgufValue>;

struct GgufTensor {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<idx> shape;  // row-major: slowest first, as [rows, cols] (the file has the reverse)
  const std::byte* data = nullptr;  // aligned in the file, and so in memory up to a page
  std::size_t bytes = 0;
};

// What a file holds. The tensors point into the bytes that were parsed.
struct GgufHeader {
  std::string name;  // of the file, for messages
  std::vector<GgufKv> kv;
  std::vector<GgufTensor> tensors;                               // in the order of the file
  std::map<std::string, std::size_t, std::less<>> kv_index;      // key -> position in kv
  std::map<std::string, std::size_t, std::less<>> tensor_index;  // name -> position in tensors
  std::size_t alignment = 32;
  std::size_t data_offset = 0;  // where tensor data begin
};

// Throws a format Error that starts with `name` unless the bytes are a valid file.
GgufHeader parse_gguf(std::span<const std::byte> bytes, const std::string& name);

// find_*: nullptr if there is none. get_*: format Error if there is none or it has another type.
const GgufValue* find_kv(const GgufHeader& header, std::string_view key);
const GgufTensor* find_tensor(const GgufHeader& header, std::string_view name);
const GgufTensor& get_tensor(const GgufHeader& header, std::string_view name);
// Any integer type whose value fits.
std::uint32_t get_u32(const GgufHeader& header, std::string_view key);
std::int64_t get_i64(const GgufHeader& header, std::string_view key);
float get_f32(const GgufHeader& header, std::string_view key);   // f32 only
double get_f64(const GgufHeader& header, std::string_view key);  // f32 or f64
bool get_bool(const GgufHeader& header, std::string_view key);
const std::string& get_string(const GgufHeader& header, std::string_view key);
// Arrays of exactly this element type.
const std::vector<std::uint8_t>& get_u8_array(const GgufHeader& header, std::string_view key);
const std::vector<std::uint32_t>& get_u32_array(const GgufHeader& header, std::string_view key);
const std::vector<std::int32_t>& get_i32_array(const GgufHeader& header, std::string_view key);
const std::vector<float>& get_f32_array(const GgufHeader& header, std::string_view key);
const std::vector<std::string>& get_string_array(const GgufHeader& header, std::string_view key);

class GgufFile {
 public:
  explicit GgufFile(const std::filesystem::path& path);
  const GgufHeader& header() const { return header_; }
  const std::string& path() const { return file_.path(); }
  std::size_t size_bytes() const { return file_.bytes().size(); }
  // Drops the tensor's pages from this process after use (they can be read again).
  void release_pages(const GgufTensor& tensor) const noexcept;

 private:
  MappedFile file_;
  GgufHeader header_;
};

struct GgufTensorSpec {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<idx> shape;  // row-major, 1 to 4 extents; the last one a multiple of the type's block
};

// Streams a new file: keys and tensors are declared at once, then write() gives the tensors' data
// in the declared order, each in one or more pieces, then commit(). The file appears at commit().
// Tensors are aligned to 32 bytes, or to the u32 key general.alignment where given.
class GgufWriter {
 public:
  GgufWriter(const std::filesystem::path& path, std::span<const GgufKv> kv,
             std::vector<GgufTensorSpec> tensors);
  // Appends to tensor `name`, which must be the first one that is not complete.
  void write(std::string_view name, const void* data, std::size_t bytes);
  void commit();  // usage Error if data are missing

 private:
  void skip_complete();
  void pad();
  std::string path_;
  std::vector<GgufTensorSpec> specs_;
  AtomicFile file_;
  std::size_t alignment_ = 32;
  std::size_t current_ = 0;  // first tensor that is not complete
  std::size_t written_ = 0;  // bytes of it so far
};

}  // namespace mmfree
