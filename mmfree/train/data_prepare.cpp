// Text files to token shards.
#include <fcntl.h>
#include <fmt/core.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <exception>
#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/parallel.h"
#include "mmfree/core/rng.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "mmfree/tokenizer/utf8.h"
#include "mmfree/train/data.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::size_t kPartBytes = std::size_t{1} << 16;   // encoded by one thread at a time
constexpr std::size_t kBatchBytes = std::size_t{2} << 20;  // text between two writes
constexpr std::uint64_t kValStream = 0x76616c;             // random numbers that choose documents
constexpr const char* kFormat = "mmfree-tokens";

struct Source {
  std::string path;
  bool val = false;
  std::optional<MappedFile> map;
  std::string copy;  // of what cannot be mapped, as a pipe
  std::string_view text;
};

struct Document {
  std::string_view text;
  bool val = false;
};

// Documents and the way the validation split was made.
struct Corpus {
  std::vector<Source> sources;
  std::vector<Document> documents;
  std::string val_split = "none";
};

std::string_view trim_lines(std::string_view text) {
  const std::size_t begin = text.find_first_not_of("\r\n");
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of("\r\n") - begin + 1);
}

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n") == text.npos;
}

void check_text(const Source& source) {
  const std::size_t nul = source.text.find('\0');
  if (nul != source.text.npos)
    fail(ErrorKind::format,
         fmt::format("{}: a NUL byte at offset {}: not a text file", source.path, nul));
  const std::size_t bad = find_invalid_utf8(source.text);
  if (bad != source.text.npos)
    fail(ErrorKind::format,
         fmt::format("{}: not UTF-8 at byte offset {} (0x{:02x}); convert it first, for "
                     "example with iconv",
                     source.path, bad, static_cast<unsigned char>(source.text[bad])));
}

Source open_source(const fs::path& path, bool val) {
  Source s;
  s.path = path.string();
  s.val = val;
  std::error_code ec;
  if (fs::is_regular_file(path, ec) || !fs::exists(path, ec) || fs::is_directory(path, ec)) {
    s.map.emplace(path);
    s.text = {reinterpret_cast<const char*>(s.map->bytes().data()), s.map->bytes().size()};
  } else {
    s.copy = read_text_file(path);
  }
  return s;
}

template <class F>
void for_each_paragraph(std::string_view text, const F& f) {
  std::size_t begin = 0;
  std::size_t line = 0;
  while (line < text.size()) {
    const std::size_t end = std::min(text.find('\n', line), text.size());
    if (is_blank(text.substr(line, end - line))) {
      f(text.substr(begin, line - begin));
      begin = end;
    }
    line = end + 1;
  }
  f(text.substr(begin));
}

void add_documents(const Source& source, const PrepareOptions& o, std::vector<Document>& out) {
  const auto add = [&](std::string_view text) {
    text = trim_lines(text);
    if (!is_blank(text)) out.push_back({text, source.val});
  };
  std::string_view rest = source.text;
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);  // byte order mark
  for (;;) {
    const std::size_t at = o.separator.empty() ? rest.npos : rest.find(o.separator);
    const std::string_view text = rest.substr(0, at);
    if (o.split_paragraphs) {
      for_each_paragraph(text, add);
    } else {
      add(text);
    }
    if (at == rest.npos) return;
    rest.remove_prefix(at + o.separator.size());
  }
}

// Where to cut the last `share` bytes off: the next line in the first half of them, else the next
// word, else a character.
std::size_t tail_cut(std::string_view text, std::size_t tail) {
  const std::size_t at = text.size() - tail;
  for (const char border : {'\n', ' '}) {
    const std::size_t found = text.substr(0, at + tail / 2).find(border, at);
    if (found != text.npos) return found;
  }
  std::size_t cut = at;
  while (cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xC0U) == 0x80U) ++cut;
  return cut;
}

