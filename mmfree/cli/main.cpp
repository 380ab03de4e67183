#include <fmt/core.h>

#include <cstdio>
#include <new>
#include <span>
#include <string_view>

#include "mmfree/cli/commands.h"
#include "mmfree/core/error.h"

namespace mmfree {
namespace {

struct Command {
  std::string_view name;
  std::string_view help;
  int (*run)(Args args);
};

constexpr Command kCommands[] = {
    {"train", "train a model on prepared text", cmd_train},
    {"plot", "draw the curves of training runs", cmd_plot},
    {"grad", "loss and all parameter gradients for given token ids", cmd_grad},
    {"logits", "logits and hidden states for given token ids", cmd_logits},
    {"generate", "continue a text", cmd_generate},
    {"eval", "bits per byte and perplexity of a text", cmd_eval},
    {"bench", "measure speed against what this machine can do", cmd_bench},
    {"convert", "run directory to GGUF and back", cmd_convert},
    {"inspect", "configuration, tensors, bits per weight, memory", cmd_inspect},
    {"hw", "program images, simulation and reports of the accelerator", cmd_hw},
    {"data", "prepare text for training", cmd_data},
    {"tokenizer", "train and use tokenizers", cmd_tokenizer},
};

void print_usage(std::FILE* out) {
  fmt::print(out, "mmfree {}: train, pack and run MatMul-free language models\n\n", MMFREE_VERSION);
  fmt::print(out, "usage: mmfree COMMAND [OPTIONS]      (mmfree COMMAND --help tells more)\n\n");
  for (const Command& c : kCommands) fmt::print(out, "  {:<10} {}\n", c.name, c.help);
}

int run(std::span<char*> argv) {
  const std::string_view name = argv.size() > 1 ? argv[1] : "";
  if (name == "--help" || name == "-h" || name == "help") return print_usage(stdout), 0;
  if (name == "--version") return fmt::print("mmfree {}\n", MMFREE_VERSION), 0;
  for (const Command& c : kCommands)
    if (c.name == name) return c.run(argv.subspan(1));
  if (name.empty()) return print_usage(stderr), 2;
  fail(ErrorKind::usage, fmt::format("unknown command '{}'; see mmfree --help", name));
}

}  // namespace
}  // namespace mmfree

int main(int argc, char** argv) {
  try {
    return mmfree::run({argv, static_cast<std::size_t>(argc)});
  } catch (const mmfree::Error& e) {
    fmt::print(stderr, "mmfree: {}\n", e.what());
    return mmfree::exit_code(e.kind());
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "mmfree: out of memory\n");
    return 1;
  } catch (const std::exception& e) {
    fmt::print(stderr, "mmfree: internal error: {}\n", e.what());
    return 1;
  }
}
