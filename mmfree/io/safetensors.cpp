#include "mmfree/io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "mmfree/core/error.h"
#include "mmfree/io/quote.h"

namespace mmfree {
namespace {

static_assert(std::endian::native == std::endian::little, "the file formats are little-endian");

constexpr std::size_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";
// Far beyond any tensor, and keeps hostile headers from growing in memory.
constexpr std::size_t kMaxExtents = 32;
constexpr std::size_t kIndexLimitBytes = std::size_t{1} << 24;
constexpr int kIndexMaxDepth = 8;

// Bytes of a tensor, nullopt if they leave size_t.
std::optional<std::size_t> tensor_bytes(DType dtype, idx count) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<std::size_t>(count), dtype_size(dtype), &bytes))
    return std::nullopt;
  return bytes;
}

// Events of the JSON parser, checked against the one structure that a header may have. An event
// that does not fit throws; so duplicates and nesting never build up anything.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(const std::string& file, std::span<const std::byte> data)
      : file_(file), data_(data) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() override { return unexpected("null"); }
  bool boolean(bool /*v*/) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t v) override {
    return unexpected(fmt::format("the number {}", v));
  }
  bool number_float(number_float_t /*v*/, const string_t& text) override {
    return unexpected("the number " + text.substr(0, 40));
  }
  bool binary(binary_t& /*v*/) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t v) override {
    if (state_ == State::shape) {
      if (v > static_cast<number_unsigned_t>(std::numeric_limits<idx>::max()))
        refuse(fmt::format("extent {} is too large", v));
      if (tensor_.shape.size() == kMaxExtents)
        refuse(fmt::format("shape has more than {} extents", kMaxExtents));
      tensor_.shape.push_back(static_cast<idx>(v));
    } else if (state_ == State::offsets && offset_count_ < 2) {
      offsets_[offset_count_++] = v;
    } else {
      unexpected(fmt::format("the number {}", v));
    }
    return true;
  }

  bool string(string_t& v) override {
    if (state_ == State::metadata_value) {
      header_.metadata[key_] = std::move(v);
      state_ = State::metadata;
    } else if (state_ == State::dtype) {
      const std::optional<DType> dtype = find_dtype(v);
      if (!dtype)
        refuse("dtype is " + quote_name(v) + ", which is not one that this program reads");
      tensor_.dtype = *dtype;
      state_ = State::tensor;
    } else {
      unexpected("the string " + quote_name(v));
    }
    return true;
  }

  bool start_object(std::size_t /*elements*/) override {
    switch (state_) {
      case State::start:
        state_ = State::header;
        return true;
      case State::metadata_start:
        state_ = State::metadata;
        return true;
      case State::tensor_start:
        state_ = State::tensor;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& v) override {
    switch (state_) {
      case State::header:
        if (v == kMetadataKey) {
          if (std::exchange(has_metadata_, true)) refuse("__metadata__ appears twice");
          state_ = State::metadata_start;
          return true;
        }
        tensor_ = TensorView{};
        tensor_.name = v;
        if (header_.index.count(v) != 0) refuse("appears twice");
        has_dtype_ = has_shape_ = has_offsets_ = false;
        state_ = State::tensor_start;
        return true;
      case State::metadata:
        if (header_.metadata.count(v) != 0)
          refuse("key " + quote_name(v) + " appears twice in __metadata__");
        key_ = std::move(v);
        state_ = State::metadata_value;
        return true;
      case State::tensor:
        if (v == "dtype" && !std::exchange(has_dtype_, true)) {
          state_ = State::dtype;
        } else if (v == "shape" && !std::exchange(has_shape_, true)) {
          state_ = State::shape_start;
        } else if (v == "data_offsets" && !std::exchange(has_offsets_, true)) {
          offset_count_ = 0;
          state_ = State::offsets_start;
        } else {
          refuse("found key " + quote_name(v) +
                 ", expected dtype, shape and data_offsets once each");
        }
        return true;
      default:
        return unexpected("a key");
    }
  }

  bool start_array(std::size_t /*elements*/) override {
    switch (state_) {
      case State::shape_start:
        state_ = State::shape;
        return true;
      case State::offsets_start:
        state_ = State::offsets;
        return true;
      default:
        return unexpected("an array");
    }
  }

  bool end_array() override {
    if (state_ == State::offsets && offset_count_ != 2)
      refuse(fmt::format("data_offsets has {} numbers, expected 2", offset_count_));
    state_ = State::tensor;
    return true;
  }

  bool end_object() override {
    switch (state_) {
      case State::tensor:
        finish_tensor();
        return true;
      case State::metadata:
        state_ = State::header;
        return true;
      default:
        state_ = State::end;
        return true;
    }
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::detail::exception& /*e*/) override {
    fail(ErrorKind::format,
         fmt::format("{}: header is not valid JSON near its byte {}", file_, position));
  }

 private:
  enum class State {
    start,
    header,
    metadata_start,
    metadata,
    metadata_value,
    tensor_start,
    tensor,
    dtype,
    shape_start,
    shape,
    offsets_start,
    offsets,
    end,
  };

  [[noreturn]] void refuse(const std::string& what) const {
    const bool in_tensor = state_ >= State::tensor_start || !tensor_.name.empty();
    const bool metadata = state_ >= State::metadata_start && state_ <= State::metadata_value;
    if (in_tensor && !metadata)
      fail(ErrorKind::format, file_ + ": tensor " + quote_name(tensor_.name) + ": " + what);
    fail(ErrorKind::format, file_ + ": header: " + what);
  }

  [[noreturn]] bool unexpected(const std::string& found) const {
    const char* expected = "";
    switch (state_) {
      case State::start:
        expected = "an object";
        break;
      case State::header:
        expected = "a tensor name";
        break;
      case State::metadata_start:
        expected = "__metadata__ to be an object";
        break;
      case State::metadata:
        expected = "a key";
        break;
      case State::metadata_value:
        expected = "strings in __metadata__";
        break;
      case State::tensor_start:
        expected = "an object with dtype, shape and data_offsets";
        break;
      case State::tensor:
        expected = "a key";
        break;
      case State::dtype:
        expected = "dtype to be a string";
        break;
      case State::shape_start:
        expected = "shape to be an array";
        break;
      case State::shape:
        expected = "extents that are whole numbers from 0";
        break;
      case State::offsets_start:
        expected = "data_offsets to be an array";
        break;
      case State::offsets:
        expected = "data_offsets to be two whole numbers from 0";
        break;
      case State::end:
        expected = "the end of the header";
        break;
    }
    refuse(fmt::format("found {}, expected {}", found, expected));
  }

  void finish_tensor() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_)
      refuse(fmt::format("has no {}", !has_dtype_   ? "dtype"
                                      : !has_shape_ ? "shape"
                                                    : "data_offsets"));
    const std::uint64_t begin = offsets_[0];
    const std::uint64_t end = offsets_[1];
    if (begin > end || end > data_.size())
      refuse(
          fmt::format("data_offsets are [{}, {}], expected a range within the file's {} data bytes",
                      begin, end, data_.size()));
    idx count = 0;
    try {
      count = element_count(tensor_.shape);
    } catch (const Error& e) {
      refuse(e.what());
    }
    const std::optional<std::size_t> bytes = tensor_bytes(tensor_.dtype, count);
    if (!bytes || *bytes != end - begin)
      refuse(fmt::format("data_offsets [{}, {}] span {} bytes, but shape {} of {} needs {}", begin,
                         end, end - begin, shape_text(tensor_.shape), dtype_name(tensor_.dtype),
                         bytes ? std::to_string(*bytes) : "more than memory can hold"));
    tensor_.data = data_.data() + begin;
    tensor_.bytes = *bytes;
    header_.index.emplace(tensor_.name, header_.tensors.size());
    header_.tensors.push_back(std::move(tensor_));
    tensor_ = TensorView{};
    state_ = State::header;
  }

  const std::string& file_;
  std::span<const std::byte> data_;
  SafetensorsHeader header_;
  State state_ = State::start;
  TensorView tensor_;
  std::string key_;
  std::uint64_t offsets_[2] = {0, 0};
  int offset_count_ = 0;
  bool has_metadata_ = false;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
};

