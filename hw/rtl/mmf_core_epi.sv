// Epilogue: what happens to every row sum of a matrix, one row a cycle: scale, sigmoid, SiLU, forget gate, state update, gating,
// residual, running maximum, sampling. Groups of sums wait in a FIFO; instructions (contexts) wait in another. EPILOGUE_STAGES (15)
// from a sum to the write, Late more for ARGMAX and SAMPLE, which keep one row. Instructions still end in order: one that is behind
// them and does not keep a row has at least LEAST_ROWS rows, more than Late. mmfree/hw/fixed.h is the arithmetic, bit for bit; mmfree/hw/noise.h of the noise.
module mmf_core_epi #(
  parameter int RowW = 16,
  parameter int StateW = 16,       // of an address in H
  parameter int SumW = 24,         // of a row sum, at least 17
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
  input  logic [SumW*GroupRows-1:0] group_sums_i,
  output logic             group_left_o,  // one has left the FIFO
  // Operand reads: data the cycle after the address.
  output logic [3:0]       epi_o,         // of the row being read
  output logic [RowW-1:0]  raddr_o,
  output logic [StateW-1:0] hraddr_o,
  output logic [1:0]       rbank_o,
  input  logic [17:0]      t_i,
  input  logic [23:0]      h_i,
  input  logic [31:0]      x_i,
  input  logic [15:0]      bound_i,       // a cycle later than the others
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
  localparam int Late = mmf_num_pkg::CHOICE_STAGES - mmf_num_pkg::EPILOGUE_STAGES;
  localparam int GW = $clog2(Groups);
  // Contexts
  logic [3:0] epi_q [0:1];
  logic [31:0] scale_q [0:1];
  logic [RowW-1:0] last_row_q [0:1];
  logic fresh_q [0:1];
  logic [StateW-1:0] base_q [0:1];
  logic [1:0] bank_q [0:1];
  logic [1:0] ctx_in_q, ctx_out_q;
  assign ctx_ready_o = !(ctx_in_q[0] == ctx_out_q[0] && ctx_in_q[1] != ctx_out_q[1]);

  // Groups
  localparam int LaneW = $clog2(GroupRows);
  logic [SumW*GroupRows-1:0] fifo [0:Groups-1];
  logic [GW:0] in_q, out_q;
  logic [LaneW-1:0] lane_q;
  logic [RowW-1:0] row_q;
  logic active, last_lane, last_row, keeps_row;
  logic [SumW*GroupRows-1:0] head;
  logic ctx;
  assign ctx = ctx_out_q[0];
  assign head = fifo[out_q[GW-1:0]];
  assign active = in_q != out_q;
  assign last_lane = lane_q == LaneW'(GroupRows - 1);
  assign last_row = row_q >= last_row_q[ctx];
  assign keeps_row = epi_q[ctx] == 4'(mmf_isa_pkg::EPI_ARGMAX) || epi_q[ctx] == 4'(mmf_isa_pkg::EPI_SAMPLE);
  assign group_left_o = active && last_lane;
  assign raddr_o = row_q;
  assign hraddr_o = base_q[ctx] + row_q[StateW-1:0];
  assign rbank_o = bank_q[ctx];
  assign epi_o = epi_q[ctx];

  // Pipeline registers: number = stage. The last of them, W, are what is written.
  localparam int W = mmf_num_pkg::EPILOGUE_STAGES - 1;
  logic [W+Late:1] v_q;               // valid
  logic [W+Late:1] first_q, last_q, keeps_q;
  logic [W+Late-2:1] noisy_q;
  logic [31:0] logit_q [6:W+Late-2];  // row sum or scaled logit
  logic [RowW-1:0] late_row_q [W+1:W+Late];
  logic signed [mmf_num_pkg::KEY_W-1:0] key_q, last_key_q;
  logic signed [mmf_num_pkg::NOISE_W-1:0] noise;
  logic [3:0] e_q [1:W];
  logic [RowW-1:0] r_q [1:W];
  logic [StateW-1:0] ha_q [1:W];
  logic signed [SumW-1:0] sum_q [1:12];
  logic signed [31:0] x_q [2:13];
  logic [15:0] b_q [3:12];
  logic signed [17:0] t_q [2:12];
  logic signed [41:0] kept_q [4:13];
  logic signed [16:0] rest_q [3:12];  // 1 - f
  logic signed [31:0] y_q [5:13];
  logic signed [17:0] act_q [5:10];
  logic [31:0] scale1_q;
  logic fresh1_q;
  logic signed [SumW+16:0] prod2_q;
  logic [5:0] shift2_q, shift3_q;
  logic [41:0] half2_q;               // for rounding
  logic signed [23:0] h2_q;
  logic signed [41:0] rounded3_q, scaled4_q;
  logic signed [41:0] kept3_q;
  logic signed [24:0] from_state3_q, from_state4_q;
  logic [17:0] magnitude6_q;
  logic [8:0] inside7_q;
  logic [15:0] base8_q, sig10_q;
  logic [20:0] growth8_q;
  logic [17:0] fine9_q;
  logic signed [34:0] silu_wide11_q;
  logic [15:0] unbound10_q;           // 1 - lower bound
  logic [31:0] gate_wide11_q, gate_wide12_q;
  logic signed [17:0] silu12_q, gate12_q;
  // What the last stages make sums of.
  logic signed [34:0] new13_q;
  logic signed [SumW+17:0] gated13_q;
  logic [17:0] t13_q, t14_q;
  logic signed [43:0] state14_q;
  logic signed [SumW+14:0] gated14_q;
  logic signed [32:0] residual14_q;
  logic adds14_q;

  // Stage 5: saturate; the gate's input is the state for SWISHG. A number fits if the bits above are its sign, which takes a tree of
  // gates where a comparison would be a chain.
  logic signed [17:0] act;
  logic signed [31:0] y;
  logic signed [41:0] gate_input;
  always_comb begin
    gate_input = e_q[4] == 4'(mmf_isa_pkg::EPI_SWISHG) ? 42'(from_state4_q) : scaled4_q;
    act = gate_input[41:17] == {25{gate_input[41]}} ? gate_input[17:0] : {gate_input[41], {17{!gate_input[41]}}};
    y = scaled4_q[41:31] == {11{scaled4_q[41]}} ? scaled4_q[31:0] : {scaled4_q[41], {31{!scaled4_q[41]}}};
  end

  // Stages 6 and 7: magnitude, table
  logic [17:0] negated;
  logic [27:0] segment;
  assign negated = -act_q[5];
  mmf_sigmoid_rom u_rom (.clk_i, .en_i(1'b1), .addr_i(magnitude6_q[16:9]), .data_q(segment));

  // Stages 8 to 10: line through the segment, half and rounding added to its value.
  logic [20:0] growth;
  logic [15:0] positive;
  assign growth = growth8_q + 21'd256;
  assign positive = fine9_q[17:2];

  // Stages 11 to 13: SiLU and forget gate
  logic signed [34:0] silu_wide;
  logic [15:0] forget;
  assign silu_wide = (silu_wide11_q + 35'sd16384) >>> 15;
  assign forget = b_q[12] + gate_wide12_q[15:0];

  // Stages 14 and 15: state, gated value, residual
  logic [31:0] residual, gated, value;
  logic [31:0] bits_q, bits_next;
  always_comb begin
    residual = residual14_q[32] == residual14_q[31] ? residual14_q[31:0] : {residual14_q[32], {31{!residual14_q[32]}}};
    gated = gated14_q[SumW+14:31] == {(SumW-16){gated14_q[SumW+14]}} ? gated14_q[31:0] : {gated14_q[SumW+14], {31{!gated14_q[SumW+14]}}};
    value = adds14_q ? residual : gated;
    bits_next = (first_q[W] ? 32'd0 : bits_q) | (value ^ {32{value[31]}});
  end
  assign we_o = v_q[W];
  assign wepi_o = e_q[W];
  assign waddr_o = r_q[W];
  assign hwaddr_o = ha_q[W];
  assign t_o = t14_q;
  assign h_o = state14_q[43:23] == {21{state14_q[43]}} ? state14_q[23:0] : {state14_q[43], {23{!state14_q[43]}}};
  assign v_o = value;
  assign bits_o = bits_next;
  assign done_o = (v_q[W] && last_q[W] && !keeps_q[W]) || (v_q[W+Late] && last_q[W+Late] && keeps_q[W+Late]);

  // Stages 6 to CHOICE_STAGES of what keeps a row: sum or scaled logit, the noise of its row, comparison. A comparison and what it decides
  // are too much for a cycle, and rows come one a cycle, so each is compared with the best before its predecessor and with its predecessor.
  localparam int NoiseShift = mmf_num_pkg::LOGIT_F - mmf_num_pkg::NOISE_F;
  logic counts, over_best_q, over_last_q, takes, took_q;
  assign counts = v_q[W+Late-1] && keeps_q[W+Late-1];
  assign takes = took_q ? over_last_q : over_best_q;
  mmf_core_noise u_noise (.clk_i, .seed_i, .position_i, .row_i(24'(row_q)), .noise_o(noise));
  always_ff @(posedge clk_i) begin
    logit_q[6] <= noisy_q[5] ? y_q[5] : 32'(sum_q[5]);
    for (int s = 7; s <= W + Late - 2; s++) logit_q[s] <= logit_q[s-1];
    late_row_q[W+1] <= r_q[W];
    for (int s = W + 2; s <= W + Late; s++) late_row_q[s] <= late_row_q[s-1];
    key_q <= $signed({logit_q[W+Late-2][31], logit_q[W+Late-2]}) +
             (noisy_q[W+Late-2] ? $signed({{(mmf_num_pkg::KEY_W-mmf_num_pkg::NOISE_W){noise[mmf_num_pkg::NOISE_W-1]}}, noise}) <<< NoiseShift
                                : '0);
    last_key_q <= key_q;
    over_best_q <= counts && (first_q[W+Late-1] || key_q > best_key_o);
    over_last_q <= counts && (first_q[W+Late-1] || key_q > last_key_q);
    took_q <= takes;
    if (takes) begin
      best_row_o <= late_row_q[W+Late];
      best_key_o <= last_key_q;
    end
  end

  always_ff @(posedge clk_i) begin
    if (ctx_valid_i && ctx_ready_o) begin
      epi_q[ctx_in_q[0]] <= ctx_epi_i;
      scale_q[ctx_in_q[0]] <= ctx_scale_i;
      last_row_q[ctx_in_q[0]] <= ctx_rows_i - 1'b1;
      fresh_q[ctx_in_q[0]] <= ctx_fresh_i;
      base_q[ctx_in_q[0]] <= ctx_base_i;
      bank_q[ctx_in_q[0]] <= ctx_bank_i;
    end
    if (group_valid_i) fifo[in_q[GW-1:0]] <= group_sums_i;

    keeps_q <= {keeps_q[W+Late-1:1], keeps_row};
    noisy_q <= {noisy_q[W+Late-3:1], noisy_i && epi_q[ctx] == 4'(mmf_isa_pkg::EPI_SAMPLE)};
    // What only moves on.
    for (int s = 2; s <= W; s++) begin
      e_q[s] <= e_q[s-1];
      r_q[s] <= r_q[s-1];
      ha_q[s] <= ha_q[s-1];
    end
    for (int s = 2; s <= 12; s++) sum_q[s] <= sum_q[s-1];
    for (int s = 3; s <= 13; s++) x_q[s] <= x_q[s-1];
    for (int s = 4; s <= 12; s++) b_q[s] <= b_q[s-1];
    for (int s = 3; s <= 12; s++) t_q[s] <= t_q[s-1];
    for (int s = 4; s <= 12; s++) rest_q[s] <= rest_q[s-1];
    for (int s = 5; s <= 13; s++) kept_q[s] <= kept_q[s-1];
    for (int s = 6; s <= 13; s++) y_q[s] <= y_q[s-1];
    for (int s = 6; s <= 10; s++) act_q[s] <= act_q[s-1];

    // 1: operands arrive
    e_q[1] <= epi_q[ctx];
    r_q[1] <= row_q;
    ha_q[1] <= hraddr_o;
    sum_q[1] <= head[SumW*lane_q +: SumW];
    scale1_q <= scale_q[ctx];
    fresh1_q <= fresh_q[ctx];
    // 2
    prod2_q <= sum_q[1] * $signed({1'b0, scale1_q[15:0]});
    shift2_q <= scale1_q[21:16];
    half2_q <= scale1_q[21:16] == 6'd0 ? 42'd0 : 42'd1 << (scale1_q[21:16] - 6'd1);
    t_q[2] <= t_i;
    h2_q <= (fresh1_q && e_q[1] == 4'(mmf_isa_pkg::EPI_STATE)) ? 24'd0 : h_i;
    x_q[2] <= x_i;
    // 3
    rounded3_q <= 42'(prod2_q) + $signed(half2_q);
    shift3_q <= shift2_q;
    from_state3_q <= ($signed({h2_q[23], h2_q}) + 25'sd32) >>> 6;
    kept3_q <= h2_q * $signed({1'b0, t_q[2][16:0]});
    rest_q[3] <= $signed(17'd32768 - t_q[2][16:0]);
    b_q[3] <= bound_i & 16'h7fff;
    // 4: |prod2_q| < 2^40, larger shifts than 41 round it to 0.
    if (shift3_q > 6'd41) scaled4_q <= 42'sd0;
    else scaled4_q <= rounded3_q >>> shift3_q;
    from_state4_q <= from_state3_q;
    kept_q[4] <= kept3_q + 42'sd16384;
    // 5
    act_q[5] <= act;
    y_q[5] <= y;
    // 6
    magnitude6_q <= act_q[5] == -18'sd131072 ? 18'h1ffff : (act_q[5][17] ? negated : act_q[5]);
    // 7
    inside7_q <= magnitude6_q[8:0];
    // 8
    growth8_q <= segment[11:0] * inside7_q;
    base8_q <= segment[27:12];
    // 9
    fine9_q <= ({2'd0, base8_q} + 18'd65538) + {6'd0, growth[20:9]};
    // 10
    sig10_q <= act_q[9][17] ? 16'd32768 - positive : positive;
    unbound10_q <= 16'd32768 - b_q[9];
    // 11
    silu_wide11_q <= act_q[10] * $signed({1'b0, sig10_q});
    gate_wide11_q <= unbound10_q * sig10_q;
    // 12
    silu12_q <= silu_wide[17:0];
    gate12_q <= e_q[11] == 4'(mmf_isa_pkg::EPI_MULT) ? t_q[11] : silu_wide[17:0];
    gate_wide12_q <= (gate_wide11_q + 32'd16384) >> 15;
    // 13
    new13_q <= silu12_q * rest_q[12];
    gated13_q <= sum_q[12] * gate12_q;
    t13_q <= e_q[12] == 4'(mmf_isa_pkg::EPI_SIGF) ? {2'd0, forget} : silu12_q;
    // 14
    state14_q <= (44'(kept_q[13]) + $signed({{3{new13_q[34]}}, new13_q, 6'd0})) >>> 15;
    gated14_q <= (SumW+15)'(((SumW+19)'(gated13_q) + (SumW+19)'(8)) >>> 4);
    residual14_q <= $signed({x_q[13][31], x_q[13]}) + $signed({y_q[13][31], y_q[13]});
    t14_q <= t13_q;
    adds14_q <= e_q[13] == 4'(mmf_isa_pkg::EPI_RESADD);
    // 15
    if (v_q[W]) bits_q <= bits_next;

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
    end else begin
      if (ctx_valid_i && ctx_ready_o) ctx_in_q <= ctx_in_q + 2'd1;
      if (group_valid_i) in_q <= in_q + 1'b1;
      v_q <= {v_q[W+Late-1:1], active && row_q <= last_row_q[ctx]};
      first_q <= {first_q[W+Late-1:1], row_q == '0};
      last_q <= {last_q[W+Late-1:1], active && last_row && row_q <= last_row_q[ctx]};
      if (active) begin
        row_q <= row_q + 1'b1;
        lane_q <= lane_q + 1'b1;
        if (last_lane) begin
          lane_q <= '0;
          out_q <= out_q + 1'b1;
          if (last_row) begin
            row_q <= '0;
            ctx_out_q <= ctx_out_q + 2'd1;
          end
        end
      end
    end
  end
endmodule