void choose_validation(const PrepareOptions& o, Corpus& corpus) {
  std::vector<Document>& docs = corpus.documents;
  const std::size_t n = docs.size();
  if (!o.val_files.empty()) {
    corpus.val_split = "files";
    return;
  }
  if (o.val_fraction == 0.0) return;
  if (static_cast<double>(n) * o.val_fraction < 1.0) {
    corpus.val_split = "tail";
    double total = 0;
    std::size_t longest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      total += static_cast<double>(docs[i].text.size());
      if (docs[i].text.size() > docs[longest].text.size()) longest = i;
    }
    const std::string_view text = docs[longest].text;
    const std::size_t tail =
        std::min(text.size() / 2, static_cast<std::size_t>(std::ceil(total * o.val_fraction)));
    const std::size_t cut = tail_cut(text, tail);
    const std::string_view head = trim_lines(text.substr(0, cut));
    std::string_view rest = trim_lines(text.substr(cut));
    if (rest.starts_with(' ')) rest.remove_prefix(1);
    if (is_blank(head) || is_blank(rest))
      fail(ErrorKind::usage, fmt::format("{} bytes of text are too few for a validation split; "
                                         "--val-fraction 0 leaves it out",
                                         static_cast<std::uint64_t>(total)));
    docs[longest].text = head;
    docs.push_back({rest, true});
    return;
  }
  corpus.val_split = "documents";
  std::size_t lowest = 0;
  std::size_t highest = 0;
  std::size_t chosen = 0;
  const auto key = [&](std::size_t i) { return random_uniform(o.seed, kValStream, i); };
  for (std::size_t i = 0; i < n; ++i) {
    docs[i].val = key(i) < o.val_fraction;
    chosen += docs[i].val ? 1 : 0;
    if (key(i) < key(lowest)) lowest = i;
    if (key(i) > key(highest)) highest = i;
  }
  if (chosen == 0) docs[lowest].val = true;
  if (chosen == n) docs[highest].val = false;
}

Corpus read_corpus(const PrepareOptions& o, const Progress& progress) {
  Corpus corpus;
  for (const fs::path& path : o.files) corpus.sources.push_back(open_source(path, false));
  for (const fs::path& path : o.val_files) corpus.sources.push_back(open_source(path, true));
  std::uint64_t total = 0;
  for (Source& s : corpus.sources) {
    if (!s.map) s.text = s.copy;  // only now, when the strings no longer move
    total += s.text.size();
  }
  std::uint64_t done = 0;
  for (const Source& s : corpus.sources) {
    progress("reading text, bytes", done, total);
    check_text(s);
    add_documents(s, o, corpus.documents);
    done += s.text.size();
    if (s.map) s.map->release_pages(0, s.text.size());
  }
  progress("reading text, bytes", done, total);
  const auto train = [](const Document& d) { return !d.val; };
  if (std::none_of(corpus.documents.begin(), corpus.documents.end(), train))
    fail(ErrorKind::usage,
         fmt::format("no text to prepare: {} of {} bytes in {} files holds no document",
                     o.files.front().string(), total, o.files.size()));
  choose_validation(o, corpus);
  if (!o.val_files.empty() && std::all_of(corpus.documents.begin(), corpus.documents.end(), train))
    fail(ErrorKind::usage, o.val_files.front().string() + ": no validation text in it");
  return corpus;
}

// The shards and the document table of one split.
class SplitWriter {
 public:
  SplitWriter(fs::path directory, std::string name, bool wide, idx shard_tokens)
      : directory_(std::move(directory)),
        name_(std::move(name)),
        wide_(wide),
        shard_tokens_(shard_tokens),
        documents_(directory_ / (name_ + ".docs.bin")) {}

  void begin_document(std::size_t text_bytes) {
    const std::uint64_t start = static_cast<std::uint64_t>(summary_.tokens);
    documents_.write(&start, sizeof start);
    ++summary_.documents;
    summary_.text_bytes += static_cast<std::int64_t>(text_bytes);
  }

  void put(std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) {
      if (!shard_)
        shard_ = std::make_unique<AtomicFile>(directory_ /
                                              fmt::format("{}-{:05}.bin", name_, shards_.size()));
      if (wide_) {
        const auto v = static_cast<std::uint32_t>(id);
        shard_->write(&v, sizeof v);
      } else {
        const auto v = static_cast<std::uint16_t>(id);
        shard_->write(&v, sizeof v);
      }
      ++summary_.tokens;
      if (++in_shard_ == shard_tokens_) end_shard();
    }
  }

  SplitSummary finish() {
    if (shard_) end_shard();
    documents_.commit();
    summary_.shards = static_cast<idx>(shards_.size());
    return summary_;
  }

  json meta() const {
    return {{"tokens", summary_.tokens},
            {"documents", summary_.documents},
            {"text_bytes", summary_.text_bytes},
            {"shard_tokens", shards_}};
  }

 private:
  void end_shard() {
    shard_->commit();
    shard_.reset();
    shards_.push_back(in_shard_);
    in_shard_ = 0;
  }

  fs::path directory_;
  std::string name_;
  bool wide_;
  idx shard_tokens_;
  AtomicFile documents_;
  std::unique_ptr<AtomicFile> shard_;
  idx in_shard_ = 0;
  std::vector<idx> shards_;
  SplitSummary summary_;
};

// One piece of work of the encoder: a document or a part of a long one.
struct Part {
  const Document* document;
  std::string_view text;
  bool first;
  bool last;
};

