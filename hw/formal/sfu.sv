// Divider and square root with mantissas of 8 bits: for every normalised argument the results are the floors that
// mmfree/hw/fixed.h defines, in the stated number of cycles.
module sfu (input logic clk_i);
  localparam int M = 8;
  (* anyconst *) logic [M-1:0] m;
  (* anyconst *) logic signed [6:0] e;
  (* anyconst *) logic root;
  logic [6:0] at = '0;
  logic rst_n, busy, done;
  logic [M+15:0] result;
  assign rst_n = at != 7'd0;
  always_ff @(posedge clk_i) if (at != 7'd127) at <= at + 7'd1;
  mmf_core_sfu #(.M(M)) dut (
    .clk_i, .rst_ni(rst_n), .start_i(at == 7'd1), .fn_i(root ? 4'(mmf_isa_pkg::FN_RSQ) : 4'(mmf_isa_pkg::FN_RCP)), .frac_i(6'd0),
    .a_i({{9{e[6]}}, e, m}), .b_i({(M+16){1'b0}}), .busy_o(busy), .ends_o(), .done_o(done), .result_o(result));

  // 127 / a: q = floor((127 << 9) / m), of 8 or 9 bits, as a scale {shift, mantissa}.
  logic [M+15:0] divided;
  logic [15:0] q;
  logic [16:0] shift;
  logic over;
  assign q = 16'd65024 / {8'd0, m};
  assign over = q[8];
  assign shift = 17'd9 + {{10{e[6]}}, e} - (over ? 17'd1 : 17'd0);
  always_comb begin
    if ($signed(shift) > 17'sd47) divided = '0;
    else if ($signed(shift) < 17'sd0) divided = {16'd0, 8'hff};
    else divided = {10'd0, shift[5:0], over ? q[8:1] : q[7:0]};
  end

  // 1 / sqrt(a): the largest r with r * r * (m << odd) <= 2^24, its last bit dropped if it has 9 bits.
  logic [9:0] divisor;
  logic [15:0] exponent, half;
  logic [35:0] r, low, high;
  logic wide;
  assign divisor = e[0] ? {1'b0, m, 1'b0} : {2'b00, m};
  assign half = {{10{e[6]}}, e[6:1]};
  assign exponent = result[M+15:M];
  assign wide = exponent == -16'd11 - half;
  assign r = wide ? {27'd0, result[M-1:0], 1'b0} : {28'd0, result[M-1:0]};
  assign low = r * r * {26'd0, divisor};
  assign high = (r + (wide ? 36'd2 : 36'd1)) * (r + (wide ? 36'd2 : 36'd1)) * {26'd0, divisor};

  always_ff @(posedge clk_i) begin
    assume (m[M-1]);
    if (at > 7'd1 && done) begin
      if (root) begin
        assert (wide || exponent == -16'd12 - half);
        assert (result[M-1]);
        assert (low <= 36'd16777216 && high > 36'd16777216);
        assert (at == 7'd30);
      end else begin
        assert (result == divided);
        assert (at == 7'd13);
      end
    end
    if (at == 7'd31) assert (!busy);
  end
endmodule
