#include "mmfree/io/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "mmfree/core/error.h"
#include "mmfree/io/quote.h"
#include "mmfree/io/safetensors.h"

namespace mmfree {
namespace {

static_assert(std::endian::native == std::endian::little, "the file formats are little-endian");

constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};
constexpr std::uint32_t kVersion = 3;
constexpr std::size_t kDefaultAlignment = 32;
constexpr std::size_t kMinAlignment = 8;  // the largest scalar
constexpr std::size_t kMaxAlignment = std::size_t{1} << 16;
constexpr std::uint32_t kMaxDims = 4;
constexpr std::string_view kAlignmentKey = "general.alignment";
// The least bytes that an entry takes: lengths and numbers with empty names.
constexpr std::size_t kMinKvBytes = 8 + 4 + 1;
constexpr std::size_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

constexpr std::size_t kArrayType = 9;
static_assert(std::is_same_v<std::variant_alternative_t<kArrayType, GgufValue>, GgufArray>);
static_assert(std::variant_size_v<GgufValue> == std::variant_size_v<GgufArray>);

constexpr std::string_view kValueTypeNames[] = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};
static_assert(std::size(kValueTypeNames) == std::variant_size_v<GgufValue>);

struct TypeRow {
  GgmlType type;
  std::string_view name;
  idx elements;
  std::size_t bytes;
  std::optional<DType> dtype;
};
constexpr TypeRow kTypes[] = {
    {GgmlType::f32, "F32", 1, 4, DType::f32},
    {GgmlType::f16, "F16", 1, 2, DType::f16},
    {GgmlType::i8, "I8", 1, 1, DType::i8},
    {GgmlType::i16, "I16", 1, 2, DType::i16},
    {GgmlType::i32, "I32", 1, 4, DType::i32},
    {GgmlType::i64, "I64", 1, 8, DType::i64},
    {GgmlType::f64, "F64", 1, 8, DType::f64},
    {GgmlType::bf16, "BF16", 1, 2, DType::bf16},
    {GgmlType::tq1_0, "TQ1_0", kTernaryBlockCodes, kTq1BlockBytes, std::nullopt},
    {GgmlType::tq2_0, "TQ2_0", kTernaryBlockCodes, kTq2BlockBytes, std::nullopt},
};

const TypeRow* find_type(std::uint32_t number) {
  for (const TypeRow& row : kTypes)
    if (static_cast<std::uint32_t>(row.type) == number) return &row;
  return nullptr;
}

const TypeRow& type_row(GgmlType type) {
  const TypeRow* row = find_type(static_cast<std::uint32_t>(type));
  MMFREE_ASSERT(row != nullptr);
  return *row;
}

// Names of types that other programs write, for the message that refuses them.
std::string_view foreign_type_name(std::uint32_t number) {
  constexpr std::pair<std::uint32_t, std::string_view> kForeign[] = {
      {2, "Q4_0"},     {3, "Q4_1"},    {6, "Q5_0"},   {7, "Q5_1"},    {8, "Q8_0"},   {9, "Q8_1"},
      {10, "Q2_K"},    {11, "Q3_K"},   {12, "Q4_K"},  {13, "Q5_K"},   {14, "Q6_K"},  {15, "Q8_K"},
      {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"},
      {18, "IQ3_XXS"}, {23, "IQ4_XS"}, {29, "IQ1_M"}, {39, "MXFP4"},
  };
  for (const auto& [n, name] : kForeign)
    if (n == number) return name;
  return "unknown";
}

std::optional<std::size_t> checked_bytes(const TypeRow& row, idx elements) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<std::size_t>(elements / row.elements), row.bytes, &bytes))
    return std::nullopt;
  return bytes;
}

std::size_t align_up(std::size_t n, std::size_t alignment) {
  return (n + alignment - 1) / alignment * alignment;
}

bool valid_alignment(std::uint64_t a) {
  return a >= kMinAlignment && a <= kMaxAlignment && (a & (a - 1)) == 0;
}

