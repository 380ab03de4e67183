#include <fmt/core.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mmfree/cli/options.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "mmfree/tokenizer/utf8.h"

namespace mmfree {
namespace {

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

// Numbers with anything of ", []" and white space between them.
std::vector<std::int32_t> parse_ids(std::string_view text) {
  constexpr std::string_view kBetween = ", []\t\r\n";
  std::vector<std::int32_t> ids;
  for (;;) {
    const std::size_t begin = text.find_first_not_of(kBetween);
    if (begin == text.npos) return ids;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(kBetween));
    std::int32_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || end != word.data() + word.size())
      fail(ErrorKind::usage, fmt::format("token id '{}': expected an integer", word));
    ids.push_back(id);
    text.remove_prefix(word.size());
  }
}

void train(const std::vector<std::string>& files, const std::string& out, TokenizerTraining options,
           bool as_json) {
  std::vector<std::string> texts;
  for (const std::string& file : files) {
    texts.push_back(read_text_file(file));
    options.total_bytes += texts.back().size();
    if (const std::size_t bad = find_invalid_utf8(texts.back()); bad != std::string::npos)
      fail(ErrorKind::format, fmt::format("{}: not UTF-8 at byte offset {}", file, bad));
  }
  // Paragraphs, so that a long text is sampled all over.
  std::size_t file = 0;
  std::size_t at = 0;
  const auto source = [&](std::string& text) {
    while (file < texts.size() && at >= texts[file].size()) {
      ++file;
      at = 0;
    }
    if (file == texts.size()) return false;
    const std::size_t end = texts[file].find("\n\n", at);
    text = texts[file].substr(at, end == std::string::npos ? end : end - at);
    at = end == std::string::npos ? texts[file].size() : end + 2;
    return true;
  };
  const std::string model = train_tokenizer(source, options);
  write_file_atomically(out, model);
  if (as_json) {
    const nlohmann::json summary = {
        {"out", out}, {"vocab_size", options.vocab_size}, {"text_bytes", options.total_bytes}};
    // File names may be any bytes; JSON may not.
    fmt::print("{}\n", summary.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("{}: {} pieces from {} bytes of text\n", out, options.vocab_size,
               options.total_bytes);
  }
}

}  // namespace

int cmd_tokenizer(Args args) {
  CLI::App app("Trains and uses SentencePiece tokenizers", "mmfree tokenizer");
  app.require_subcommand(1);

  bool as_json = false;
  std::vector<std::string> files;
  std::string out;
  TokenizerTraining training;
  CLI::App* train_app = app.add_subcommand("train", "make a tokenizer.model from text files");
  train_app->add_option("FILE", files, "UTF-8 text")->required();
  train_app
      ->add_option("--vocab-size", training.vocab_size, "pieces, with 3 special ones and 256 bytes")
      ->capture_default_str();
  train_app
      ->add_option("--character-coverage", training.character_coverage,
                   "share of the characters with a piece")
      ->capture_default_str();
  train_app->add_option("--out", out, "file to write")->required();
  train_app->add_flag("--json", as_json, "print the summary as JSON");

  std::string model;
  std::string text = "-";
  std::string ids_file;
  bool bos = false;
  CLI::App* encode_app = app.add_subcommand("encode", "text to token ids");
  encode_app->add_option("MODEL", model, "tokenizer.model, or a folder that holds one")->required();
  encode_app->add_option("TEXT", text, "the text; - or nothing: standard input");
  encode_app->add_flag("--bos", bos, "put BOS in front");
  encode_app->add_option("--ids", ids_file, "write {\"input_ids\": [[...]]} to this file");
  encode_app->add_flag("--json", as_json, "print ids and pieces as JSON");

  std::vector<std::string> ids_words;
  CLI::App* decode_app = app.add_subcommand("decode", "token ids to text");
  decode_app->add_option("MODEL", model, "tokenizer.model, or a folder that holds one")->required();
  decode_app->add_option("IDS", ids_words,
                         "ids, separated by spaces or commas; - or nothing: standard input");
  if (!parse_options(app, args)) return 0;

  if (train_app->parsed()) {
    train(files, out, training, as_json);
    return 0;
  }
  const Tokenizer tokenizer = Tokenizer::load(model);
  if (decode_app->parsed()) {
    const bool from_stdin = ids_words.empty() || (ids_words.size() == 1 && ids_words[0] == "-");
    const std::string words =
        from_stdin ? read_stdin() : fmt::format("{}", fmt::join(ids_words, " "));
    fmt::print("{}\n", tokenizer.decode(parse_ids(words)));
    return 0;
  }
  std::vector<std::int32_t> ids = tokenizer.encode(text == "-" ? read_stdin() : text);
  if (bos) {
    if (tokenizer.bos_id() < 0) fail(ErrorKind::usage, model + ": has no BOS piece");
    ids.insert(ids.begin(), tokenizer.bos_id());
  }
  if (!ids_file.empty())
    write_file_atomically(ids_file, nlohmann::json{{"input_ids", {ids}}}.dump() + "\n");
  if (as_json) {
    nlohmann::json pieces = nlohmann::json::array();
    for (const std::int32_t id : ids) pieces.push_back(tokenizer.piece(id));
    fmt::print("{}\n", nlohmann::json{{"ids", ids}, {"pieces", pieces}}.dump());
  } else if (ids_file.empty()) {
    fmt::print("{}\n", fmt::join(ids, " "));
  }
  return 0;
}

}  // namespace mmfree
