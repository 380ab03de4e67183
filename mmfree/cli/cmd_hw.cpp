#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mmfree/cli/options.h"
#include "mmfree/cli/progress_line.h"
#include "mmfree/core/error.h"
#include "mmfree/core/file.h"
#include "mmfree/hw/compile.h"
#include "mmfree/hw/machine.h"
#include "mmfree/hw/report.h"
#include "mmfree/model/packed.h"
#include "mmfree/tokenizer/tokenizer.h"
#ifdef MMFREE_HW
#include "hw/cosim/rtl_core.h"
#endif

namespace mmfree {
namespace {

// A model by file, or random weights of a named size.
struct ModelChoice {
  std::string path, size;
  bool random = false;
  idx vocab = 32000;

  void add(CLI::App& app) {
    app.add_option("MODEL", path, "run directory or GGUF file");
    app.add_flag("--random", random, "random weights of --size instead of a MODEL");
    app.add_option("--size", size, "tiny, 8m, 30m, 100m, 370m, 1.3b, 2.7b");
    app.add_option("--vocab-size", vocab, "of the random model")
        ->check(CLI::Range(idx{1}, idx{1} << 24))
        ->capture_default_str();
  }
  void check() const {
    if (random == !path.empty() || random != !size.empty())
      fail(ErrorKind::usage, "hw: expected either MODEL or --random --size SIZE");
  }
  MatmulFreeConfig random_config() const { return size_preset(size, vocab); }
};

void add_ports_option(CLI::App& app, int& ports) {
  app.add_option("--ports", ports, "memory ports of 512 bits that share the weights")
      ->check(CLI::IsMember({1, 2, 4, 8}))
      ->capture_default_str();
}

int run_compile(Args args) {
  ModelChoice choice;
  std::string out;
  int streams = 1, ports = 1;
  std::uint64_t seed = 1;
  Ctx ctx;
  CLI::App app("Makes a program image for the accelerator", "mmfree hw compile");
  choice.add(app);
  app.add_option("-o,--out", out, "image to write")->required();
  app.add_option("--streams", streams, "sequences that share the weights")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  add_ports_option(app, ports);
  app.add_option("--seed", seed, "of random weights")->capture_default_str();
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  choice.check();
  ProgressLine line("compile");
  if (choice.random) {
    hw::write_image(ctx, hw::random_fixed_model(choice.random_config(), seed), out, streams,
                    line.sink(), ports);
  } else {
    const PackedModel model = load_packed(ctx, choice.path);
    hw::write_image(ctx, hw::lower_model(ctx, model), out, streams, line.sink(), ports);
  }
  return 0;
}

// Advances every stream by a token and returns the next ones, which count only if they were wanted.
struct Simulator {
  std::string_view name;
  std::function<std::vector<std::int32_t>(std::span<const hw::TokenInput>, bool wanted)> step;
};

struct RunResult {
  std::vector<std::int32_t> prompt;
  std::vector<std::vector<std::int32_t>> ids;  // of each stream; text and end are the first one's
  std::string text;
  bool stopped_at_eos = false;
};

struct RunOptions {
  std::string prompt;
  std::vector<std::int32_t> ids;  // instead of a text
  idx tokens = 64;
  double temperature = 0;
  std::uint64_t seed = 0;
  bool ignore_eos = false;
  bool quiet = false;
};

// Every stream of the image continues the same prompt. Stream s draws with seed + s, so that it
// writes what an image for one stream writes with that seed.
RunResult run_image(const Simulator& simulator, const hw::Image& image, const RunOptions& o) {
  RunResult r;
  const auto streams = static_cast<std::size_t>(image.streams());
  r.ids.resize(streams);
  std::vector<hw::TokenInput> inputs(streams);
  for (std::size_t s = 0; s < streams; ++s)
    inputs[s].sampling = hw::sampling(o.temperature, o.seed + s);
  const auto step = [&](bool wanted) {
    for (hw::TokenInput& i : inputs) ++i.sampling.position;
    std::vector<std::int32_t> next = simulator.step(inputs, wanted);
    for (std::size_t s = 0; s < streams; ++s) inputs[s] = {next[s], false, inputs[s].sampling};
  };
  const std::span<const std::byte> model = image.section(hw::Section::tokenizer);
  const hw::ImageHeader& h = image.header();
  std::optional<Tokenizer> tokenizer;
  if (!model.empty())
    tokenizer.emplace(Tokenizer::from_bytes(
        {reinterpret_cast<const char*>(model.data()), model.size()}, image.name() + ": tokenizer"));
  r.prompt = o.ids;
  if (o.ids.empty()) {
    if (!tokenizer)
      fail(ErrorKind::usage, image.name() + ": the image has no tokenizer, and text needs one; " +
                                 "--prompt-ids 1,2,3 does without");
    if (h.bos >= 0) r.prompt.push_back(h.bos);
    for (const std::int32_t id : tokenizer->encode(o.prompt)) r.prompt.push_back(id);
  }
  if (r.prompt.empty())
    fail(ErrorKind::usage,
         "the prompt is empty and the model has no beginning-of-text token; give some text");
  std::optional<TextStream> stream;
  if (tokenizer) stream.emplace(*tokenizer);
  const auto text_of = [&](std::int32_t id) {
    return stream && id < tokenizer->vocab_size() ? stream->put(id) : std::string();
  };
  const auto show = [&](const std::string& text) {
    r.text += text;
    if (!o.quiet && (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() ||
                     std::fflush(stdout) != 0))
      fail_errno("write", "standard output");
  };
  for (std::size_t t = 0; t < r.prompt.size(); ++t) {
    for (hw::TokenInput& i : inputs) i = {r.prompt[t], t == 0, i.sampling};
    step(t + 1 == r.prompt.size());
    text_of(r.prompt[t]);
  }
  for (idx n = 0; n < o.tokens; ++n) {
    const std::int32_t id = inputs[0].token;
    if (!o.ignore_eos && id == h.eos) {
      r.stopped_at_eos = true;
      break;
    }
    for (std::size_t s = 0; s < streams; ++s) r.ids[s].push_back(inputs[s].token);
    show(stream ? text_of(id) : fmt::format("{}{}", n > 0 ? "," : "", id));
    if (n + 1 == o.tokens) break;
    step(true);
  }
  if (stream) show(stream->finish());
  if (!o.quiet) std::fputc('\n', stdout);
  return r;
}

int run_run(Args args) {
  std::string path;
  RunOptions o;
  Ctx ctx;
  CLI::App app("Runs an image on a simulator", "mmfree hw run");
  app.add_option("IMAGE", path, "made by mmfree hw compile")->required();
  CLI::Option* prompt = app.add_option("--prompt", o.prompt, "text to continue");
  app.add_option("--prompt-ids", o.ids, "token ids instead of text: 1,2,3")
      ->delimiter(',')
      ->excludes(prompt);
  app.add_option("-n,--tokens", o.tokens, "most tokens to generate")
      ->check(CLI::Range(idx{0}, idx{1} << 40))
      ->capture_default_str();
  app.add_option("--temp", o.temperature, "temperature; 0 always takes the most likely token")
      ->capture_default_str();
  app.add_option("--seed", o.seed,
                 "the same seed gives the same text as generate --numerics fixed; stream s of an "
                 "image has seed + s")
      ->capture_default_str();
  app.add_flag("--ignore-eos", o.ignore_eos, "go on after the end-of-text token");
  app.add_flag("--json", o.quiet, "one JSON object");
#ifdef MMFREE_HW
  bool rtl = false, free = false;
  hw::RtlMemory memory;
  app.add_flag("--rtl", rtl, "the RTL core, compared with the simulator after every instruction");
  app.add_flag("--no-lockstep", free, "with --rtl: the RTL alone, quicker");
  app.add_option("--latency", memory.latency, "of the RTL's memory: cycles to the first beat")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--bandwidth", memory.beats_per_cycle,
                 "of the RTL's memory: beats a cycle of a port")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  app.add_option("--jitter", memory.jitter, "share of cycles in which that memory stalls")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
#endif
  add_threads_option(app, ctx.threads);
  if (!parse_options(app, args)) return 0;
  const hw::ImageFile file(path);
  const int streams = file.image.streams();
  const std::uint32_t ports = file.image.header().ports;
  hw::Machine machine(ctx, file.image, streams);
  const auto next_tokens = [streams](const auto& simulated) {
    std::vector<std::int32_t> next;
    for (int s = 0; s < streams; ++s) next.push_back(simulated.next_token(s));
    return next;
  };
  nlohmann::ordered_json counters;
  Simulator simulator = {"instructions", [&](std::span<const hw::TokenInput> inputs, bool wanted) {
                           machine.run(inputs, wanted);
                           return next_tokens(machine);
                         }};
#ifdef MMFREE_HW
  std::optional<hw::RtlCore> core;
  if (rtl) {
    core.emplace(file.image, memory, streams);
    simulator = {"RTL", [&](std::span<const hw::TokenInput> inputs, bool wanted) {
                   core->run(inputs, wanted, free ? nullptr : &machine);
                   return next_tokens(*core);
                 }};
  }
#endif
  const RunResult r = run_image(simulator, file.image, o);
#ifdef MMFREE_HW
  if (core) {
    const hw::RtlCounters& k = core->counters();
    counters = {{"instructions_compared", k.compared},
                {"last_token",
                 {{"cycles", k.cycles},
                  {"tile_beats", k.tile_beats},
                  {"cycles_per_token", static_cast<double>(k.cycles) / streams},
                  {"wait_stream", k.wait_stream},
                  {"wait_results", k.wait_results}}}};
  }
#endif
  if (o.quiet) {
    nlohmann::ordered_json j = {{"text", r.text},
                                {"prompt_ids", r.prompt},
                                {"ids", r.ids[0]},
                                {"stopped_at_eos", r.stopped_at_eos},
                                {"temperature", o.temperature},
                                {"seed", o.seed},
                                {"simulator", simulator.name},
                                {"streams", streams}};
    if (ports > 1) j["ports"] = ports;
    if (streams > 1) j["ids_of_streams"] = r.ids;
    if (!counters.is_null()) j.update(counters);
    fmt::print("{}\n", j.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
  }
  return 0;
}

nlohmann::ordered_json cost_json(const hw::TokenCost& c, double clock_hz) {
  const hw::CycleReport& k = c.cycles;
  const auto share = [&](hw::Unit u) { return k.busy[static_cast<std::size_t>(u)]; };
  return {{"cycles_per_token", c.cycles_per_token},
          {"bytes_per_token", c.bytes_per_token},
          {"clock_hz", clock_hz},
          {"tokens_per_s", clock_hz / c.cycles_per_token},
          {"gb_per_s", c.bytes_per_token * clock_hz / c.cycles_per_token * 1e-9},
          {"energy_j_per_token", c.joule.total()},
          {"streams", c.streams},
          {"cycles_per_step", k.cycles},
          {"floor_cycles_per_token", c.floor_cycles},
          {"ratio_to_floor", c.cycles_per_token / c.floor_cycles},
          {"beat_utilisation", c.utilisation},
          {"cycles",
           {{"weights", k.weight_beats},
            {"idle_memory", k.idle_memory},
            {"idle_epilogue", k.idle_epilogue},
            {"idle_codes", k.idle_codes}}},
          {"busy",
           {{"LD", share(hw::Unit::LD)},
            {"VEC", share(hw::Unit::VEC)},
            {"SFU", share(hw::Unit::SFU)},
            {"TMM", share(hw::Unit::TMM)}}},
          {"instructions", k.instructions},
          {"energy",
           {{"memory_j", c.joule.memory},
            {"sram_j", c.joule.sram},
            {"accumulate_j", c.joule.accumulate},
            {"multiply_j", c.joule.multiply}}},
          {"state_bits", c.state_bits}};
}

int run_report(Args args) {
  ModelChoice choice;
  int streams = 1, ports = 1;
  double clock_mhz = 200;
  std::string area;
  bool json = false;
  hw::CoreModel core;
  hw::MemoryModel memory;
  hw::EnergyModel energy;
  CLI::App app(
      "Cycles, bytes and energy of a token on the accelerator, simulated by its cycle model",
      "mmfree hw report");
  choice.add(app);
  app.add_option("--streams", streams, "sequences that share the weights")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  add_ports_option(app, ports);
  app.add_option("--latency", memory.latency, "cycles from a request to its first beat")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  app.add_option("--bandwidth", memory.beats_per_cycle,
                 "beats of 64 bytes a cycle that a port gives")
      ->check(CLI::Range(0.001, 1.0))
      ->capture_default_str();
  app.add_option("--clock-mhz", clock_mhz, "clock that seconds are counted with")
      ->check(CLI::Range(1.0, 5000.0))
      ->capture_default_str();
  app.add_option("--area", area, "JSON of a synthesis run to include as \"area\"");
  app.add_flag("--json", json, "one JSON object");
  if (!parse_options(app, args)) return 0;
  choice.check();
  MatmulFreeConfig config;
  if (choice.random) {
    config = choice.random_config();
  } else {
    config = load_packed(Ctx{default_threads()}, choice.path).config;
  }
  hw::check_lowerable(config, choice.random ? choice.size : choice.path);
  const hw::Shape shape{config.hidden_size,       config.mixer_width(), config.mlp_width(),
                        config.num_hidden_layers, config.vocab_size,    ports};
  const hw::TokenCost cost = hw::token_cost(shape, streams, core, memory, energy);
  if (!json) {
    const hw::CycleReport& k = cost.cycles;
    fmt::print("simulated by the cycle model; nothing here was measured on a device\n");
    fmt::print(
        "cycles per token   {:.0f} ({:.4f} x the weight stream's {:.0f}), {} stream(s), {} "
        "port(s)\n",
        cost.cycles_per_token, cost.cycles_per_token / cost.floor_cycles, cost.floor_cycles,
        streams, ports);
    fmt::print("tile idle          {} memory, {} epilogue, {} codes and constants\n", k.idle_memory,
               k.idle_epilogue, k.idle_codes);
    fmt::print("bytes per token    {:.0f}\n", cost.bytes_per_token);
    fmt::print("at {:.0f} MHz         {:.1f} tokens/s, {:.2f} GB/s\n", clock_mhz,
               clock_mhz * 1e6 / cost.cycles_per_token,
               cost.bytes_per_token * clock_mhz * 1e-3 / cost.cycles_per_token);
    fmt::print("energy model       {:.3f} mJ per token, {:.3f} of them DRAM\n",
               cost.joule.total() * 1e3, cost.joule.memory * 1e3);
    return 0;
  }
  nlohmann::ordered_json j = {{"model", choice.random ? "random " + choice.size : choice.path},
                              {"source", "simulated by the cycle model"}};
  if (ports > 1) j["ports"] = ports;
  j.update(cost_json(cost, clock_mhz * 1e6));
  j["memory"] = {{"latency_cycles", memory.latency}, {"beats_per_cycle", memory.beats_per_cycle}};
  j["energy_model_pj"] = {{"accumulate", energy.accumulate},
                          {"sram_word", energy.sram_word},
                          {"multiply", energy.multiply},
                          {"dram_byte", energy.dram_byte}};
  j["clock_source"] = "--clock-mhz";
  if (area.empty()) {
    j["area_note"] = "no area: give the JSON of a synthesis run with --area";
  } else {
    j["area"] = nlohmann::ordered_json::parse(read_text_file(area), nullptr, false);
    if (j["area"].is_discarded()) fail(ErrorKind::format, area + ": not valid JSON");
  }
  fmt::print("{}\n", j.dump(2));
  return 0;
}

int run_dis(Args args) {
  std::string path;
  CLI::App app("Prints the program of an image", "mmfree hw dis");
  app.add_option("IMAGE", path, "made by mmfree hw compile")->required();
  if (!parse_options(app, args)) return 0;
  const hw::ImageFile file(path);
  fmt::print("{}", hw::disassemble(file.image.program()));
  return 0;
}

int run_asm(Args args) {
  std::string path, out;
  CLI::App app("Turns the text of a program into 16 bytes an instruction", "mmfree hw asm");
  app.add_option("FILE", path, "text: op field=value ...; docs/hw_isa.md")->required();
  app.add_option("-o,--out", out, "file to write")->required();
  if (!parse_options(app, args)) return 0;
  std::string bytes;
  for (const hw::Instruction& i : hw::assemble(read_text_file(path), path)) {
    bytes.append(reinterpret_cast<const char*>(&i.low), 8);
    bytes.append(reinterpret_cast<const char*>(&i.high), 8);
  }
  write_file_atomically(out, bytes);
  return 0;
}

struct SubCommand {
  std::string_view name, help;
  int (*run)(Args);
};
constexpr SubCommand kSubCommands[] = {
    {"compile", "a model to a program image", run_compile},
    {"run", "continue a text on the instruction-set simulator", run_run},
    {"report", "cycles, bytes and energy of a token", run_report},
    {"dis", "the program of an image as text", run_dis},
    {"asm", "a program's text to words", run_asm},
};

}  // namespace

int cmd_hw(Args args) {
  const std::string_view name = args.size() > 1 ? args[1] : "";
  for (const SubCommand& c : kSubCommands)
    if (c.name == name) return c.run(args.subspan(1));
  const bool help = name == "--help" || name == "-h";
  std::FILE* out = help ? stdout : stderr;
  fmt::print(out,
             "usage: mmfree hw COMMAND [OPTIONS]      (mmfree hw COMMAND --help tells more)\n\n");
  for (const SubCommand& c : kSubCommands) fmt::print(out, "  {:<10} {}\n", c.name, c.help);
  if (!help && !name.empty()) fail(ErrorKind::usage, fmt::format("hw: unknown command '{}'", name));
  return help ? 0 : 2;
}

}  // namespace mmfree
