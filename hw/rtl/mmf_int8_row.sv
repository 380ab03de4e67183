// A row of the int8 tile: 64 products, summed by a tree and accumulated.
module mmf_int8_row #(
  parameter int Kind = 0,                  // of multiplier
  parameter logic [6:0] Regs = 7'b0101010  // bit l: a register after the sums of 2^l products
) (
  input  logic         clk_i,
  input  logic [511:0] weights_i,
  input  logic [511:0] codes_i,
  input  logic [639:0] triples_i,  // 64 x 10: 3 code
  input  logic [575:0] negated_i,  // 64 x 9: -code
  input  logic         take_i,
  input  logic         first_i,
  output logic [31:0]  sum_o
);
  for (genvar l = 0; l <= 6; l++) begin : g_level
    localparam int N = 64 >> l;
    localparam int W = 16 + l;
    logic [N*W-1:0] value_d, value;
    if (l == 0) begin : g_products
      for (genvar k = 0; k < 64; k++) begin : g_lane
        mmf_int8_mul #(.Kind(Kind)) u_mul (
          .weight_i(weights_i[8*k +: 8]), .code_i(codes_i[8*k +: 8]), .triple_i(triples_i[10*k +: 10]),
          .negated_i(negated_i[9*k +: 9]), .product_o(value_d[16*k +: 16])
        );
      end
    end else begin : g_sums
      for (genvar k = 0; k < N; k++) begin : g_node
        logic [W-2:0] a, b;
        assign a = g_level[l-1].value[(2*k)*(W-1) +: W-1];
        assign b = g_level[l-1].value[(2*k+1)*(W-1) +: W-1];
        assign value_d[W*k +: W] = {a[W-2], a} + {b[W-2], b};
      end
    end
    if (Regs[l]) begin : g_reg
      always_ff @(posedge clk_i) value <= value_d;
    end else begin : g_wire
      assign value = value_d;
    end
  end

  logic [31:0] sum_q;
  always_ff @(posedge clk_i)
    if (take_i) sum_q <= (first_i ? 32'd0 : sum_q) + {{10{g_level[6].value[21]}}, g_level[6].value};
  assign sum_o = sum_q;
endmodule
