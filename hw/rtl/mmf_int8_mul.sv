// Signed product of two bytes without a DSP block, three ways: whatever is smallest on a target stands for int8 in comparisons.
module mmf_int8_mul #(
  parameter int Kind = 0           // 0: the tool's multiplier; 1: rows of the product; 2: base 4, multiples made outside
) (
  input  logic [7:0]  weight_i,
  input  logic [7:0]  code_i,
  input  logic [9:0]  triple_i,    // 3 code, for base 4
  input  logic [8:0]  negated_i,   // -code
  output logic [15:0] product_o
);
  if (Kind == 0) begin : g_tool
    logic signed [15:0] product;
    assign product = $signed(weight_i) * $signed(code_i);
    assign product_o = product;
  end else begin : g_pairs
    // Two bits of the weight at a time, then sums of the four.
    logic [39:0] pair;  // 10 bits each
    for (genvar i = 0; i < 4; i++) begin : g_pair
      logic [1:0] digit;
      assign digit = weight_i[2*i +: 2];
      if (Kind == 1) begin : g_rows
        logic [7:0] low, high;
        logic [8:0] top;
        assign low = code_i & {8{digit[0]}};
        assign high = code_i & {8{digit[1]}};
        if (i == 3) begin : g_sign
          assign top = {{2{low[7]}}, low[7:1]} - {high[7], high};
        end else begin : g_sum
          assign top = {{2{low[7]}}, low[7:1]} + {high[7], high};
        end
        assign pair[10*i +: 10] = {top, low[0]};
      end else begin : g_multiples
        logic [9:0] once, twice, thrice;
        assign once = {{2{code_i[7]}}, code_i};
        if (i == 3) begin : g_sign  // -2 and -1 instead of 2 and 3
          assign twice = {negated_i, 1'b0};
          assign thrice = {negated_i[8], negated_i};
        end else begin : g_sum
          assign twice = {code_i[7], code_i, 1'b0};
          assign thrice = triple_i;
        end
        assign pair[10*i +: 10] = digit[1] ? (digit[0] ? thrice : twice) : (digit[0] ? once : 10'd0);
      end
    end
    logic [9:0] lower, upper;  // without their two lowest bits
    logic [11:0] sum;
    assign lower = {{2{pair[9]}}, pair[9:2]} + pair[19:10];
    assign upper = {{2{pair[29]}}, pair[29:22]} + pair[39:30];
    assign sum = {{4{lower[9]}}, lower[9:2]} + {upper, pair[21:20]};
    assign product_o = {sum, lower[1:0], pair[1:0]};
  end
endmodule
