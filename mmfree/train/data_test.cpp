#include "mmfree/train/data.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/rng.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<std::int32_t>;

const Progress kQuiet = [](std::string_view, std::uint64_t, std::uint64_t) {};

std::string sentence(std::uint64_t n) {
  const std::vector<std::string> words = {"river",  "stone", "boat", "green", "slow",
                                          "bridge", "under", "fish", "the",   "a"};
  std::string text;
  for (std::uint64_t i = 0; i < 6 + n % 9; ++i)
    text += (i == 0 ? "" : " ") + words[random_bits(11, n, i) % words.size()];
  return text + ".";
}

std::string corpus_text(std::uint64_t documents) {
  std::string text;
  for (std::uint64_t d = 0; d < documents; ++d) {
    if (d > 0) text += "\n<|endoftext|>\n";
    for (std::uint64_t s = 0; s <= d % 4; ++s) text += sentence(d * 10 + s) + "\n";
  }
  return text;
}

class Prepared {
 public:
  explicit Prepared(const std::string& text,
                    const std::function<void(PrepareOptions&)>& change = {}) {
    write_file_atomically(dir_.path() / "text.txt", text);
    options.files = {dir_.path() / "text.txt"};
    options.out = dir_.path() / "data";
    options.vocab_size = 300;
    if (change) change(options);
  }
  PrepareSummary run() const { return prepare_data(options, kQuiet); }
  const fs::path& path() const { return dir_.path(); }
  // What lies in the folder of the data set: name -> bytes.
  std::map<std::string, std::string> files() const {
    std::map<std::string, std::string> found;
    for (const fs::directory_entry& e : fs::directory_iterator(options.out))
      found[e.path().filename().string()] = read_text_file(e.path());
    return found;
  }
  std::vector<std::string> beside() const {
    std::vector<std::string> names;
    for (const fs::directory_entry& e : fs::directory_iterator(dir_.path()))
      names.push_back(e.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  PrepareOptions options;

 private:
  test::TempDir dir_;
};

Ids all_ids(const TokenStream& s) {
  Ids ids(static_cast<std::size_t>(s.size()));
  s.read(0, s.size(), ids.data());
  return ids;
}

// The documents' texts, from their ids.
std::vector<std::string> documents(const TokenStream& s, const Tokenizer& t) {
  std::vector<std::string> texts;
  const Ids ids = all_ids(s);
  for (idx d = 0; d < s.documents(); ++d) {
    const idx end = d + 1 < s.documents() ? s.document_start(d + 1) : s.size();
    texts.push_back(t.decode(Ids(ids.begin() + s.document_start(d), ids.begin() + end)));
  }
  return texts;
}

ErrorKind kind_of(const std::function<void()>& f, const std::string& said = "") {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(said), std::string::npos) << e.what();
    return e.kind();
  }
  ADD_FAILURE() << "no Error was thrown";
  return ErrorKind::numeric;
}

TEST(Permutation, IsABijectionForAnySize) {
  for (const std::uint64_t n : {1, 2, 3, 4, 5, 7, 64, 1000, 4097, 65537}) {
    for (const std::uint64_t stream : {0, 1}) {
      const Permutation p(n, 42, stream);
      std::vector<bool> seen(n, false);
      for (std::uint64_t i = 0; i < n; ++i) {
        ASSERT_LT(p(i), n);
        ASSERT_FALSE(seen[p(i)]) << n;
        seen[p(i)] = true;
      }
    }
  }
}

TEST(Permutation, DependsOnSeedAndStreamAndMovesMostItems) {
  constexpr std::uint64_t kN = 1000;
  const Permutation a(kN, 1, 0);
  const Permutation b(kN, 2, 0);
  const Permutation c(kN, 1, 1);
  int same_ab = 0;
  int same_ac = 0;
  int fixed = 0;
  int neighbours = 0;
  for (std::uint64_t i = 0; i < kN; ++i) {
    same_ab += a(i) == b(i) ? 1 : 0;
    same_ac += a(i) == c(i) ? 1 : 0;
    fixed += a(i) == i ? 1 : 0;
    neighbours += i > 0 && a(i) == a(i - 1) + 1 ? 1 : 0;
  }
  // Of a random permutation each of these is about 1.
  EXPECT_LT(same_ab, 10);
  EXPECT_LT(same_ac, 10);
  EXPECT_LT(fixed, 10);
  EXPECT_LT(neighbours, 10);
}

