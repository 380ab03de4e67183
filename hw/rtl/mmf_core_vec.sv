// Vector unit: passes over X or Z, Lanes elements a cycle. STAT: sum of squares and maximum of the normalised, gained elements, as
// scalars. QNT: int8 codes. mmfree/hw/fixed.h is the arithmetic. Latencies: STAT words + 13, QNT words + 10 cycles from start to done,
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
  output logic             ends_o,     // done_o in the next cycle
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
  logic [10:1] valid_q;
  logic [12:1] last_q;             // the pass's last word
  logic [AddrW-1:0] addr_q [1:10];
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

  function automatic logic [15:0] saturated(input logic [32:0] r);
    saturated = r[32:15] == {18{r[32]}} ? r[15:0] : {r[32], {15{!r[32]}}};
  endfunction

  function automatic logic [31:0] larger(input logic [31:0] a, input logic [31:0] b);
    larger = a > b ? a : b;
  endfunction

  function automatic logic [15:0] rounded_term(input logic [31:0] p);
    logic signed [32:0] r;
    r = ($signed({p[31], p}) + 33'sd16384) >>> 15;
    rounded_term = r > 33'sd32767 ? 16'h7fff : r[15:0];
  endfunction

  assign busy_o = busy_q;
  assign ends_o = quantize_q ? last_q[9] : last_q[12];
  assign done_o = done_q;
  assign addr_o = word_q[AddrW-1:0];
  assign code_we_o = valid_q[10] && quantize_q;
  assign code_addr_o = addr_q[10];

  // Issue and bookkeeping
  logic reading, last_read;
  logic [5:0] length, length_q;
  assign reading = busy_q && word_q < words_q;
  assign last_read = reading && word_q + 1'b1 == words_q;
  assign length = length48({16'd0, bits_i});
  always_ff @(posedge clk_i) begin
    done_q <= ends_o;
    valid_q <= {valid_q[9:1], reading};
    last_q <= {last_q[11:1], last_read};
    if (reading) word_q <= word_q + 1'b1;
    if (start_i) busy_q <= 1'b1;
    if (done_q) begin
      busy_q <= 1'b0;
      last_q <= '0;  // else the end of codes would become one of statistics
    end
    // Taken at any rate until there is a pass.
    if (!busy_q) begin
      quantize_q <= quantize_i;
      raw_q <= raw_i;
      word_q <= '0;
      words_q <= words_i;
      mant_q <= scale_i[15:0];
      rshift_q <= scale_i[21:16];
      length_q <= length;
    end
    if (!rst_ni) begin
      busy_q <= 1'b0;
      done_q <= 1'b0;
      valid_q <= '0;
      last_q <= '0;
    end
    addr_q[1] <= word_q[AddrW-1:0];
    for (int i = 2; i <= 10; i++) addr_q[i] <= addr_q[i-1];
    shift_q <= length_q == 6'd0 ? 7'sd0 : $signed({1'b0, length_q}) - 7'sd15;
    left_q <= shift_q <= 7'sd0;
    left_by_q <= 4'(-shift_q);
    right_by_q <= shift_q[4:0];
    half_q <= 33'd1 << (shift_q[4:0] - 5'd1);
    code_half_q <= rshift_q == 6'd0 ? 48'd0 : (48'd1 << (rshift_q - 6'd1));
  end

  // 1: operands come; 2: chosen; 3: rounded; 4: shifted; 5: saturated; 6: gained; 7: terms of the statistics, parts of the scaled products;
  // 8: squares and maxima of two lanes, scaled products; 9: sum and maximum of the word, shifted products; 10: sum and maximum of the
  // pass, codes; 11: lengths; 12: highest bits; 13: scalars
  logic [32*Lanes-1:0] vector2_q, prod6_q, magnitude7_q, square8_q;
  logic [16*Lanes-1:0] gains2_q, gains3_q, gains4_q, gains5_q, normal5_q, normal6_q, term7_q, left3_q;
  logic [33*Lanes-1:0] rounded3_q, shifted4_q;
  logic [33*Lanes-1:0] low7_q;
  logic [32*Lanes-1:0] high7_q;
  logic [49*Lanes-1:0] wide8_q, shifted9_q;
  logic [8*Lanes-1:0] codes10_q;
  logic [16*Lanes-1:0] max8_q;
  logic [47:0] sum_all, sum9_q, sum_q;
  logic [31:0] max_all, max9_q, max_q;
  always_ff @(posedge clk_i) begin
    vector2_q <= vector_i;
    gains2_q <= gains_i;
    gains3_q <= gains2_q;
    gains4_q <= gains3_q;
    gains5_q <= gains4_q;
  end
  for (genvar j = 0; j < Lanes; j++) begin : g_lane
    logic [15:0] normal, left;
    logic signed [31:0] product, square;  // the width of the result decides the multiplication's
    logic signed [32:0] right;
    logic [31:0] old;
    logic signed [32:0] low;
    logic signed [31:0] high;
    logic signed [48:0] code;
    assign left = left3_q[16*j +: 16];
    assign right = $signed(rounded3_q[33*j +: 33]) >>> right_by_q;
    assign normal = normal5_q[16*j +: 16];
    assign product = $signed(normal) * $signed(gains5_q[16*j +: 16]);
    assign old = prod6_q[32*j +: 32];
    assign low = $signed({1'b0, old[15:0]}) * $signed({1'b0, mant_q});
    assign high = $signed(old[31:16]) * $signed({1'b0, mant_q});
    assign square = $signed(term7_q[16*j +: 16]) * $signed(term7_q[16*j +: 16]);
    assign code = $signed(wide8_q[49*j +: 49]) >>> rshift_q;
    always_ff @(posedge clk_i) begin
      rounded3_q[33*j +: 33] <= {vector2_q[32*j + 31], vector2_q[32*j +: 32]} + half_q;
      left3_q[16*j +: 16] <= vector2_q[32*j +: 16] << left_by_q;
      shifted4_q[33*j +: 33] <= left_q ? {{17{left[15]}}, left} : right;
      normal5_q[16*j +: 16] <= saturated(shifted4_q[33*j +: 33]);
      normal6_q[16*j +: 16] <= normal;
      prod6_q[32*j +: 32] <= product;
      term7_q[16*j +: 16] <= raw_q ? normal6_q[16*j +: 16] : rounded_term(old);
      magnitude7_q[32*j +: 32] <= old[31] ? -old : old;
      low7_q[33*j +: 33] <= low;
      high7_q[32*j +: 32] <= high;
      square8_q[32*j +: 32] <= square;
      wide8_q[49*j +: 49] <= ({high7_q[32*j + 31], high7_q[32*j +: 32], 16'd0} + {16'd0, low7_q[33*j +: 33]}) + {1'b0, code_half_q};
      shifted9_q[49*j +: 49] <= code;
      codes10_q[8*j +: 8] <= shifted9_q[49*j + 7 +: 42] == {42{shifted9_q[49*j + 48]}} ? shifted9_q[49*j +: 8]
                                                                                       : {shifted9_q[49*j + 48], {7{!shifted9_q[49*j + 48]}}};
    end
  end
  for (genvar j = 0; j < Lanes / 2; j++) begin : g_pair
    always_ff @(posedge clk_i) max8_q[32*j +: 32] <= larger(magnitude7_q[64*j +: 32], magnitude7_q[64*j + 32 +: 32]);
  end
  // Trees, because a chain of additions or choices becomes one in hardware too.
  for (genvar l = 0; (1 << l) <= Lanes; l++) begin : g_sums
    localparam int N = Lanes >> l;
    logic [48*N-1:0] sums;
    for (genvar k = 0; k < N; k++) begin : g_node
      if (l == 0) begin : g_squares
        assign sums[48*k +: 48] = {16'd0, square8_q[32*k +: 32]};
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
        assign maxima[32*k +: 32] = max8_q[32*k +: 32];
      end else begin : g_larger
        assign maxima[32*k +: 32] = larger(g_maxima[l-1].maxima[64*k +: 32], g_maxima[l-1].maxima[64*k + 32 +: 32]);
      end
    end
  end
  assign sum_all = g_sums[$clog2(Lanes)].sums;
  assign max_all = g_maxima[$clog2(Lanes) - 1].maxima;
  // Scalars: the highest 17 bits, the last of them for rounding.
  function automatic logic [31:0] to_scalar(input logic [16:0] front, input logic [5:0] n);
    logic [17:0] r;
    r = {1'b0, front} + 18'd1;
    if (n == 6'd0) to_scalar = 32'd0;
    else if (r[17]) to_scalar = {16'({10'd0, n}) - 16'd15, 16'h8000};
    else to_scalar = {16'({10'd0, n}) - 16'd16, r[16:1]};
  endfunction
  logic [5:0] sum_length, max_length, sum_length11_q, sum_length12_q, max_length11_q, max_length12_q, sum_left_q, max_left_q;
  logic [47:0] sum_front, max_front;
  logic [16:0] sum_front12_q, max_front12_q;
  assign sum_length = length48(sum_q);
  assign max_length = length48({16'd0, max_q});
  assign sum_front = sum_q << sum_left_q;
  assign max_front = {16'd0, max_q} << max_left_q;
  always_ff @(posedge clk_i) begin
    sum9_q <= sum_all;
    max9_q <= max_all;
    if (!busy_q) begin
      sum_q <= '0;
      max_q <= '0;
    end else if (valid_q[9]) begin
      sum_q <= sum_q + sum9_q;
      if (max9_q > max_q) max_q <= max9_q;
    end
    sum_length11_q <= sum_length;
    max_length11_q <= max_length;
    sum_left_q <= 6'd48 - sum_length;
    max_left_q <= 6'd48 - max_length;
    sum_length12_q <= sum_length11_q;
    max_length12_q <= max_length11_q;
    sum_front12_q <= sum_front[47:31];
    max_front12_q <= max_front[47:31];
    squares_o <= to_scalar(sum_front12_q, sum_length12_q);
    maximum_o <= to_scalar(max_front12_q, max_length12_q);
  end
  assign codes_o = codes10_q;
endmodule
