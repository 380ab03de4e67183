#include "mmfree/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/core/rng.h"
#include "mmfree/tokenizer/utf8.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

using Ids = std::vector<std::int32_t>;

// Sentences about farm animals, made up by a counter.
std::vector<std::string> training_texts() {
  const std::vector<std::string> who = {"the goat", "a hen", "the old horse", "my duck",
                                        "a small lamb"};
  const std::vector<std::string> does = {"walked over", "slept beside", "ran away from",
                                         "looked at"};
  const std::vector<std::string> where = {"the barn", "the 27 apple trees", "a pond",
                                          "the hill, 1904"};
  std::vector<std::string> texts;
  for (std::uint64_t i = 0; i < 300; ++i) {
    const auto pick = [&](const std::vector<std::string>& from, std::uint64_t salt) {
      return from[random_bits(5, salt, i) % from.size()];
    };
    texts.push_back(pick(who, 0) + " " + pick(does, 1) + " " + pick(where, 2) + ".\n" +
                    pick(who, 3) + "\t" + pick(does, 4) + " " + pick(where, 5) + ".");
  }
  return texts;
}

std::string train(const std::vector<std::string>& texts, TokenizerTraining options) {
  std::size_t next = 0;
  return train_tokenizer(
      [&](std::string& text) {
        if (next == texts.size()) return false;
        text = texts[next++];
        return true;
      },
      options);
}

const std::string& tiny_model() {
  static const std::string model = train(training_texts(), {.vocab_size = 400});
  return model;
}

Tokenizer tiny() {
  return Tokenizer::from_bytes(tiny_model(), "tiny");
}

std::vector<std::string> varied_texts() {
  return {"",
          " ",
          "  ",
          "the goat",
          " the goat  walked\n\n over\tthe barn \n",
          "\n\n",
          "\t",
          "caf\xC3\xA9 \xE6\xB0\xB4 \xF0\x9F\x90\x90\xF0\x9F\x8F\xBD \xE2\x80\x8D.",
          "\r\n\r\n",
          "3 1904 2719",
          "<s></s><unk><0x41>",
          std::string("a\0b", 3),
          std::string(300, ' ') + "x" + std::string(300, '\n')};
}

ErrorKind kind_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_FALSE(std::string(e.what()).empty());
    return e.kind();
  }
  ADD_FAILURE() << "no Error was thrown";
  return ErrorKind::numeric;
}

TEST(Utf8, FindsTheFirstByteThatIsNotUtf8) {
  EXPECT_EQ(find_invalid_utf8(""), std::string::npos);
  EXPECT_EQ(find_invalid_utf8("plain text, rather long \xC3\xA9\xE2\x82\xAC\xF0\x9F\x90\x90"),
            std::string::npos);
  EXPECT_EQ(find_invalid_utf8("\xEF\xBF\xBF\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80"),
            std::string::npos);
  EXPECT_EQ(find_invalid_utf8("0123456789\xFF"), 10U);
  EXPECT_EQ(find_invalid_utf8("ab\x80"), 2U);
  EXPECT_EQ(find_invalid_utf8("a\xC0\x80"), 1U);         // overlong
  EXPECT_EQ(find_invalid_utf8("\xE0\x9F\xBF"), 0U);      // overlong
  EXPECT_EQ(find_invalid_utf8("\xF0\x8F\xBF\xBF"), 0U);  // overlong
  EXPECT_EQ(find_invalid_utf8("abc\xED\xA0\x80"), 3U);   // surrogate
  EXPECT_EQ(find_invalid_utf8("\xF4\x90\x80\x80"), 0U);  // above U+10FFFF
  EXPECT_EQ(find_invalid_utf8("ab\xE2\x82"), 2U);        // cut
}