// Encodes the parts with all threads, then writes them in order.
void encode_batch(const Tokenizer& tokenizer, const PrepareOptions& o, std::span<const Part> parts,
                  SplitWriter& train, SplitWriter& val) {
  std::vector<std::vector<std::int32_t>> ids(parts.size());
  std::vector<std::exception_ptr> errors(parts.size());
  parallel_for({.threads = o.threads}, static_cast<idx>(parts.size()), 1, [&](idx begin, idx end) {
    for (idx i = begin; i < end; ++i) {
      const auto k = static_cast<std::size_t>(i);
      try {
        ids[k] = tokenizer.encode(parts[k].text);
      } catch (...) {
        errors[k] = std::current_exception();
      }
    }
  });
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (errors[i]) std::rethrow_exception(errors[i]);
    const Part& part = parts[i];
    SplitWriter& out = part.document->val ? val : train;
    if (part.first) {
      out.begin_document(part.document->text.size());
      if (o.bos) out.put(std::vector{tokenizer.bos_id()});
    }
    out.put(ids[i]);
    if (part.last) out.put(std::vector{tokenizer.eos_id()});
  }
}

void encode_corpus(const Tokenizer& tokenizer, const PrepareOptions& o, const Corpus& corpus,
                   SplitWriter& train, SplitWriter& val, const Progress& progress) {
  std::uint64_t total = 0;
  for (const Document& d : corpus.documents) total += d.text.size();
  std::uint64_t done = 0;
  progress("encoding, bytes", done, total);
  std::vector<Part> parts;
  std::size_t bytes = 0;
  const auto flush = [&] {
    encode_batch(tokenizer, o, parts, train, val);
    // Batches go through the sources in order; pages of the batch are not needed again.
    for (const Source& s : corpus.sources) {
      if (!s.map || parts.empty()) continue;
      const char* begin = std::max(s.text.data(), parts.front().text.data());
      const char* end = std::min(s.text.data() + s.text.size(),
                                 parts.back().text.data() + parts.back().text.size());
      if (begin < end)
        s.map->release_pages(static_cast<std::size_t>(begin - s.text.data()),
                             static_cast<std::size_t>(end - begin));
    }
    done += bytes;
    parts.clear();
    bytes = 0;
    progress("encoding, bytes", done, total);
  };
  for (const Document& d : corpus.documents) {
    const std::vector<std::string_view> texts = tokenizer.split(d.text, kPartBytes);
    for (std::size_t i = 0; i < texts.size(); ++i) {
      parts.push_back({&d, texts[i], i == 0, i + 1 == texts.size()});
      bytes += texts[i].size() + (i > 0 ? 1 : 0);  // the space that the cut took
      if (bytes >= kBatchBytes) flush();
    }
  }
  flush();
}

Tokenizer load_tokenizer(const PrepareOptions& o) {
  Tokenizer t = Tokenizer::load(o.tokenizer);
  if (o.vocab_size != 0 && o.vocab_size != t.vocab_size())
    fail(ErrorKind::usage, fmt::format("{}: {} pieces, but a vocabulary of {} was asked for",
                                       o.tokenizer.string(), t.vocab_size(), o.vocab_size));
  if (t.eos_id() < 0) fail(ErrorKind::usage, o.tokenizer.string() + ": has no EOS piece");
  if (o.bos && t.bos_id() < 0)
    fail(ErrorKind::usage,
         o.tokenizer.string() + ": has no BOS piece; --no-bos prepares without it");
  return t;
}

Tokenizer train_on(const Corpus& corpus, const PrepareOptions& o, const Progress& progress) {
  TokenizerTraining training;
  if (o.vocab_size != 0) training.vocab_size = o.vocab_size;
  for (const Document& d : corpus.documents)
    if (!d.val) training.total_bytes += d.text.size();
  progress("training the tokenizer", 0, 0);
  std::size_t next = 0;
  const auto source = [&](std::string& text) {
    while (next < corpus.documents.size() && corpus.documents[next].val) ++next;
    if (next == corpus.documents.size()) return false;
    text = corpus.documents[next++].text;
    return true;
  };
  return Tokenizer::from_bytes(train_tokenizer(source, training), "the trained tokenizer");
}

bool is_own_file(const std::string& name) {
  if (name == "meta.json" || name == "tokenizer.model") return true;
  for (const std::string_view split : {"train", "val"}) {
    if (!name.starts_with(split)) continue;
    const std::string_view rest = std::string_view(name).substr(split.size());
    if (rest == ".docs.bin") return true;
    if (rest.size() == 10 && rest.front() == '-' && rest.ends_with(".bin") &&
        rest.substr(1, 5).find_first_not_of("0123456789") == rest.npos)
      return true;
  }
  return false;
}

