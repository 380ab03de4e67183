#include "tests/support/golden.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace mmfree::test {
namespace {

template <class T, class Stored>
void append(const TensorView& t, std::vector<T>& out) {
  const std::size_t n = t.bytes / sizeof(Stored);
  for (std::size_t i = 0; i < n; ++i) {
    Stored v;
    std::memcpy(&v, t.data + i * sizeof(Stored), sizeof(Stored));
    out.push_back(static_cast<T>(v));
  }
}

}  // namespace

std::filesystem::path golden_directory() {
  return MMFREE_GOLDEN_SOURCE;
}

std::optional<std::filesystem::path> full_golden_directory() {
  const char* path = std::getenv("MMFREE_GOLDEN_DIR");
  if (path == nullptr || *path == '\0') return std::nullopt;
  return std::filesystem::path(path);
}

template <class T>
std::vector<T> Golden::get(const std::string& name) const {
  const TensorView& t = file_.get(name);
  std::vector<T> out;
  switch (t.dtype) {
    case DType::f64:
      append<T, double>(t, out);
      break;
    case DType::f32:
      append<T, float>(t, out);
      break;
    case DType::i64:
      append<T, std::int64_t>(t, out);
      break;
    case DType::i8:
      append<T, std::int8_t>(t, out);
      break;
    default:
      throw std::runtime_error(name + ": unexpected element type");
  }
  return out;
}

template std::vector<double> Golden::get<double>(const std::string&) const;
template std::vector<float> Golden::get<float>(const std::string&) const;
template std::vector<std::int8_t> Golden::get<std::int8_t>(const std::string&) const;
template std::vector<std::uint8_t> Golden::get<std::uint8_t>(const std::string&) const;
template std::vector<std::int32_t> Golden::get<std::int32_t>(const std::string&) const;

}  // namespace mmfree::test
