// mmfree grad RUN --ids FILE.json --out FILE.safetensors: loss and all parameter gradients, the
// door for outside checks.
#include <filesystem>
#include <string>
#include <vector>

#include "mmfree/cli/ids_file.h"
#include "mmfree/cli/options.h"
#include "mmfree/core/error.h"
#include "mmfree/io/safetensors.h"
#include "mmfree/model/weights.h"

namespace mmfree {

int cmd_grad(Args args) {
  std::filesystem::path model;
  std::filesystem::path ids_path;
  std::filesystem::path out;
  int threads = default_threads();
  CLI::App app(
      "Mean cross entropy (token t+1 from position t, last position ignored) and its gradient for "
      "every parameter",
      "mmfree grad");
  app.add_option("run", model, "run directory")->required();
  app.add_option("--ids", ids_path, "JSON file {\"input_ids\": [[...], ...]}")->required();
  app.add_option("--out", out, "safetensors file: loss, and one tensor a parameter")->required();
  add_threads_option(app, threads);
  if (!parse_options(app, args)) return 0;

  const Ctx ctx{threads};
  Network net = load_network(ctx, model);
  const IdsFile ids = read_ids_file(ids_path, net.config.vocab_size);
  std::vector<std::int32_t> labels(ids.ids.size(), kIgnoreLabel);
  for (idx b = 0; b < ids.batch; ++b)
    for (idx t = 0; t + 1 < ids.length; ++t)
      labels[static_cast<std::size_t>(b * ids.length + t)] =
          ids.ids[static_cast<std::size_t>(b * ids.length + t + 1)];
  const idx count = ids.batch * (ids.length - 1);
  if (count == 0)
    fail(ErrorKind::usage,
         ids_path.string() +
             ": rows of one token predict nothing; expected at least two tokens a row");

  const TokenBatch batch{.batch = ids.batch,
                         .length = ids.length,
                         .inputs = ids.ids.data(),
                         .labels = labels.data(),
                         .mask = ids.mask.empty() ? nullptr : ids.mask.data()};
  const LossSum sum = forward_backward(ctx, net, batch, 1.0F / static_cast<float>(count));
  const float loss = static_cast<float>(sum.nll / static_cast<double>(sum.count));

  std::vector<TensorToWrite> tensors = {{"loss", DType::f32, {1}, &loss}};
  for (const ParamInfo& p : net.table)
    tensors.push_back({p.name, DType::f32, p.shape, net.grads.data() + p.offset});
  write_safetensors(out, tensors);
  return 0;
}

}  // namespace mmfree
