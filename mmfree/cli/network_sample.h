#pragma once
// Text from a network in training: the inference code on the codes it has now, nothing copied.
#include <string>
#include <string_view>

#include "mmfree/model/matmulfree.h"
#include "mmfree/tokenizer/tokenizer.h"

namespace mmfree {

// Up to `tokens` tokens after the prompt, as the sampler's defaults choose them; stops at the end
// of text. A pure function of network, prompt and seed.
std::string sample_network(const Ctx& ctx, const Network& net, const Tokenizer& tokenizer,
                           std::string_view prompt, idx tokens, std::uint64_t seed);

}  // namespace mmfree
