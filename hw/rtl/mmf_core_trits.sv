// Decoder of a weight byte: five trits as the fraction n / 243 of 256, rounded up (digits t + 1, row 0 the most significant).
// Multiplying by 3 brings the next digit to the front, so digit r is seen in byte * 3^r mod 256: below 86 it is 0, from 171 on 2. As
// 9 = 8 + 1, no product is more than two short adders away, and the bounds are written as gates because synthesis would make chains.
module mmf_core_trits (
  input  logic [7:0] byte_i,
  output logic [4:0] plus_o,   // row r: trit is 1
  output logic [4:0] minus_o   // trit is -1
);
  logic [7:0] x1, x2, x3, x4;
  assign x1 = {byte_i[7:1] + byte_i[6:0], byte_i[0]};
  assign x2 = {byte_i[7:3] + byte_i[4:0], byte_i[2:0]};
  assign x3 = {x1[7:3] + x1[4:0], x1[2:0]};
  assign x4 = {x2[7:3] + x2[4:0], x2[2:0]};
  logic [39:0] x;
  assign x = {x4, x3, x2, x1, byte_i};
  for (genvar r = 0; r < 5; r++) begin : g_digit
    logic [7:0] n;
    assign n = x[8*r +: 8];
    assign plus_o[r] = n[7] && (n[6] || (n[5] && (n[4] || (n[3] && (n[2] || (n[1] && n[0]))))));
    assign minus_o[r] = !n[7] && (!n[6] || (!n[5] && (!n[4] || (!n[3] && (!n[2] || !n[1])))));
  end
endmodule
