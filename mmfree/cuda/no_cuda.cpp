// What a build without CUDA offers in place of training.cpp: the reason why it cannot.
#include "mmfree/core/error.h"
#include "mmfree/cuda/bench_ops.h"
#include "mmfree/cuda/training.h"

namespace mmfree {
namespace {

[[noreturn]] void refuse() {
  fail(ErrorKind::usage,
       "--device cuda: this program was built without CUDA; build it where nvcc is (cmake --preset "
       "cuda), or use --device cpu");
}

}  // namespace

struct GpuTraining::Engine {};

GpuTraining::GpuTraining(const MatmulFreeConfig&, const GpuTrainingOptions&) {
  refuse();
}
GpuTraining::~GpuTraining() = default;
GpuTraining::GpuTraining(GpuTraining&&) noexcept = default;
GpuTraining& GpuTraining::operator=(GpuTraining&&) noexcept = default;
void GpuTraining::upload(const float*, const float*, const float*) {
  refuse();
}
void GpuTraining::download(float*, float*, float*) {
  refuse();
}
void GpuTraining::download_gradients(float*) {
  refuse();
}
void GpuTraining::download_ternary(Network&) {
  refuse();
}
void GpuTraining::randomize(std::uint64_t) {
  refuse();
}
void GpuTraining::forward_backward(const TokenBatch&, float, bool, bool) {
  refuse();
}
LossSum GpuTraining::forward_loss(const TokenBatch&) {
  refuse();
}
void GpuTraining::update(const GpuUpdate&) {
  refuse();
}
GpuStepResult GpuTraining::wait() {
  refuse();
}
std::vector<LayerSaturation> GpuTraining::saturation() {
  refuse();
}
GpuMemory GpuTraining::memory() const {
  refuse();
}
GpuOps bench_gpu_ops(const MatmulFreeConfig&, idx, idx, idx) {
  refuse();
}

}  // namespace mmfree
