// Uses the installed library as a program of somebody else would: load a model, feed ids, take the
// likeliest token.
#include <mmfree/mmfree.h>

#include <cstdio>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 2) return std::fputs("usage: consumer MODEL\n", stderr), 2;
  try {
    const mmfree::Ctx ctx{mmfree::default_threads()};
    const mmfree::TiledModel model = mmfree::load_model(ctx, argv[1]);
    mmfree::Session session(ctx, model);
    const std::vector<std::int32_t> tokens = {1, 2, 3};
    mmfree::SamplerOptions options;
    options.temperature = 0;
    std::vector<mmfree::Candidate> scratch;
    const std::int32_t next = mmfree::sample(session.prefill(tokens), options, nullptr, 0, scratch);
    std::printf("next token %d after %lld tokens\n", next,
                static_cast<long long>(session.position()));
  } catch (const mmfree::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
  return 0;
}