TEST(PrepareData, DocumentsComeBackWithTheirBordersAndSizes) {
  const Prepared p(corpus_text(60), [](PrepareOptions& o) { o.val_fraction = 0.2; });
  const PrepareSummary summary = p.run();
  const TokenData data(p.options.out);
  const Tokenizer t = Tokenizer::load(data.tokenizer_path());
  EXPECT_EQ(data.vocab_size(), 300);
  EXPECT_EQ(data.train().size(), summary.train.tokens);
  EXPECT_EQ(data.val().size(), summary.val.tokens);
  EXPECT_EQ(data.train().documents() + data.val().documents(), 60);
  EXPECT_GT(data.val().documents(), 3);

  std::multiset<std::string> expected;
  std::string text = corpus_text(60) + "\n<|endoftext|>\n";
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find("\n\n<|endoftext|>\n", at);
    expected.insert(text.substr(at, end - at));
    at = end + 16;
  }
  std::multiset<std::string> found;
  for (const TokenStream* s : {&data.train(), &data.val()}) {
    const Ids ids = all_ids(*s);
    std::int64_t bytes = 0;
    for (const std::string& d : documents(*s, t)) {
      found.insert(d);
      bytes += static_cast<std::int64_t>(d.size());
    }
    EXPECT_EQ(s->text_bytes(), bytes);
    EXPECT_EQ(ids.front(), t.bos_id());
    EXPECT_EQ(ids.back(), t.eos_id());
    EXPECT_EQ(std::count(ids.begin(), ids.end(), t.bos_id()), s->documents());
    EXPECT_EQ(std::count(ids.begin(), ids.end(), t.eos_id()), s->documents());
  }
  EXPECT_EQ(found, expected);
}

TEST(PrepareData, SameBitsForAnyNumberOfThreads) {
  std::map<std::string, std::string> first;
  for (const int threads : {1, 2, 5}) {
    Prepared p(corpus_text(200), [&](PrepareOptions& o) { o.threads = threads; });
    p.run();
    auto files = p.files();
    files.erase("meta.json");  // names the source's path
    if (first.empty()) first = files;
    EXPECT_EQ(files, first) << threads;
  }
}

TEST(PrepareData, AnotherSeedChoosesOtherValidationDocuments) {
  Prepared p(corpus_text(200), [](PrepareOptions& o) { o.val_fraction = 0.1; });
  p.run();
  const Ids first = all_ids(TokenData(p.options.out).val());
  p.options.seed = 1;
  p.options.tokenizer = p.options.out / "tokenizer.model";
  p.run();
  EXPECT_NE(all_ids(TokenData(p.options.out).val()), first);
}

TEST(PrepareData, ShardsAreOneStream) {
  Prepared p(corpus_text(50));
  p.run();
  const TokenData whole(p.options.out);
  const Ids ids = all_ids(whole.train());
  p.options.tokenizer = whole.tokenizer_path();
  p.options.shard_tokens = 37;
  p.options.out = p.path() / "shards";
  const PrepareSummary summary = p.run();
  EXPECT_EQ(summary.train.shards, (summary.train.tokens + 36) / 37);
  const TokenData sharded(p.options.out);
  EXPECT_EQ(all_ids(sharded.train()), ids);
  // A read that begins and ends inside shards.
  Ids part(100);
  sharded.train().read(30, 100, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), ids.begin() + 30));
  sharded.train().read(37, 37, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.begin() + 37, ids.begin() + 37));
}

TEST(PrepareData, AFileWithoutSeparatorLosesItsTailToValidation) {
  std::string text;
  for (std::uint64_t i = 0; i < 300; ++i) text += sentence(i) + (i % 5 == 4 ? "\n\n" : "\n");
  Prepared p(text, [](PrepareOptions& o) { o.val_fraction = 0.1; });
  const PrepareSummary s = p.run();
  EXPECT_EQ(s.train.documents, 1);
  EXPECT_EQ(s.val.documents, 1);
  const TokenData data(p.options.out);
  const Tokenizer t = Tokenizer::load(data.tokenizer_path());
  const std::string train = documents(data.train(), t)[0];
  const std::string val = documents(data.val(), t)[0];
  EXPECT_TRUE(text.starts_with(train + "\n"));
  EXPECT_NE(text.find("\n" + val), std::string::npos);
  EXPECT_NEAR(static_cast<double>(val.size()) / static_cast<double>(text.size()), 0.1, 0.02);
  EXPECT_GE(train.size() + val.size() + 4, text.size());
  // The same text by paragraphs.
  p.options.split_paragraphs = true;
  const PrepareSummary paragraphs = p.run();
  EXPECT_EQ(paragraphs.train.documents + paragraphs.val.documents, 60);
}

