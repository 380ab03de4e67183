// Decoder of a weight byte: five trits as the fraction n / 243 of 256, rounded up (digits t + 1, row 0 the most significant).
// Multiplying by 9 = 8 + 1 brings two digits to the front, 0..8 in four bits, and leaves the fraction of those behind them.
module mmf_core_trits #(
  parameter bit NotZero = 1'b0
) (
  input  logic [7:0] byte_i,
  output logic [4:0] plus_o,   // row r: trit is 1; with NotZero: is not 0
  output logic [4:0] minus_o   // trit is -1
);
  logic [8:0] high0, high2;  // 9 x without its three lowest bits, which are those of x
  logic [7:0] x2, x4;
  assign high0 = {4'd0, byte_i[7:3]} + {1'b0, byte_i};
  assign x2 = {high0[4:0], byte_i[2:0]};
  assign high2 = {4'd0, x2[7:3]} + {1'b0, x2};
  assign x4 = {high2[4:0], x2[2:0]};
  logic [7:0] two;
  assign two = {high2[8:5], high0[8:5]};
  for (genvar i = 0; i < 2; i++) begin : g_two
    logic [3:0] v;
    assign v = two[4*i +: 4];
    assign minus_o[2*i] = v < 4'd3;
    assign plus_o[2*i] = v > 4'd5 || (NotZero && minus_o[2*i]);
    assign minus_o[2*i + 1] = v == 4'd0 || v == 4'd3 || v == 4'd6;
    assign plus_o[2*i + 1] = v == 4'd2 || v == 4'd5 || v == 4'd8 || (NotZero && minus_o[2*i + 1]);
  end
  // The last digit is 2 from 171 on and 0 below 86: as gates, because synthesis would make chains of comparisons.
  assign plus_o[4] = (x4[7] && (x4[6] || (x4[5] && (x4[4] || (x4[3] && (x4[2] || (x4[1] && x4[0]))))))) || (NotZero && minus_o[4]);
  assign minus_o[4] = !x4[7] && (!x4[6] || (!x4[5] && (!x4[4] || (!x4[3] && (!x4[2] || !x4[1])))));
endmodule
