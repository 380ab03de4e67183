#include "mmfree/ops/embedding/embedding.h"

#include <gtest/gtest.h>

#include <vector>

#include "mmfree/ops/embedding/embedding_reference.h"
#include "tests/support/compare.h"
#include "tests/support/guarded.h"
#include "tests/support/random_tensor.h"
#include "tests/support/shapes.h"

namespace mmfree {
namespace {

using test::Guarded;

TEST(Embedding, EqualsTheReferenceBitForBitForAnyNumberOfThreads) {
  test::Random random(1);
  for (const idx width : {1, 15, 16, 17, 33, 100})
    for (const idx rows : test::kSeamRows) {
      const idx vocab = 6;  // fewer than rows: ids repeat
      const Guarded<std::int32_t> ids(random.ids(rows, vocab));
      const Guarded<float> table(random.normals(vocab * width)), dx(random.normals(rows * width));
      const std::vector<float> start = random.normals(vocab * width);
      for (const std::int32_t padding : {-1, 2}) {
        std::vector<float> x0(static_cast<std::size_t>(rows * width)), dtable0 = start;
        reference::embedding(rows, width, ids.data(), table.data(), x0.data());
        reference::embedding_backward(rows, width, ids.data(), dx.data(), padding, dtable0.data());
        for (const int threads : {1, 2, 3, 7}) {
          Guarded<float> x(rows * width), dtable(start);
          embedding(Ctx{threads}, rows, width, ids.data(), table.data(), x.data());
          embedding_backward(Ctx{threads}, rows, width, ids.data(), dx.data(), padding,
                             dtable.data());
          ASSERT_TRUE(test::same_bits(x, x0) && test::same_bits(dtable, dtable0))
              << threads << " threads, rows " << rows << " width " << width;
          ASSERT_TRUE(x.intact() && dtable.intact() && ids.unchanged() && table.unchanged() &&
                      dx.unchanged());
        }
      }
    }
}

TEST(Embedding, RepeatedIdsAddUpAndThePaddingRowGetsNothing) {
  const std::vector<std::int32_t> ids{1, 0, 1, 1};
  const std::vector<float> dx{1, 10, 100, 1000};
  std::vector<float> dtable{0, 0.5F};
  embedding_backward(Ctx{2}, 4, 1, ids.data(), dx.data(), 0, dtable.data());
  EXPECT_EQ(dtable, (std::vector<float>{0, 1101.5F}));
}

}  // namespace
}  // namespace mmfree