// Replacing must not take away anything but a data set.
void check_replaceable(const fs::path& out) {
  std::error_code ec;
  if (!fs::exists(out, ec)) return;
  if (!fs::is_directory(out, ec))
    fail(ErrorKind::usage,
         out.string() + ": exists and is not a folder; the data set becomes a folder");
  if (fs::is_empty(out, ec)) return;
  if (!fs::exists(out / "meta.json", ec))
    fail(ErrorKind::usage,
         out.string() +
             ": the folder is not empty and holds no data set; choose another or empty it");
  fs::directory_iterator files(out, ec);
  if (ec) fail(ErrorKind::io, fmt::format("{}: cannot list: {}", out.string(), ec.message()));
  for (const fs::directory_entry& e : files)
    if (!is_own_file(e.path().filename().string()))
      fail(ErrorKind::usage,
           fmt::format("{}: not part of a data set, so the folder is not replaced",
                       e.path().string()));
}

// A folder beside the final one; removed with what is in it unless it was published.
class StagedFolder {
 public:
  explicit StagedFolder(fs::path out) : out_(std::move(out)) {
    std::error_code ec;
    if (fs::exists(out_, ec)) out_ = fs::canonical(out_, ec);
    if (!out_.has_filename()) out_ = out_.parent_path();  // DIR/
    path_ = out_;
    path_ += fmt::format(".tmp.{}", getpid());
    make_directories(path_);
  }
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder() {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
  const fs::path& path() const { return path_; }

  // After this the old data set, if there was one, has the temporary name, and goes with this
  // object.
  void publish() {
    std::error_code ec;
    const bool replace = fs::exists(out_, ec) && !fs::is_empty(out_, ec);
    const unsigned flags = replace ? RENAME_EXCHANGE : 0;
    if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, out_.c_str(), flags) != 0)
      fail_errno("rename to", out_.string());
    const fs::path parent = out_.parent_path();
    sync_directory(parent.empty() ? "." : parent);
  }

 private:
  fs::path out_;
  fs::path path_;
};

void check_options(const PrepareOptions& o) {
  if (o.files.empty()) fail(ErrorKind::usage, "no text files to prepare");
  if (o.out.empty()) fail(ErrorKind::usage, "no folder to write the data set to");
  if (!(o.val_fraction >= 0.0 && o.val_fraction <= 0.5))
    fail(ErrorKind::usage,
         fmt::format("validation fraction {}: expected 0 to 0.5", o.val_fraction));
  if (o.shard_tokens < 1)
    fail(ErrorKind::usage, fmt::format("shards of {} tokens", o.shard_tokens));
}

}  // namespace

PrepareSummary prepare_data(const PrepareOptions& o, const Progress& progress) {
  check_options(o);
  check_replaceable(o.out);
  // What can be refused at once is, before the text is read: the tokenizer and the folder.
  std::optional<Tokenizer> given;
  if (!o.tokenizer.empty()) given.emplace(load_tokenizer(o));
  StagedFolder folder(o.out);
  const Corpus corpus = read_corpus(o, progress);
  const Tokenizer tokenizer = given ? std::move(*given) : train_on(corpus, o, progress);

  const bool wide = tokenizer.vocab_size() > 65536;
  SplitWriter train(folder.path(), "train", wide, o.shard_tokens);
  SplitWriter val(folder.path(), "val", wide, o.shard_tokens);
  encode_corpus(tokenizer, o, corpus, train, val, progress);

  PrepareSummary summary;
  summary.train = train.finish();
  summary.val = val.finish();
  summary.vocab_size = tokenizer.vocab_size();
  write_file_atomically(folder.path() / "tokenizer.model", tokenizer.serialized());
  json sources = json::array();
  for (const Source& s : corpus.sources)
    sources.push_back({{"path", s.path}, {"bytes", s.text.size()}, {"validation", s.val}});
  const json meta = {{"format", kFormat},
                     {"version", 1},
                     {"vocab_size", summary.vocab_size},
                     {"dtype", wide ? "uint32" : "uint16"},
                     {"bos_id", o.bos ? tokenizer.bos_id() : -1},
                     {"eos_id", tokenizer.eos_id()},
                     {"separator", o.separator},
                     {"split_paragraphs", o.split_paragraphs},
                     {"seed", o.seed},
                     {"val_split", corpus.val_split},
                     {"train", train.meta()},
                     {"val", val.meta()},
                     {"sources", sources}};
  write_file_atomically(folder.path() / "meta.json",
                        meta.dump(2, ' ', false, json::error_handler_t::replace) + "\n");
  folder.publish();
  return summary;
}

}  // namespace mmfree
