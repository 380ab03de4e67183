// A row of the ternary tile: Lanes codes, each added, subtracted or left out, summed by a tree and accumulated.
// -c = ~c + 1, and a sum has a carry input, so the 1 costs nothing: each node of the tree has a value and one such 1 still to be added.
// A node of two takes that of its left one as its carry and hands on that of its right one; the last goes into the accumulator.
module mmf_core_row #(
  parameter int Lanes = 64,                 // a power of two, at least 8
  parameter logic [6:0] Regs = 7'b0101010,  // bit l: a register after the sums of 2^l codes; the core's has three
  // Choices for area, with the same results:
  parameter bit Pairs = 1'b0,   // choose among 0, a, b, a + b and a - b of two codes, which all rows share: for 6-input LUTs and cells
  parameter bit CarryInput = 1'b0  // chains of the target have a carry input from logic; else it takes a position of the chain
) (
  input  logic         clk_i,
  input  logic [Lanes-1:0] use_i,    // trit is 1; with Pairs: is not 0
  input  logic [Lanes-1:0] minus_i,  // trit is -1
  input  logic [8*Lanes-1:0] codes_i,  // int8
  input  logic [9*Lanes/2-1:0] sums_i,   // 9 bits each: sums and differences of two neighbours, with Pairs
  input  logic [9*Lanes/2-1:0] diffs_i,
  input  logic         take_i,   // with the tree's result: as many cycles later as there are registers
  input  logic         first_i,  // it starts a sum
  output logic [23:0]  sum_o
);
  localparam int Top = $clog2(Lanes);
  for (genvar l = 0; l <= Top; l++) begin : g_level
    localparam int N = Lanes >> l;
    localparam int W = 8 + l;
    logic [N*W-1:0] value_d, value;
    logic [N-1:0] one_d, one;
    if (l == 0) begin : g_codes
      for (genvar k = 0; k < Lanes; k++) begin : g_lane
        assign value_d[8*k +: 8] = (codes_i[8*k +: 8] & {8{use_i[k]}}) | (~codes_i[8*k +: 8] & {8{minus_i[k]}});
      end
      assign one_d = minus_i;
    end else if (l == 1 && Pairs) begin : g_pairs
      for (genvar k = 0; k < Lanes / 2; k++) begin : g_pair
        logic [8:0] a, b, both, chosen;
        assign a = {codes_i[16*k + 7], codes_i[16*k +: 8]};
        assign b = {codes_i[16*k + 15], codes_i[16*k + 8 +: 8]};
        // The lowest bits of a + b and a - b are the same.
        assign both = {minus_i[2*k] != minus_i[2*k + 1] ? diffs_i[9*k + 1 +: 8] : sums_i[9*k + 1 +: 8], sums_i[9*k]};
        assign chosen = use_i[2*k] ? (use_i[2*k + 1] ? both : a) : (use_i[2*k + 1] ? b : 9'd0);
        assign one_d[k] = minus_i[2*k] || (minus_i[2*k + 1] && !use_i[2*k]);
        assign value_d[9*k +: 9] = chosen ^ {9{one_d[k]}};
      end
    end else begin : g_sums
      for (genvar k = 0; k < N; k++) begin : g_node
        logic [W-2:0] a, b;
        logic carry;
        assign a = g_level[l-1].value[(2*k)*(W-1) +: W-1];
        assign b = g_level[l-1].value[(2*k+1)*(W-1) +: W-1];
        assign carry = g_level[l-1].one[2*k];
        assign one_d[k] = g_level[l-1].one[2*k+1];
        if (CarryInput) begin : g_input
          assign value_d[W*k +: W] = {a[W-2], a} + {b[W-2], b} + W'(carry);
        end else begin : g_position
          logic below;
          assign {value_d[W*k +: W], below} = {a[W-2], a, 1'b1} + {b[W-2], b, carry};
        end
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

  logic [23:0] sum_q, sum_d, old, more;
  assign old = first_i ? 24'd0 : sum_q;
  assign more = {{(16-Top){g_level[Top].value[7+Top]}}, g_level[Top].value};
  if (CarryInput) begin : g_input
    assign sum_d = more + old + 24'(g_level[Top].one);
  end else begin : g_position
    logic below;
    assign {sum_d, below} = {old, 1'b1} + {more, g_level[Top].one};
  end
  always_ff @(posedge clk_i) if (take_i) sum_q <= sum_d;
  assign sum_o = sum_q;
endmodule