TEST(PrepareData, VocabulariesBeyond65536HaveIdsOf32Bits) {
  Prepared p("river @0@ stone @65999@ boat<|endoftext|>green @65235@@65236@ fish",
             [](PrepareOptions& o) {
               o.val_fraction = 0;
               o.vocab_size = 290;
             });
  p.run();
  // The format joins messages that follow each other: pieces @0@, @1@, ... of the user-defined
  // type 4.
  std::string model = read_text_file(p.options.out / "tokenizer.model");
  for (int i = 0; i < 66000; ++i) {
    const std::string text = fmt::format("@{}@", i);
    const std::string piece =
        std::string("\x0A") + static_cast<char>(text.size()) + text + "\x18\x04";
    model += std::string("\x0A") + static_cast<char>(piece.size()) + piece;
  }
  write_file_atomically(p.path() / "wide.model", model);
  p.options.tokenizer = p.path() / "wide.model";
  p.options.vocab_size = 0;
  EXPECT_EQ(p.run().vocab_size, 66290);
  const TokenData data(p.options.out);
  EXPECT_EQ(json::parse(data.meta_json())["dtype"], "uint32");
  const Tokenizer t = Tokenizer::load(p.options.tokenizer);
  const Ids ids = all_ids(data.train());
  for (const std::int32_t id : {290, 66289, 65525, 65526})
    EXPECT_EQ(std::count(ids.begin(), ids.end(), id), 1) << id;
  EXPECT_EQ(documents(data.train(), t), (std::vector<std::string>{"river @0@ stone @65999@ boat",
                                                                  "green @65235@@65236@ fish"}));
}

TEST(PrepareData, ALongDocumentIsEncodedInPartsAsOne) {
  std::string text;
  for (std::uint64_t i = 0; text.size() < 300000; ++i)
    text += sentence(i) + (i % 9 == 8 ? "\n" : " ");
  text.pop_back();
  Prepared p(text + "<|endoftext|>" + sentence(1), [](PrepareOptions& o) { o.val_fraction = 0; });
  p.run();
  const TokenData data(p.options.out);
  const Tokenizer t = Tokenizer::load(data.tokenizer_path());
  Ids expected = {t.bos_id()};
  const Ids body = t.encode(text);
  expected.insert(expected.end(), body.begin(), body.end());
  expected.push_back(t.eos_id());
  EXPECT_EQ(data.train().documents(), 2);
  EXPECT_EQ(data.train().document_start(1), static_cast<idx>(expected.size()));
  Ids found(expected.size());
  data.train().read(0, static_cast<idx>(found.size()), found.data());
  EXPECT_EQ(found, expected);
  EXPECT_EQ(data.train().text_bytes(), static_cast<std::int64_t>(text.size() + sentence(1).size()));
}

TEST(PrepareData, ValidationFilesAreUsedWhole) {
  Prepared p(corpus_text(30));
  write_file_atomically(p.path() / "val.txt", sentence(1000) + "<|endoftext|>" + sentence(1001));
  p.options.val_files = {p.path() / "val.txt"};
  const PrepareSummary s = p.run();
  EXPECT_EQ(s.train.documents, 30);
  EXPECT_EQ(s.val.documents, 2);
  EXPECT_EQ(s.val.text_bytes,
            static_cast<std::int64_t>(sentence(1000).size() + sentence(1001).size()));
}

TEST(PrepareData, OptionsAreRecordedAndFollowed) {
  Prepared p("one doc here##another doc there", [](PrepareOptions& o) {
    o.separator = "##";
    o.bos = false;
    o.val_fraction = 0;
    o.vocab_size = 280;
  });
  const PrepareSummary s = p.run();
  EXPECT_EQ(s.train.documents, 2);
  EXPECT_EQ(s.val.tokens, 0);
  const TokenData data(p.options.out);
  EXPECT_EQ(data.bos_id(), -1);
  const Ids ids = all_ids(data.train());
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 0);
  EXPECT_EQ(json::parse(data.meta_json())["separator"], "##");
  EXPECT_EQ(data.val().size(), 0);
}

