#include "mmfree/train/data.h"

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/tokenizer/tokenizer.h"

static_assert(std::endian::native == std::endian::little,
              "token shards are mapped, and their ids are little-endian");

namespace mmfree {
namespace {

using nlohmann::json;

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 48;
constexpr std::size_t kMetaLimit = std::size_t{64} << 20;

template <class T>
const T* elements(const MappedFile& f) {
  return reinterpret_cast<const T*>(f.bytes().data());  // maps are page-aligned
}

std::int64_t integer(const json& object, const char* key, std::int64_t low, std::int64_t high,
                     const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end()) fail(ErrorKind::format, fmt::format("{}: no field '{}'", where, key));
  if (!it->is_number_integer() ||
      (it->is_number_unsigned() && it->get<std::uint64_t>() > INT64_MAX) ||
      it->get<std::int64_t>() < low || it->get<std::int64_t>() > high)
    fail(ErrorKind::format, fmt::format("{}: field '{}' is {}, expected an integer from {} to {}",
                                        where, key, it->dump(), low, high));
  return it->get<std::int64_t>();
}

const json& member(const json& object, const char* key, json::value_t type,
                   const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || it->type() != type)
    fail(ErrorKind::format,
         fmt::format("{}: field '{}' is {}, expected {}", where, key,
                     it == object.end() ? "missing" : it->type_name(), json(type).type_name()));
  return *it;
}

void expect_size(const MappedFile& f, std::int64_t items, std::size_t item_bytes) {
  const std::uint64_t expected = static_cast<std::uint64_t>(items) * item_bytes;
  if (f.bytes().size() != expected)
    fail(ErrorKind::format, fmt::format("{}: {} bytes, meta.json says {} items of {} bytes = {}",
                                        f.path(), f.bytes().size(), items, item_bytes, expected));
}

template <class T>
void check_ids(const MappedFile& f, idx n, std::int32_t vocab_size) {
  const T* ids = elements<T>(f);
  T highest = 0;
  for (idx i = 0; i < n; ++i) highest = std::max(highest, ids[i]);
  if (highest < static_cast<std::uint32_t>(vocab_size)) return;
  const idx at =
      std::find_if(ids, ids + n, [&](T v) { return v >= static_cast<std::uint32_t>(vocab_size); }) -
      ids;
  fail(ErrorKind::format, fmt::format("{}: token {} is {}, the vocabulary has {} ids", f.path(), at,
                                      ids[at], vocab_size));
}

void check_document_starts(const MappedFile& f, idx n, idx tokens) {
  const std::uint64_t* starts = elements<std::uint64_t>(f);
  for (idx i = 0; i < n; ++i) {
    const bool ordered = i == 0 ? starts[0] == 0 : starts[i] > starts[i - 1];
    if (!ordered || starts[i] >= static_cast<std::uint64_t>(tokens))
      fail(ErrorKind::format,
           fmt::format(
               "{}: document {} starts at token {}, expected ascending starts from 0 below {}",
               f.path(), i, starts[i], tokens));
  }
}

template <class T>
void copy_ids(const MappedFile& f, idx begin, idx n, std::int32_t* out) {
  const T* ids = elements<T>(f) + begin;
  for (idx i = 0; i < n; ++i) out[i] = static_cast<std::int32_t>(ids[i]);
}

[[noreturn]] void fail_too_short(idx found, idx needed) {
  fail(ErrorKind::usage,
       fmt::format(
           "the data set has {} tokens here, at least {} are needed (a sequence and the token that "
           "follows it): prepare more text or choose shorter sequences",
           found, needed));
}

}  // namespace

idx TokenStream::document_start(idx i) const {
  MMFREE_ASSERT(i >= 0 && i < documents_);
  return static_cast<idx>(elements<std::uint64_t>(*document_starts_)[i]);
}

void TokenStream::read(idx begin, idx n, std::int32_t* ids) const {
  MMFREE_ASSERT(begin >= 0 && n >= 0 && begin + n <= size());
  std::size_t shard = static_cast<std::size_t>(
      std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin() - 1);
  while (n > 0) {
    const idx part = std::min(n, starts_[shard + 1] - begin);
    const idx at = begin - starts_[shard];
    if (wide_) {
      copy_ids<std::uint32_t>(shards_[shard], at, part, ids);
    } else {
      copy_ids<std::uint16_t>(shards_[shard], at, part, ids);
    }
    begin += part;
    ids += part;
    n -= part;
    ++shard;
  }
}