// The tensors in the order of their data, which must follow each other from the first byte to the
// last.
void sort_and_check_cover(SafetensorsHeader& header, std::span<const std::byte> data,
                          const std::string& name) {
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorView& a, const TensorView& b) {
                     return a.data != b.data ? a.data < b.data : a.bytes < b.bytes;
                   });
  std::size_t at = 0;
  for (std::size_t i = 0; i < header.tensors.size(); ++i) {
    const TensorView& t = header.tensors[i];
    const std::size_t begin = static_cast<std::size_t>(t.data - data.data());
    if (begin != at)
      fail(ErrorKind::format, fmt::format("{}: tensor {}: its data begin at {}, expected {} ({})",
                                          name, quote_name(t.name), begin, at,
                                          begin < at ? "overlap" : "unused bytes between tensors"));
    at += t.bytes;
    header.index.find(t.name)->second = i;
  }
  if (at != data.size())
    fail(ErrorKind::format,
         fmt::format("{}: tensors end at data byte {}, but the file has {} data bytes", name, at,
                     data.size()));
}

// weight_map of an index: tensor -> shard. The parser would let the last of two equal keys win,
// hence the callback.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& path) {
  const std::string name = path.string();
  const std::string text = read_text_file(path, kIndexLimitBytes);
  std::vector<std::set<std::string>> keys;
  const auto check_event = [&](int depth, nlohmann::json::parse_event_t event,
                               nlohmann::json& value) {
    if (depth > kIndexMaxDepth) fail(ErrorKind::format, name + ": nested too deeply");
    if (event == nlohmann::json::parse_event_t::object_start) keys.emplace_back();
    if (event == nlohmann::json::parse_event_t::object_end) keys.pop_back();
    if (event == nlohmann::json::parse_event_t::key) {
      const std::string& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second)
        fail(ErrorKind::format, name + ": key " + quote_name(key) + " appears twice");
    }
    return true;
  };
  nlohmann::json index;
  try {
    index = nlohmann::json::parse(text, check_event);
  } catch (const nlohmann::json::parse_error& e) {
    fail(ErrorKind::format, fmt::format("{}: not valid JSON near byte {}", name, e.byte));
  } catch (const nlohmann::json::exception&) {
    fail(ErrorKind::format, name + ": not valid JSON: a number is out of range");
  }
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    fail(ErrorKind::format, name + ": expected an object with an object 'weight_map'");
  std::map<std::string, std::string> map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string())
      fail(ErrorKind::format, fmt::format("{}: weight_map of {} is {}, expected a file name", name,
                                          quote_name(tensor), file.type_name()));
    const std::string& shard = file.get_ref<const std::string&>();
    if (shard.empty() || shard == "." || shard == ".." ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos)
      fail(ErrorKind::format,
           fmt::format("{}: weight_map of {} is {}, expected the name of a file in the "
                       "same folder",
                       name, quote_name(tensor), quote_name(shard)));
    map.emplace(tensor, shard);
  }
  if (map.empty()) fail(ErrorKind::format, name + ": weight_map is empty");
  return map;
}