// Reads forward through the header; every length is checked against what is left.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  std::size_t position() const { return at_; }
  std::size_t left() const { return bytes_.size() - at_; }

  const std::byte* take(std::uint64_t n, std::string_view what) {
    if (n > left())
      refuse(
          fmt::format("{} needs {} bytes at byte {}, but only {} are left", what, n, at_, left()));
    const std::byte* p = bytes_.data() + at_;
    at_ += static_cast<std::size_t>(n);
    return p;
  }

  template <class T>
  T number(std::string_view what) {
    T v;
    std::memcpy(&v, take(sizeof(T), what), sizeof(T));
    return v;
  }

  std::string text(std::string_view what) {
    const std::uint64_t length = number<std::uint64_t>(what);
    return std::string(reinterpret_cast<const char*>(take(length, what)),
                       static_cast<std::size_t>(length));
  }

  [[noreturn]] void refuse(const std::string& what) const {
    fail(ErrorKind::format, name_ + ": " + what);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::size_t at_ = 0;
};

bool read_bool(Cursor& c, std::string_view what) {
  const std::uint8_t v = c.number<std::uint8_t>(what);
  if (v > 1) c.refuse(fmt::format("{} is {}, expected a bool of 0 or 1", what, v));
  return v == 1;
}

template <class T>
T read_scalar(Cursor& c, std::string_view what) {
  if constexpr (std::is_same_v<T, bool>)
    return read_bool(c, what);
  else if constexpr (std::is_same_v<T, std::string>)
    return c.text(what);
  else
    return c.number<T>(what);
}

// Calls f with the position in the variants as a compile-time constant: f.operator()<kType>().
template <std::size_t kType = 0, class F>
void with_type(std::uint32_t type, const F& f) {
  if constexpr (kType < std::variant_size_v<GgufValue>) {
    if (type == kType)
      f.template operator()<kType>();
    else
      with_type<kType + 1>(type, f);
  }
}

GgufArray read_array(Cursor& c, const std::string& what) {
  const std::uint32_t type = c.number<std::uint32_t>(what);
  const std::uint64_t count = c.number<std::uint64_t>(what);
  if (type == kArrayType) c.refuse(what + " is an array of arrays, which is not supported");
  if (type >= std::variant_size_v<GgufArray>)
    c.refuse(fmt::format("{} is an array of unknown type {}", what, type));
  GgufArray array;
  with_type(type, [&]<std::size_t kType>() {
    if constexpr (kType != kArrayType) {
      using T = std::variant_alternative_t<kType, GgufValue>;
      constexpr std::size_t kLeast = std::is_same_v<T, std::string> ? 8 : sizeof(T);
      if (count > c.left() / kLeast)
        c.refuse(fmt::format("{} is an array of {} elements of type {}, but only {} bytes are left",
                             what, count, kValueTypeNames[kType], c.left()));
      auto& values = array.emplace<kType>();
      values.reserve(static_cast<std::size_t>(count));
      for (std::uint64_t i = 0; i < count; ++i) values.push_back(read_scalar<T>(c, what));
    }
  });
  return array;
}

GgufValue read_value(Cursor& c, const std::string& what) {
  const std::uint32_t type = c.number<std::uint32_t>(what);
  if (type >= std::variant_size_v<GgufValue>)
    c.refuse(fmt::format("{} has unknown type {}", what, type));
  GgufValue value;
  with_type(type, [&]<std::size_t kType>() {
    if constexpr (kType == kArrayType)
      value.emplace<kType>(read_array(c, what));
    else
      value.emplace<kType>(read_scalar<std::variant_alternative_t<kType, GgufValue>>(c, what));
  });
  return value;
}

struct Located {
  std::uint64_t offset = 0;  // from the start of the data section
  std::size_t tensor = 0;
};

