// Gumbel noise of rows for sampling, one a cycle, 11 cycles after the row: 13 rounds of Threefry-2x32 (additions, rotations, exclusive
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

  // Stage 1: the counter meets the key. Stages 2 to 7: two rounds each, the key again after every fourth.
  logic [31:0] x0_q [0:6];
  logic [31:0] x1_q [0:6];
  always_ff @(posedge clk_i) begin
    x0_q[0] <= {8'd0, row_i} + key[31:0];
    x1_q[0] <= position_i + key[63:32];
  end
  for (genvar s = 0; s < 6; s++) begin : g_rounds
    localparam int A = {27'd0, Rotations[5*(2*s % 8) +: 5]};
    localparam int B = {27'd0, Rotations[5*((2*s + 1) % 8) +: 5]};
    localparam int N = (s + 1) / 2;
    logic [31:0] a0, a1, b0, b1;
    assign a0 = x0_q[s] + x1_q[s];
    assign a1 = {x1_q[s][31-A:0], x1_q[s][31:32-A]} ^ a0;
    assign b0 = a0 + a1;
    assign b1 = {a1[31-B:0], a1[31:32-B]} ^ b0;
    always_ff @(posedge clk_i) begin
      x0_q[s+1] <= b0 + (s % 2 == 1 ? key[32*(N % 3) +: 32] : 32'd0);
      x1_q[s+1] <= b1 + (s % 2 == 1 ? key[32*((N + 1) % 3) +: 32] + 32'(N) : 32'd0);
    end
  end

  // Stage 8: what the thirteenth round leaves in the first word.
  logic [31:0] bits_q;
  always_ff @(posedge clk_i) bits_q <= x0_q[6] + x1_q[6];

  // Stage 9: distance from the nearer end as octave and mantissa.
  localparam int SegW = mmf_num_pkg::NOISE_SEG_W;
  localparam int InW = mmf_num_pkg::NOISE_INSIDE_W;
  localparam int SlopeW = mmf_num_pkg::NOISE_SLOPE_W;
  localparam int ValueW = mmf_num_pkg::NOISE_W;
  logic [31:0] distance, mantissa;
  logic [4:0] octave, octave9_q;
  logic side9_q, side10_q;
  logic [SegW-1:0] segment9_q;
  logic [InW-1:0] inside9_q, inside10_q;
  always_comb begin
    distance = {bits_q[31] ? ~bits_q[30:0] : bits_q[30:0], 1'b1};
    octave = 5'd0;
    for (int i = 0; i < 32; i++) if (distance[i]) octave = 5'(31 - i);
    mantissa = distance << octave;
  end
  always_ff @(posedge clk_i) begin
    side9_q <= !bits_q[31];
    octave9_q <= octave;
    segment9_q <= mantissa[30 -: SegW];
    inside9_q <= mantissa[30-SegW -: InW];
  end

  // Stages 10 and 11: the line through the segment.
  logic [ValueW+SlopeW-1:0] line;
  logic [SlopeW+InW-1:0] change;
  logic signed [ValueW-1:0] value;
  mmf_noise_rom u_rom (.clk_i, .addr_i({side9_q, octave9_q, segment9_q}), .data_q(line));
  assign change = (line[SlopeW-1:0] * inside10_q + (SlopeW+InW)'(1 << (InW - 1))) >> InW;
  assign value = line[SlopeW +: ValueW];
  always_ff @(posedge clk_i) begin
    side10_q <= side9_q;
    inside10_q <= inside9_q;
    noise_o <= side10_q ? value + $signed(ValueW'(change)) : value - $signed(ValueW'(change));
  end
endmodule
