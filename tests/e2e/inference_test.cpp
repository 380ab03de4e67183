// Runs the program's inference commands as a user does, with good and with bad input.
#include <fcntl.h>
#include <fmt/core.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mmfree/core/file.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/weights.h"
#include "mmfree/tokenizer/tokenizer.h"
#include "tests/support/temp_dir.h"

namespace mmfree {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Arguments = std::vector<std::string>;

struct Ran {
  int code = 0;  // minus the signal's number if one ended it
  std::string out, err;
};

class Inference : public testing::Test {
 protected:
  void SetUp() override {
    std::string text;
    for (int i = 0; i < 300; ++i)
      text += std::string(i % 3 == 0   ? "the cat sat on the mat"
                          : i % 3 == 1 ? "a d\xC3\xB6g ran"
                                       : "and saw 42 mice") +
              ".\n";
    bool given = false;
    const std::string tokenizer = train_tokenizer(
        [&](std::string& t) {
          if (given) return false;
          t = text;
          return given = true;
        },
        {.vocab_size = 320});
    MatmulFreeConfig c;
    c.vocab_size = 320;
    c.hidden_size = 256;
    c.num_hidden_layers = 2;
    c.intermediate_size = 320;
    Network net(c);
    initialize_params(net.table, c, 1, net.values.data());
    save_network(net, path("run"));
    write_file_atomically(path("run/tokenizer.model"), tokenizer);
    write_file_atomically(path("text.txt"), text);
    write_file_atomically(path("ids.json"), R"({"input_ids": [[1, 5, 9], [2, 319, 0]]})");
  }

  std::string path(const std::string& name) const { return (dir_.path() / name).string(); }

