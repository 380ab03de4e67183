// Ternary tile: 5 rows x Lanes lanes, one beat a cycle, no multiplier. Byte j of a beat holds the trits of the five rows for lane j
// (mmf_core_trits).
// Latency: sums_o is valid 5 cycles after the last beat of a group. Never stalls. All streams share the decoder.
module mmf_core_tile #(
  parameter int Lanes = 64,       // 16, 32 or 64
  parameter int Streams = 1,
  parameter bit Pairs = 1'b0,     // of mmf_core_row: for area only
  parameter bit CarryInput = 1'b0
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  input  logic         valid_i,
  input  logic         first_i,   // starts a group
  input  logic         last_i,    // ends it
  input  logic [8*Lanes-1:0] beat_i,
  input  logic [8*Lanes*Streams-1:0] codes_i,   // int8
  output logic         valid_o,
  output logic [120*Streams-1:0] sums_o     // 5 x 24 a stream
);
  // Three registers in the tree, whatever its depth.
  localparam logic [6:0] Regs = Lanes == 16 ? 7'b0011010 : 7'b0101010;
  logic [5*Lanes-1:0] use_q, minus_q;  // [Lanes r + j]: trit is 1, with Pairs not 0; trit is -1
  logic [8*Lanes*Streams-1:0] codes_q;
  logic [4:0] valid_q, first_q, last_q;

  // Stage 1: trits.
  for (genvar j = 0; j < Lanes; j++) begin : g_decode
    logic [4:0] plus, minus;
    mmf_core_trits #(.NotZero(Pairs)) u_trits (.byte_i(beat_i[8*j +: 8]), .plus_o(plus), .minus_o(minus));
    for (genvar r = 0; r < 5; r++) begin : g_row
      always_ff @(posedge clk_i) begin
        use_q[Lanes*r + j] <= plus[r];
        minus_q[Lanes*r + j] <= minus[r];
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

  // Stages 2 to 4: sums of 2, 8 and 32 codes (of 16, if there are no more), stage 5: of all, and the accumulators.
  for (genvar b = 0; b < Streams; b++) begin : g_stream
    logic [9*Lanes/2-1:0] sums_q, diffs_q;
    if (Pairs) begin : g_pairs
      for (genvar k = 0; k < Lanes / 2; k++) begin : g_pair
        logic [8:0] x, y;
        assign x = {codes_i[8*Lanes*b + 16*k + 7], codes_i[8*Lanes*b + 16*k +: 8]};
        assign y = {codes_i[8*Lanes*b + 16*k + 15], codes_i[8*Lanes*b + 16*k + 8 +: 8]};
        always_ff @(posedge clk_i) begin
          sums_q[9*k +: 9] <= x + y;
          diffs_q[9*k +: 9] <= x - y;
        end
      end
    end else begin : g_no_pairs
      assign sums_q = '0;
      assign diffs_q = '0;
    end
    for (genvar r = 0; r < 5; r++) begin : g_row
      mmf_core_row #(.Lanes(Lanes), .Regs(Regs), .Pairs(Pairs), .CarryInput(CarryInput)) u_row (
        .clk_i, .use_i(use_q[Lanes*r +: Lanes]), .minus_i(minus_q[Lanes*r +: Lanes]), .codes_i(codes_q[8*Lanes*b +: 8*Lanes]), .sums_i(sums_q), .diffs_i(diffs_q),
        .take_i(valid_q[3]), .first_i(first_q[3]), .sum_o(sums_o[120*b + 24*r +: 24])
      );
    end
  end
  assign valid_o = valid_q[4] && last_q[4];
endmodule
