#pragma once
// The committed outputs of the reference implementation, see tests/golden/MANIFEST.md.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "mmfree/io/safetensors.h"

namespace mmfree::test {

std::filesystem::path golden_directory();

// The folder of the full set, if MMFREE_GOLDEN_DIR names one.
std::optional<std::filesystem::path> full_golden_directory();

class Golden {
 public:
  explicit Golden(const std::filesystem::path& path) : file_(path) {}
  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  bool is_f64(const std::string& name) const { return file_.get(name).dtype == DType::f64; }
  const std::vector<idx>& shape(const std::string& name) const { return file_.get(name).shape; }
  // The elements as numbers of type T, whatever the type in the file.
  template <class T>
  std::vector<T> get(const std::string& name) const;
  double scalar(const std::string& name) const { return get<double>(name).at(0); }
  const SafetensorsFile& file() const { return file_; }

 private:
  SafetensorsFile file_;
};

}  // namespace mmfree::test
