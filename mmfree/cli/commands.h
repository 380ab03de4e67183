#pragma once
// The sub-commands. Each parses its own options (args[0] is the command's name), does its work and
// returns an exit code; bad input is thrown as mmfree::Error and turned into a message and a code
// by main.
#include <span>

namespace mmfree {

using Args = std::span<char*>;

int cmd_grad(Args args);
int cmd_logits(Args args);
int cmd_generate(Args args);
int cmd_eval(Args args);
int cmd_bench(Args args);
int cmd_convert(Args args);
int cmd_inspect(Args args);
int cmd_hw(Args args);
int cmd_plot(Args args);
int cmd_train(Args args);
int cmd_data(Args args);
int cmd_tokenizer(Args args);

}  // namespace mmfree
