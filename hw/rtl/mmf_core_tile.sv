// Ternary tile: 5 rows x 64 lanes, one beat a cycle, no multiplier. Byte j of a beat holds the trits of the five rows for lane j
// (mmf_core_trits).
// Latency: sums_o is valid 5 cycles after the last beat of a group. Never stalls. All streams share the decoder.
module mmf_core_tile #(
  parameter int Streams = 1
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  input  logic         valid_i,
  input  logic         first_i,   // starts a group
  input  logic         last_i,    // ends it
  input  logic [511:0] beat_i,
  input  logic [512*Streams-1:0] codes_i,   // 64 int8 a stream
  output logic         valid_o,
  output logic [120*Streams-1:0] sums_o     // 5 x 24 a stream
);
  logic [319:0] plus_q, minus_q;  // [64 r + j]
  logic [512*Streams-1:0] codes_q;
  logic [4:0] valid_q, first_q, last_q;

  // Stage 1: trits.
  for (genvar j = 0; j < 64; j++) begin : g_decode
    logic [4:0] plus, minus;
    mmf_core_trits u_trits (.byte_i(beat_i[8*j +: 8]), .plus_o(plus), .minus_o(minus));
    for (genvar r = 0; r < 5; r++) begin : g_row
      always_ff @(posedge clk_i) begin
        plus_q[64*r + j]  <= plus[r];
        minus_q[64*r + j] <= minus[r];
      end
    end
  end
  always_ff @(posedge clk_i) begin
    codes_q <= codes_i;
    valid_q <= {valid_q[3:0], valid_i};
    first_q <= {first_q[3:0], first_i};
    last_q  <= {last_q[3:0], last_i};
    if (!rst_ni) valid_q <= '0;
  end

  // Stages 2 to 4: sums of four, stage 5: accumulators.
  for (genvar b = 0; b < Streams; b++) begin : g_stream
    for (genvar r = 0; r < 5; r++) begin : g_row
      logic [16*11-1:0] s2_q;
      logic [4*13-1:0] s3_q;
      logic [14:0] s4_q;
      logic [23:0] acc_q;
      for (genvar k = 0; k < 16; k++) begin : g_four
        logic [10:0] s;
        always_comb begin
          s = '0;
          for (int i = 0; i < 4; i++) begin
            // -c = ~c + 1
            if (plus_q[64*r + 4*k + i]) s = s + {{3{codes_q[512*b + 8*(4*k + i) + 7]}}, codes_q[512*b + 8*(4*k + i) +: 8]};
            else if (minus_q[64*r + 4*k + i]) s = s - {{3{codes_q[512*b + 8*(4*k + i) + 7]}}, codes_q[512*b + 8*(4*k + i) +: 8]};
          end
        end
        always_ff @(posedge clk_i) s2_q[11*k +: 11] <= s;
      end
      for (genvar k = 0; k < 4; k++) begin : g_sixteen
        always_ff @(posedge clk_i)
          s3_q[13*k +: 13] <= {{2{s2_q[44*k + 10]}}, s2_q[44*k +: 11]} + {{2{s2_q[44*k + 21]}}, s2_q[44*k + 11 +: 11]} +
                              {{2{s2_q[44*k + 32]}}, s2_q[44*k + 22 +: 11]} + {{2{s2_q[44*k + 43]}}, s2_q[44*k + 33 +: 11]};
      end
      always_ff @(posedge clk_i) begin
        s4_q <= {{2{s3_q[12]}}, s3_q[12:0]} + {{2{s3_q[25]}}, s3_q[25:13]} + {{2{s3_q[38]}}, s3_q[38:26]} + {{2{s3_q[51]}}, s3_q[51:39]};
        if (valid_q[3]) acc_q <= (first_q[3] ? 24'd0 : acc_q) + {{9{s4_q[14]}}, s4_q};
      end
      assign sums_o[120*b + 24*r +: 24] = acc_q;
    end
  end
  assign valid_o = valid_q[4] && last_q[4];
endmodule
