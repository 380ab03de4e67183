// Vector unit: passes over X or Z, Lanes elements a cycle. STAT: sum of squares and maximum of the normalised, gained elements, as
// scalars. QNT: int8 codes. mmfree/hw/fixed.h is the arithmetic. Latencies: STAT words + 10, QNT words + 7 cycles from start to done,
// which is when the last code is written.
module mmf_core_vec #(
  parameter int Lanes = 16,        // a power of two, at least 2
  parameter int AddrW = 10         // of a word of Lanes elements
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
  input  logic [32*Lanes-1:0] vector_i,
  input  logic [16*Lanes-1:0] gains_i,
  // Codes
  output logic             code_we_o,
  output logic [AddrW-1:0] code_addr_o,
  output logic [8*Lanes-1:0] codes_o,
  // Scalars, valid with done_o
  output logic [31:0]      squares_o,
  output logic [31:0]      maximum_o
);
  logic busy_q, quantize_q, raw_q, done_q;
  logic [AddrW:0] word_q, words_q;
  logic [7:1] valid_q;
  logic [9:1] last_q;              // the pass's last word
  logic [AddrW-1:0] addr_q [1:7];
  logic signed [6:0] shift_q;
  logic [15:0] mant_q;
  logic [5:0] rshift_q;
  // What follows from the shifts a cycle after the start, before the first element comes.
  logic left_q;                    // normalisation shifts left, by
  logic [3:0] left_by_q;
  logic [4:0] right_by_q;          // or right, by
  logic [32:0] half_q;             // with this for rounding
  logic [47:0] code_half_q;

  // Bits up to the highest 1; in groups, because one chain of 48 choices would be as deep.
  function automatic logic [5:0] length48(input logic [47:0] v);
    logic [3:0] part;
    length48 = 6'd0;
    for (int g = 0; g < 6; g++) begin
      part = 4'd0;
      for (int i = 0; i < 8; i++) if (v[8*g + i]) part = 4'(i + 1);
      if (v[8*g +: 8] != 8'd0) length48 = 6'(8 * g) + {2'd0, part};
    end
  endfunction

  function automatic logic [32:0] shifted(input logic [31:0] v, input logic left, input logic [3:0] left_by, input logic [4:0] right_by,
                                          input logic [32:0] half);
    logic signed [32:0] right;
    logic [15:0] low;
    right = ($signed({v[31], v}) + $signed(half)) >>> right_by;
    low = v[15:0] << left_by;
    shifted = left ? {{17{low[15]}}, low} : right;
  endfunction

  function automatic logic [15:0] saturated(input logic signed [32:0] r);
    saturated = r > 33'sd32767 ? 16'h7fff : (r < -33'sd32768 ? 16'h8000 : r[15:0]);
  endfunction

  function automatic logic [31:0] larger(input logic [31:0] a, input logic [31:0] b);
    larger = a > b ? a : b;
  endfunction

  function automatic logic [15:0] rounded_term(input logic [31:0] p);
    logic signed [32:0] r;
    r = ($signed({p[31], p}) + 33'sd16384) >>> 15;
    rounded_term = r > 33'sd32767 ? 16'h7fff : r[15:0];
  endfunction

  function automatic logic [7:0] to_code(input logic signed [48:0] rounded, input logic [5:0] s);
    logic signed [48:0] r;
    r = rounded >>> s;
    to_code = r > 49'sd127 ? 8'h7f : (r < -49'sd128 ? 8'h80 : r[7:0]);
  endfunction

  // n: the length of v. The highest 17 bits, the last of them for rounding.
  function automatic logic [31:0] to_scalar(input logic [47:0] v, input logic [5:0] n);
    logic [47:0] front;
    logic [17:0] r;
    front = v << (6'd48 - n);
    r = {1'b0, front[47:31]} + 18'd1;
    if (n == 6'd0) to_scalar = 32'd0;
    else if (r[17]) to_scalar = {16'({10'd0, n}) - 16'd15, 16'h8000};
    else to_scalar = {16'({10'd0, n}) - 16'd16, r[16:1]};
  endfunction

  assign busy_o = busy_q;
  assign done_o = done_q;
  assign addr_o = word_q[AddrW-1:0];
  assign code_we_o = valid_q[7] && quantize_q;
  assign code_addr_o = addr_q[7];

  // Issue and bookkeeping
  logic reading, last_read;
  logic [5:0] length;
  assign reading = busy_q && word_q < words_q;
  assign last_read = reading && word_q + 1'b1 == words_q;
  assign length = length48({16'd0, bits_i});
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      busy_q <= 1'b0;
      done_q <= 1'b0;
      valid_q <= '0;
      last_q <= '0;
    end else begin
      done_q <= quantize_q ? last_q[6] : last_q[9];
      valid_q <= {valid_q[6:1], reading};
      last_q <= {last_q[8:1], last_read};
      if (start_i) begin
        busy_q <= 1'b1;
        quantize_q <= quantize_i;
        raw_q <= raw_i;
        word_q <= '0;
        words_q <= words_i;
        shift_q <= length == 6'd0 ? 7'sd0 : $signed({1'b0, length}) - 7'sd15;
        mant_q <= scale_i[15:0];
        rshift_q <= scale_i[21:16];
        last_q <= '0;
      end else begin
        if (reading) word_q <= word_q + 1'b1;
        if (done_q) busy_q <= 1'b0;
      end
    end
    addr_q[1] <= word_q[AddrW-1:0];
    for (int i = 2; i <= 7; i++) addr_q[i] <= addr_q[i-1];
    left_q <= shift_q <= 7'sd0;
    left_by_q <= 4'(-shift_q);
    right_by_q <= shift_q[4:0];
    half_q <= 33'd1 << (shift_q[4:0] - 5'd1);
    code_half_q <= rshift_q == 6'd0 ? 48'd0 : (48'd1 << (rshift_q - 6'd1));
  end

  // 1: operands come; 2: chosen; 3: shifted; 4: saturated and gained; 5: terms of the statistics, parts of the scaled products;
  // 6: squares and maxima of two lanes, scaled products; 7: sum and maximum of the word, codes; 8: of the pass; 9: lengths; 10: scalars
  logic [32*Lanes-1:0] vector2_q, prod4_q, magnitude5_q, square6_q;
  logic [16*Lanes-1:0] gains2_q, gains3_q, normal4_q, term5_q;
  logic [33*Lanes-1:0] shifted3_q;
  logic [33*Lanes-1:0] low5_q;
  logic [32*Lanes-1:0] high5_q;
  logic [49*Lanes-1:0] wide6_q;
  logic [8*Lanes-1:0] codes7_q;
  logic [16*Lanes-1:0] max6_q;
  logic [47:0] sum_all, sum7_q, sum_q;
  logic [31:0] max_all, max7_q, max_q;
  logic [5:0] sum_length_q, max_length_q;
  always_ff @(posedge clk_i) begin
    vector2_q <= vector_i;
    gains2_q <= gains_i;
    gains3_q <= gains2_q;
  end
  for (genvar j = 0; j < Lanes; j++) begin : g_lane
    logic [15:0] normal;
    logic signed [31:0] product, square;  // the width of the result decides the multiplication's
    logic [31:0] old;
    logic signed [32:0] low;
    logic signed [31:0] high;
    assign normal = saturated($signed(shifted3_q[33*j +: 33]));
    assign product = $signed(normal) * $signed(gains3_q[16*j +: 16]);
    assign old = prod4_q[32*j +: 32];
    assign low = $signed({1'b0, old[15:0]}) * $signed({1'b0, mant_q});
    assign high = $signed(old[31:16]) * $signed({1'b0, mant_q});
    assign square = $signed(term5_q[16*j +: 16]) * $signed(term5_q[16*j +: 16]);
    always_ff @(posedge clk_i) begin
      shifted3_q[33*j +: 33] <= shifted(vector2_q[32*j +: 32], left_q, left_by_q, right_by_q, half_q);
      normal4_q[16*j +: 16] <= normal;
      prod4_q[32*j +: 32] <= product;
      term5_q[16*j +: 16] <= raw_q ? normal4_q[16*j +: 16] : rounded_term(old);
      magnitude5_q[32*j +: 32] <= old[31] ? -old : old;
      low5_q[33*j +: 33] <= low;
      high5_q[32*j +: 32] <= high;
      square6_q[32*j +: 32] <= square;
      wide6_q[49*j +: 49] <= ({high5_q[32*j + 31], high5_q[32*j +: 32], 16'd0} + {16'd0, low5_q[33*j +: 33]}) + {1'b0, code_half_q};
      codes7_q[8*j +: 8] <= to_code($signed(wide6_q[49*j +: 49]), rshift_q);
    end
  end
  for (genvar j = 0; j < Lanes / 2; j++) begin : g_pair
    always_ff @(posedge clk_i) max6_q[32*j +: 32] <= larger(magnitude5_q[64*j +: 32], magnitude5_q[64*j + 32 +: 32]);
  end
  // Trees, because a chain of additions or choices becomes one in hardware too.
  for (genvar l = 0; (1 << l) <= Lanes; l++) begin : g_sums
    localparam int N = Lanes >> l;
    logic [48*N-1:0] sums;
    for (genvar k = 0; k < N; k++) begin : g_node
      if (l == 0) begin : g_squares
        assign sums[48*k +: 48] = {16'd0, square6_q[32*k +: 32]};
      end else begin : g_sum
        assign sums[48*k +: 48] = g_sums[l-1].sums[96*k +: 48] + g_sums[l-1].sums[96*k + 48 +: 48];
      end
    end
  end
  for (genvar l = 0; (2 << l) <= Lanes; l++) begin : g_maxima
    localparam int N = (Lanes / 2) >> l;
    logic [32*N-1:0] maxima;
    for (genvar k = 0; k < N; k++) begin : g_node
      if (l == 0) begin : g_pairs
        assign maxima[32*k +: 32] = max6_q[32*k +: 32];
      end else begin : g_larger
        assign maxima[32*k +: 32] = larger(g_maxima[l-1].maxima[64*k +: 32], g_maxima[l-1].maxima[64*k + 32 +: 32]);
      end
    end
  end
  assign sum_all = g_sums[$clog2(Lanes)].sums;
  assign max_all = g_maxima[$clog2(Lanes) - 1].maxima;
  always_ff @(posedge clk_i) begin
    sum7_q <= sum_all;
    max7_q <= max_all;
    if (start_i) begin
      sum_q <= '0;
      max_q <= '0;
    end else if (valid_q[7]) begin
      sum_q <= sum_q + sum7_q;
      if (max7_q > max_q) max_q <= max7_q;
    end
    sum_length_q <= length48(sum_q);
    max_length_q <= length48({16'd0, max_q});
    squares_o <= to_scalar(sum_q, sum_length_q);
    maximum_o <= to_scalar({16'd0, max_q}, max_length_q);
  end
  assign codes_o = codes7_q;
endmodule
