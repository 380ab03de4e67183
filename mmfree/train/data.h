#pragma once
// Prepared text: a folder of token shards, and the batches cut from it.
//
//   DIR/train-00000.bin ...   token ids, little-endian, uint16 if the vocabulary has at most 65536
//   pieces, else uint32 DIR/val-00000.bin ...     the same of the validation split; none if that
//   split is empty DIR/train.docs.bin        where each document starts in the stream of all
//   shards, little-endian uint64 DIR/val.docs.bin DIR/tokenizer.model       the SentencePiece model
//   that made the ids DIR/meta.json             sizes and sources of the above; a folder without it
//   is not a data set
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/core/progress.h"
#include "mmfree/core/types.h"

namespace mmfree {

// One split: the shards as one stream of ids, mapped, never copied as a whole.
class TokenStream {
 public:
  idx size() const { return starts_.empty() ? 0 : starts_.back(); }
  idx documents() const { return documents_; }
  std::int64_t text_bytes() const { return text_bytes_; }  // UTF-8 bytes of the documents' text
  idx document_start(idx i) const;
  // ids[0..n) = stream[begin..begin+n); the range must lie inside the stream.
  void read(idx begin, idx n, std::int32_t* ids) const;
  // How many windows of T inputs and T labels there are: window i reads T+1 ids from i*T on.
  idx windows(idx T) const { return size() <= T ? 0 : (size() - 1) / T; }

 private:
  friend class TokenData;
  std::vector<MappedFile> shards_;
  std::vector<idx> starts_;  // shards_.size() + 1 offsets
  std::optional<MappedFile> document_starts_;
  idx documents_ = 0;
  std::int64_t text_bytes_ = 0;
  bool wide_ = false;  // uint32 ids
};

class TokenData {
 public:
  // Throws a usage Error if the folder holds no data set, a format Error if its files contradict
  // meta.json (sizes, ids outside the vocabulary, document starts out of order). Reads every id
  // once.
  explicit TokenData(const std::filesystem::path& directory);

  const TokenStream& train() const { return train_; }
  const TokenStream& val() const { return val_; }  // empty if prepared without validation text
  std::int32_t vocab_size() const { return vocab_size_; }
  std::int32_t bos_id() const { return bos_id_; }  // -1: documents do not begin with BOS
  std::int32_t eos_id() const { return eos_id_; }
  std::filesystem::path tokenizer_path() const { return directory_ / "tokenizer.model"; }
  const std::string& meta_json() const { return meta_json_; }

 private:
  std::filesystem::path directory_;
  std::string meta_json_;
  std::int32_t vocab_size_ = 0;
  std::int32_t bos_id_ = -1;
  std::int32_t eos_id_ = -1;
  TokenStream train_;
  TokenStream val_;
};

// A bijection of [0, n) chosen by (seed, stream); each value costs a few rounds, none is stored.
struct Permutation {
  Permutation(std::uint64_t n, std::uint64_t seed, std::uint64_t stream);
  std::uint64_t operator()(std::uint64_t i) const;  // i < n

 private:
  std::uint64_t n_;
  std::uint64_t seed_;
  std::uint64_t stream_;
  int half_bits_;
};

// Training batches. Row r of the endless sequence of rows is window P_e(r mod W) of the stream,
// where W is the number of windows, e = r / W the epoch and P_e a permutation of its own. So a
// batch is a pure function of (seed, step): resuming needs no saved position, and each epoch sees
// every window once.
struct BatchSampler {
  const TokenStream& tokens;
  std::uint64_t seed = 0;

  // Rows step*batch to (step+1)*batch.
  // inputs, labels: (batch, T); labels are the ids that follow the inputs.
  // Throws a usage Error if the stream has fewer than T+1 ids.
  void fill(std::uint64_t step, idx batch, idx T, std::int32_t* inputs, std::int32_t* labels) const;
  // Rows first to first+rows, for one part of a step's batch.
  void fill_rows(std::uint64_t first, idx rows, idx T, std::int32_t* inputs,
                 std::int32_t* labels) const;
};

// Calls f(inputs, labels, n) for the windows of T in order, n = T labels each and the last one
// shorter, so that every id but the first is a label once: bits per byte = total loss in nats / ln
// 2 / text_bytes(). Throws a usage Error if the stream has fewer than two ids.
void for_each_window(
    const TokenStream& tokens, idx T,
    const std::function<void(const std::int32_t* inputs, const std::int32_t* labels, idx n)>& f);

struct PrepareOptions {
  std::vector<std::filesystem::path> files;
  std::filesystem::path out;
  std::filesystem::path
      tokenizer;  // file or folder; empty: train one of vocab_size pieces on the training files
  int vocab_size = 4096;
  std::vector<std::filesystem::path> val_files;  // if any, val_fraction is not used
  double val_fraction = 0.01;                    // of the documents; 0: no validation split
  std::string separator = "<|endoftext|>";
  bool split_paragraphs = false;  // blank lines separate documents too
  bool bos = true;                // begin each document with BOS
  std::uint64_t seed = 0;         // of the choice of validation documents
  idx shard_tokens = idx{256} << 20;
  int threads = 1;
};

struct SplitSummary {
  idx tokens = 0;
  idx documents = 0;
  std::int64_t text_bytes = 0;
  idx shards = 0;
};

struct PrepareSummary {
  SplitSummary train;
  SplitSummary val;
  std::int32_t vocab_size = 0;
};

// Files to shards. Documents are what the separator leaves, without the line feeds at both ends; a
// file that has no separator is one document; empty documents are dropped. Each becomes [BOS] ids
// EOS. The validation split takes whole documents, chosen by a hash of their number, at least one;
// if a document count times fraction is below one, the end of the longest document is cut off
// instead, at a line or word. The result does not depend on the number of threads. The folder
// appears when it is complete: it is written aside and renamed. A data set that is there is
// replaced; any other folder that is not empty is a usage Error. Text that is not UTF-8 or has a
// NUL byte is a format Error that names file and offset; so is an empty corpus a usage Error.
// Nothing is written in either case.
PrepareSummary prepare_data(const PrepareOptions& options, const Progress& progress);

}  // namespace mmfree