TEST(PrepareData, BadTextIsRefusedAndNothingIsWritten) {
  const auto refused = [](const std::string& text, ErrorKind kind, const std::string& said,
                          const std::function<void(PrepareOptions&)>& change = {}) {
    const Prepared p(text, change);
    EXPECT_EQ(kind_of([&] { p.run(); }, said), kind);
    EXPECT_EQ(p.beside(), std::vector<std::string>{"text.txt"});
  };
  refused("", ErrorKind::usage, "no document");
  refused("\n \n<|endoftext|>\n\t\n", ErrorKind::usage, "no document");
  refused(corpus_text(9) + "\xFF\xFE", ErrorKind::format,
          "not UTF-8 at byte offset " + std::to_string(corpus_text(9).size()));
  refused(std::string("PK\x03\x04\0\0", 6), ErrorKind::format, "NUL byte at offset 4");
  refused(corpus_text(9), ErrorKind::usage, "too large",
          [](PrepareOptions& o) { o.vocab_size = 60000; });
  refused("x", ErrorKind::usage, "--val-fraction 0", [](PrepareOptions& o) { o.vocab_size = 262; });
  refused(corpus_text(9), ErrorKind::io, "absent",
          [](PrepareOptions& o) { o.files.push_back("absent"); });
  refused(corpus_text(9), ErrorKind::usage, "fraction",
          [](PrepareOptions& o) { o.val_fraction = 1.5; });
  refused(corpus_text(9), ErrorKind::usage, "shards",
          [](PrepareOptions& o) { o.shard_tokens = 0; });
  refused(corpus_text(9), ErrorKind::format, "SentencePiece",
          [](PrepareOptions& o) { o.tokenizer = o.files[0]; });
}

TEST(PrepareData, AVocabularyThatIsNotTheTokenizersIsRefused) {
  Prepared p(corpus_text(20));
  p.run();
  p.options.tokenizer = p.options.out;
  p.options.out = p.path() / "again";
  p.options.vocab_size = 299;
  EXPECT_EQ(kind_of([&] { p.run(); }, "300 pieces"), ErrorKind::usage);
  EXPECT_FALSE(fs::exists(p.options.out));
}

TEST(PrepareData, OnlyADataSetIsReplaced) {
  Prepared p(corpus_text(20));
  fs::create_directories(p.options.out);
  p.run();  // an empty folder is fine
  const auto first = p.files();
  p.options.shard_tokens = 50;
  p.run();
  EXPECT_GT(p.files().size(), first.size());
  p.options.shard_tokens = idx{1} << 20;
  p.run();
  EXPECT_EQ(p.files(), first);  // no shard of the former set is left
  EXPECT_EQ(p.beside(), (std::vector<std::string>{"data", "text.txt"}));

  write_file_atomically(p.options.out / "notes.txt", "mine");
  EXPECT_EQ(kind_of([&] { p.run(); }, "notes.txt"), ErrorKind::usage);
  fs::remove(p.options.out / "meta.json");
  EXPECT_EQ(kind_of([&] { p.run(); }, "not empty"), ErrorKind::usage);
  EXPECT_TRUE(fs::exists(p.options.out / "notes.txt"));
  p.options.out = p.path() / "text.txt";
  EXPECT_EQ(kind_of([&] { p.run(); }, "not a folder"), ErrorKind::usage);
}