// Exact, also for subnormals, and free of branches so that it becomes vector code.
float half_to_float(std::uint16_t h) {
  const std::uint32_t magnitude = h & 0x7fffU;
  // The exponent's bias differs by 112, which a multiplication corrects for normal and subnormal
  // numbers alike.
  const float finite = std::bit_cast<float>(magnitude << 13) * 0x1p112F;
  const std::uint32_t special = magnitude << 13 | 0x7f800000U;  // infinity and NaN
  const std::uint32_t bits = magnitude >= 0x7c00U ? special : std::bit_cast<std::uint32_t>(finite);
  return std::bit_cast<float>(bits | static_cast<std::uint32_t>(h & 0x8000U) << 16);
}

template <class T, class F>
void convert(const std::byte* data, float* out, idx count, const F& f) {
  for (idx i = 0; i < count; ++i) {
    T v;
    std::memcpy(&v, data + static_cast<std::size_t>(i) * sizeof(T), sizeof(T));
    out[i] = f(v);
  }
}

}  // namespace

idx element_count(std::span<const idx> shape) {
  idx count = 1;
  bool empty = false;
  for (const idx n : shape) {
    if (n < 0) fail(ErrorKind::format, "shape " + shape_text(shape) + " has a negative extent");
    if (n == 0)
      empty = true;
    else if (__builtin_mul_overflow(count, n, &count))
      fail(ErrorKind::format,
           "shape " + shape_text(shape) + " has more elements than can be counted");
  }
  return empty ? 0 : count;
}

