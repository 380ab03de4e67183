#pragma once
// The kernels of inference, as the host calls them. Launchers only enqueue work on a stream.
// Matrices are row-major and contiguous.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "mmfree/core/types.h"
#include "mmfree/cuda/kernels.h"
#include "mmfree/cuda/tile_layout.h"

namespace mmfree::cuda {

// What of a model lies on the device. Layers follow each other at a fixed stride in `tiles` and in
// `params`, so that a kernel needs no pointers per layer.
struct DeviceWeights {
  idx layers;                     // that are on the device: the first ones of the model
  int hidden, mixer, mlp, vocab;  // D, M, F, V
  float eps;                      // of the outer norms and the gated norm
  const std::uint8_t* tiles;      // (layers, layer_tile_bytes)
  idx layer_tile_bytes;           // mixer_in, mixer_out, mlp_in, mlp_out
  const float* params;            // (layers, LayerParams::floats)
  const std::uint8_t* head;       // tiles (V, D), or null
  const float *norm, *head_norm;  // (D), or null
  float head_scale;
  const void* embedding;  // (V, D)
  int embedding_bits;     // 32: float32, 16: float16, 17: bf16
};

// Which tiles a stage of a layer reads: `group` matrices whose rows of tiles take turns.
struct StageTiles {
  idx offset;  // bytes from the layer's first
  int out, in, group;
  int rows() const { return static_cast<int>(row_tiles(out)) * group; }
};
struct LayerTiles {
  explicit LayerTiles(idx d, idx m, idx f);
  StageTiles mixer_in, mixer_out, mlp_in, mlp_out;
  idx bytes;
};

// Offsets of a layer's gains in floats, each at a multiple of 32.
struct LayerParams {
  LayerParams(int d, int m, int f);
  int attn_norm, i_norm, f_norm, g_in_norm;  // (D)
  int bound, g_norm, o_norm;                 // (M); bound is 0 where there is none
  int mlp_norm, gate_norm;                   // (D)
  int down_norm;                             // (F)
  int scales;                                // i, f, g, o, p, q, down
  int floats;
};

// ---- decode: whole tokens of one sequence in one kernel ----

// 16 bytes that one block hands to all others: three values and the number of the exchange.
struct alignas(16) Packet {
  std::uint32_t value[3];
  std::uint32_t epoch;
};
// Packets for one row of 16 values, and for two: packet i holds the values i, i + n, i + 2n.
inline constexpr int kPacketsOfOne = 6;
inline constexpr int kPacketsOfTwo = 11;

inline constexpr int kDecodeStages = 5;  // mixer_in, mixer_out, mlp_in, mlp_out, head

struct Decode {
  DeviceWeights w;
  float* state;               // (L, M)
  std::int32_t first;         // the first token
  const std::int32_t* given;  // the first given_count tokens; may be null if there is one
  int given_count;
  int steps;                  // tokens to go through the network, >= given_count
  std::int32_t* chosen;       // (steps - given_count + 1) the most likely token after each from the
                              // last given one on; -1 where a logit was not finite. Null: no head
  std::int32_t eos;           // stops after it is chosen; -1: never
  float* logits;              // (V) after the last token, or null
  float* hidden_out;          // (steps, D) the residual stream after the last layer, or null
  Packet* exchange;           // decode_exchange_packets(w)
  std::uint32_t first_epoch;  // decode uses layers * steps numbers from here
  int clusters;               // decode_clusters(w)
  unsigned long long* clocks;  // (3 * kDecodeStages) cycles of one block, added to: in each stage
                               // waiting for the others, then working; then of each stage how much
                               // of the work was norm and quantisation. Null: not wanted
};
// How many clusters of blocks share the work of decoding; 0: for this GPU or these widths there are
// none, every block does the norms for itself.
int decode_clusters(const Launch& l, const DeviceWeights& w);
idx decode_exchange_packets(const DeviceWeights& w, int multiprocessors);
// Widths that decode takes.
bool decode_fits(int hidden, int mixer, int mlp);
void decode(const Launch& l, const Decode& a);
// Of decode_cluster.cu, which decode() uses where there are clusters.
idx cluster_exchange_packets(const DeviceWeights& w, int blocks);
void decode_in_clusters(const Launch& l, const Decode& a);

// ---- batches and prefill: rows of any sequences ----

// Rows [begin, end) of a batch are one sequence in order of time, with its state (L, M).
struct Segment {
  int begin, end;
  float* state;
};

void embed_rows(const Launch& l, const DeviceWeights& w, idx rows, const std::int32_t* ids,
                float* x);

// The order of the codes of 128 inputs: as rows_product reads them.
enum class CodeOrder { natural, hopper };
// For products of so many rows on this process's device.
CodeOrder code_order(idx rows);
// Where word n of four inputs goes within 128 (n 0..31) in the order `hopper`: word 8 q + 2 p + s
// of the inputs holds what the tiles of tile_layout.h have in plane p, half s, for lane q.
constexpr int hopper_word(int n) {
  return n / 2 % 4 * 8 + n % 2 * 4 + n / 8;
}

// ops/mlgru for rows of each segment from what the products give.
struct ScanRows {
  int segment_count;
  const Segment* segments;  // on the device
  int width;
  idx layer_offset;          // of the layer in a state
  float* i;                  // (rows, M) before silu; becomes h
  const float* f;            // (rows, M) before the forget gate
  const float* bound;        // (M)
  const std::uint8_t* mask;  // (rows) 0 or 1, or null
};
void scan_rows(const Launch& l, const ScanRows& a);

// ops/rmsnorm_quant row by row. With h, first o = gated_norm(x, h) with gain `outer`
// (ops/gated_norm), which is then quantised without an outer norm. With `step`, of which segment n
// is row n, h is made from its recurrence first and goes nowhere but to the states.
struct NormRows {
  idx rows;
  int width;
  const float* x;              // (rows, width)
  const float* h;              // (rows, width) or null
  ScanRows step;               // segment_count 0: none; no mask
  const std::int32_t* row_of;  // (rows) rows of x, or null: all in order
  const float* outer;          // (width) or null
  float outer_eps;
  int projections;  // 1 or 3 (with an outer norm)
  const float* gain[3];
  CodeOrder order;
  std::int8_t* codes[3];  // (rows, code_stride), zeros up to the next multiple of 128
  int code_stride;
  float* scale[3];   // (rows)
  int* code_sum[3];  // (rows)
};
void norm_rows(const Launch& l, const NormRows& a);

// y = product with ternary tiles. `members` matrices whose rows of tiles take turns have codes and
// results of their own; `pairs` 2: the halves of the gate projection, y = silu(p) * q.
struct RowsProduct {
  idx rows;
  const std::uint8_t* tiles;
  int out, k_tiles, members, pairs;
  CodeOrder order;
  const std::int8_t* codes[3];
  int code_stride;
  const float* x_scale[3];
  const int* code_sum[3];
  const float* w_scale;  // (members or pairs), on the device
  float* y[3];           // (rows, out)
  bool add;              // y += the product
};
void rows_product(const Launch& l, const RowsProduct& a);
void rows_product_hopper(const Launch& l, const RowsProduct& a);  // of codes in that order

// Whether a kernel may start while the one before it ends (9.0 and newer).
bool starts_early();

void choose_rows(const Launch& l, idx rows, int vocab, const float* logits, std::int32_t* ids);

}  // namespace mmfree::cuda
