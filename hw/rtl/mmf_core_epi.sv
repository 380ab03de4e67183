// Epilogue: what happens to every row sum of a matrix, one row a cycle: scale, sigmoid, SiLU, forget gate, state update, gating,
// residual, running maximum, sampling. Groups of sums wait in a FIFO; instructions (contexts) wait in another. Seven stages from
// a sum to the write, Late more for ARGMAX and SAMPLE, which keep one row: the next instruction's rows wait as long, so that
// instructions end in order. mmfree/hw/fixed.h is the arithmetic, bit for bit; mmfree/hw/noise.h of the noise.
module mmf_core_epi #(
  parameter int RowW = 16,
  parameter int StateW = 16,       // of an address in H
  parameter int Groups = 8,        // power of two
  parameter int GroupRows = 5
) (
  input  logic             clk_i,
  input  logic             rst_ni,
  // One context an instruction, in order.
  input  logic             ctx_valid_i,
  input  logic [3:0]       ctx_epi_i,
  input  logic [31:0]      ctx_scale_i,
  input  logic [RowW-1:0]  ctx_rows_i,
  input  logic             ctx_fresh_i,
  input  logic [StateW-1:0] ctx_base_i,   // of the layer in H
  input  logic [1:0]       ctx_bank_i,    // of lower bounds
  // The stream's draws; they stay for a token. Without noise, SAMPLE is ARGMAX.
  input  logic             noisy_i,
  input  logic [63:0]      seed_i,
  input  logic [31:0]      position_i,
  output logic             ctx_ready_o,
  // Sums of a group of rows.
  input  logic             group_valid_i,
  input  logic [24*GroupRows-1:0] group_sums_i,
  output logic             group_left_o,  // one has left the FIFO
  // Operand reads: data the cycle after the address.
  output logic [3:0]       epi_o,         // of the row being read
  output logic [RowW-1:0]  raddr_o,
  output logic [StateW-1:0] hraddr_o,
  output logic [1:0]       rbank_o,
  input  logic [17:0]      t_i,
  input  logic [23:0]      h_i,
  input  logic [31:0]      x_i,
  input  logic [15:0]      bound_i,
  // Writes
  output logic             we_o,
  output logic [3:0]       wepi_o,
  output logic [RowW-1:0]  waddr_o,
  output logic [StateW-1:0] hwaddr_o,
  output logic [17:0]      t_o,
  output logic [23:0]      h_o,
  output logic [31:0]      v_o,           // X or Z
  output logic [31:0]      bits_o,        // OR over the rows written so far of this instruction, this one included
  output logic             done_o,        // with the last row's write
  output logic [RowW-1:0]  best_row_o,
  output logic signed [mmf_num_pkg::KEY_W-1:0] best_key_o
);
  localparam int Late = 6;
  localparam int GW = $clog2(Groups);
  // Contexts
  logic [3:0] epi_q [0:1];
  logic [31:0] scale_q [0:1];
  logic [RowW-1:0] rows_q [0:1];
  logic fresh_q [0:1];
  logic [StateW-1:0] base_q [0:1];
  logic [1:0] bank_q [0:1];
  logic [1:0] ctx_in_q, ctx_out_q;
  assign ctx_ready_o = !(ctx_in_q[0] == ctx_out_q[0] && ctx_in_q[1] != ctx_out_q[1]);

  // Groups
  localparam int LaneW = $clog2(GroupRows);
  logic [24*GroupRows-1:0] fifo [0:Groups-1];
  logic [GW:0] in_q, out_q;
  logic [LaneW-1:0] lane_q;
  logic [RowW-1:0] row_q;
  logic active, last_lane, last_row, keeps_row;
  logic [2:0] pause_q;
  logic [24*GroupRows-1:0] head;
  logic ctx;
  assign ctx = ctx_out_q[0];
  assign head = fifo[out_q[GW-1:0]];
  assign active = in_q != out_q && pause_q == 3'd0;
  assign last_lane = lane_q == LaneW'(GroupRows - 1);
  assign last_row = row_q + 1'b1 >= rows_q[ctx];
  assign keeps_row = epi_q[ctx] == 4'(mmf_isa_pkg::EPI_ARGMAX) || epi_q[ctx] == 4'(mmf_isa_pkg::EPI_SAMPLE);
  assign group_left_o = active && last_lane;
  assign raddr_o = row_q;
  assign hraddr_o = base_q[ctx] + row_q[StateW-1:0];
  assign rbank_o = bank_q[ctx];
  assign epi_o = epi_q[ctx];

  // Pipeline registers: number = stage
  logic [6+Late:1] v_q;               // valid
  logic [6+Late:1] first_q, last_q, keeps_q;
  logic [5+Late:1] noisy_q;
  logic [31:0] logit_q [4:5+Late];    // row sum or scaled logit
  logic [RowW-1:0] late_row_q [7:6+Late];
  logic signed [mmf_num_pkg::KEY_W-1:0] key_q;
  logic signed [mmf_num_pkg::NOISE_W-1:0] noise;
  logic [3:0] e1_q, e2_q, e3_q, e4_q, e5_q, e6_q;
  logic [RowW-1:0] r1_q, r2_q, r3_q, r4_q, r5_q, r6_q;
  logic [StateW-1:0] ha1_q, ha2_q, ha3_q, ha4_q, ha5_q, ha6_q;
  logic signed [23:0] sum1_q, sum2_q, sum3_q, sum4_q, sum5_q, sum6_q;
  logic [31:0] scale1_q;
  logic fresh1_q;
  logic signed [40:0] prod2_q;
  logic [5:0] shift2_q;
  logic [41:0] half2_q;              // for rounding
  logic signed [17:0] t2_q, t3_q, t4_q, t5_q;
  logic signed [23:0] h2_q, h3_q, h4_q, h5_q;
  logic signed [31:0] x2_q, x3_q, x4_q, x5_q, x6_q;
  logic [15:0] b2_q, b3_q, b4_q, b5_q;
  logic signed [17:0] act3_q, act4_q, act5_q;
  logic signed [31:0] y3_q, y4_q, y5_q, y6_q;
  logic [8:0] inside4_q;
  logic [15:0] sig5_q, f6_q;
  logic signed [17:0] silu6_q;

  // Stage 2: scale and saturate; the gate's input is the state for SWISHG.
  logic signed [41:0] scaled;
  logic signed [17:0] act;
  logic signed [31:0] y;
  logic signed [24:0] state_act;
  always_comb begin
    // |prod2_q| < 2^40: larger shifts round it to 0.
    if (shift2_q > 6'd41) scaled = 42'sd0;
    else scaled = ($signed({prod2_q[40], prod2_q}) + $signed(half2_q)) >>> shift2_q;
    state_act = ($signed({h2_q[23], h2_q}) + 25'sd32) >>> 6;
    if (e2_q == 4'(mmf_isa_pkg::EPI_SWISHG))
      act = state_act > 25'sd131071 ? 18'sd131071 : (state_act < -25'sd131072 ? -18'sd131072 : state_act[17:0]);
    else
      act = scaled > 42'sd131071 ? 18'sd131071 : (scaled < -42'sd131072 ? -18'sd131072 : scaled[17:0]);
    y = scaled > 42'sd2147483647 ? 32'sh7fffffff : (scaled < -42'sd2147483648 ? 32'sh80000000 : scaled[31:0]);
  end

  // Stage 3: table
  logic [17:0] negated, magnitude;
  logic [27:0] segment;
  assign negated = -act3_q;
  assign magnitude = act3_q == -18'sd131072 ? 18'h1ffff : (act3_q[17] ? negated : act3_q);
  mmf_sigmoid_rom u_rom (.clk_i, .en_i(1'b1), .addr_i(magnitude[16:9]), .data_q(segment));

  // Stage 4: line through the segment. The half and its rounding are added to the value while growth is multiplied.
  logic [20:0] growth;
  logic [17:0] fine;
  logic [15:0] positive;
  assign growth = segment[11:0] * inside4_q + 21'd256;
  assign fine = ({2'd0, segment[27:12]} + 18'd65538) + {6'd0, growth[20:9]};
  assign positive = fine[17:2];

  // Stage 5: SiLU and forget gate
  logic signed [34:0] silu_wide;
  logic [31:0] gate_wide;
  assign silu_wide = (act5_q * $signed({1'b0, sig5_q}) + 35'sd16384) >>> 15;
  assign gate_wide = ({16'd0, 16'd32768 - b5_q} * {16'd0, sig5_q} + 32'd16384) >> 15;

  // Stage 6: state, gated value, residual
  logic signed [43:0] state_wide;
  logic signed [42:0] gated_wide;
  logic signed [32:0] residual_wide;
  // What stage 5 prepares of it: f h and rounding, 1 - f, and which gate.
  logic signed [43:0] kept6_q;
  logic signed [18:0] rest6_q;
  logic signed [17:0] gate6_q;
  logic [31:0] value;
  logic [31:0] bits_q, bits_next;
  always_comb begin
    state_wide = (kept6_q + ((silu6_q * rest6_q) <<< 6)) >>> 15;
    gated_wide = (sum6_q * gate6_q + 43'sd8) >>> 4;
    residual_wide = $signed({x6_q[31], x6_q}) + $signed({y6_q[31], y6_q});
    if (e6_q == 4'(mmf_isa_pkg::EPI_RESADD))
      value = residual_wide > 33'sd2147483647 ? 32'h7fffffff : (residual_wide < -33'sd2147483648 ? 32'h80000000 : residual_wide[31:0]);
    else
      value = gated_wide > 43'sd2147483647 ? 32'h7fffffff : (gated_wide < -43'sd2147483648 ? 32'h80000000 : gated_wide[31:0]);
    bits_next = (first_q[6] ? 32'd0 : bits_q) | (value ^ {32{value[31]}});
  end
  assign we_o = v_q[6];
  assign wepi_o = e6_q;
  assign waddr_o = r6_q;
  assign hwaddr_o = ha6_q;
  assign t_o = e6_q == 4'(mmf_isa_pkg::EPI_SIGF) ? {2'd0, f6_q} : silu6_q;
  assign h_o = state_wide > 44'sd8388607 ? 24'h7fffff : (state_wide < -44'sd8388608 ? 24'h800000 : state_wide[23:0]);
  assign v_o = value;
  assign bits_o = bits_next;
  assign done_o = (v_q[6] && last_q[6] && !keeps_q[6]) || (v_q[6+Late] && last_q[6+Late] && keeps_q[6+Late]);

  // Stages 4 to 12 of what keeps a row: sum or scaled logit, the noise of its row, comparison.
  localparam int NoiseShift = mmf_num_pkg::LOGIT_F - mmf_num_pkg::NOISE_F;
  logic better;
  assign better = first_q[6+Late] || key_q > best_key_o;
  mmf_core_noise u_noise (.clk_i, .seed_i, .position_i, .row_i(24'(row_q)), .noise_o(noise));
  always_ff @(posedge clk_i) begin
    logit_q[4] <= noisy_q[3] ? y3_q : {{8{sum3_q[23]}}, sum3_q};
    for (int s = 5; s <= 5 + Late; s++) logit_q[s] <= logit_q[s-1];
    late_row_q[7] <= r6_q;
    for (int s = 8; s <= 6 + Late; s++) late_row_q[s] <= late_row_q[s-1];
    key_q <= $signed({logit_q[5+Late][31], logit_q[5+Late]}) +
             (noisy_q[5+Late] ? $signed({{(mmf_num_pkg::KEY_W-mmf_num_pkg::NOISE_W){noise[mmf_num_pkg::NOISE_W-1]}}, noise}) <<< NoiseShift
                              : '0);
    if (v_q[6+Late] && keeps_q[6+Late] && better) begin
      best_row_o <= late_row_q[6+Late];
      best_key_o <= key_q;
    end
  end

  always_ff @(posedge clk_i) begin
    if (ctx_valid_i && ctx_ready_o) begin
      epi_q[ctx_in_q[0]] <= ctx_epi_i;
      scale_q[ctx_in_q[0]] <= ctx_scale_i;
      rows_q[ctx_in_q[0]] <= ctx_rows_i;
      fresh_q[ctx_in_q[0]] <= ctx_fresh_i;
      base_q[ctx_in_q[0]] <= ctx_base_i;
      bank_q[ctx_in_q[0]] <= ctx_bank_i;
    end
    if (group_valid_i) fifo[in_q[GW-1:0]] <= group_sums_i;

    keeps_q <= {keeps_q[5+Late:1], keeps_row};
    noisy_q <= {noisy_q[4+Late:1], noisy_i && epi_q[ctx] == 4'(mmf_isa_pkg::EPI_SAMPLE)};

    // 1: operands arrive
    e1_q <= epi_q[ctx];
    r1_q <= row_q;
    ha1_q <= hraddr_o;
    sum1_q <= head[24*lane_q +: 24];
    scale1_q <= scale_q[ctx];
    fresh1_q <= fresh_q[ctx];
    // 2
    e2_q <= e1_q;
    r2_q <= r1_q;
    ha2_q <= ha1_q;
    sum2_q <= sum1_q;
    prod2_q <= sum1_q * $signed({1'b0, scale1_q[15:0]});
    shift2_q <= scale1_q[21:16];
    half2_q <= scale1_q[21:16] == 6'd0 ? 42'd0 : 42'd1 << (scale1_q[21:16] - 6'd1);
    t2_q <= t_i;
    h2_q <= (fresh1_q && e1_q == 4'(mmf_isa_pkg::EPI_STATE)) ? 24'd0 : h_i;
    x2_q <= x_i;
    b2_q <= bound_i & 16'h7fff;
    // 3
    e3_q <= e2_q;
    r3_q <= r2_q;
    ha3_q <= ha2_q;
    sum3_q <= sum2_q;
    act3_q <= act;
    y3_q <= y;
    t3_q <= t2_q;
    h3_q <= h2_q;
    x3_q <= x2_q;
    b3_q <= b2_q;
    // 4
    e4_q <= e3_q;
    r4_q <= r3_q;
    ha4_q <= ha3_q;
    sum4_q <= sum3_q;
    act4_q <= act3_q;
    inside4_q <= magnitude[8:0];
    y4_q <= y3_q;
    t4_q <= t3_q;
    h4_q <= h3_q;
    x4_q <= x3_q;
    b4_q <= b3_q;
    // 5
    e5_q <= e4_q;
    r5_q <= r4_q;
    ha5_q <= ha4_q;
    sum5_q <= sum4_q;
    act5_q <= act4_q;
    sig5_q <= act4_q[17] ? 16'd32768 - positive : positive;
    y5_q <= y4_q;
    t5_q <= t4_q;
    h5_q <= h4_q;
    x5_q <= x4_q;
    b5_q <= b4_q;
    // 6
    e6_q <= e5_q;
    r6_q <= r5_q;
    ha6_q <= ha5_q;
    sum6_q <= sum5_q;
    silu6_q <= silu_wide[17:0];
    f6_q <= b5_q + gate_wide[15:0];
    y6_q <= y5_q;
    kept6_q <= h5_q * $signed({1'b0, t5_q[16:0]}) + 44'sd16384;
    rest6_q <= $signed({1'b0, 18'd32768 - t5_q});
    gate6_q <= e5_q == 4'(mmf_isa_pkg::EPI_MULT) ? t5_q : silu_wide[17:0];
    x6_q <= x5_q;
    if (v_q[6]) bits_q <= bits_next;

    if (!rst_ni) begin
      ctx_in_q <= '0;
      ctx_out_q <= '0;
      in_q <= '0;
      out_q <= '0;
      lane_q <= '0;
      row_q <= '0;
      v_q <= '0;
      first_q <= '0;
      last_q <= '0;
      pause_q <= '0;
    end else begin
      if (ctx_valid_i && ctx_ready_o) ctx_in_q <= ctx_in_q + 2'd1;
      if (group_valid_i) in_q <= in_q + 1'b1;
      v_q <= {v_q[5+Late:1], active && row_q < rows_q[ctx]};
      first_q <= {first_q[5+Late:1], row_q == '0};
      last_q <= {last_q[5+Late:1], active && last_row && row_q < rows_q[ctx]};
      if (pause_q != 3'd0) pause_q <= pause_q - 3'd1;
      if (active) begin
        row_q <= row_q + 1'b1;
        lane_q <= lane_q + 1'b1;
        if (last_lane) begin
          lane_q <= '0;
          out_q <= out_q + 1'b1;
          if (last_row) begin
            row_q <= '0;
            ctx_out_q <= ctx_out_q + 2'd1;
            if (keeps_row) pause_q <= 3'(Late);
          end
        end
      end
    end
  end
endmodule
