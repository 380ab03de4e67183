#pragma once
// Internal to the trainable network: everything that one forward keeps for its backward, and
// scratch.
#include <vector>

#include "mmfree/model/matmulfree.h"

namespace mmfree {

// Owning storage for int8 rows.
struct CodeBuffer {
  Buffer<std::int8_t> q;
  Buffer<float> scale;
  Buffer<std::int32_t> sum;

  CodeBuffer() = default;
  CodeBuffer(idx rows, idx width) : q(rows * code_stride(width)), scale(rows), sum(rows) {}
  CodeRows view() { return {q.data(), scale.data(), sum.data()}; }
};

inline CodeRows rows_from(const CodeRows& c, idx row, idx width) {
  return {c.q + row * code_stride(width), c.scale + row, c.sum + row};
}

struct LayerActivations {
  Buffer<float> x;                           // (R, D) input of the block
  Buffer<float> attn_rstd, attn_inner_rstd;  // (R)
  CodeBuffer u_i, u_f, u_g;                  // (R, D) inputs of the three projections
  Buffer<float> i_pre, f_pre, g;             // (R, M)
  Buffer<float> h;                           // (R, M) recurrence
  Buffer<float> o_rstd;                      // (R)
  CodeBuffer o;                              // (R, M)
  Buffer<float> x_mid;                       // (R, D) after the token mixer
  Buffer<float> mlp_rstd, mlp_inner_rstd;    // (R)
  CodeBuffer v;                              // (R, D)
  Buffer<float> pq;                          // (R, 2F)
  Buffer<float> z_rstd;                      // (R)
  CodeBuffer z;                              // (R, F)
};

struct Activations {
  idx capacity = 0;  // R these buffers are made for
  idx rows = 0;      // R of the last forward
  std::vector<LayerActivations> layers;
  Buffer<float> x;                 // (R, D) output of the last block
  Buffer<float> rstd, inner_rstd;  // (R) final norm and the head's inner norm
  CodeBuffer head;                 // (R, D)
  Buffer<float> logits;            // (kHeadRows, V)
  Buffer<float> nll;               // (R)
  Buffer<float> wide[7];           // (R, max(D, M, F)) scratch; [0] serves the forward too
  Buffer<float> dx;                // (R, D) gradient of the residual stream
};

// Rows whose logits exist at one time.
inline constexpr idx kHeadRows = 256;

}  // namespace mmfree
