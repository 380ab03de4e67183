#include "tests/support/random_model.h"

#include <algorithm>
#include <vector>

#include "mmfree/model/convert.h"
#include "mmfree/model/weights.h"
#include "tests/support/random_tensor.h"

namespace mmfree::test {

void write_random_model(const std::filesystem::path& path, const MatmulFreeConfig& config,
                        DType dtype) {
  Network net(config);
  initialize_params(net.table, config, 5, net.values.data());
  Random random(17);
  for (const ParamInfo& p : net.table)
    if (p.init == ParamInit::ones || p.init == ParamInit::zeros) {
      const std::vector<float> v = random.normals(p.size(), 0.2, p.init == ParamInit::ones ? 1 : 0);
      std::copy(v.begin(), v.end(), net.values.data() + p.offset);
    }
  save_network(net, path, dtype);
}

}  // namespace mmfree::test
