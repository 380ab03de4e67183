#pragma once
// safetensors files: eight bytes of header length, a JSON header, tensor data. Reading maps the
// file and checks the whole header before anything else sees it; writing is complete or absent.
#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/types.h"

namespace mmfree {

inline constexpr std::size_t kSafetensorsHeaderLimitBytes = 100'000'000;  // the format's own limit

// A tensor in a mapped file: row-major, little-endian, at any alignment.
struct TensorView {
  std::string name;
  DType dtype = DType::f32;
  std::vector<idx> shape;  // empty = one element; extents may be 0
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

// Product of the extents; Error if one is negative or the product of the non-zero ones leaves idx.
idx element_count(std::span<const idx> shape);
// "[2, 3]", for messages.
std::string shape_text(std::span<const idx> shape);

// What a file holds. The views point into the bytes that were parsed.
struct SafetensorsHeader {
  std::vector<TensorView> tensors;                        // in the order of their data
  std::map<std::string, std::size_t, std::less<>> index;  // name -> position in tensors
  std::map<std::string, std::string, std::less<>> metadata;
};

// Throws a format Error that starts with `name` unless the bytes are a valid file whose data
// section is covered by the tensors exactly once.
SafetensorsHeader parse_safetensors(std::span<const std::byte> bytes, const std::string& name);

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  const TensorView* find(std::string_view name) const;  // nullptr = not there
  const TensorView& get(std::string_view name) const;   // format Error if not there
  const std::vector<TensorView>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string, std::less<>>& metadata() const {
    return header_.metadata;
  }
  const std::string& path() const { return file_.path(); }
  // Drops the tensor's pages from this process after use (they can be read again).
  void release_pages(const TensorView& tensor) const noexcept;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

// The tensors of a folder with model.safetensors or with model.safetensors.index.json and its
// shards, or of one file (a .safetensors file or an index). Where a folder has both,
// model.safetensors is read.
class SafetensorsSet {
 public:
  explicit SafetensorsSet(const std::filesystem::path& path);

  const TensorView* find(std::string_view name) const;  // nullptr = not there
  const TensorView& get(std::string_view name) const;   // format Error if not there
  std::vector<const TensorView*> tensors() const;    // shard after shard, in the order of the data
  const std::string& path() const { return path_; }  // the file or index that was opened
  const std::vector<SafetensorsFile>& files() const { return files_; }
  void release_pages(const TensorView& tensor) const noexcept;

 private:
  std::string path_;
  std::vector<SafetensorsFile> files_;
};

// out[0 .. count) = elements [begin, begin + count) of an F32, F16, BF16 or F64 tensor (F64 rounds
// to nearest). Other element types and ranges outside the tensor are Errors.
void read_as_f32(const TensorView& tensor, float* out, idx begin, idx count);

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<idx> shape;
};

// Streams tensors into a new file: declare all, then write() their data in the declared order, each
// in one or more pieces, then commit(). The file appears at commit().
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> specs,
                    const std::map<std::string, std::string>& metadata = {});
  // Appends to tensor `name`, which must be the first one that is not complete.
  void write(std::string_view name, const void* data, std::size_t bytes);
  void commit();  // usage Error if data are missing

 private:
  void skip_complete();
  std::string path_;
  std::vector<TensorSpec> specs_;
  AtomicFile file_;
  std::size_t current_ = 0;  // first tensor that is not complete
  std::size_t written_ = 0;  // bytes of it so far
};

struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;
  std::vector<idx> shape;
  const void* data = nullptr;
};

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace mmfree
