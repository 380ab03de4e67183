#pragma once
// Files: read-only maps, and writes that are either complete or absent.
#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace mmfree {

// A file mapped read-only for the lifetime of the object. An empty file maps to an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& o) noexcept;
  MappedFile& operator=(MappedFile&& o) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Drops the pages of [offset, offset + length) from this process; they are read again when
  // touched.
  void release_pages(std::size_t offset, std::size_t length) const noexcept;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// Writes PATH.tmp.PID; commit() syncs it, renames it over PATH and syncs the folder. Destroyed
// before commit(), it removes what it wrote. Errors (no space, no permission) are io Errors and
// leave PATH as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(const void* data, std::size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void seek(std::size_t offset);  // from the start; for headers written last
  std::size_t position() const { return position_; }
  void commit();

 private:
  void flush();
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  std::string buffer_;
  int fd_ = -1;
  std::size_t position_ = 0;
};

void write_file_atomically(const std::filesystem::path& path, std::string_view text);

// The whole file as a string; an io Error if it cannot be read, a format Error if it is longer than
// `limit` bytes.
std::string read_text_file(const std::filesystem::path& path,
                           std::size_t limit = std::size_t{1} << 30);

// fsync of a folder, so that renames in it survive a crash.
void sync_directory(const std::filesystem::path& directory);

// Creates the folder and its parents; io Error if that is impossible.
void make_directories(const std::filesystem::path& directory);

}  // namespace mmfree
