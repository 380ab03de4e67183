// Scalar unit: one restoring divider (a quotient bit a cycle), one square root (a bit a cycle), one 16 x 16 multiplier. Scalars are
// {exponent[15:0], mantissa[15:0]}, scales {shift[15:0], mantissa[15:0]}; mmfree/hw/fixed.h is the arithmetic, bit for bit.
module mmf_core_sfu #(
  parameter int M = 16             // bits of a mantissa, at least 8; other than 16 for proofs only
) (
  input  logic        clk_i,
  input  logic        rst_ni,
  input  logic        start_i,     // while idle
  input  logic [3:0]  fn_i,
  input  logic [5:0]  frac_i,
  input  logic [M+15:0] a_i,
  input  logic [M+15:0] b_i,
  output logic        busy_o,
  output logic        ends_o,      // done_o in the next cycle
  output logic        done_o,      // one cycle, with result_o
  output logic [M+15:0] result_o
);
  typedef enum logic [2:0] {StIdle, StMul, StRound, StScale, StDiv, StRoot, StOut, StDone} state_e;
  state_e state_q;
  logic [3:0] fn_q;
  logic [5:0] frac_q, count_q;
  logic [M-1:0] ma_q, mb_q;
  logic signed [15:0] ea_q, eb_q;
  logic [M+1:0] rem_q;
  logic [M:0] den_q;
  logic [2*M+1:0] quo_q;
  logic [M+3:0] rest_q;
  logic [M:0] root_q;
  logic [M+15:0] result_q;
  logic [2*M-1:0] product_q;
  logic nothing_q;                 // a factor is 0
  logic [M-1:0] mul_m_q;           // rounded product
  logic signed [17:0] mul_e_q;

  function automatic logic signed [15:0] clamp_exponent(input logic signed [17:0] e);
    if (e > 18'sd1023) clamp_exponent = 16'sd1023;
    else if (e < -18'sd1024) clamp_exponent = -16'sd1024;
    else clamp_exponent = e[15:0];
  endfunction

  // a * 2^frac as a scale; shift: -(exponent + frac)
  function automatic logic [M+15:0] to_scale(input logic [M-1:0] m, input logic signed [17:0] shift);
    if (m == '0 || (!shift[17] && (shift[16:6] != '0 || shift[5:4] == 2'b11))) to_scale = '0;  // above 47
    else if (shift[17]) to_scale = {16'd0, {M{1'b1}}};
    else to_scale = {10'd0, shift[5:0], m};
  endfunction

  // Multiplier
  logic [2*M-1:0] product;
  logic high;
  logic [M:0] rounded;
  logic [2*M:0] half;
  logic signed [17:0] mul_e;
  logic [M-1:0] mul_m;
  assign product = product_q;
  assign high = product[2*M-1];
  assign half = {1'b0, product} + ((2*M+1)'(1) << (high ? M - 1 : M - 2));
  assign rounded = high ? half[2*M:M] : half[2*M-1:M-1];
  assign mul_m = nothing_q ? '0 : (rounded[M] ? {1'b1, {(M-1){1'b0}}} : rounded[M-1:0]);
  assign mul_e = nothing_q ? 18'sd0
      : $signed({{2{ea_q[15]}}, ea_q}) + $signed({{2{eb_q[15]}}, eb_q}) + (high ? 18'(M) : 18'(M - 1)) +
        (rounded[M] ? 18'sd1 : 18'sd0);

  // Divider step: the numerator's remaining bits are zeros.
  logic [M+1:0] rem_next;
  logic fits;
  assign rem_next = {rem_q[M:0], 1'b0};
  assign fits = rem_next >= {1'b0, den_q};
  // Root step
  logic [M+3:0] trial, rest_next;
  assign rest_next = {rest_q[M+1:0], quo_q[2*M+1:2*M]};
  assign trial = {1'b0, root_q, 2'b01};

  // 1/sqrt of m * 2^e: an odd e goes into the divisor (m << 1), so the root's exponent is -floor(e / 2).
  logic signed [17:0] half_e;
  assign half_e = $signed({{2{ea_q[15]}}, ea_q}) >>> 1;
  // Exponents of quotient and root with and without a leading bit, long before they are needed.
  logic [15:0] div_high_q, div_low_q, root_high_q, root_low_q;
  always_ff @(posedge clk_i) begin
    div_high_q <= clamp_exponent(18'(8 - 2*M) - $signed({{2{ea_q[15]}}, ea_q}));
    div_low_q <= clamp_exponent(18'(7 - 2*M) - $signed({{2{ea_q[15]}}, ea_q}));
    root_high_q <= clamp_exponent(18'(1 - 3*M/2) - half_e);
    root_low_q <= clamp_exponent(18'(-3*M/2) - half_e);
  end

  logic busy_q;                    // the state is not StIdle
  assign busy_o = busy_q;
  assign ends_o = state_q == StOut;
  assign done_o = state_q == StDone;
  // The last step, in the cycle of done_o: turning into a scale.
  logic signed [17:0] shift_q;
  always_ff @(posedge clk_i) shift_q <= -($signed({{2{result_q[M+15]}}, result_q[M+15:M]}) + $signed({12'd0, frac_q}));
  always_comb begin
    case (fn_q)
      4'(mmf_isa_pkg::FN_MUL), 4'(mmf_isa_pkg::FN_RSQ): result_o = result_q;
      default: result_o = to_scale(result_q[M-1:0], shift_q);
    endcase
  end

  always_ff @(posedge clk_i) begin
    case (state_q)
      // Operands and first values at any rate, so that the start decides over the state alone.
      StIdle: begin
        fn_q <= fn_i;
        frac_q <= frac_i;
        ma_q <= a_i[M-1:0];
        ea_q <= a_i[M+15:M];
        mb_q <= b_i[M-1:0];
        eb_q <= b_i[M+15:M];
        quo_q <= '0;
        root_q <= '0;
        rest_q <= '0;
        if (fn_i == 4'(mmf_isa_pkg::FN_RSQ)) begin
          den_q <= a_i[M] ? {a_i[M-1:0], 1'b0} : {1'b0, a_i[M-1:0]};
          rem_q <= (M+2)'(1) << (M - 2);  // 2^(3M) >> (2M + 2)
          count_q <= 6'(2*M + 1);
        end else if (fn_i == 4'(mmf_isa_pkg::FN_RCP)) begin
          den_q <= {1'b0, a_i[M-1:0]};
          rem_q <= (M+2)'(127) << (M - 8);  // (127 << (2M - 7)) >> (M + 1)
          count_q <= 6'(M);
        end
        if (start_i) state_q <= fn_i == 4'(mmf_isa_pkg::FN_RSQ) || fn_i == 4'(mmf_isa_pkg::FN_RCP) ? StDiv : StMul;
      end
      StMul: begin
        product_q <= ma_q * mb_q;
        nothing_q <= ma_q == '0 || mb_q == '0;
        state_q <= StRound;
      end
      StRound: begin
        mul_m_q <= mul_m;
        mul_e_q <= mul_e;
        state_q <= StScale;
      end
      StScale: begin
        if (fn_q != 4'(mmf_isa_pkg::FN_RCP)) result_q <= {clamp_exponent(mul_e_q), mul_m_q};
        state_q <= StOut;
      end
      StOut: state_q <= StDone;
      StDiv: begin
        rem_q <= fits ? rem_next - {1'b0, den_q} : rem_next;
        quo_q <= {quo_q[2*M:0], fits};
        count_q <= count_q - 6'd1;
        if (count_q == 6'd0) begin
          count_q <= 6'(M);
          state_q <= StRoot;
          if (fn_q == 4'(mmf_isa_pkg::FN_RCP)) begin
            state_q <= StScale;
            frac_q <= 6'd0;
            // Quotient of M + 1 bits, {quo_q[M-1:0], fits}
            result_q <= ma_q == '0 ? '0
                : quo_q[M-1] ? {div_high_q, quo_q[M-1:0]}
                : {div_low_q, quo_q[M-2:0], fits};
          end
        end
      end
      StRoot: begin
        quo_q <= {quo_q[2*M-1:0], 2'b00};
        rest_q <= rest_next >= trial ? rest_next - trial : rest_next;
        root_q <= {root_q[M-1:0], rest_next >= trial};
        count_q <= count_q - 6'd1;
        if (count_q == 6'd0) begin
          state_q <= StOut;
          result_q <= ma_q == '0 ? '0
              : root_q[M-1] ? {root_high_q, root_q[M-1:0]}
              : {root_low_q, root_q[M-2:0], rest_next >= trial};
        end
      end
      default: state_q <= StIdle;
    endcase
    busy_q <= rst_ni && (busy_q ? state_q != StDone : start_i);
    if (!rst_ni) state_q <= StIdle;
  end
endmodule