std::string shape_text(std::span<const idx> shape) {
  constexpr std::size_t kLimit = 8;
  std::string text = "[";
  for (std::size_t i = 0; i < std::min(shape.size(), kLimit); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (shape.size() > kLimit ? ", ...]" : "]");
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < kLengthBytes)
    fail(ErrorKind::format,
         fmt::format("{}: has {} bytes, expected a safetensors file of at least {}", name,
                     bytes.size(), kLengthBytes));
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kSafetensorsHeaderLimitBytes)
    fail(ErrorKind::format, fmt::format("{}: header length is {}, expected at most {}; not a "
                                        "safetensors file?",
                                        name, length, kSafetensorsHeaderLimitBytes));
  if (length > bytes.size() - kLengthBytes)
    fail(ErrorKind::format, fmt::format("{}: header length is {}, but only {} bytes follow", name,
                                        length, bytes.size() - kLengthBytes));
  const char* text = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  if (length == 0 || text[0] != '{')
    fail(ErrorKind::format, name + ": header does not begin with '{'; not a safetensors file?");
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + length);
  HeaderReader reader(name, data);
  nlohmann::json::sax_parse(text, text + length, &reader);
  SafetensorsHeader header = reader.take();
  sort_and_check_cover(header, data, name);
  return header;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), header_(parse_safetensors(file_.bytes(), file_.path())) {}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto it = header_.index.find(name);
  return it == header_.index.end() ? nullptr : &header_.tensors[it->second];
}

const TensorView& SafetensorsFile::get(std::string_view name) const {
  const TensorView* t = find(name);
  if (t == nullptr) fail(ErrorKind::format, path() + ": has no tensor " + quote_name(name));
  return *t;
}

void SafetensorsFile::release_pages(const TensorView& tensor) const noexcept {
  file_.release_pages(static_cast<std::size_t>(tensor.data - file_.bytes().data()), tensor.bytes);
}

SafetensorsSet::SafetensorsSet(const std::filesystem::path& path) {
  std::filesystem::path file = path;
  std::error_code ec;
  if (std::filesystem::is_directory(path, ec)) {
    file = path / "model.safetensors";
    if (!std::filesystem::exists(file, ec)) file = path / "model.safetensors.index.json";
    if (!std::filesystem::exists(file, ec))
      fail(ErrorKind::io,
           path.string() + ": has neither model.safetensors nor model.safetensors.index.json");
  }
  path_ = file.string();
  if (file.extension() != ".json") {
    files_.emplace_back(file);
    return;
  }
  const std::map<std::string, std::string> weight_map = read_weight_map(file);
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : weight_map) shards.insert(shard);
  std::map<std::string, const SafetensorsFile*> by_name;
  files_.reserve(shards.size());
  for (const std::string& shard : shards) {
    files_.emplace_back(file.parent_path() / shard);
    by_name[shard] = &files_.back();
    for (const TensorView& t : files_.back().tensors()) {
      const auto listed = weight_map.find(t.name);
      if (listed == weight_map.end() || listed->second != shard)
        fail(ErrorKind::format,
             fmt::format(
                 "{}: tensor {}: {} lists it {}", files_.back().path(), quote_name(t.name), path_,
                 listed == weight_map.end() ? "nowhere" : "in " + quote_name(listed->second)));
    }
  }
  for (const auto& [tensor, shard] : weight_map)
    if (by_name[shard]->find(tensor) == nullptr)
      fail(ErrorKind::format, fmt::format("{}: has no tensor {}, which {} lists there",
                                          by_name[shard]->path(), quote_name(tensor), path_));
}

const TensorView* SafetensorsSet::find(std::string_view name) const {
  for (const SafetensorsFile& f : files_)
    if (const TensorView* t = f.find(name)) return t;
  return nullptr;
}

const TensorView& SafetensorsSet::get(std::string_view name) const {
  const TensorView* t = find(name);
  if (t == nullptr) fail(ErrorKind::format, path_ + ": has no tensor " + quote_name(name));
  return *t;
}

std::vector<const TensorView*> SafetensorsSet::tensors() const {
  std::vector<const TensorView*> all;
  for (const SafetensorsFile& f : files_)
    for (const TensorView& t : f.tensors()) all.push_back(&t);
  return all;
}

