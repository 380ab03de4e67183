// The twin of mmf_core_tile with int8 weights, for comparison only: 5 rows x 64 lanes, the same latency, tree and registers, a
// multiplier in place of the choice among c, -c and 0. A beat has 2560 bits.
module mmf_int8_tile #(
  parameter int Kind = 0          // of multiplier (mmf_int8_mul)
) (
  input  logic          clk_i,
  input  logic          rst_ni,
  input  logic          valid_i,
  input  logic          first_i,  // starts a group
  input  logic          last_i,   // ends it
  input  logic [2559:0] beat_i,   // [512 r + 8 j]: weight of row r and lane j
  input  logic [511:0]  codes_i,  // 64 int8
  output logic          valid_o,
  output logic [159:0]  sums_o    // 5 x 32
);
  logic [2559:0] weights_q;
  logic [511:0] codes_q;
  logic [639:0] triples;
  logic [575:0] negated;
  logic [4:0] valid_q, first_q, last_q;

  // Stage 1: registers alone, as there is nothing to decode.
  always_ff @(posedge clk_i) begin
    weights_q <= beat_i;
    codes_q <= codes_i;
    valid_q <= {valid_q[3:0], valid_i};
    first_q <= {first_q[3:0], first_i};
    last_q  <= {last_q[3:0], last_i};
    if (!rst_ni) valid_q <= '0;
  end

  // Stages 2 to 4: sums of 2, 8 and 32 products, stage 5: of 64, and the accumulators. The rows share the multiples of the codes.
  if (Kind == 2) begin : g_multiples
    for (genvar j = 0; j < 64; j++) begin : g_lane
      logic [7:0] c;
      logic [8:0] top;
      assign c = codes_q[8*j +: 8];
      assign top = {{2{c[7]}}, c[7:1]} + {c[7], c};
      assign triples[10*j +: 10] = {top, c[0]};
      assign negated[9*j +: 9] = -{c[7], c};
    end
  end else begin : g_no_multiples
    assign triples = '0;
    assign negated = '0;
  end
  for (genvar r = 0; r < 5; r++) begin : g_row
    mmf_int8_row #(.Kind(Kind)) u_row (
      .clk_i, .weights_i(weights_q[512*r +: 512]), .codes_i(codes_q), .triples_i(triples), .negated_i(negated),
      .take_i(valid_q[3]), .first_i(first_q[3]), .sum_o(sums_o[32*r +: 32])
    );
  end
  assign valid_o = valid_q[4] && last_q[4];
endmodule
