// Scalar unit: one restoring divider (a quotient bit a cycle), one square root (a bit a cycle), one 16 x 16 multiplier. Scalars are
// {exponent[15:0], mantissa[15:0]}, scales {shift[15:0], mantissa[15:0]}; mmfree/hw/fixed.h is the arithmetic, bit for bit.
module mmf_core_sfu (
  input  logic        clk_i,
  input  logic        rst_ni,
  input  logic        start_i,     // while idle
  input  logic [3:0]  fn_i,
  input  logic [5:0]  frac_i,
  input  logic [31:0] a_i,
  input  logic [31:0] b_i,
  output logic        busy_o,
  output logic        done_o,      // one cycle, with result_o
  output logic [31:0] result_o
);
  typedef enum logic [2:0] {StIdle, StMul, StScale, StDiv, StRoot, StDone} state_e;
  state_e state_q;
  logic [3:0] fn_q;
  logic [5:0] frac_q, count_q;
  logic [15:0] ma_q, mb_q;
  logic signed [15:0] ea_q, eb_q;
  logic [17:0] rem_q;
  logic [16:0] den_q;
  logic [33:0] quo_q;
  logic [19:0] rest_q;
  logic [16:0] root_q;
  logic [31:0] result_q;

  function automatic logic signed [15:0] clamp_exponent(input logic signed [17:0] e);
    if (e > 18'sd1023) clamp_exponent = 16'sd1023;
    else if (e < -18'sd1024) clamp_exponent = -16'sd1024;
    else clamp_exponent = e[15:0];
  endfunction

  // a * 2^frac as a scale
  function automatic logic [31:0] to_scale(input logic [15:0] m, input logic signed [15:0] e, input logic [5:0] frac);
    logic signed [17:0] shift;
    shift = -($signed({{2{e[15]}}, e}) + $signed({12'd0, frac}));
    if (m == 16'd0 || shift > 18'sd47) to_scale = 32'd0;
    else if (shift < 18'sd0) to_scale = {16'd0, 16'hffff};
    else to_scale = {10'd0, shift[5:0], m};
  endfunction

  // Multiplier
  logic [31:0] product;
  logic high;
  logic [16:0] rounded;
  logic [32:0] half;
  logic signed [17:0] mul_e;
  logic [15:0] mul_m;
  assign product = ma_q * mb_q;
  assign high = product[31];
  assign half = {1'b0, product} + (high ? 33'h8000 : 33'h4000);
  assign rounded = high ? half[32:16] : half[31:15];
  assign mul_m = (ma_q == 16'd0 || mb_q == 16'd0) ? 16'd0 : (rounded[16] ? 16'h8000 : rounded[15:0]);
  assign mul_e = (ma_q == 16'd0 || mb_q == 16'd0) ? 18'sd0
      : $signed({{2{ea_q[15]}}, ea_q}) + $signed({{2{eb_q[15]}}, eb_q}) + (high ? 18'sd16 : 18'sd15) +
        (rounded[16] ? 18'sd1 : 18'sd0);

  // Divider step: the numerator's remaining bits are zeros.
  logic [17:0] rem_next;
  logic fits;
  assign rem_next = {rem_q[16:0], 1'b0};
  assign fits = rem_next >= {1'b0, den_q};
  // Root step
  logic [19:0] trial, rest_next;
  assign rest_next = {rest_q[17:0], quo_q[33:32]};
  assign trial = {1'b0, root_q, 2'b01};

  // 1/sqrt of m * 2^e: an odd e goes into the divisor (m << 1), so the root's exponent is -floor(e / 2).
  logic signed [17:0] half_e;
  assign half_e = $signed({{2{ea_q[15]}}, ea_q}) >>> 1;

  assign busy_o = state_q != StIdle;
  assign done_o = state_q == StDone;
  assign result_o = result_q;

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      state_q <= StIdle;
    end else begin
      case (state_q)
        StIdle: if (start_i) begin
          fn_q <= fn_i;
          frac_q <= frac_i;
          ma_q <= a_i[15:0];
          ea_q <= a_i[31:16];
          mb_q <= b_i[15:0];
          eb_q <= b_i[31:16];
          quo_q <= '0;
          root_q <= '0;
          rest_q <= '0;
          if (fn_i == 4'(mmf_isa_pkg::FN_RSQ)) begin
            den_q <= a_i[16] ? {a_i[15:0], 1'b0} : {1'b0, a_i[15:0]};
            rem_q <= 18'd16384;  // 2^48 >> 34
            count_q <= 6'd33;
            state_q <= StDiv;
          end else if (fn_i == 4'(mmf_isa_pkg::FN_RCP)) begin
            den_q <= {1'b0, a_i[15:0]};
            rem_q <= 18'd32512;  // (127 << 25) >> 17
            count_q <= 6'd16;
            state_q <= StDiv;
          end else begin
            state_q <= StMul;
          end
        end
        StMul: begin
          result_q <= {clamp_exponent(mul_e), mul_m};
          state_q <= fn_q == 4'(mmf_isa_pkg::FN_SCL) ? StScale : StDone;
        end
        StScale: begin
          result_q <= to_scale(result_q[15:0], result_q[31:16], frac_q);
          state_q <= StDone;
        end
        StDiv: begin
          rem_q <= fits ? rem_next - {1'b0, den_q} : rem_next;
          quo_q <= {quo_q[32:0], fits};
          count_q <= count_q - 6'd1;
          if (count_q == 6'd0) begin
            count_q <= 6'd16;
            state_q <= StRoot;
            if (fn_q == 4'(mmf_isa_pkg::FN_RCP)) begin
              state_q <= StScale;
              frac_q <= 6'd0;
              // 17-bit quotient, {quo_q[15:0], fits}: at least 65024
              result_q <= ma_q == 16'd0 ? 32'd0
                  : quo_q[15] ? {clamp_exponent(-18'sd24 - $signed({{2{ea_q[15]}}, ea_q})), quo_q[15:0]}
                  : {clamp_exponent(-18'sd25 - $signed({{2{ea_q[15]}}, ea_q})), quo_q[14:0], fits};
            end
          end
        end
        StRoot: begin
          quo_q <= {quo_q[31:0], 2'b00};
          rest_q <= rest_next >= trial ? rest_next - trial : rest_next;
          root_q <= {root_q[15:0], rest_next >= trial};
          count_q <= count_q - 6'd1;
          if (count_q == 6'd0) begin
            state_q <= StDone;
            result_q <= ma_q == 16'd0 ? 32'd0
                : root_q[15] ? {clamp_exponent(-18'sd23 - half_e), root_q[15:0]}
                : {clamp_exponent(-18'sd24 - half_e), root_q[14:0], rest_next >= trial};
          end
        end
        default: state_q <= StIdle;
      endcase
    end
  end
endmodule