TEST(TokenData, FilesThatContradictTheirMetadataAreRefused) {
  const Prepared p(corpus_text(40), [](PrepareOptions& o) { o.shard_tokens = 200; });
  p.run();
  const fs::path dir = p.options.out;
  const auto original = p.files();
  ASSERT_GT(original.count("train-00001.bin"), 0U);
  const auto refused = [&](const std::string& name, const std::string& bytes,
                           const std::string& said) {
    write_file_atomically(dir / name, bytes);
    EXPECT_EQ(kind_of([&] { TokenData{dir}; }, said), ErrorKind::format) << name;
    write_file_atomically(dir / name, original.at(name));
    EXPECT_NO_THROW(TokenData{dir});
  };
  const std::string shard = original.at("train-00001.bin");
  refused("train-00001.bin", shard.substr(1), "meta.json says");
  refused("train-00001.bin", shard + "xx", "meta.json says");
  std::string bad = shard;
  const auto set_token = [&](std::uint16_t id) { std::memcpy(bad.data() + 100, &id, sizeof id); };
  set_token(300);
  refused("train-00001.bin", bad, "token 50 is 300");
  set_token(65535);
  refused("train-00001.bin", bad, "token 50 is 65535");
  std::string starts = original.at("train.docs.bin");
  std::swap_ranges(starts.begin() + 8, starts.begin() + 16, starts.begin() + 16);
  refused("train.docs.bin", starts, "document 2");
  starts = original.at("train.docs.bin");
  starts[starts.size() - 2] = '\x7f';
  refused("train.docs.bin", starts, "document");
  refused("val.docs.bin", "", "meta.json says");
  refused("tokenizer.model", "junk", "SentencePiece");

  const json meta = json::parse(original.at("meta.json"));
  const auto edited = [&](const std::string& pointer, const json& value) {
    json copy = meta;
    copy[json::json_pointer(pointer)] = value;
    return copy.dump();
  };
  refused("meta.json", "{", "not a JSON object");
  refused("meta.json", "[]", "not a JSON object");
  refused("meta.json", edited("/format", "other"), "format");
  refused("meta.json", edited("/version", 2), "version");
  refused("meta.json", edited("/vocab_size", 299), "");
  refused("meta.json", edited("/vocab_size", -1), "vocab_size");
  refused("meta.json", edited("/vocab_size", 1e30), "vocab_size");
  refused("meta.json", edited("/dtype", "int7"), "dtype");
  refused("meta.json", edited("/dtype", "uint32"), "meta.json says");
  refused("meta.json", edited("/eos_id", 300), "eos_id");
  refused("meta.json", edited("/train/tokens", 1), "documents");
  refused("meta.json", edited("/train/tokens", 100000000), "add up");
  refused("meta.json", edited("/train/tokens", 18446744073709551615ULL), "tokens");
  refused("meta.json", edited("/train/documents", "many"), "documents");
  refused("meta.json", edited("/train/shard_tokens", json::array()), "add up");
  refused("meta.json", edited("/train/shard_tokens/0", 9223372036854775807LL), "shard_tokens");
  refused("meta.json", edited("/train/shard_tokens/0", nullptr), "shard_tokens");
  refused("meta.json", edited("/val", 3), "val");

  fs::remove(dir / "train-00001.bin");
  EXPECT_EQ(kind_of([&] { TokenData{dir}; }, "train-00001.bin"), ErrorKind::io);
  fs::remove(dir / "meta.json");
  EXPECT_EQ(kind_of([&] { TokenData{dir}; }, "no meta.json"), ErrorKind::usage);
}

class Batches : public testing::Test {
 protected:
  void SetUp() override {
    prepared_.run();
    data_.emplace(prepared_.options.out);
  }
  const TokenStream& train() const { return data_->train(); }

  Prepared prepared_{corpus_text(40), [](PrepareOptions& o) { o.shard_tokens = 101; }};
  std::optional<TokenData> data_;
};

TEST_F(Batches, LabelsAreTheTokensThatFollowTheInputs) {
  const Ids ids = all_ids(train());
  constexpr idx kT = 16;
  Ids inputs(3 * kT);
  Ids labels(3 * kT);
  const BatchSampler sampler{train(), 7};
  for (std::uint64_t step = 0; step < 50; ++step) {
    sampler.fill(step, 3, kT, inputs.data(), labels.data());
    for (idx b = 0; b < 3; ++b) {
      const auto row = inputs.begin() + b * kT;
      EXPECT_TRUE(std::equal(row + 1, row + kT, labels.begin() + b * kT));
      // The row and its labels are consecutive tokens at a multiple of T.
      bool found = false;
      for (idx w = 0; w < train().windows(kT) && !found; ++w)
        found = std::equal(row, row + kT, ids.begin() + w * kT) &&
                labels[static_cast<std::size_t>((b + 1) * kT - 1)] ==
                    ids[static_cast<std::size_t>((w + 1) * kT)];
      EXPECT_TRUE(found);
    }
  }
}

