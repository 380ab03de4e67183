#pragma once
// The public interface: load a model, feed tokens, sample, decode.
//
//   mmfree::Ctx ctx{mmfree::default_threads()};
//   mmfree::TiledModel model = mmfree::load_model(ctx, "model.gguf");
//   mmfree::Session session(ctx, model);
//   std::span<const float> logits = session.prefill(tokens);
//
// Everything throws mmfree::Error and nothing else of its own.
#include "mmfree/core/error.h"           // Error, ErrorKind
#include "mmfree/core/parallel.h"        // Ctx, default_threads
#include "mmfree/generate/sampler.h"     // SamplerOptions, sample
#include "mmfree/generate/session.h"     // Session
#include "mmfree/model/tiled.h"          // TiledModel, load_model
#include "mmfree/tokenizer/tokenizer.h"  // Tokenizer, TextStream
