// Gumbel noise of rows for sampling, one a cycle, 17 cycles after the row: 13 rounds of Threefry-2x32 (additions, rotations, exclusive
// ors), then a table of lines by side, octave and segment. mmfree/hw/noise.h is the arithmetic, bit for bit.
module mmf_core_noise (
  input  logic        clk_i,
  input  logic [63:0] seed_i,       // seed and position stay while rows are under way
  input  logic [31:0] position_i,
  input  logic [23:0] row_i,
  output logic signed [mmf_num_pkg::NOISE_W-1:0] noise_o
);
  // Rotation of each round, modulo 8.
  localparam logic [39:0] Rotations = {5'd24, 5'd16, 5'd29, 5'd17, 5'd6, 5'd26, 5'd15, 5'd13};
  logic [95:0] key;
  assign key = {32'h1bd11bda ^ seed_i[31:0] ^ seed_i[63:32], seed_i};

  // Stage 1: the counter meets the key. Then two rounds a stage, and after every fourth a stage in which the key comes again.
  logic [31:0] x0_q [0:9];
  logic [31:0] x1_q [0:9];
  always_ff @(posedge clk_i) begin
    x0_q[0] <= {8'd0, row_i} + key[31:0];
    x1_q[0] <= position_i + key[63:32];
  end
  for (genvar g = 0; g < 3; g++) begin : g_four
    for (genvar s = 0; s < 2; s++) begin : g_two
      localparam int A = {27'd0, Rotations[5*(2*(2*g + s) % 8) +: 5]};
      localparam int B = {27'd0, Rotations[5*((2*(2*g + s) + 1) % 8) +: 5]};
      logic [31:0] a0, a1, b0, b1;
      assign a0 = x0_q[3*g+s] + x1_q[3*g+s];
      assign a1 = {x1_q[3*g+s][31-A:0], x1_q[3*g+s][31:32-A]} ^ a0;
      assign b0 = a0 + a1;
      assign b1 = {a1[31-B:0], a1[31:32-B]} ^ b0;
      always_ff @(posedge clk_i) begin
        x0_q[3*g+s+1] <= b0;
        x1_q[3*g+s+1] <= b1;
      end
    end
    always_ff @(posedge clk_i) begin
      x0_q[3*g+3] <= x0_q[3*g+2] + key[32*((g + 1) % 3) +: 32];
      x1_q[3*g+3] <= x1_q[3*g+2] + (key[32*((g + 2) % 3) +: 32] + 32'(g + 1));
    end
  end

  // Stage 11: what the thirteenth round leaves in the first word.
  logic [31:0] bits_q;
  always_ff @(posedge clk_i) bits_q <= x0_q[9] + x1_q[9];

  // Stages 12 and 13: distance from the nearer end as octave and mantissa.
  localparam int SegW = mmf_num_pkg::NOISE_SEG_W;
  localparam int InW = mmf_num_pkg::NOISE_INSIDE_W;
  localparam int SlopeW = mmf_num_pkg::NOISE_SLOPE_W;
  localparam int ValueW = mmf_num_pkg::NOISE_W;
  logic [31:0] distance, distance12_q, mantissa;
  logic [4:0] octave, octave12_q, octave13_q;
  logic side12_q, side13_q;
  logic [SegW-1:0] segment13_q;
  logic [InW-1:0] inside13_q, inside14_q;
  logic [2:0] part;
  always_comb begin
    distance = {bits_q[31] ? ~bits_q[30:0] : bits_q[30:0], 1'b1};
    // Zeros in front, in groups of eight bits, because one chain of choices would be as deep.
    octave = 5'd0;
    part = 3'd0;
    for (int g = 0; g < 4; g++) begin
      part = 3'd0;
      for (int i = 0; i < 8; i++) if (distance[8*g + i]) part = 3'(7 - i);
      if (distance[8*g +: 8] != 8'd0) octave = {2'(3 - g), part};
    end
    mantissa = distance12_q << octave12_q;
  end
  always_ff @(posedge clk_i) begin
    side12_q <= !bits_q[31];
    distance12_q <= distance;
    octave12_q <= octave;
    side13_q <= side12_q;
    octave13_q <= octave12_q;
    segment13_q <= mantissa[30 -: SegW];
    inside13_q <= mantissa[30-SegW -: InW];
  end

  // Stages 14 to 17: the line through the segment; its table is a block RAM, which takes half a cycle to answer.
  logic [ValueW+SlopeW-1:0] line, line15_q;
  logic [SlopeW+InW-1:0] change16_q;
  logic [SlopeW-1:0] change;
  logic [InW-1:0] inside15_q;
  logic signed [ValueW-1:0] value16_q;
  logic side14_q, side15_q, side16_q;
  mmf_noise_rom u_rom (.clk_i, .addr_i({side13_q, octave13_q, segment13_q}), .data_q(line));
  assign change = SlopeW'((change16_q + (SlopeW+InW)'(1 << (InW - 1))) >> InW);
  always_ff @(posedge clk_i) begin
    side14_q <= side13_q;
    inside14_q <= inside13_q;
    side15_q <= side14_q;
    inside15_q <= inside14_q;
    line15_q <= line;
    side16_q <= side15_q;
    change16_q <= line15_q[SlopeW-1:0] * inside15_q;
    value16_q <= line15_q[SlopeW +: ValueW];
    noise_o <= side16_q ? value16_q + $signed(ValueW'(change)) : value16_q - $signed(ValueW'(change));
  end
endmodule
