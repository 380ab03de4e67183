// What a build without CUDA offers in place of training.cpp: the reason why it cannot.
#include "mmfree/core/error.h"
#include "mmfree/cuda/bench_ops.h"
#include "mmfree/cuda/inference.h"
#include "mmfree/cuda/roofline.h"
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

struct GpuModel::Engine {};

GpuModel::GpuModel(const Ctx&, const PackedModel&, idx, const Progress&) {
  refuse();
}
GpuModel::GpuModel(const Ctx&, const TiledModel&, idx, const Progress&) {
  refuse();
}
GpuModel::~GpuModel() = default;
const MatmulFreeConfig& GpuModel::config() const {
  refuse();
}
const std::string& GpuModel::path() const {
  refuse();
}
idx GpuModel::layers() const {
  refuse();
}
GpuInferenceInfo GpuModel::info() const {
  refuse();
}
void GpuModel::measure_stages(bool) {
  refuse();
}
std::vector<GpuStage> GpuModel::stages() const {
  refuse();
}

GpuSession::GpuSession(GpuModel& model) : model_(&model) {
  refuse();
}
GpuSession::~GpuSession() = default;
GpuSession::GpuSession(GpuSession&& o) noexcept : model_(o.model_) {}
std::span<const float> GpuSession::prefill(std::span<const std::int32_t>) {
  refuse();
}
std::vector<std::int32_t> GpuSession::decode(std::int32_t, idx, std::int32_t) {
  refuse();
}
void GpuSession::forward(const ForwardCall&) {
  refuse();
}
void GpuSession::hidden(std::span<const std::int32_t>, const std::uint8_t*, float*) {
  refuse();
}
void GpuSession::restart() {
  refuse();
}
void GpuSession::read_state(float*) const {
  refuse();
}
void GpuSession::write_state(const float*, idx) {
  refuse();
}
SessionState GpuSession::state() const {
  refuse();
}
void GpuSession::restore(const SessionState&, idx) {
  refuse();
}
std::vector<std::int32_t> decode_batch(GpuModel&, std::span<GpuSession* const>,
                                       std::span<const std::int32_t>, idx) {
  refuse();
}
GpuRoofline measure_gpu_roofline() {
  refuse();
}
void forward_parts(GpuModel&, std::span<const GpuPart>, float*) {
  refuse();
}

}  // namespace mmfree
