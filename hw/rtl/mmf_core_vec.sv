// Vector unit: passes over X or Z, 16 elements a cycle. STAT: sum of squares and maximum of the normalised, gained elements, as
// scalars. QNT: int8 codes. mmfree/hw/fixed.h is the arithmetic. Latencies: STAT words + 7, QNT words + 5 cycles from start to done.
module mmf_core_vec #(
  parameter int AddrW = 10         // of a word of 16 elements
) (
  input  logic             clk_i,
  input  logic             rst_ni,
  input  logic             start_i,
  input  logic             quantize_i,
  input  logic             raw_i,
  input  logic [AddrW:0]   words_i,
  input  logic [31:0]      bits_i,     // OR of v ^ (v >> 31) of the vector
  input  logic [31:0]      scale_i,    // {shift, mantissa}
  output logic             busy_o,
  output logic             done_o,
  // Operands: data the cycle after the address.
  output logic [AddrW-1:0] addr_o,
  input  logic [511:0]     vector_i,
  input  logic [255:0]     gains_i,
  // Codes
  output logic             code_we_o,
  output logic [AddrW-1:0] code_addr_o,
  output logic [127:0]     codes_o,
  // Scalars, valid with done_o
  output logic [31:0]      squares_o,
  output logic [31:0]      maximum_o
);
  logic busy_q, quantize_q, raw_q, done_q;
  logic [AddrW:0] word_q, words_q;
  logic [5:0] valid_q;
  logic [AddrW-1:0] addr_q [1:5];
  logic signed [6:0] shift_q;
  logic [15:0] mant_q;
  logic [5:0] rshift_q;
  // What follows from the shifts a cycle after the start, long before the first element comes.
  logic [32:0] half_q;             // of normalisation
  logic [48:0] code_half_q;
  logic [255:0] normal2_q, gains2_q, term3_q;
  logic [511:0] prod3_q, square4_q;
  logic [767:0] wide4_q;
  logic [127:0] max4_q;            // of four lanes each
  logic [31:0] max_q, max5_q;
  logic [47:0] sum5_q, sum_q;
  logic [5:0] sum_length_q, max_length_q;
  logic [127:0] codes5_q;

  function automatic logic [5:0] length32(input logic [31:0] v);
    length32 = 6'd0;
    for (int i = 0; i < 32; i++) if (v[i]) length32 = 6'(i + 1);
  endfunction

  function automatic logic [5:0] length48(input logic [47:0] v);
    length48 = 6'd0;
    for (int i = 0; i < 48; i++) if (v[i]) length48 = 6'(i + 1);
  endfunction

  function automatic logic [15:0] normalize(input logic [31:0] v, input logic signed [6:0] s, input logic [32:0] half);
    logic signed [32:0] r;
    if (s <= 7'sd0) begin
      r = $signed({v[31], v}) <<< (-s);
      normalize = r[15:0];
    end else begin
      r = ($signed({v[31], v}) + $signed(half)) >>> s;
      normalize = r > 33'sd32767 ? 16'h7fff : (r < -33'sd32768 ? 16'h8000 : r[15:0]);
    end
  endfunction

  function automatic logic [31:0] larger(input logic [31:0] a, input logic [31:0] b);
    larger = a > b ? a : b;
  endfunction

  function automatic logic [15:0] rounded_term(input logic [31:0] p);
    logic signed [32:0] r;
    r = ($signed({p[31], p}) + 33'sd16384) >>> 15;
    rounded_term = r > 33'sd32767 ? 16'h7fff : r[15:0];
  endfunction

  function automatic logic [7:0] to_code(input logic [47:0] w, input logic [5:0] s, input logic [48:0] half);
    logic signed [48:0] r;
    r = ($signed({w[47], w}) + $signed(half)) >>> s;
    to_code = r > 49'sd127 ? 8'h7f : (r < -49'sd128 ? 8'h80 : r[7:0]);
  endfunction

  // n: the length of v
  function automatic logic [31:0] to_scalar(input logic [47:0] v, input logic [5:0] n);
    logic [48:0] r;
    logic [47:0] left;
    left = v << (6'd16 - n);
    r = ({1'b0, v} + (49'd1 << (n - 6'd17))) >> (n - 6'd16);
    if (n == 6'd0) to_scalar = 32'd0;
    else if (n <= 6'd16) to_scalar = {16'({10'd0, n}) - 16'd16, left[15:0]};
    else if (r[16]) to_scalar = {16'({10'd0, n}) - 16'd15, 16'h8000};
    else to_scalar = {16'({10'd0, n}) - 16'd16, r[15:0]};
  endfunction

  assign busy_o = busy_q;
  assign done_o = done_q;
  assign addr_o = word_q[AddrW-1:0];
  assign code_we_o = valid_q[5] && quantize_q;
  assign code_addr_o = addr_q[5];
  assign codes_o = codes5_q;
  assign squares_o = to_scalar(sum_q, sum_length_q);
  assign maximum_o = to_scalar({16'd0, max_q}, max_length_q);

  // Issue and bookkeeping
  logic reading;
  assign reading = busy_q && word_q < words_q;
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      busy_q <= 1'b0;
      done_q <= 1'b0;
      valid_q <= '0;
    end else begin
      done_q <= 1'b0;
      valid_q <= {valid_q[4:1], reading, 1'b0};
      if (start_i) begin
        busy_q <= 1'b1;
        quantize_q <= quantize_i;
        raw_q <= raw_i;
        word_q <= '0;
        words_q <= words_i;
        shift_q <= bits_i == 32'd0 ? 7'sd0 : $signed({1'b0, length32(bits_i)}) - 7'sd15;
        mant_q <= scale_i[15:0];
        rshift_q <= scale_i[21:16];
        sum_q <= '0;
        max_q <= '0;
      end else begin
        if (reading) word_q <= word_q + 1'b1;
        if (valid_q[5]) begin
          sum_q <= sum_q + sum5_q;
          if (max5_q > max_q) max_q <= max5_q;
        end
        if (busy_q && !reading && valid_q == 6'd0 && !done_q) begin
          done_q <= 1'b1;
        end
        if (done_q) busy_q <= 1'b0;
      end
    end
    addr_q[1] <= word_q[AddrW-1:0];
    for (int i = 2; i <= 5; i++) addr_q[i] <= addr_q[i-1];
  end

  // 1: operands have come; 2: normalised; 3: products and terms; 4: squares or scaled products, maxima of four lanes; 5: sums or codes
  logic [127:0] max_four;
  logic [31:0] max_all;
  logic [47:0] sum_lane;
  logic [511:0] magnitude;
  always_comb begin
    for (int k = 0; k < 4; k++) begin
      max_four[32*k +: 32] = larger(larger(magnitude[128*k +: 32], magnitude[128*k + 32 +: 32]),
                                    larger(magnitude[128*k + 64 +: 32], magnitude[128*k + 96 +: 32]));
    end
    max_all = larger(larger(max4_q[31:0], max4_q[63:32]), larger(max4_q[95:64], max4_q[127:96]));
  end
  // Sums of pairs of pairs: a tree, because a chain of additions becomes one in hardware too.
  logic [34*8-1:0] sum_two;
  logic [36*4-1:0] sum_four;
  for (genvar k = 0; k < 8; k++) begin : g_two
    assign sum_two[34*k +: 34] = {2'd0, square4_q[64*k +: 32]} + {2'd0, square4_q[64*k + 32 +: 32]};
  end
  for (genvar k = 0; k < 4; k++) begin : g_four
    assign sum_four[36*k +: 36] = {2'd0, sum_two[68*k +: 34]} + {2'd0, sum_two[68*k + 34 +: 34]};
  end
  assign sum_lane = ({12'd0, sum_four[35:0]} + {12'd0, sum_four[71:36]}) + ({12'd0, sum_four[107:72]} + {12'd0, sum_four[143:108]});
  for (genvar j = 0; j < 16; j++) begin : g_lane
    logic signed [48:0] scaled;
    logic signed [31:0] product, square;  // the width of the result decides the multiplication's
    assign product = $signed(normal2_q[16*j +: 16]) * $signed(gains2_q[16*j +: 16]);
    assign square = $signed(term3_q[16*j +: 16]) * $signed(term3_q[16*j +: 16]);
    assign magnitude[32*j +: 32] = prod3_q[32*j + 31] ? -prod3_q[32*j +: 32] : prod3_q[32*j +: 32];
    assign scaled = $signed(prod3_q[32*j +: 32]) * $signed({1'b0, mant_q});
    always_ff @(posedge clk_i) begin
      normal2_q[16*j +: 16] <= normalize(vector_i[32*j +: 32], shift_q, half_q);
      prod3_q[32*j +: 32] <= product;
      term3_q[16*j +: 16] <= raw_q ? normal2_q[16*j +: 16] : rounded_term(product);
      square4_q[32*j +: 32] <= square;
      wide4_q[48*j +: 48] <= scaled[47:0];
      codes5_q[8*j +: 8] <= to_code(wide4_q[48*j +: 48], rshift_q, code_half_q);
    end
  end
  always_ff @(posedge clk_i) begin
    gains2_q <= gains_i;
    half_q <= 33'd1 << (shift_q - 7'sd1);
    code_half_q <= rshift_q == 6'd0 ? 49'd0 : (49'd1 << (rshift_q - 6'd1));
    max4_q <= max_four;
    max5_q <= max_all;
    sum_length_q <= length48(sum_q);
    max_length_q <= length32(max_q);
    sum5_q <= sum_lane;
  end
endmodule
