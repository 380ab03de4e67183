// A row of the ternary tile: 64 codes, each added, subtracted or left out, summed by a tree and accumulated.
// -c = ~c + 1, and a sum has a carry input, so the 1 costs nothing: each node of the tree has a value and one such 1 still to be added.
// A node of two takes that of its left one as its carry and hands on that of its right one; the last goes into the accumulator.
module mmf_core_row #(
  parameter logic [6:0] Regs = 7'b1010100  // bit l: a register after the sums of 2^l codes; the core's has three
) (
  input  logic         clk_i,
  input  logic [63:0]  plus_i,
  input  logic [63:0]  minus_i,
  input  logic [511:0] codes_i,  // 64 int8
  input  logic         take_i,   // with the tree's result: as many cycles later as there are registers
  input  logic         first_i,  // it starts a sum
  output logic [23:0]  sum_o
);
  for (genvar l = 0; l <= 6; l++) begin : g_level
    localparam int N = 64 >> l;
    localparam int W = 8 + l;
    logic [N*W-1:0] value_d, value;
    logic [N-1:0] one_d, one;
    if (l == 0) begin : g_codes
      for (genvar k = 0; k < 64; k++) begin : g_lane
        assign value_d[8*k +: 8] = (codes_i[8*k +: 8] & {8{plus_i[k]}}) | (~codes_i[8*k +: 8] & {8{minus_i[k]}});
      end
      assign one_d = minus_i;
    end else begin : g_sums
      for (genvar k = 0; k < N; k++) begin : g_node
        logic [W-2:0] a, b;
        logic below;  // the sum of the carry input's position
        assign a = g_level[l-1].value[(2*k)*(W-1) +: W-1];
        assign b = g_level[l-1].value[(2*k+1)*(W-1) +: W-1];
        assign {value_d[W*k +: W], below} = {a[W-2], a, 1'b1} + {b[W-2], b, g_level[l-1].one[2*k]};
        assign one_d[k] = g_level[l-1].one[2*k+1];
      end
    end
    if (Regs[l]) begin : g_reg
      always_ff @(posedge clk_i) begin
        value <= value_d;
        one <= one_d;
      end
    end else begin : g_wire
      assign value = value_d;
      assign one = one_d;
    end
  end

  logic [23:0] sum_q, sum_d;
  logic below;
  assign {sum_d, below} = {first_i ? 24'd0 : sum_q, 1'b1} + {{10{g_level[6].value[13]}}, g_level[6].value, g_level[6].one};
  always_ff @(posedge clk_i) if (take_i) sum_q <= sum_d;
  assign sum_o = sum_q;
endmodule