TokenData::TokenData(const std::filesystem::path& directory) : directory_(directory) {
  const std::filesystem::path meta_path = directory / "meta.json";
  std::error_code ec;
  if (!std::filesystem::exists(meta_path, ec))
    fail(ErrorKind::usage,
         fmt::format("{}: not a prepared data set (no meta.json): mmfree data prepare makes one",
                     directory.string()));
  meta_json_ = read_text_file(meta_path, kMetaLimit);
  const std::string where = meta_path.string();
  const json meta = json::parse(meta_json_, nullptr, false);
  if (!meta.is_object()) fail(ErrorKind::format, where + ": not a JSON object");
  if (member(meta, "format", json::value_t::string, where) != "mmfree-tokens")
    fail(ErrorKind::format, where + ": field 'format' is not 'mmfree-tokens'");
  integer(meta, "version", 1, 1, where);
  vocab_size_ = static_cast<std::int32_t>(integer(meta, "vocab_size", 1, INT32_MAX, where));
  bos_id_ = static_cast<std::int32_t>(integer(meta, "bos_id", -1, vocab_size_ - 1, where));
  eos_id_ = static_cast<std::int32_t>(integer(meta, "eos_id", 0, vocab_size_ - 1, where));
  const std::string dtype = member(meta, "dtype", json::value_t::string, where);
  if (dtype != "uint16" && dtype != "uint32")
    fail(ErrorKind::format, fmt::format("{}: dtype '{}', expected uint16 or uint32", where, dtype));

  const auto open_split = [&](const char* name, TokenStream& stream) {
    const json& split = member(meta, name, json::value_t::object, where);
    const idx tokens = integer(split, "tokens", 0, kMaxTokens, where);
    stream.wide_ = dtype == "uint32";
    stream.documents_ = integer(split, "documents", 0, tokens, where);
    stream.text_bytes_ = integer(split, "text_bytes", 0, INT64_MAX, where);
    stream.starts_.push_back(0);
    const json& shards = member(split, "shard_tokens", json::value_t::array, where);
    for (std::size_t i = 0; i < shards.size(); ++i) {
      const json shard = {{"shard_tokens", shards[i]}};
      const idx n = integer(shard, "shard_tokens", 1, kMaxTokens, where);
      if (n > tokens - stream.size()) break;  // the sums differ, which is said below
      MappedFile file(directory / fmt::format("{}-{:05}.bin", name, i));
      expect_size(file, n, stream.wide_ ? 4 : 2);
      if (stream.wide_) {
        check_ids<std::uint32_t>(file, n, vocab_size_);
      } else {
        check_ids<std::uint16_t>(file, n, vocab_size_);
      }
      stream.starts_.push_back(stream.size() + n);
      stream.shards_.push_back(std::move(file));
    }
    if (stream.size() != tokens || stream.shards_.size() != shards.size())
      fail(ErrorKind::format,
           fmt::format("{}: '{}' has {} tokens, but its shards do not add up to that", where, name,
                       tokens));
    stream.document_starts_.emplace(directory / fmt::format("{}.docs.bin", name));
    expect_size(*stream.document_starts_, stream.documents_, sizeof(std::uint64_t));
    check_document_starts(*stream.document_starts_, stream.documents_, tokens);
  };
  open_split("train", train_);
  open_split("val", val_);
  const std::int32_t pieces = Tokenizer::load(tokenizer_path()).vocab_size();
  if (pieces != vocab_size_)
    fail(ErrorKind::format, fmt::format("{}: {} pieces, meta.json says a vocabulary of {}",
                                        tokenizer_path().string(), pieces, vocab_size_));
}

Permutation::Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t stream)
    : n_(n),
      seed_(seed),
      stream_(stream),
      half_bits_(std::max(1, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2)) {
  MMFREE_ASSERT(n >= 1);
}

std::uint64_t Permutation::operator()(std::uint64_t i) const {
  MMFREE_ASSERT(i < n_);
  // A Feistel network permutes the numbers of 2*half_bits_ bits, at most 4n of them; following its
  // cycle until it is below n again permutes [0, n).
  constexpr std::uint64_t kRounds = 6;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  do {
    std::uint64_t left = i >> half_bits_;
    std::uint64_t right = i & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t f = random_bits(seed_, stream_ * kRounds + round, right);
      const std::uint64_t next = left ^ (f & mask);
      left = right;
      right = next;
    }
    i = left << half_bits_ | right;
  } while (i >= n_);
  return i;
}

void BatchSampler::fill(std::uint64_t step, idx batch, idx T, std::int32_t* inputs,
                        std::int32_t* labels) const {
  fill_rows(step * static_cast<std::uint64_t>(batch), batch, T, inputs, labels);
}

void BatchSampler::fill_rows(std::uint64_t first, idx rows, idx T, std::int32_t* inputs,
                             std::int32_t* labels) const {
  MMFREE_ASSERT(rows >= 0 && T >= 1);
  const std::uint64_t windows = static_cast<std::uint64_t>(tokens.windows(T));
  if (windows == 0) fail_too_short(tokens.size(), T + 1);
  for (idx b = 0; b < rows; ++b) {
    const std::uint64_t row = first + static_cast<std::uint64_t>(b);
    const Permutation order(windows, seed, row / windows);
    const idx begin = static_cast<idx>(order(row % windows)) * T;
    tokens.read(begin, T, inputs + b * T);
    tokens.read(begin + 1, T, labels + b * T);
  }
}

void for_each_window(const TokenStream& tokens, idx T,
                     const std::function<void(const std::int32_t*, const std::int32_t*, idx)>& f) {
  MMFREE_ASSERT(T >= 1);
  if (tokens.size() < 2) fail_too_short(tokens.size(), 2);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(std::min(T, tokens.size() - 1) + 1));
  for (idx begin = 0; begin + 1 < tokens.size(); begin += T) {
    const idx n = std::min(T, tokens.size() - 1 - begin);
    tokens.read(begin, n + 1, ids.data());
    f(ids.data(), ids.data() + 1, n);
  }
}

}  // namespace mmfree