TEST(Tokenizer, TrainedModelHasTheLayoutOfLlama) {
  const Tokenizer t = tiny();
  EXPECT_EQ(t.vocab_size(), 400);
  EXPECT_EQ(t.unk_id(), 0);
  EXPECT_EQ(t.bos_id(), 1);
  EXPECT_EQ(t.eos_id(), 2);
  EXPECT_EQ(t.type(0), PieceType::unknown);
  EXPECT_EQ(t.type(1), PieceType::control);
  EXPECT_EQ(t.type(2), PieceType::control);
  EXPECT_EQ(t.type(3), PieceType::user_defined);
  EXPECT_EQ(t.piece(3), "\n");
  int bytes = 0;
  for (std::int32_t id = 0; id < t.vocab_size(); ++id) {
    if (t.type(id) == PieceType::byte) ++bytes;
    if (t.type(id) != PieceType::normal) continue;
    EXPECT_EQ(t.piece(id).find('\n'), std::string::npos) << id;
    int digits = 0;
    for (const char c : t.piece(id)) digits += c >= '0' && c <= '9' ? 1 : 0;
    EXPECT_TRUE(digits == 0 || t.piece(id).size() == 1) << t.piece(id);
  }
  EXPECT_EQ(bytes, 256);
  EXPECT_EQ(t.serialized(), tiny_model());
}

TEST(Tokenizer, AnyTextDecodesToItself) {
  const Tokenizer t = tiny();
  for (const std::string& text : varied_texts()) EXPECT_EQ(t.decode(t.encode(text)), text);
  for (const std::string& text : training_texts()) EXPECT_EQ(t.decode(t.encode(text)), text);
}

TEST(Tokenizer, BytesThatAreNotUtf8BecomeReplacementCharacters) {
  const Tokenizer t = tiny();
  EXPECT_EQ(t.decode(t.encode("a\xFF\xC3"
                              "b")),
            "a\xEF\xBF\xBD\xEF\xBF\xBD"
            "b");
}

TEST(Tokenizer, TrainingGivesTheSameBytesAgain) {
  EXPECT_EQ(train(training_texts(), {.vocab_size = 400}), tiny_model());
}

TEST(Tokenizer, SamplingIsDeterministicAndTakesAShare) {
  const auto texts = training_texts();
  std::uint64_t total = 0;
  for (const std::string& s : texts) total += s.size();
  const TokenizerTraining options = {
      .vocab_size = 330, .sample_bytes = total / 4, .total_bytes = total};
  const std::string model = train(texts, options);
  EXPECT_EQ(train(texts, options), model);
  EXPECT_NE(train(texts, {.vocab_size = 330}), model);
}