TEST_F(Batches, EachEpochSeesEveryWindowOnce) {
  constexpr idx kT = 8;
  const idx windows = train().windows(kT);
  ASSERT_GT(windows, 20);
  std::multiset<Ids> expected;
  const Ids ids = all_ids(train());
  for (idx w = 0; w < windows; ++w)
    expected.insert(Ids(ids.begin() + w * kT, ids.begin() + w * kT + kT + 1));
  std::vector<std::vector<Ids>> epochs;
  const BatchSampler sampler{train(), 3};
  for (idx e = 0; e < 3; ++e) {
    std::vector<Ids> rows;
    for (idx r = 0; r < windows; ++r) {
      Ids row(kT + 1);
      Ids labels(kT);
      sampler.fill_rows(static_cast<std::uint64_t>(e * windows + r), 1, kT, row.data(),
                        labels.data());
      row[kT] = labels[kT - 1];
      rows.push_back(row);
    }
    EXPECT_EQ(std::multiset<Ids>(rows.begin(), rows.end()), expected);
    epochs.push_back(rows);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST_F(Batches, AnyStepCanBeHadAloneAndInParts) {
  constexpr idx kT = 12;
  constexpr idx kBatch = 4;
  const auto batch = [&](const BatchSampler& sampler, std::uint64_t step) {
    Ids all(2 * kBatch * kT);
    sampler.fill(step, kBatch, kT, all.data(), all.data() + kBatch * kT);
    return all;
  };
  std::vector<Ids> uninterrupted;
  const BatchSampler first{train(), 5};
  for (std::uint64_t step = 0; step < 60; ++step) uninterrupted.push_back(batch(first, step));
  for (const std::uint64_t step : {59, 0, 17, 58}) {
    const TokenData reopened(prepared_.options.out);
    EXPECT_EQ(batch(BatchSampler{reopened.train(), 5}, step), uninterrupted[step]);
    Ids parts(2 * kBatch * kT);
    first.fill_rows(step * kBatch, 1, kT, parts.data(), parts.data() + kBatch * kT);
    first.fill_rows(step * kBatch + 1, 3, kT, parts.data() + kT, parts.data() + (kBatch + 1) * kT);
    EXPECT_EQ(parts, uninterrupted[step]);
  }
  EXPECT_NE(batch(BatchSampler{train(), 6}, 0), uninterrupted[0]);
}

TEST_F(Batches, TheLastWindowMayEndWithTheStream) {
  const idx n = train().size();
  EXPECT_EQ(train().windows(n - 1), 1);
  EXPECT_EQ(train().windows(n), 0);
  Ids inputs(static_cast<std::size_t>(n));
  Ids labels(static_cast<std::size_t>(n));
  const BatchSampler sampler{train(), 5};
  sampler.fill(9, 1, n - 1, inputs.data(), labels.data());
  const Ids ids = all_ids(train());
  EXPECT_TRUE(std::equal(ids.begin(), ids.end() - 1, inputs.begin()));
  EXPECT_TRUE(std::equal(ids.begin() + 1, ids.end(), labels.begin()));
  EXPECT_EQ(kind_of([&] { sampler.fill(0, 1, n, inputs.data(), labels.data()); },
                    std::to_string(n) + " tokens"),
            ErrorKind::usage);
}

TEST_F(Batches, ValidationCountsEveryTokenButTheFirstOnce) {
  const Ids ids = all_ids(train());
  for (const idx length : {idx{1}, idx{7}, idx{64}, train().size() - 1, train().size() + 5}) {
    Ids labels;
    for_each_window(train(), length, [&](const std::int32_t* in, const std::int32_t* out, idx n) {
      EXPECT_LE(n, length);
      EXPECT_TRUE(std::equal(in, in + n, ids.begin() + static_cast<idx>(labels.size())));
      labels.insert(labels.end(), out, out + n);
    });
    EXPECT_TRUE(std::equal(ids.begin() + 1, ids.end(), labels.begin(), labels.end())) << length;
  }
  EXPECT_EQ(kind_of([] {
              for_each_window(TokenStream(), 4,
                              [](const std::int32_t*, const std::int32_t*, idx) {});
            }),
            ErrorKind::usage);
}

}  // namespace
}  // namespace mmfree
