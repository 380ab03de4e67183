// All 243 codes that the packer writes give the base-3 digits; no byte gives 1 and -1 at once.
module trits (input logic [7:0] n);
  logic [4:0] plus, minus;
  logic [15:0] scaled;
  logic [7:0] code;
  assign scaled = n * 16'd256 + 16'd242;
  assign code = 8'(scaled / 16'd243);
  mmf_core_trits dut (.byte_i(n < 8'd243 ? code : n), .plus_o(plus), .minus_o(minus));
  always_comb begin
    assert ((plus & minus) == 5'd0);
    if (n < 8'd243) begin
      assert (plus[0] == (n / 81 == 2) && minus[0] == (n / 81 == 0));
      assert (plus[1] == (n / 27 % 3 == 2) && minus[1] == (n / 27 % 3 == 0));
      assert (plus[2] == (n / 9 % 3 == 2) && minus[2] == (n / 9 % 3 == 0));
      assert (plus[3] == (n / 3 % 3 == 2) && minus[3] == (n / 3 % 3 == 0));
      assert (plus[4] == (n % 3 == 2) && minus[4] == (n % 3 == 0));
    end
  end
endmodule