TEST(Tokenizer, ImpossibleVocabularySizesSayWhatIsPossible) {
  EXPECT_EQ(kind_of([] { train(training_texts(), {.vocab_size = 50}); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([] { train({}, {.vocab_size = 400}); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([] { train({"", "\t\t"}, {.vocab_size = 400}); }), ErrorKind::usage);
  EXPECT_EQ(kind_of([] { train({"ab \xFF"}, {.vocab_size = 400}); }), ErrorKind::format);
  // The size named by each message is accepted, and one step beyond is refused.
  const auto named = [](int vocab_size, const std::string& before) {
    try {
      train(training_texts(), {.vocab_size = vocab_size});
    } catch (const Error& e) {
      const std::string what = e.what();
      const std::size_t at = what.find(before);
      EXPECT_NE(at, std::string::npos) << what;
      return at == std::string::npos ? 0 : std::stoi(what.substr(at + before.size()));
    }
    ADD_FAILURE() << vocab_size << " was accepted";
    return 0;
  };
  const int most = named(100000, "at most ");
  EXPECT_EQ(
      Tokenizer::from_bytes(train(training_texts(), {.vocab_size = most}), "most").vocab_size(),
      most);
  EXPECT_EQ(named(most + 1, "at most "), most);
  const int least = named(270, "at least ");
  EXPECT_EQ(
      Tokenizer::from_bytes(train(training_texts(), {.vocab_size = least}), "least").vocab_size(),
      least);
  EXPECT_EQ(named(least - 1, "at least "), least);
}

TEST(Tokenizer, LongSentencesAndTabsAreLearnedFrom) {
  std::string text(3, 'q');
  for (int i = 0; i < 3000; ++i) text += i % 7 == 0 ? "\tzebra" : " zebra";
  const Tokenizer t =
      Tokenizer::from_bytes(train({text}, {.vocab_size = 280, .character_coverage = 1.0}), "long");
  EXPECT_EQ(t.encode("zebra").size(), 1U);
  EXPECT_EQ(t.decode(t.encode(text)), text);
}

TEST(Tokenizer, NoWordOfALongLineIsLostInTraining) {
  // One line of all words, which the trainer gets in parts, and each word by itself have the same
  // word counts.
  std::vector<std::string> words;
  std::string line;
  for (std::uint64_t i = 0; i < 8000; ++i) {
    std::string word;
    for (std::uint64_t k = 0; k < 2 + i % 4; ++k)
      word += std::vector<std::string>{"ka", "mo", "ri", "ten", "su"}[random_bits(3, i, k) % 5];
    line += (i == 0 ? "" : " ") + word;
    words.push_back(word);
  }
  EXPECT_EQ(train({line}, {.vocab_size = 400}), train(words, {.vocab_size = 400}));
}

TEST(Tokenizer, PartsOfATextGiveTheIdsOfTheWhole) {
  const Tokenizer t = tiny();
  std::string text;
  for (const std::string& s : training_texts())
    text += s + (text.size() % 3 == 0 ? "\n  " : " ") + "\xC3\xA9 ";
  for (const std::string& s : varied_texts()) text += s;
  for (const std::size_t target : {1, 2, 7, 64, 1000}) {
    const auto parts = t.split(text, target);
    EXPECT_GT(parts.size(), text.size() / (target + 100));
    Ids ids;
    std::size_t bytes = parts.size() - 1;
    for (const std::string_view part : parts) {
      const Ids more = t.encode(part);
      ids.insert(ids.end(), more.begin(), more.end());
      bytes += part.size();
    }
    EXPECT_EQ(bytes, text.size());
    EXPECT_EQ(ids, t.encode(text)) << target;
  }
}

TEST(TextStream, StreamedTextEqualsDecodeForAnyIds) {
  const Tokenizer t = tiny();
  for (std::uint64_t n = 0; n < 20000; ++n) {
    const std::uint64_t length = random_bits(1, 1, n) % 12;
    Ids ids;
    for (std::uint64_t i = 0; i < length; ++i) {
      const std::uint64_t r = random_bits(2, n, i);
      // Mostly control, unknown and byte pieces, of these mostly those that begin or continue long
      // characters.
      const std::uint64_t range[4][2] = {{0, 400}, {0, 5}, {4 + 0x80, 0x40}, {4 + 0xC0, 0x40}};
      const auto& [low, count] = range[r % 4];
      ids.push_back(static_cast<std::int32_t>(low + (r >> 8) % count));
    }
    TextStream stream(t);
    std::string text;
    for (const std::int32_t id : ids) {
      const std::string part = stream.put(id);
      EXPECT_EQ(find_invalid_utf8(part), std::string::npos);
      text += part;
    }
    text += stream.finish();
    ASSERT_EQ(text, t.decode(ids)) << "sequence " << n;
  }
}

TEST(TextStream, CharactersAppearAsSoonAsTheyAreComplete) {
  const Tokenizer t = tiny();
  TextStream stream(t);
  EXPECT_EQ(stream.put(t.bos_id()), "");
  EXPECT_EQ(stream.put(4 + 0xE2), "");
  EXPECT_EQ(stream.put(4 + 0x82), "");
  EXPECT_EQ(stream.put(4 + 0xAC), "\xE2\x82\xAC");
  EXPECT_EQ(stream.put(4 + 'x'), "x");
  EXPECT_EQ(stream.put(4 + 0xF0), "");
  EXPECT_EQ(stream.put(3), "\xEF\xBF\xBD\n");
  EXPECT_EQ(stream.put(4 + 0xC3), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST(Tokenizer, IdBytesOfATextAreItsBytes) {
  const Tokenizer t = tiny();
  const std::string text = "the goat \xF0\x9F\x90\x90\n ran";
  std::string bytes;
  for (const std::int32_t id : t.encode(text)) bytes += t.id_bytes(id);
  EXPECT_EQ(bytes, " " + text);
  EXPECT_EQ(t.id_bytes(1), "");
}

TEST(Tokenizer, IdsOutsideTheVocabularyAreUsageErrors) {
  const Tokenizer t = tiny();
  for (const std::int32_t id : {-1, 400, INT32_MAX}) {
    EXPECT_EQ(kind_of([&] { t.decode(Ids{id}); }), ErrorKind::usage);
    EXPECT_EQ(kind_of([&] { t.piece(id); }), ErrorKind::usage);
    EXPECT_EQ(kind_of([&] { t.id_bytes(id); }), ErrorKind::usage);
    EXPECT_EQ(kind_of([&] { TextStream(t).put(id); }), ErrorKind::usage);
  }
}

TEST(Tokenizer, LoadsFilesAndFolders) {
  const test::TempDir dir;
  write_file_atomically(dir.path() / "tokenizer.model", tiny_model());
  EXPECT_EQ(Tokenizer::load(dir.path()).vocab_size(), 400);
  EXPECT_EQ(Tokenizer::load(dir.path() / "tokenizer.model").vocab_size(), 400);
  const test::TempDir json;
  EXPECT_EQ(kind_of([&] { Tokenizer::load(json.path()); }), ErrorKind::usage);
  write_file_atomically(json.path() / "tokenizer.json", "{}");
  try {
    Tokenizer::load(json.path());
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("tokenizer.model is expected"), std::string::npos)
        << e.what();
  }
  EXPECT_EQ(kind_of([&] { Tokenizer::load(json.path() / "absent.model"); }), ErrorKind::io);
}

TEST(Tokenizer, TruncatedModelsAreRefused) {
  const std::string& model = tiny_model();
  EXPECT_EQ(kind_of([] { Tokenizer::from_bytes("", "empty"); }), ErrorKind::format);
  EXPECT_EQ(kind_of([] { Tokenizer::from_bytes("not a model at all", "text"); }),
            ErrorKind::format);
  // The last field holds the normaliser's settings, which may be cut between two of them.
  const std::size_t settings = model.rfind("identity");
  ASSERT_NE(settings, std::string::npos);
  for (std::size_t n = 1; n < settings; ++n)
    ASSERT_EQ(kind_of([&] { Tokenizer::from_bytes(model.substr(0, n), "cut"); }), ErrorKind::format)
        << n;
}

TEST(Tokenizer, CorruptModelsNeverCrash) {
  int refused = 0;
  constexpr int kTrials = 3000;
  for (std::uint64_t n = 0; n < kTrials; ++n) {
    std::string model = tiny_model();
    for (std::uint64_t i = 0; i <= n % 4; ++i) {
      const std::uint64_t r = random_bits(9, n, i);
      // Half of the changes hit the settings at the end.
      const std::size_t span = (r & 1) != 0 ? 300 : model.size();
      model[model.size() - 1 - (r >> 16) % span] = static_cast<char>(r >> 8);
    }
    try {
      const Tokenizer t = Tokenizer::from_bytes(model, "corrupt");
      const Ids ids = t.encode("the old horse 27\n\t \xC3\xA9");
      t.decode(ids);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::format) << e.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, kTrials / 20);
  EXPECT_LT(refused, kTrials);
}

}  // namespace
}  // namespace mmfree
