// A 64-lane row of the tile between shift registers, with a register after each level of its tree: not the core's row, which has three
// of the seven, but the same sums. For FPGAs too small for the tile.
module pnr_row (
  input  logic clk_i,
  input  logic bit_i,
  output logic bit_o
);
  logic [641:0] chain_q, in_q;
  logic [23:0] sum, out_q;
  logic [7:0] take_q, first_q;
  always_ff @(posedge clk_i) begin
    chain_q <= {chain_q[640:0], bit_i};
    in_q <= chain_q;
    take_q <= {take_q[6:0], in_q[0]};
    first_q <= {first_q[6:0], in_q[1]};
    out_q <= take_q[7] ? sum : {out_q[22:0], 1'b0};
    bit_o <= out_q[23];
  end
  mmf_core_row #(.Regs(7'b1111111)) u_row (
    .clk_i, .use_i(in_q[65:2]), .minus_i(in_q[129:66]), .codes_i(in_q[641:130]), .sums_i('0), .diffs_i('0),
    .take_i(take_q[6]), .first_i(first_q[6]), .sum_o(sum)
  );
endmodule