// Reads one tensor info; data is set later, when it is known where data begin.
GgufTensor read_tensor_info(Cursor& c, std::uint64_t* offset) {
  GgufTensor t;
  t.name = c.text("tensor name");
  const std::string what = "tensor " + quote_name(t.name);
  const std::uint32_t dims = c.number<std::uint32_t>(what);
  if (dims < 1 || dims > kMaxDims)
    c.refuse(fmt::format("{} has {} dimensions, expected 1 to {}", what, dims, kMaxDims));
  for (std::uint32_t d = 0; d < dims; ++d) {
    const std::uint64_t n = c.number<std::uint64_t>(what);
    if (n > static_cast<std::uint64_t>(std::numeric_limits<idx>::max()))
      c.refuse(fmt::format("{}: extent {} is too large", what, n));
    t.shape.insert(t.shape.begin(), static_cast<idx>(n));  // the file's order is fastest first
  }
  const std::uint32_t type = c.number<std::uint32_t>(what);
  *offset = c.number<std::uint64_t>(what);
  const TypeRow* row = find_type(type);
  if (row == nullptr)
    c.refuse(fmt::format(
        "{} has type {} ({}); readable are F32, F16, BF16, F64, I8, I16, I32, I64, TQ1_0 "
        "and TQ2_0",
        what, type, foreign_type_name(type)));
  t.type = row->type;
  idx count = 0;
  try {
    count = element_count(t.shape);
  } catch (const Error& e) {
    c.refuse(what + ": " + e.what());
  }
  if (t.shape.back() % row->elements != 0)
    c.refuse(fmt::format("{}: rows of {} elements, expected a multiple of {} for {}", what,
                         t.shape.back(), row->elements, row->name));
  const std::optional<std::size_t> bytes = checked_bytes(*row, count);
  if (!bytes) c.refuse(fmt::format("{}: shape {} is too large", what, shape_text(t.shape)));
  t.bytes = *bytes;
  return t;
}

// Tensors must follow each other in the data section, each at the next aligned offset, and the
// section must end with the last one (and its padding). A header with a wrong count would otherwise
// shift everything silently.
void locate_tensors(GgufHeader& header, std::vector<Located> order,
                    std::span<const std::byte> bytes, const Cursor& c) {
  const std::size_t size =
      bytes.size() > header.data_offset ? bytes.size() - header.data_offset : 0;
  std::stable_sort(order.begin(), order.end(), [&](const Located& a, const Located& b) {
    if (a.offset != b.offset) return a.offset < b.offset;
    return header.tensors[a.tensor].bytes < header.tensors[b.tensor].bytes;
  });
  std::size_t end = 0;
  for (const Located& l : order) {
    GgufTensor& t = header.tensors[l.tensor];
    if (l.offset % header.alignment != 0)
      c.refuse(fmt::format("tensor {}: offset {} is no multiple of the alignment {}",
                           quote_name(t.name), l.offset, header.alignment));
    if (l.offset > size || t.bytes > size - l.offset)
      c.refuse(fmt::format("tensor {}: {} bytes at offset {} of the data, which have only {} bytes",
                           quote_name(t.name), t.bytes, l.offset, size));
    if (l.offset != align_up(end, header.alignment))
      c.refuse(fmt::format("tensor {}: its data begin at {}, expected {} ({})", quote_name(t.name),
                           l.offset, align_up(end, header.alignment),
                           l.offset < end ? "overlap" : "unused bytes between tensors"));
    end = static_cast<std::size_t>(l.offset) + t.bytes;
    t.data = size == 0 ? bytes.data() : bytes.data() + header.data_offset + l.offset;
  }
  if (size > align_up(end, header.alignment))
    c.refuse(fmt::format("tensors end at data byte {}, but the file has {} data bytes", end, size));
}

template <class T>
const T& get_as(const GgufHeader& header, std::string_view key, std::string_view expected) {
  const GgufValue* v = find_kv(header, key);
  if (v == nullptr)
    fail(ErrorKind::format,
         fmt::format("{}: has no key {} ({})", header.name, quote_name(key), expected));
  const T* typed = std::get_if<T>(v);
  if (typed == nullptr)
    fail(ErrorKind::format, fmt::format("{}: key {} has type {}, expected {}", header.name,
                                        quote_name(key), kValueTypeNames[v->index()], expected));
  return *typed;
}

template <class T>
const std::vector<T>& get_array(const GgufHeader& header, std::string_view key,
                                std::string_view expected) {
  const GgufArray& a = get_as<GgufArray>(header, key, expected);
  const std::vector<T>* typed = std::get_if<std::vector<T>>(&a);
  if (typed == nullptr)
    fail(ErrorKind::format, fmt::format("{}: key {} is an array of {}, expected {}", header.name,
                                        quote_name(key), kValueTypeNames[a.index()], expected));
  return *typed;
}

