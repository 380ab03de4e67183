// The ternary tile between shift registers, so that four pins do for placement and routing and none of them limits the clock.
// Everything but the tile is a register to register path of one wire or one 2:1 choice.
module pnr_tile (
  input  logic clk_i,
  input  logic rst_ni,
  input  logic bit_i,
  output logic bit_o
);
  logic [1026:0] chain_q, in_q;
  logic [119:0] sums, out_q;
  logic valid, valid_q;
  logic [119:0] sums_q;
  logic rst_nq;
  always_ff @(posedge clk_i) begin
    rst_nq <= rst_ni;
    chain_q <= {chain_q[1025:0], bit_i};
    in_q <= chain_q;
    valid_q <= valid;
    sums_q <= sums;
    out_q <= valid_q ? sums_q : {out_q[118:0], 1'b0};
    bit_o <= out_q[119];
  end
  mmf_core_tile u_tile (
    .clk_i, .rst_ni(rst_nq), .valid_i(in_q[0]), .first_i(in_q[1]), .last_i(in_q[2]), .beat_i(in_q[514:3]), .codes_i(in_q[1026:515]),
    .valid_o(valid), .sums_o(sums)
  );
endmodule
