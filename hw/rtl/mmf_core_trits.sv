// Decoder of a weight byte: five trits as the fraction n / 243 of 256, rounded up (digits t + 1, row 0 the most significant).
// Multiplying by 3 brings the digits out in the carry.
module mmf_core_trits (
  input  logic [7:0] byte_i,
  output logic [4:0] plus_o,   // row r: trit is 1
  output logic [4:0] minus_o   // trit is -1
);
  always_comb begin
    logic [9:0] t;
    logic [7:0] rest;
    rest = byte_i;
    for (int r = 0; r < 5; r++) begin
      t = {2'b0, rest} + {1'b0, rest, 1'b0};
      plus_o[r] = t[9];
      minus_o[r] = t[9:8] == 2'd0;
      rest = t[7:0];
    end
  end
endmodule
