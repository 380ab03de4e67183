// Gumbel noise of rows for sampling, one a cycle, 16 cycles after the row: 13 rounds of Threefry-2x32 (additions, rotations, exclusive
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

  // Stage 12: distance from the nearer end as octave and mantissa.
  localparam int SegW = mmf_num_pkg::NOISE_SEG_W;
  localparam int InW = mmf_num_pkg::NOISE_INSIDE_W;
  localparam int SlopeW = mmf_num_pkg::NOISE_SLOPE_W;
  localparam int ValueW = mmf_num_pkg::NOISE_W;
  logic [31:0] distance, mantissa;
  logic [4:0] octave, octave12_q;
  logic side12_q, side13_q;
  logic [SegW-1:0] segment12_q;
  logic [InW-1:0] inside12_q, inside13_q;
  always_comb begin
    distance = {bits_q[31] ? ~bits_q[30:0] : bits_q[30:0], 1'b1};
    octave = 5'd0;
    for (int i = 0; i < 32; i++) if (distance[i]) octave = 5'(31 - i);
    mantissa = distance << octave;
  end
  always_ff @(posedge clk_i) begin
    side12_q <= !bits_q[31];
    octave12_q <= octave;
    segment12_q <= mantissa[30 -: SegW];
    inside12_q <= mantissa[30-SegW -: InW];
  end

  // Stages 13 to 16: the line through the segment; its table is a block RAM, which takes half a cycle to answer.
  logic [ValueW+SlopeW-1:0] line, line14_q;
  logic [SlopeW+InW-1:0] change15_q;
  logic [SlopeW-1:0] change;
  logic [InW-1:0] inside14_q;
  logic signed [ValueW-1:0] value15_q;
  logic side14_q, side15_q;
  mmf_noise_rom u_rom (.clk_i, .addr_i({side12_q, octave12_q, segment12_q}), .data_q(line));
  assign change = SlopeW'((change15_q + (SlopeW+InW)'(1 << (InW - 1))) >> InW);
  always_ff @(posedge clk_i) begin
    side13_q <= side12_q;
    inside13_q <= inside12_q;
    side14_q <= side13_q;
    inside14_q <= inside13_q;
    line14_q <= line;
    side15_q <= side14_q;
    change15_q <= line14_q[SlopeW-1:0] * inside14_q;
    value15_q <= line14_q[SlopeW +: ValueW];
    noise_o <= side15_q ? value15_q + $signed(ValueW'(change)) : value15_q - $signed(ValueW'(change));
  end
endmodule
