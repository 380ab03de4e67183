#pragma once
// What the sub-commands' option parsing shares.
#include <CLI/CLI.hpp>
#include <string>

#include "mmfree/cli/commands.h"

namespace mmfree {

// Parses args (args[0] is the command's name). False: help was asked for and printed, return 0.
// Wrong options are usage Errors.
bool parse_options(CLI::App& app, Args args);

// --threads N, checked; `threads` starts as the number of physical cores.
void add_threads_option(CLI::App& app, int& threads);

// --numerics integer|fixed.
void add_numerics_option(CLI::App& app, std::string& numerics);

// Peak resident memory of this process so far.
long long peak_rss_bytes();

}  // namespace mmfree