template <class T>
T get_integer(const GgufHeader& header, std::string_view key) {
  const GgufValue* v = find_kv(header, key);
  if (v == nullptr)
    fail(ErrorKind::format,
         fmt::format("{}: has no key {} (an integer)", header.name, quote_name(key)));
  std::optional<T> result;
  std::visit(
      [&](const auto& x) {
        using X = std::remove_cvref_t<decltype(x)>;
        if constexpr (std::is_integral_v<X> && !std::is_same_v<X, bool>)
          if (std::in_range<T>(x)) result = static_cast<T>(x);
      },
      *v);
  if (!result)
    fail(ErrorKind::format,
         fmt::format("{}: key {} has type {} or is out of range, expected an integer from {} to {}",
                     header.name, quote_name(key), kValueTypeNames[v->index()],
                     std::numeric_limits<T>::min(), std::numeric_limits<T>::max()));
  return *result;
}

template <class T>
void append(std::string& out, const T& v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);
}
void append(std::string& out, bool v) {
  out.push_back(v ? '\1' : '\0');
}
void append(std::string& out, const std::string& v) {
  append(out, static_cast<std::uint64_t>(v.size()));
  out += v;
}
void append(std::string& out, const GgufArray& a) {
  append(out, static_cast<std::uint32_t>(a.index()));
  std::visit(
      [&](const auto& values) {
        if constexpr (!std::is_same_v<std::remove_cvref_t<decltype(values)>, std::monostate>) {
          append(out, static_cast<std::uint64_t>(values.size()));
          for (const auto& v : values) {
            if constexpr (std::is_same_v<std::remove_cvref_t<decltype(values)>, std::vector<bool>>)
              append(out, static_cast<bool>(v));
            else
              append(out, v);
          }
        }
      },
      a);
}

std::size_t spec_bytes(const GgufTensorSpec& spec) {
  return *checked_bytes(type_row(spec.type), element_count(spec.shape));
}

}  // namespace

std::string_view ggml_type_name(GgmlType type) {
  return type_row(type).name;
}
idx ggml_block_elements(GgmlType type) {
  return type_row(type).elements;
}
std::size_t ggml_block_bytes(GgmlType type) {
  return type_row(type).bytes;
}
std::optional<DType> ggml_dtype(GgmlType type) {
  return type_row(type).dtype;
}

GgmlType ggml_type(DType dtype) {
  for (const TypeRow& row : kTypes)
    if (row.dtype == dtype) return row.type;
  fail(ErrorKind::usage, fmt::format("GGUF has no tensor type for {}", dtype_name(dtype)));
}

GgmlType ggml_type(TernaryFormat format) {
  switch (format) {
    case TernaryFormat::i8:
      return GgmlType::i8;
    case TernaryFormat::tq1_0:
      return GgmlType::tq1_0;
    case TernaryFormat::tq2_0:
      return GgmlType::tq2_0;
  }
  return GgmlType::i8;
}

std::optional<TernaryFormat> ggml_ternary_format(GgmlType type) {
  switch (type) {
    case GgmlType::i8:
      return TernaryFormat::i8;
    case GgmlType::tq1_0:
      return TernaryFormat::tq1_0;
    case GgmlType::tq2_0:
      return TernaryFormat::tq2_0;
    default:
      return std::nullopt;
  }
}