  Ran run(const Arguments& arguments, const std::string& input = "",
          rlim_t file_bytes = RLIM_INFINITY, const char* isa = nullptr) {
    std::vector<std::string> words{MMFREE_PROGRAM};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    write_file_atomically(path("stdin"), input);
    const pid_t pid = fork();
    if (pid == 0) {
      const int in = open(path("stdin").c_str(), O_RDONLY);
      const int out = open(path("stdout").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      const int err = open(path("stderr").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
      dup2(in, STDIN_FILENO);
      dup2(out, STDOUT_FILENO);
      dup2(err, STDERR_FILENO);
      signal(SIGXFSZ, SIG_IGN);  // so that the limit shows as a failed write, as a full disk does
      const rlimit limit{file_bytes, file_bytes};
      setrlimit(RLIMIT_FSIZE, &limit);
      if (isa != nullptr) setenv("MMFREE_ISA", isa, 1);
      execv(argv[0], argv.data());
      _exit(127);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return {WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status),
            read_text_file(path("stdout")), read_text_file(path("stderr"))};
  }

  std::string good(const Arguments& arguments, const std::string& input = "") {
    const Ran r = run(arguments, input);
    EXPECT_EQ(r.code, 0) << arguments[0] << ": " << r.err;
    return r.out;
  }

  // Refused with code 2 and a message that holds `message`.
  void refused(const Arguments& arguments, const std::string& message) {
    const Ran r = run(arguments);
    std::string line;
    for (const std::string& a : arguments) line += a + " ";
    EXPECT_EQ(r.code, 2) << line << r.err;
    EXPECT_NE(r.err.find(message), std::string::npos)
        << line << "\nsaid: " << r.err << "expected: " << message;
    EXPECT_EQ(r.out, "") << line;
  }

  test::TempDir dir_;
};

TEST_F(Inference, DirectoryAndGgufGenerateTheSameForAnyThreadCount) {
  good({"convert", path("run"), path("1.gguf")});
  good({"convert", path("run"), path("2.gguf"), "--weights", "tq2_0"});
  good({"convert", path("run"), path("f32.gguf"), "--weights", "f32"});
  const Arguments options = {"--prompt",     "the cat", "-n",      "40", "--temp", "1",
                             "--top-k",      "0",       "--top-p", "1",  "--seed", "3",
                             "--ignore-eos", "--json"};
  json expected;
  for (const char* model : {"run", "1.gguf", "2.gguf", "f32.gguf"})
    for (const char* threads : {"1", "2"}) {
      Arguments a = {"generate", path(model), "--threads", threads};
      a.insert(a.end(), options.begin(), options.end());
      const json got = json::parse(good(a));
      if (expected.is_null()) expected = got;
      EXPECT_EQ(got.at("ids"), expected.at("ids")) << model;
      EXPECT_EQ(got.at("text"), expected.at("text")) << model;
      EXPECT_EQ(got.at("prompt_ids").at(0), 1);
      EXPECT_EQ(got.at("generated_tokens"), 40);
      EXPECT_GT(got.at("peak_rss_bytes"), 0);
    }
  Arguments other = {"generate", path("run"), "--prompt",     "the cat", "-n",      "40",
                     "--temp",   "1",         "--top-k",      "0",       "--top-p", "1",
                     "--seed",   "4",         "--ignore-eos", "--json"};
  EXPECT_NE(json::parse(good(other)).at("ids"), expected.at("ids"));
}

TEST_F(Inference, PromptComesFromOptionStandardInputOrIds) {
  const Arguments tail = {"-n", "12", "--temp", "0", "--ignore-eos"};
  const auto with = [&](Arguments a) {
    a.insert(a.begin(), {"generate", path("run")});
    a.insert(a.end(), tail.begin(), tail.end());
    return a;
  };
  const std::string text = good(with({"--prompt", "d\xC3\xB6g"}));
  EXPECT_EQ(good(with({"--prompt", "-"}), "d\xC3\xB6g"), text);
  const json j = json::parse(good(with({"--prompt", "d\xC3\xB6g", "--json"})));
  EXPECT_EQ(j.at("text").get<std::string>() + "\n", text);
  std::string ids;
  for (const json& id : j.at("prompt_ids"))
    ids += fmt::format("{}{}", ids.empty() ? "" : ",", id.get<int>());
  EXPECT_EQ(good(with({"--prompt-ids", ids})), text);
  EXPECT_TRUE(good(with({"--prompt", "d\xC3\xB6g", "--echo"})).starts_with("d\xC3\xB6g"));
}

TEST_F(Inference, ACharacterThatStaysIncompleteIsShownAsReplaced) {
  const Tokenizer tokenizer = Tokenizer::load(path("run"));
  const auto byte_piece = [&](const std::string& name) {
    std::int32_t id = 0;
    while (tokenizer.piece(id) != name) ++id;
    return std::to_string(id);
  };
  const auto echo = [&](const std::string& ids) {
    return good({"generate", path("run"), "--prompt-ids", ids, "--echo", "-n", "0"});
  };
  EXPECT_EQ(echo(byte_piece("<0xC3>")), "\xEF\xBF\xBD\n");
  EXPECT_EQ(echo(byte_piece("<0xC3>") + "," + byte_piece("<0xB6>")), "\xC3\xB6\n");
}

TEST_F(Inference, WithoutTokenizerIdsWorkAndTextIsRefused) {
  fs::remove(path("run/tokenizer.model"));
  const Ran converted = run({"convert", path("run"), path("m.gguf")});
  EXPECT_EQ(converted.code, 0);
  EXPECT_NE(converted.err.find("tokenizer"), std::string::npos);
  EXPECT_NE(good({"generate", path("m.gguf"), "--prompt-ids", "1,5", "-n", "4", "--ignore-eos"}),
            "");
  refused({"generate", path("m.gguf"), "--prompt", "a"}, "no tokenizer.model");
  refused({"eval", path("m.gguf"), "--text", path("text.txt")}, "no tokenizer.model");
}

TEST_F(Inference, EvalIsEqualForDirectoryAndGguf) {
  good({"convert", path("run"), path("m.gguf")});
  for (const char* window : {"0", "32"}) {
    const json a = json::parse(
        good({"eval", path("run"), "--text", path("text.txt"), "--window", window, "--json"}));
    const json b = json::parse(
        good({"eval", path("m.gguf"), "--text", path("text.txt"), "--window", window, "--json"}));
    EXPECT_EQ(a.at("nll"), b.at("nll"));
    EXPECT_EQ(a.at("bits_per_byte"), b.at("bits_per_byte"));
    EXPECT_EQ(a.at("bytes"), fs::file_size(path("text.txt")));
    EXPECT_GT(a.at("perplexity"), 50.0);  // random weights: near the vocabulary's size
    EXPECT_LT(a.at("perplexity"), 2000.0);
  }
}

TEST_F(Inference, LogitsWritesTheNamedTensors) {
  good({"logits", path("run"), "--ids", path("ids.json"), "--out", path("o.safetensors"),
        "--hidden", "--states"});
  const SafetensorsFile out(path("o.safetensors"));
  using Shape = std::vector<idx>;
  EXPECT_EQ(out.get("logits").shape, (Shape{2, 3, 320}));
  for (const char* name :
       {"hidden.embedding", "hidden.block0", "hidden.block1", "hidden.final_norm"})
    EXPECT_EQ(out.get(name).shape, (Shape{2, 3, 256})) << name;
  for (const char* name : {"state.layer0", "state.layer1"})
    EXPECT_EQ(out.get(name).shape, (Shape{2, 1, 256})) << name;
  EXPECT_EQ(out.tensors().size(), 7U);
  good({"logits", path("run"), "--ids", path("ids.json"), "--out", path("o.safetensors"),
        "--numerics", "reference", "--reference-dtype", "float16"});
  EXPECT_EQ(SafetensorsFile(path("o.safetensors")).tensors().size(), 1U);
  write_file_atomically(path("one.json"), R"({"input_ids": [[7]], "attention_mask": [[1]]})");
  good({"logits", path("run"), "--ids", path("one.json"), "--out", path("o.safetensors")});
  EXPECT_EQ(SafetensorsFile(path("o.safetensors")).get("logits").shape, (Shape{1, 1, 320}));
}

TEST_F(Inference, EveryInstructionSetGivesTheSameBits) {
  good({"convert", path("run"), path("m.gguf")});
  const auto logits = [&](const char* model, const char* isa) {
    return run({"logits", path(model), "--ids", path("ids.json"), "--out", path("o.safetensors"),
                "--hidden", "--states"},
               "", RLIM_INFINITY, isa);
  };
  ASSERT_EQ(logits("run", "scalar").code, 0);
  const std::string expected = read_text_file(path("o.safetensors"));
  for (const char* isa : {"avx2", "avx512"})
    for (const char* model : {"run", "m.gguf"}) {
      const Ran r = logits(model, isa);
      if (r.code == 2 && r.err.find(isa) != std::string::npos) continue;  // this CPU lacks it
      EXPECT_EQ(r.code, 0) << r.err;
      EXPECT_TRUE(read_text_file(path("o.safetensors")) == expected) << isa << " " << model;
    }
}

TEST_F(Inference, LogitsOfRandomWeightsNeedNoModel) {
  const Arguments base = {"logits", "--random", "--size",         "tiny",  "--vocab-size",
                          "320",    "--ids",    path("ids.json"), "--out", path("o.safetensors")};
  const auto with = [&](Arguments more) {
    more.insert(more.begin(), base.begin(), base.end());
    return more;
  };
  good(with({"--threads", "1"}));
  const std::string expected = read_text_file(path("o.safetensors"));
  EXPECT_EQ(SafetensorsFile(path("o.safetensors")).get("logits").shape,
            (std::vector<idx>{2, 3, 320}));
  EXPECT_EQ(run(with({"--threads", "2"}), "", RLIM_INFINITY, "scalar").code, 0);
  EXPECT_TRUE(read_text_file(path("o.safetensors")) == expected);
  refused(with({path("run")}), "--random");
  refused(with({"--numerics", "reference"}), "integer");
  refused(with({"--numerics", "fixed"}), "integer");
  const std::string ids = path("ids.json"), out = path("o");
  refused({"logits", "--random", "--ids", ids, "--out", out}, "--size");
  refused({"logits", "--ids", ids, "--out", out}, "MODEL");
  refused({"logits", path("run"), "--size", "tiny", "--ids", ids, "--out", out}, "--random");
  refused({"logits", "--random", "--size", "huge", "--ids", ids, "--out", out}, "huge");
}

TEST_F(Inference, BadIdsFilesAreRefusedByRowAndPosition) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {R"({"input_ids": [[1, 2], [3, 320]]})",
       "row 1 position 1 is 320, expected an integer in 0..319"},
      {R"({"input_ids": [[1, -1]]})", "row 0 position 1 is -1"},
      {R"({"input_ids": [[1, 2.5]]})", "row 0 position 1 is 2.5"},
      {R"({"input_ids": [[1, "a"]]})", "row 0 position 1"},
      {R"({"input_ids": [[1, 99999999999999999999]]})", "row 0 position 1"},
      {R"({"input_ids": [[1, 18446744073709551615]]})", "row 0 position 1"},
      {R"({"input_ids": [[1, 2], [3]]})", "row 1 has 1 values, expected 2"},
      {R"({"input_ids": []})", "empty list"},
      {R"({"input_ids": [[]]})", "row 0 is an empty list"},
      {R"({"input_ids": 5})", "number"},
      {R"({"ids": [[1]]})", "input_ids"},
      {R"([[1]])", "array"},
      {R"({"input_ids": [[1])", "not JSON"},
      {R"({"input_ids": [[1]], "attention_mask": [[2]]})", "attention_mask row 0 position 0 is 2"},
      {R"({"input_ids": [[1, 2]], "attention_mask": [[1]]})",
       "attention_mask is 1 x 1, expected 1 x 2"}};
  for (const auto& [text, message] : cases) {
    write_file_atomically(path("bad.json"), text);
    refused({"logits", path("run"), "--ids", path("bad.json"), "--out", path("o.safetensors")},
            message);
    EXPECT_FALSE(fs::exists(path("o.safetensors")));
  }
}

TEST_F(Inference, WrongOptionsAreRefused) {
  const std::string m = path("run");
  refused({"generate", m, "--prompt", "a", "--temp", "-1"}, "temperature is -1");
  refused({"generate", m, "--prompt", "a", "--temp", "nan"}, "temperature");
  refused({"generate", m, "--prompt", "a", "--top-p", "1.5"}, "top-p is 1.5");
  refused({"generate", m, "--prompt", "a", "--min-p", "-0.1"}, "min-p");
  refused({"generate", m, "--prompt", "a", "--top-k", "-3"}, "top-k is -3");
  refused({"generate", m, "--prompt", "a", "--repetition-penalty", "0"}, "repetition penalty is 0");
  refused({"generate", m, "--prompt", "a", "-n", "-1"}, "--tokens");
  refused({"generate", m, "--prompt", "a", "-n", "ten"}, "ten");
  refused({"generate", m, "--prompt", "a", "--threads", "0"}, "--threads");
  refused({"generate", m, "--prompt", "a", "--seed", "x"}, "seed");
  refused({"generate", m, "--prompt-ids", "1,,2"}, "position 1");
  refused({"generate", m, "--prompt-ids", "1,320"}, "position 1 is 320, expected 0..319");
  refused({"generate", m, "--prompt-ids", "1,-5"}, "-5");
  refused({"generate", path("absent.gguf"), "--prompt", "a"}, "absent.gguf");
  refused({"generate"}, "MODEL");
  refused({"eval", m, "--text", path("absent.txt")}, "absent.txt");
  write_file_atomically(path("empty.txt"), "");
  refused({"eval", m, "--text", path("empty.txt")}, "empty");
  refused({"eval", m, "--text", path("text.txt"), "--window", "-1"}, "--window");
  refused({"logits", m, "--ids", path("ids.json"), "--out", path("no/such/folder.safetensors")},
          "folder.safetensors");
  refused({"logits", m, "--ids", path("ids.json"), "--out", path("o"), "--numerics", "exact"},
          "--numerics");
  refused(
      {"logits", m, "--ids", path("ids.json"), "--out", path("o"), "--reference-dtype", "float16"},
      "--numerics reference");
  refused({"inspect", path("text.txt")}, "text.txt");
  refused({"inspect", path("")}, "config.json");
}

TEST_F(Inference, ConvertRefusesWhatItCannotDoAndLeavesNothingBehind) {
  good({"convert", path("run"), path("m.gguf")});
  refused({"convert", path("run"), path("m.gguf")}, "--force");
  good({"convert", path("run"), path("m.gguf"), "--force"});
  refused({"convert", path("m.gguf"), path("back")}, "latent weights");
  refused({"convert", path("m.gguf"), path("n.gguf"), "--weights", "f32"}, "latent weights");
  refused({"convert", path("run"), path("back")}, "run directory already");
  refused({"convert", path("run"), path("n.gguf"), "--weights", "bf16"}, "--allow-rounding");
  refused({"convert", path("run"), path("n.gguf"), "--weights", "q4"}, "--weights");
  refused({"logits", path("m.gguf"), "--ids", path("ids.json"), "--out", path("o"), "--numerics",
           "reference"},
          "latent weights");
  EXPECT_FALSE(fs::exists(path("back")));
  good({"convert", path("run"), path("latent.gguf"), "--weights", "f32"});
  refused({"convert", path("latent.gguf"), path("back"), "--weights", "f32"}, "--weights");
  good({"convert", path("latent.gguf"), path("back")});
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.model"})
    EXPECT_EQ(read_text_file(path("back") + "/" + name), read_text_file(path("run") + "/" + name))
        << name;
  // The disk is full in the middle of it.
  const Ran full = run({"convert", path("run"), path("n.gguf"), "--weights", "f32"}, "", 100000);
  EXPECT_EQ(full.code, 2) << full.err;
  EXPECT_NE(full.err.find("n.gguf"), std::string::npos) << full.err;
  for (const auto& entry : fs::directory_iterator(dir_.path()))
    EXPECT_FALSE(entry.path().filename().string().starts_with("n.gguf")) << entry.path();
}

TEST_F(Inference, ASavedStateGoesOnAsIfNothingHadHappened) {
  good({"convert", path("run"), path("m.gguf")});
  const Arguments options = {"--temp",
                             "1",
                             "--top-k",
                             "0",
                             "--seed",
                             "3",
                             "--ignore-eos",
                             "--json",
                             "--repetition-penalty",
                             "1.2"};
  const auto generate = [&](Arguments a) {
    a.insert(a.begin(), "generate");
    a.insert(a.end(), options.begin(), options.end());
    return json::parse(good(a));
  };
  const json whole = generate({path("run"), "--prompt-ids", "1,5,9,30,31", "-n", "20"});
  // The prompt in two parts; the second from the GGUF file of the same model.
  generate({path("run"), "--prompt-ids", "1,5,9", "-n", "0", "--save-state", path("a.st")});
  EXPECT_EQ(
      generate({path("m.gguf"), "--load-state", path("a.st"), "--prompt-ids", "30,31", "-n", "20"})
          .at("ids"),
      whole.at("ids"));
  // In the midst of the text, without a prompt, twice from the same file.
  const json begin = generate({path("m.gguf"), "--load-state", path("a.st"), "--prompt-ids",
                               "30,31", "-n", "7", "--save-state", path("b.st")});
  for (int time = 0; time < 2; ++time) {
    const json rest =
        generate({path("run"), "--load-state", path("b.st"), "-n", "13", "--threads", "1"});
    EXPECT_EQ(rest.at("loaded_tokens"), 12);
    json ids = begin.at("ids");
    for (const json& id : rest.at("ids")) ids.push_back(id);
    EXPECT_EQ(ids, whole.at("ids"));
  }

  // Damage, another model, wrong numerics.
  const std::string bytes = read_text_file(path("b.st"));
  for (const double share : {0.0, 0.0001, 0.01, 0.5, 0.999}) {
    write_file_atomically(
        path("cut.st"),
        bytes.substr(0, static_cast<std::size_t>(share * static_cast<double>(bytes.size()))));
    refused({"generate", path("run"), "--load-state", path("cut.st")}, "cut.st");
  }
  std::string flipped = bytes;
  flipped[bytes.size() - 30] ^= 1;
  write_file_atomically(path("flip.st"), flipped);
  refused({"generate", path("run"), "--load-state", path("flip.st")}, "damaged");
  refused({"generate", path("run"), "--load-state", path("run/model.safetensors")}, "format");
  refused({"generate", path("run"), "--load-state", path("none.st")}, "none.st");
  refused({"generate", path("run"), "--load-state", path("b.st"), "--numerics", "fixed"}, "fixed");
  MatmulFreeConfig c;
  c.vocab_size = 320;
  c.hidden_size = 256;
  c.num_hidden_layers = 2;
  c.intermediate_size = 320;
  Network other(c);
  initialize_params(other.table, c, 2, other.values.data());
  save_network(other, path("other"));
  refused({"generate", path("other"), "--load-state", path("b.st")}, "another model");
  EXPECT_EQ(run({"generate", path("run"), "--prompt-ids", "1", "-n", "1", "--save-state",
                 path("nowhere/x.st")})
                .code,
            2);
}

TEST_F(Inference, BenchReportsWhatItMeasured) {
  using Run = std::pair<const char*, const char*>;
  for (const auto& [what, layout] : {Run{"decode", "auto"}, Run{"prefill", "base3"}}) {
    const json j = json::parse(
        good({"bench", what, "--random", "--size", "tiny", "--vocab-size", "320", "--tokens", "8",
              "--rounds", "1", "--layout", layout, "--threads", "2", "--json"}));
    double stages = 0;
    for (const json& share : j.at("stages")) stages += share.get<double>();
    EXPECT_NEAR(stages, 1, 1e-6);
    const json& roofline = j.at("roofline");
    EXPECT_EQ(roofline.at("read_gb_per_s_by_threads").at("2"), roofline.at("read_gb_per_s"));
    EXPECT_GT(roofline.at("read_gb_per_s_by_threads").at("1"), 0);
    const json& choice = j.at("model").at("layout_choice");
    const bool forced = std::string(layout) != "auto";
    EXPECT_EQ(choice.at("chosen_by") == "option", forced);
    for (const json& width : choice.at("widths")) {
      EXPECT_EQ(width.at("base3_gmac_per_s").is_null(), forced);
      if (forced) {
        EXPECT_EQ(width.at("layout"), layout);
      }
    }
    for (const char* key : {"tokens_per_s", "gb_per_s", "roofline_share", "peak_rss_bytes"})
      EXPECT_GT(j.at(key), 0) << key;
  }
}

TEST_F(Inference, BenchStreamCountsEveryToken) {
  const json j = json::parse(good({"bench", "stream", "--random", "--size", "tiny", "--vocab-size",
                                   "320", "--tokens", "53", "--json"}));
  long long tokens = 0;
  for (const json& part : j.at("parts")) {
    EXPECT_EQ(part.at("first_position"), tokens);
    tokens += part.at("tokens").get<long long>();
    EXPECT_GT(part.at("tokens_per_s"), 0);
  }
  EXPECT_EQ(j.at("parts").size(), 10U);
  EXPECT_EQ(tokens, 53);
  refused({"bench", "stream", "--random", "--size", "tiny", "--tokens", "9"}, "--tokens is 9");
}

TEST_F(Inference, DamagedGgufFilesAreRefused) {
  good({"convert", path("run"), path("m.gguf")});
  const std::string bytes = read_text_file(path("m.gguf"));
  for (const double share : {0.0, 0.00001, 0.001, 0.3, 0.9, 0.99999}) {
    write_file_atomically(
        path("cut.gguf"),
        bytes.substr(0, static_cast<std::size_t>(share * static_cast<double>(bytes.size()))));
    refused({"generate", path("cut.gguf"), "--prompt-ids", "1", "-n", "1"}, "cut.gguf");
    refused({"inspect", path("cut.gguf")}, "cut.gguf");
  }
}

TEST_F(Inference, InspectReportsWhatTheModelIs) {
  good({"convert", path("run"), path("m.gguf")});
  const json run_json = json::parse(good({"inspect", path("run"), "--json"}));
  const json gguf_json = json::parse(good({"inspect", path("m.gguf"), "--json"}));
  // 2 layers: 4 d^2 + 3 d m ternary, 8 d + m gains; 2 V d + 2 d + L d besides.
  const long long d = 256, m = 320, v = 320, l = 2;
  const long long ternary = l * (4 * d * d + 3 * d * m) + v * d;
  for (const json& j : {run_json, gguf_json}) {
    EXPECT_EQ(j.at("ternary_parameters"), ternary);
    EXPECT_EQ(j.at("parameters"), ternary + v * d + l * (8 * d + m) + 2 * d + l * d);
    EXPECT_EQ(j.at("memory").at("state_bytes_per_sequence"), 4 * l * d);
    EXPECT_EQ(j.at("share_of_zeros"), run_json.at("share_of_zeros"));
    EXPECT_GT(j.at("share_of_zeros"), 0.2);
    EXPECT_LT(j.at("share_of_zeros"), 0.4);
    EXPECT_EQ(j.at("config"), run_json.at("config"));
    EXPECT_EQ(j.at("tokenizer"), "sentencepiece");
  }
  EXPECT_EQ(run_json.at("tensors").size(), 2 * 15U + 5U);
  EXPECT_EQ(gguf_json.at("tensors").size(), 2 * 15U + 5U + 2 * 6U + 1U);  // and the exact scales
  EXPECT_NE(good({"inspect", path("m.gguf")}).find("blk.1.ffn_down.weight"), std::string::npos);
}

// The accelerator's tool chain: the simulator draws what the integer network draws, and what cannot
// work is refused.
TEST_F(Inference, AcceleratorDrawsWhatTheIntegerNetworkDraws) {
  good({"hw", "compile", path("run"), "-o", path("one.mmh")});
  good({"hw", "compile", path("run"), "-o", path("two.mmh"), "--streams", "2"});
  const auto ids = [&](Arguments a, const std::string& temp, const std::string& seed,
                       const std::string& key = "ids") {
    const Arguments rest = {"--prompt", "the cat", "-n", "12",           "--temp",
                            temp,       "--seed",  seed, "--ignore-eos", "--json"};
    a.insert(a.end(), rest.begin(), rest.end());
    return json::parse(good(a)).at(key);
  };
  const Arguments network = {"generate", path("run"), "--numerics", "fixed"};
  const Arguments one = {"hw", "run", path("one.mmh")}, two = {"hw", "run", path("two.mmh")};
  const std::string big = "18446744073709551615";  // the largest seed
  json drawn;
  for (const std::string seed : {"1", "2", "4294967295", big.c_str()}) {
    drawn.push_back(ids(network, "1.3", seed));
    EXPECT_EQ(ids(one, "1.3", seed), drawn.back()) << seed;
  }
  EXPECT_NE(drawn[0], drawn[1]);
  EXPECT_EQ(ids(two, "1.3", "1", "ids_of_streams"), json({drawn[0], drawn[1]}));
  EXPECT_EQ(ids(one, "0", "1"), ids(network, "0", "2"));  // seeds count only with a temperature
  EXPECT_NE(ids(one, "0", "1"), drawn[0]);

  for (const char* filter :
       {"--top-k", "--top-p", "--min-p", "--repetition-penalty", "--repetition-window"})
    refused({"generate", path("run"), "--numerics", "fixed", filter, "1"}, filter);
  for (const char* temp : {"0.01", "2000", "-1"}) {
    refused({"generate", path("run"), "--numerics", "fixed", "--temp", temp}, "temperature");
    refused({"hw", "run", path("one.mmh"), "--prompt", "the", "--temp", temp}, "temperature");
  }
  // Images that are none, cut off, damaged, of another version; shapes that do not fit.
  const std::string bytes = read_text_file(path("one.mmh"));
  const auto bad = [&](const std::string& content, const std::string& message) {
    write_file_atomically(path("bad.mmh"), content);
    refused({"hw", "run", path("bad.mmh"), "--prompt", "the"}, message);
    refused({"hw", "dis", path("bad.mmh")}, message);
  };
  bad("", "0 bytes");
  bad(bytes.substr(0, 4096), "length of the file");
  bad(bytes.substr(0, bytes.size() - 64), "length of the file");
  std::string changed = bytes;
  changed[bytes.size() / 2] ^= 1;
  bad(changed, "damaged");
  changed = bytes;
  changed[8] = 1;
  bad(changed, "version is 1, expected 2");
  refused({"hw", "run", path("run/model.safetensors"), "--prompt", "the"}, "not an image");
  refused({"hw", "compile", path("none"), "-o", path("x.mmh")}, "none");
  refused({"hw", "compile", path("run"), "-o", path("x.mmh"), "--streams", "257"}, "--streams");
  MatmulFreeConfig c;
  c.vocab_size = 320;
  c.hidden_size = 96;
  c.num_hidden_layers = 1;
  c.intermediate_size = 128;
  Network odd(c);
  initialize_params(odd.table, c, 1, odd.values.data());
  save_network(odd, path("odd"));
  refused({"hw", "compile", path("odd"), "-o", path("x.mmh")}, "96");
  EXPECT_FALSE(fs::exists(path("x.mmh")));
}

}  // namespace
}  // namespace mmfree