void SafetensorsSet::release_pages(const TensorView& tensor) const noexcept {
  for (const SafetensorsFile& f : files_)
    if (f.find(tensor.name) == &tensor) f.release_pages(tensor);
}

void read_as_f32(const TensorView& tensor, float* out, idx begin, idx count) {
  const idx size = static_cast<idx>(tensor.bytes / dtype_size(tensor.dtype));
  if (begin < 0 || count < 0 || begin > size || count > size - begin)
    fail(ErrorKind::usage, fmt::format("tensor {}: elements [{}, {} + {}) requested, it has {}",
                                       quote_name(tensor.name), begin, begin, count, size));
  if (count == 0) return;
  const std::byte* data = tensor.data + static_cast<std::size_t>(begin) * dtype_size(tensor.dtype);
  switch (tensor.dtype) {
    case DType::f32:
      std::memcpy(out, data, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case DType::f16:
      convert<std::uint16_t>(data, out, count, half_to_float);
      return;
    case DType::bf16:
      convert<std::uint16_t>(data, out, count, bf16_to_float);
      return;
    case DType::f64:
      convert<double>(data, out, count, [](double v) { return static_cast<float>(v); });
      return;
    default:
      fail(ErrorKind::format, fmt::format("tensor {}: dtype is {}, expected F32, F16, BF16 or F64",
                                          quote_name(tensor.name), dtype_name(tensor.dtype)));
  }
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path,
                                     std::vector<TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata)
    : path_(path.string()), specs_(std::move(specs)), file_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  std::size_t at = 0;
  std::set<std::string> names;
  for (const TensorSpec& s : specs_) {
    if (s.name == kMetadataKey || !names.insert(s.name).second)
      fail(ErrorKind::usage, path_ + ": tensor name " + quote_name(s.name) + " is taken");
    const std::optional<std::size_t> bytes = tensor_bytes(s.dtype, element_count(s.shape));
    std::size_t end = 0;
    if (!bytes || __builtin_add_overflow(at, *bytes, &end))
      fail(ErrorKind::usage, path_ + ": tensor " + quote_name(s.name) + " is too large");
    header[s.name] = {
        {"dtype", dtype_name(s.dtype)}, {"shape", s.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::type_error&) {
    fail(ErrorKind::usage, path_ + ": a tensor name or metadata value is not UTF-8");
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');  // data begin 8-byte aligned
  if (text.size() > kSafetensorsHeaderLimitBytes)
    fail(ErrorKind::usage, path_ + ": more tensors than a safetensors header can list");
  const std::uint64_t length = text.size();
  file_.write(&length, sizeof length);
  file_.write(text);
  skip_complete();
}

void SafetensorsWriter::skip_complete() {
  while (current_ < specs_.size() &&
         written_ == *tensor_bytes(specs_[current_].dtype, element_count(specs_[current_].shape))) {
    ++current_;
    written_ = 0;
  }
}

void SafetensorsWriter::write(std::string_view name, const void* data, std::size_t bytes) {
  if (bytes == 0) return;
  if (current_ == specs_.size() || specs_[current_].name != name)
    fail(ErrorKind::usage,
         fmt::format("{}: data of tensor {} given, expected {}", path_, quote_name(name),
                     current_ == specs_.size() ? "the end" : quote_name(specs_[current_].name)));
  const TensorSpec& s = specs_[current_];
  const std::size_t left = *tensor_bytes(s.dtype, element_count(s.shape)) - written_;
  if (bytes > left)
    fail(ErrorKind::usage, fmt::format("{}: tensor {}: {} bytes given, {} were missing", path_,
                                       quote_name(name), bytes, left));
  file_.write(data, bytes);
  written_ += bytes;
  skip_complete();
}

void SafetensorsWriter::commit() {
  if (current_ != specs_.size())
    fail(ErrorKind::usage,
         path_ + ": data of tensor " + quote_name(specs_[current_].name) + " are missing");
  file_.commit();
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<TensorSpec> specs;
  for (const TensorToWrite& t : tensors) specs.push_back({t.name, t.dtype, t.shape});
  SafetensorsWriter writer(path, std::move(specs), metadata);
  for (const TensorToWrite& t : tensors)
    writer.write(t.name, t.data,
                 static_cast<std::size_t>(element_count(t.shape)) * dtype_size(t.dtype));
  writer.commit();
}

}  // namespace mmfree