GgufHeader parse_gguf(std::span<const std::byte> bytes, const std::string& name) {
  Cursor c(bytes, name);
  if (bytes.size() < sizeof kMagic || std::memcmp(bytes.data(), kMagic, sizeof kMagic) != 0)
    c.refuse("does not begin with 'GGUF'; not a GGUF file");
  c.take(sizeof kMagic, "magic");
  const std::uint32_t version = c.number<std::uint32_t>("version");
  if (version != kVersion)
    c.refuse(fmt::format("GGUF version is {}{}, expected {}", version,
                         __builtin_bswap32(version) == kVersion ? " (a big-endian file)" : "",
                         kVersion));
  const std::uint64_t tensor_count = c.number<std::uint64_t>("tensor count");
  const std::uint64_t kv_count = c.number<std::uint64_t>("key count");
  if (kv_count > c.left() / kMinKvBytes)
    c.refuse(fmt::format("{} keys cannot fit into the {} bytes left", kv_count, c.left()));
  if (tensor_count > c.left() / kMinTensorBytes)
    c.refuse(fmt::format("{} tensors cannot fit into the {} bytes left", tensor_count, c.left()));

  GgufHeader header;
  header.name = name;
  for (std::uint64_t i = 0; i < kv_count; ++i) {
    std::string key = c.text("key");
    GgufValue value = read_value(c, "key " + quote_name(key));
    if (!header.kv_index.emplace(key, header.kv.size()).second)
      c.refuse("key " + quote_name(key) + " appears twice");
    header.kv.emplace_back(std::move(key), std::move(value));
  }
  if (find_kv(header, kAlignmentKey) != nullptr) {
    const std::uint32_t alignment = get_as<std::uint32_t>(header, kAlignmentKey, "u32");
    if (!valid_alignment(alignment))
      c.refuse(fmt::format("general.alignment is {}, expected a power of two from {} to {}",
                           alignment, kMinAlignment, kMaxAlignment));
    header.alignment = alignment;
  }

  std::vector<Located> order;
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    Located l;
    l.tensor = header.tensors.size();
    GgufTensor t = read_tensor_info(c, &l.offset);
    if (!header.tensor_index.emplace(t.name, l.tensor).second)
      c.refuse("tensor " + quote_name(t.name) + " appears twice");
    header.tensors.push_back(std::move(t));
    order.push_back(l);
  }
  header.data_offset = align_up(c.position(), header.alignment);
  locate_tensors(header, std::move(order), bytes, c);
  return header;
}

const GgufValue* find_kv(const GgufHeader& header, std::string_view key) {
  const auto it = header.kv_index.find(key);
  return it == header.kv_index.end() ? nullptr : &header.kv[it->second].second;
}

const GgufTensor* find_tensor(const GgufHeader& header, std::string_view name) {
  const auto it = header.tensor_index.find(name);
  return it == header.tensor_index.end() ? nullptr : &header.tensors[it->second];
}

const GgufTensor& get_tensor(const GgufHeader& header, std::string_view name) {
  const GgufTensor* t = find_tensor(header, name);
  if (t == nullptr) fail(ErrorKind::format, header.name + ": has no tensor " + quote_name(name));
  return *t;
}

std::uint32_t get_u32(const GgufHeader& header, std::string_view key) {
  return get_integer<std::uint32_t>(header, key);
}
std::int64_t get_i64(const GgufHeader& header, std::string_view key) {
  return get_integer<std::int64_t>(header, key);
}
float get_f32(const GgufHeader& header, std::string_view key) {
  return get_as<float>(header, key, "f32");
}
double get_f64(const GgufHeader& header, std::string_view key) {
  const GgufValue* v = find_kv(header, key);
  if (v != nullptr && std::holds_alternative<float>(*v))
    return static_cast<double>(std::get<float>(*v));
  return get_as<double>(header, key, "f32 or f64");
}
bool get_bool(const GgufHeader& header, std::string_view key) {
  return get_as<bool>(header, key, "bool");
}
const std::string& get_string(const GgufHeader& header, std::string_view key) {
  return get_as<std::string>(header, key, "string");
}
const std::vector<std::uint8_t>& get_u8_array(const GgufHeader& header, std::string_view key) {
  return get_array<std::uint8_t>(header, key, "an array of u8");
}
const std::vector<std::uint32_t>& get_u32_array(const GgufHeader& header, std::string_view key) {
  return get_array<std::uint32_t>(header, key, "an array of u32");
}
const std::vector<std::int32_t>& get_i32_array(const GgufHeader& header, std::string_view key) {
  return get_array<std::int32_t>(header, key, "an array of i32");
}
const std::vector<float>& get_f32_array(const GgufHeader& header, std::string_view key) {
  return get_array<float>(header, key, "an array of f32");
}
const std::vector<std::string>& get_string_array(const GgufHeader& header, std::string_view key) {
  return get_array<std::string>(header, key, "an array of strings");
}

