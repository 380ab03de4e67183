#include "mmfree/core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "mmfree/core/error.h"

namespace mmfree {
namespace {
constexpr std::size_t kWriteBufferBytes = std::size_t{1} << 20;
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path.string()) {
  const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path_);
  struct stat st {};
  if (fstat(fd, &st) != 0 || S_ISDIR(st.st_mode)) {
    if (S_ISDIR(st.st_mode)) errno = EISDIR;
    const int code = errno;
    close(fd);
    errno = code;
    fail_errno("read", path_);
  }
  size_ = static_cast<std::size_t>(st.st_size);
  if (size_ > 0) {
    void* p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    const int code = errno;
    close(fd);
    if (p == MAP_FAILED) {
      errno = code;
      fail_errno("map", path_);
    }
    data_ = static_cast<const std::byte*>(p);
  } else {
    close(fd);
  }
}

MappedFile::MappedFile(MappedFile&& o) noexcept
    : path_(std::move(o.path_)),
      data_(std::exchange(o.data_, nullptr)),
      size_(std::exchange(o.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(data_, o.data_);
  std::swap(size_, o.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release_pages(std::size_t offset, std::size_t length) const noexcept {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = (offset + page - 1) / page * page;
  const std::size_t end = std::min(offset + length, size_) / page * page;
  if (begin < end) madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  temporary_ = path_;
  temporary_ += ".tmp." + std::to_string(getpid());
  fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail_errno("create", temporary_.string());
  buffer_.reserve(kWriteBufferBytes);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  close(fd_);
  unlink(temporary_.c_str());
}

void AtomicFile::flush() {
  const char* p = buffer_.data();
  std::size_t left = buffer_.size();
  while (left > 0) {
    const ssize_t n = ::write(fd_, p, left);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno("write", temporary_.string());
    p += n;
    left -= static_cast<std::size_t>(n);
  }
  buffer_.clear();
}

void AtomicFile::write(const void* data, std::size_t bytes) {
  const char* p = static_cast<const char*>(data);
  position_ += bytes;
  while (bytes > 0) {
    const std::size_t n = std::min(bytes, kWriteBufferBytes - buffer_.size());
    buffer_.append(p, n);
    p += n;
    bytes -= n;
    if (buffer_.size() == kWriteBufferBytes) flush();
  }
}

void AtomicFile::seek(std::size_t offset) {
  flush();
  if (lseek(fd_, static_cast<off_t>(offset), SEEK_SET) < 0)
    fail_errno("seek in", temporary_.string());
  position_ = offset;
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail_errno("sync", temporary_.string());
  const int fd = std::exchange(fd_, -1);
  const bool closed = close(fd) == 0;
  if (!closed || rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int code = errno;
    unlink(temporary_.c_str());
    errno = code;
    fail_errno("write", path_.string());
  }
  const std::filesystem::path parent = path_.parent_path();
  sync_directory(parent.empty() ? "." : parent);
}

void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_text_file(const std::filesystem::path& path, std::size_t limit) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", path.string());
  std::string text;
  std::string chunk(std::size_t{1} << 16, '\0');
  for (;;) {
    const ssize_t n = read(fd, chunk.data(), chunk.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int code = errno;
      close(fd);
      errno = code;
      if (n < 0) fail_errno("read", path.string());
      return text;
    }
    text.append(chunk, 0, static_cast<std::size_t>(n));
    if (text.size() > limit) {
      close(fd);
      fail(ErrorKind::format, path.string() + ": longer than " + std::to_string(limit) + " bytes");
    }
  }
}

void sync_directory(const std::filesystem::path& directory) {
  const int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail_errno("open", directory.string());
  const int rc = fsync(fd);
  const int code = errno;
  close(fd);
  errno = code;
  // Some file systems cannot sync a folder (EINVAL); their renames are as durable as they get.
  if (rc != 0 && code != EINVAL) fail_errno("sync", directory.string());
}

void make_directories(const std::filesystem::path& directory) {
  std::error_code ec;
  std::filesystem::create_directories(directory, ec);
  if (ec) fail(ErrorKind::io, directory.string() + ": cannot create folder: " + ec.message());
}

}  // namespace mmfree