GgufFile::GgufFile(const std::filesystem::path& path)
    : file_(path), header_(parse_gguf(file_.bytes(), file_.path())) {}

void GgufFile::release_pages(const GgufTensor& tensor) const noexcept {
  file_.release_pages(static_cast<std::size_t>(tensor.data - file_.bytes().data()), tensor.bytes);
}

GgufWriter::GgufWriter(const std::filesystem::path& path, std::span<const GgufKv> kv,
                       std::vector<GgufTensorSpec> tensors)
    : path_(path.string()), specs_(std::move(tensors)), file_(path) {
  std::string head(kMagic, sizeof kMagic);
  append(head, kVersion);
  append(head, static_cast<std::uint64_t>(specs_.size()));
  append(head, static_cast<std::uint64_t>(kv.size()));
  std::map<std::string_view, bool> seen;
  for (const auto& [key, value] : kv) {
    if (!seen.emplace(key, true).second)
      fail(ErrorKind::usage, path_ + ": key " + quote_name(key) + " given twice");
    if (key == kAlignmentKey) {
      const std::uint32_t* a = std::get_if<std::uint32_t>(&value);
      if (a == nullptr || !valid_alignment(*a))
        fail(ErrorKind::usage, path_ + ": general.alignment must be a power of two, as u32");
      alignment_ = *a;
    }
    append(head, key);
    append(head, static_cast<std::uint32_t>(value.index()));
    std::visit([&](const auto& v) { append(head, v); }, value);
  }
  seen.clear();
  std::size_t at = 0;
  for (const GgufTensorSpec& s : specs_) {
    const TypeRow& row = type_row(s.type);
    if (!seen.emplace(s.name, true).second)
      fail(ErrorKind::usage, path_ + ": tensor " + quote_name(s.name) + " given twice");
    if (s.shape.empty() || s.shape.size() > kMaxDims || s.shape.back() % row.elements != 0)
      fail(ErrorKind::usage, fmt::format("{}: tensor {}: {} cannot hold shape {}", path_,
                                         quote_name(s.name), row.name, shape_text(s.shape)));
    const std::optional<std::size_t> bytes = checked_bytes(row, element_count(s.shape));
    if (!bytes || *bytes > std::numeric_limits<std::size_t>::max() / 2 - at)
      fail(ErrorKind::usage, path_ + ": tensor " + quote_name(s.name) + " is too large");
    append(head, s.name);
    append(head, static_cast<std::uint32_t>(s.shape.size()));
    for (std::size_t d = s.shape.size(); d-- > 0;)
      append(head, static_cast<std::uint64_t>(s.shape[d]));
    append(head, static_cast<std::uint32_t>(s.type));
    append(head, static_cast<std::uint64_t>(at));
    at = align_up(at + *bytes, alignment_);
  }
  file_.write(head);
  pad();
  skip_complete();
}

void GgufWriter::pad() {
  const std::string zeros(align_up(file_.position(), alignment_) - file_.position(), '\0');
  file_.write(zeros);
}

void GgufWriter::skip_complete() {
  while (current_ < specs_.size() && written_ == spec_bytes(specs_[current_])) {
    pad();
    ++current_;
    written_ = 0;
  }
}

void GgufWriter::write(std::string_view name, const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  if (current_ == specs_.size() || specs_[current_].name != name)
    fail(ErrorKind::usage,
         fmt::format("{}: data of tensor {} given, expected {}", path_, quote_name(name),
                     current_ == specs_.size() ? "the end" : quote_name(specs_[current_].name)));
  const std::size_t left = spec_bytes(specs_[current_]) - written_;
  if (bytes > left)
    fail(ErrorKind::usage, fmt::format("{}: tensor {}: {} bytes given, {} were missing", path_,
                                       quote_name(name), bytes, left));
  file_.write(data, bytes);
  written_ += bytes;
  skip_complete();
}

void GgufWriter::commit() {
  if (current_ != specs_.size())
    fail(ErrorKind::usage,
         path_ + ": data of tensor " + quote_name(specs_[current_].name) + " are missing");
  file_.commit();
}

}  // namespace mmfree
