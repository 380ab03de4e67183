// The accelerator's core: sequencer with scoreboard, prefetchers, load unit, vector unit, scalar
// unit, ternary tile and epilogue, and all activations and state in memories of its own. docs/hardware.md is the contract:
// instructions issue in order, units overlap, hazards are between different units only.
//
// Streams: sequences that run the program in lock-step and share every weight beat. What a stream has of its own lies side by side
// in the words of the same memories, because all streams use the same addresses in the same cycle.
//
// Ports: memory ports of 512 bits, each with a prefetcher and a tile. Port p has beats p, p + Ports, ... of the image in its own memory.
// All give and take in the same cycle, so the core sees one stream of wide beats, Ports x 64 bytes; the tiles share the codes, a group has
// 5 x Ports rows, and a load takes the beats of a wide one in steps.
//
// Host: write the program (prog_*), and three cycles later, for each token: token_i, fresh_i, how to draw, logits_i with start_i; done_o pulses when HALT has
// retired or an instruction cannot be executed (error_o, error_pc_o; then only reset helps). token_o is the next token if logits_i was
// set. While the core is idle, ext_* reads the memory through its prefetcher.
module mmf_core #(
  parameter int Width     = 256,   // widest vector, a multiple of 64, at least 128
  parameter int StateSize = 768,   // layers x mixer width
  parameter int ProgramSize = 128,
  parameter int FifoBeats = 256,
  parameter int Streams   = 1,     // at most 256
  parameter int Ports     = 1,     // 1, 2, 4 or 8; 1 with fewer than 64 Lanes
  // The tile's columns and bytes of a beat of the port: 16, 32 or 64. With fewer than 64, the 64 bytes that images and instructions
  // count in take several beats; the image is the same.
  parameter int Lanes     = 64,
  parameter int VectorLanes = 16   // elements of the vector unit; a power of two, 2 to Lanes / 4
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  input  logic         prog_we_i,
  input  logic [$clog2(ProgramSize)-1:0] prog_addr_i,
  input  logic [127:0] prog_data_i,
  input  logic [$clog2(ProgramSize)-1:0] prog_last_i,
  input  logic         start_i,
  input  logic [24*Streams-1:0] token_i,
  input  logic [Streams-1:0]    fresh_i,
  // How streams draw their next token: 1 / temperature as a scalar (mantissa 0: the likeliest), seed, tokens had so far.
  input  logic [32*Streams-1:0] temperature_i,
  input  logic [64*Streams-1:0] seed_i,
  input  logic [32*Streams-1:0] position_i,
  input  logic         logits_i,
  input  logic [23:0]  mixer_i,    // mixer width: entries of H a layer has
  output logic         busy_o,
  output logic         done_o,
  output logic [7:0]   error_o,    // of mmf_isa_pkg::ERROR_*; stays until reset
  output logic [15:0]  error_pc_o,
  output logic [24*Streams-1:0] token_o,
  input  logic         ext_run_valid_i,
  output logic         ext_run_ready_o,
  input  logic [31:0]  ext_run_beat_i, // of 64 bytes, as the length
  input  logic [31:0]  ext_run_len_i,
  output logic         ext_beat_valid_o,
  output logic [8*Lanes-1:0] ext_beat_o,
  input  logic         ext_beat_pop_i,
  // AXI4 read channels; byte addresses from the start of the port's part of the image.
  output logic [Ports-1:0]     arvalid_o,
  input  logic [Ports-1:0]     arready_i,
  output logic [38*Ports-1:0]  araddr_o,
  output logic [8*Ports-1:0]   arlen_o,
  input  logic [Ports-1:0]     rvalid_i,
  output logic [Ports-1:0]     rready_o,
  input  logic [8*Lanes*Ports-1:0] rdata_i,
  input  logic [Ports-1:0]     rlast_i,
  // Counters since start_i: cycles, wide beats taken by the tile, cycles in which the tile waits for the stream, for the epilogue.
  output logic [47:0]  cycles_o,
  output logic [47:0]  tile_beats_o,
  output logic [47:0]  wait_stream_o,
  output logic [47:0]  wait_results_o,
  // Retirement, for whoever watches: one bit a unit (LD, VEC, SFU, TMM), with the instruction's address.
  output logic [3:0]   retire_o,
  output logic [63:0]  retire_pc_o
);
  localparam int PW = $clog2(ProgramSize);
  localparam int EW = $clog2(Width);         // of an element
  localparam int Beat = 8 * Lanes;
  localparam int SplitW = 6 - $clog2(Lanes); // beats for 64 bytes, as a power of two
  localparam int Elems = Lanes / 2;          // elements of a word of X, Z and C
  localparam int ElemW = $clog2(Elems);
  localparam int WW = EW - ElemW;            // address of such a word
  localparam int KW = EW - $clog2(Lanes);    // of a word of codes
  localparam int VW = EW - $clog2(VectorLanes); // of what the vector unit takes at once
  localparam int PartW = VW - WW;            // of that in a word
  localparam int CodeW = VW - KW;            // and in a word of codes
  localparam int SumW = EW + 9 < 24 ? EW + 9 : 24; // of a row sum: at most 128 Depth
  localparam int Depth = 1 << EW;            // banks lie at powers of two
  localparam int HW = $clog2(StateSize);
  localparam int SW = Streams > 1 ? $clog2(Streams) : 1;
  localparam int RowW = 24;
  localparam int LP = $clog2(Ports);
  localparam int GroupRows = 5 * Ports;
  localparam int NR = 42;                    // resources, see mmf_core_decode

  // ---------------------------------------------------------------- memories
  // Nothing is read in the cycle in which it is written, as the scoreboard sees to (a row of X is read 9 rows before it is written, so
  // other elements of a word may be): block RAM needs no logic for it.
  (* no_rw_check *) logic [32*Elems*Streams-1:0] x_mem [0:Depth/Elems-1];
  (* no_rw_check *) logic [32*Elems*Streams-1:0] z_mem [0:Depth/Elems-1];
  (* no_rw_check *) logic [18*Streams-1:0]   t_mem [0:Depth-1];
  (* no_rw_check *) logic [24*Streams-1:0]   h_mem [0:StateSize-1];
  (* no_rw_check *) logic [Beat*Streams-1:0] q_mem [0:2*Depth/Lanes-1];
  (* no_rw_check *) logic [Beat-1:0]         c_mem [0:4*Depth/Elems-1];  // of all streams
  logic [1024*Streams-1:0] s_regs;
  logic [24*Streams-1:0]   best_row;
  logic [mmf_num_pkg::KEY_W*Streams-1:0] best_key;
  (* ram_style = "distributed" *) logic [127:0] program_mem [0:ProgramSize-1];
  logic [32*Streams-1:0]   x_bits_q, z_bits_q;

  // ---------------------------------------------------------------- sequencer
  logic run_q, done_q, logits_q;
  logic [7:0] error_q, error_now;
  logic [15:0] error_pc_q;
  logic [Streams-1:0] fresh_q;
  logic [PW-1:0] pc_q, next_q;     // of the instruction that may issue, of the one behind it
  logic [1:0] bubble_q;
  logic [15:0] layer_q, count_q;
  logic [HW-1:0] state_base_q;
  logic [24*Streams-1:0] token_q;
  logic [32*Streams-1:0] temperature_q, position_q;
  logic [64*Streams-1:0] seed_q;
  logic [127:0] ins, ins_next, prog_data_q;
  logic [PW-1:0] prog_addr_q;
  logic prog_we_q;
  logic [7:0] op;
  logic [2:0] unit;
  logic skip, known;
  assign ins_next = program_mem[next_q];
  assign op = ins[7:0];
  assign skip = ins[mmf_isa_pkg::FLAGS_LSB] && !logits_q;

  // Resources that the instruction reads and writes; whether this core can execute it. Decoded as the program is written.
  localparam int DecodedW = 2*NR + 14;
  (* ram_style = "distributed" *) logic [DecodedW-1:0] decoded_mem [0:ProgramSize-1];
  logic [NR-1:0] reads, writes, reads_d, writes_d;
  logic [2:0] unit_d;
  logic [3:0] epi;
  logic legal, known_d, legal_d;
  logic [4:0] second, second_d;    // the scalar register that is read beside ins[28:24]
  logic cools, cools_d;            // a temperature instead of it
  logic idles, idles_d;            // HALT, FENCE and TOK wait for all units
  logic halts, halts_d, appends, appends_d;
  logic decoded_we_q;
  logic [PW-1:0] decoded_addr_q;
  logic [DecodedW-1:0] decoded_q;
  assign epi = ins[mmf_isa_pkg::F_TMM_EPI_LSB +: 4];
  assign second_d = prog_data_q[7:0] == mmf_isa_pkg::OP_QNT ? prog_data_q[mmf_isa_pkg::F_QNT_R_LSB +: 5] : prog_data_q[36:32];
  assign cools_d = prog_data_q[7:0] == mmf_isa_pkg::OP_SFU && prog_data_q[mmf_isa_pkg::F_SFU_FN_LSB +: 4] == 4'(mmf_isa_pkg::FN_SCT);
  assign halts_d = prog_data_q[7:0] == mmf_isa_pkg::OP_HALT;
  assign idles_d = halts_d || prog_data_q[7:0] == mmf_isa_pkg::OP_FENCE || prog_data_q[7:0] == mmf_isa_pkg::OP_TOK;
  assign appends_d = prog_data_q[7:0] == mmf_isa_pkg::OP_WST || prog_data_q[7:0] == mmf_isa_pkg::OP_EMB;
  mmf_core_decode #(.Width(Width), .Streams(Streams), .Ports(Ports)) u_decode (
    .ins_i(prog_data_q), .unit_o(unit_d), .reads_o(reads_d), .writes_o(writes_d), .known_o(known_d), .legal_o(legal_d)
  );
  always_ff @(posedge clk_i) begin
    prog_we_q <= prog_we_i && rst_ni;
    prog_addr_q <= prog_addr_i;
    prog_data_q <= prog_data_i;
    if (prog_we_q) program_mem[prog_addr_q] <= prog_data_q;
    decoded_we_q <= prog_we_q && rst_ni;
    decoded_addr_q <= prog_addr_q;
    decoded_q <= {appends_d, halts_d, idles_d, cools_d, second_d, legal_d, known_d, unit_d, writes_d, reads_d};
    if (decoded_we_q) decoded_mem[decoded_addr_q] <= decoded_q;
    if (!run_q || waits || skip || issue) begin
      ins <= ins_next;
      {appends, halts, idles, cools, second, legal, known, unit, writes, reads} <= decoded_mem[next_q];
      pc_q <= next_q;
    end
  end

  // What units have under way.
  logic ld_busy, vec_busy, sfu_busy, tile_busy, tile_open, drain;
  logic ld_done, vec_done, sfu_done, epi_done, tile_ends;
  logic hazard, unit_free, all_idle, issue, waits;
  mmf_core_board u_board (
    .clk_i, .rst_ni, .unit_i(unit), .reads_i(reads), .writes_i(writes), .hazard_o(hazard), .issue_i(issue),
    .ld_done_i(ld_done), .vec_done_i(vec_done), .sfu_done_i(sfu_done), .codes_done_i(tile_ends), .tmm_done_i(epi_done),
    .tmm_open_o(tile_open), .tmm_drain_o(drain)
  );
  assign all_idle = !ld_busy && !vec_busy && !sfu_busy && !tile_open && !drain;
  logic runs_ready, ctx_ready, order_ready;
  always_comb begin
    case (unit)
      mmf_isa_pkg::UNIT_LD: unit_free = !ld_busy && order_ready;
      mmf_isa_pkg::UNIT_VEC: unit_free = !vec_busy;
      mmf_isa_pkg::UNIT_SFU: unit_free = !sfu_busy;
      mmf_isa_pkg::UNIT_TMM: unit_free = !tile_busy && !drain && ctx_ready && order_ready;
      default: unit_free = 1'b1;
    endcase
    if ((appends && !runs_ready) || (idles && !all_idle) || (halts && !fetch_idle)) unit_free = 1'b0;
  end
  // A consumer waits for beats that nobody asked for, or the token ends with beats left over.
  logic fetch_idle, starves, starved;  // the last a cycle later
  logic bad, fails;                    // the instruction cannot be executed, or what it would end is not at its end
  logic [2:0] order_n_q;
  assign starves = order_n_q != 3'd0 && fetch_idle;
  always_comb begin
    bad = !known || !legal || (pc_q == prog_last_i && !halts);
    fails = bad || (halts && all_idle && !fetch_idle);
    if (!known) error_now = 8'(mmf_isa_pkg::ERROR_OPCODE);
    else if (!legal) error_now = 8'(mmf_isa_pkg::ERROR_OPERAND);
    else if (bad) error_now = 8'(mmf_isa_pkg::ERROR_PROGRAM);
    else error_now = 8'(mmf_isa_pkg::ERROR_STREAM);
  end
  assign waits = bubble_q != 2'd0;
  // Whether the instruction may issue is decided in one cycle and done in the next: what allowed it cannot go away before it issues.
  logic ready_q, clear_q, error_ready_q;
  logic [7:0] error_ready_code_q;
  always_ff @(posedge clk_i) begin
    starved <= rst_ni && starves;
    ready_q <= run_q && !starves && !waits && !skip && !issue && !bad && unit_free;
    clear_q <= !hazard;
    error_ready_q <= run_q && !waits && !skip && !issue && fails;
    error_ready_code_q <= error_now;
  end
  assign issue = ready_q && clear_q;

  assign busy_o = run_q;
  assign done_o = done_q;
  assign error_o = error_q;
  assign error_pc_o = error_pc_q;
  assign token_o = token_q;

  always_ff @(posedge clk_i) begin
    done_q <= 1'b0;
    if (!rst_ni) begin
      run_q <= 1'b0;
      error_q <= '0;
      error_pc_q <= '0;
      bubble_q <= '0;
      next_q <= '0;
      layer_q <= '0;
      count_q <= '0;
      state_base_q <= '0;
    end else if (!run_q) begin
      if (start_i && error_q == 8'd0) begin
        run_q <= 1'b1;
        next_q <= PW'(1);
        token_q <= token_i;
        fresh_q <= fresh_i;
        temperature_q <= temperature_i;
        seed_q <= seed_i;
        position_q <= position_i;
        logits_q <= logits_i;
        layer_q <= '0;
        state_base_q <= '0;
      end
    end else if (starved) begin
      error_q <= 8'(mmf_isa_pkg::ERROR_STREAM);
      error_pc_q <= 16'(pc_q);
      run_q <= 1'b0;
      done_q <= 1'b1;
    end else if (waits) begin
      bubble_q <= bubble_q - 2'd1;
      next_q <= next_q + 1'b1;
    end else if (skip) begin
      next_q <= next_q + 1'b1;
    end else if (error_ready_q) begin
      error_q <= error_ready_code_q;
      error_pc_q <= 16'(pc_q);
      run_q <= 1'b0;
      done_q <= 1'b1;
    end else if (issue) begin
      next_q <= next_q + 1'b1;
      case (op)
        mmf_isa_pkg::OP_HALT: begin
          run_q <= 1'b0;
          done_q <= 1'b1;
          next_q <= '0;
        end
        mmf_isa_pkg::OP_LOOP: begin
          layer_q <= '0;
          state_base_q <= '0;
          count_q <= ins[mmf_isa_pkg::F_LOOP_COUNT_LSB +: 16];
        end
        mmf_isa_pkg::OP_ENDL: begin
          bubble_q <= 2'd1;  // in which the right instruction is fetched
          next_q <= next_q;
          if (layer_q + 16'd1 < count_q) begin
            layer_q <= layer_q + 16'd1;
            state_base_q <= state_base_q + mixer_i[HW-1:0];
            next_q <= ins[mmf_isa_pkg::F_ENDL_TARGET_LSB +: PW];
          end else begin
            layer_q <= '0;
            state_base_q <= '0;
          end
        end
        mmf_isa_pkg::OP_TOK: token_q <= best_row;
        default: ;
      endcase
    end
  end

  // ---------------------------------------------------------------- stream
  logic run_valid, beat_valid, beat_pop;
  logic [31:0] run_beat, run_len;         // in wide beats
  logic [Beat*Ports-1:0] beats;           // the wide beat
  logic [Beat-1:0] beat;                  // the step of it that a load takes
  logic [31:0] row_beat;
  logic [SW-1:0] ins_stream;
  logic [16:0] row_len;
  assign ins_stream = Streams > 1 ? ins[24 +: SW] : '0;
  assign row_len = ({1'b0, ins[55:40]} + 17'(Ports - 1)) >> LP;
  // Rows of at most Width / 32 beats. A cycle before the instruction may issue.
  always_ff @(posedge clk_i) row_beat <= op == mmf_isa_pkg::OP_EMB ? {8'd0, token_q[24*ins_stream +: 24]} * 32'(row_len[EW-5:0]) : 32'd0;
  assign run_valid = runs_ready && (!run_q ? ext_run_valid_i : issue && (op == mmf_isa_pkg::OP_WST || op == mmf_isa_pkg::OP_EMB));
  assign run_beat = !run_q ? ext_run_beat_i >> LP
      : ({2'd0, ins[mmf_isa_pkg::F_WST_PAGE_LSB +: 24], 6'd0} >> LP) + row_beat;
  assign run_len = !run_q ? (ext_run_len_i + 32'(Ports - 1)) >> LP
      : op == mmf_isa_pkg::OP_EMB ? {15'd0, row_len} : ins[mmf_isa_pkg::F_WST_BEATS_LSB +: 32] >> LP;
  logic [Ports-1:0] run_readies, fetch_idles, beat_valids;
  assign runs_ready = &run_readies;
  assign fetch_idle = &fetch_idles;
  assign beat_valid = &beat_valids;
  for (genvar p = 0; p < Ports; p++) begin : g_fetch
    mmf_core_fetch #(.FifoBeats(FifoBeats), .BeatBytes(Lanes)) u_fetch (
      .clk_i, .rst_ni,
      .run_valid_i(run_valid), .run_ready_o(run_readies[p]), .run_beat_i(run_beat << SplitW), .run_len_i(run_len << SplitW),
      .arvalid_o(arvalid_o[p]), .arready_i(arready_i[p]), .araddr_o(araddr_o[38*p +: 38]), .arlen_o(arlen_o[8*p +: 8]),
      .rvalid_i(rvalid_i[p]), .rready_o(rready_o[p]), .rdata_i(rdata_i[Beat*p +: Beat]), .rlast_i(rlast_i[p]),
      .idle_o(fetch_idles[p]), .valid_o(beat_valids[p]), .data_o(beats[Beat*p +: Beat]), .pop_i(beat_pop)
    );
  end

  // Beats belong to consumers in the order of issue: 1 a load, 0 a matrix. LD and the tile hold one instruction each.
  logic [3:0] order_q;
  logic order_push, order_pop, ld_turn, tile_turn, ld_take, tile_take, ld_last, tile_last;
  assign order_push = issue && (unit == mmf_isa_pkg::UNIT_LD || unit == mmf_isa_pkg::UNIT_TMM);
  assign order_pop = (ld_take && ld_last) || (tile_take && tile_last);
  assign order_ready = order_n_q < 3'd4;
  assign ld_turn = order_n_q != 3'd0 && order_q[0];
  assign tile_turn = order_n_q != 3'd0 && !order_q[0];
  // A load and the host take a wide beat in steps; what the last step leaves of it is padding.
  logic step, step_last;
  assign step = ld_take || (!run_q && ext_beat_pop_i);
  if (Ports > 1) begin : g_steps
    logic [LP-1:0] step_q;
    logic [31:0] ext_left_q;
    assign beat = beats[Beat*step_q +: Beat];
    assign step_last = step_q == LP'(Ports - 1) || (run_q ? ld_last : ext_left_q == 32'd1);
    always_ff @(posedge clk_i) begin
      if (!rst_ni || beat_pop) step_q <= '0;
      else if (step) step_q <= step_q + 1'b1;
      if (ext_run_ready_o && ext_run_valid_i) ext_left_q <= ext_run_len_i;
      else if (step) ext_left_q <= ext_left_q - 32'd1;
    end
  end else begin : g_step
    assign beat = beats;
    assign step_last = 1'b1;
  end
  assign beat_pop = tile_take || (step && step_last);
  assign ext_run_ready_o = !run_q && runs_ready;
  assign ext_beat_valid_o = !run_q && beat_valid;
  assign ext_beat_o = beat;
  logic [2:0] order_at;
  assign order_at = order_n_q - {2'd0, order_pop};
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      order_q <= '0;
      order_n_q <= '0;
    end else begin
      if (order_pop) order_q <= {1'b0, order_q[3:1]};
      for (int k = 0; k < 4; k++) if (order_push && order_at[1:0] == 2'(k)) order_q[k] <= unit == mmf_isa_pkg::UNIT_LD;
      order_n_q <= order_at + {2'd0, order_push};
    end
  end

  // ---------------------------------------------------------------- LD
  logic ld_q, ld_tail_q, ld_end_q;
  logic [7:0] ld_op_q;
  logic [7:0] ld_dst_q;
  logic [SW-1:0] ld_stream_q;
  logic [5:0] ld_shift_q;
  logic [15:0] ld_len_q, ld_at_q;
  logic [PW-1:0] ld_pc_q;
  logic ld_write_q;                // a beat that was taken in the cycle before
  logic [Beat-1:0] ld_beat_q;
  logic [15:0] ld_beat_at_q;
  logic [32*Elems-1:0] embedded;
  logic [31:0] embedded_bits;
  logic [32*Elems-1:0] embedded_q; // for the bits, a cycle later
  logic bits_write_q, bits_first_q;
  assign ld_busy = ld_q || ld_tail_q;
  assign ld_take = ld_q && ld_turn && beat_valid;
  assign ld_last = ld_end_q;
  assign ld_done = ld_tail_q;
  always_comb begin
    embedded_bits = bits_first_q ? 32'd0 : x_bits_q[32*ld_stream_q +: 32];
    for (int j = 0; j < Elems; j++) begin
      embedded[32*j +: 32] = {{16{ld_beat_q[16*j + 15]}}, ld_beat_q[16*j +: 16]} << ld_shift_q;
      embedded_bits = embedded_bits | (embedded_q[32*j +: 32] ^ {32{embedded_q[32*j + 31]}});
    end
  end
  always_ff @(posedge clk_i) begin
    ld_tail_q <= ld_take && ld_last;
    ld_write_q <= ld_take;
    ld_beat_q <= beat;
    ld_beat_at_q <= ld_at_q;
    if (issue && unit == mmf_isa_pkg::UNIT_LD) begin
      ld_q <= 1'b1;
      ld_op_q <= op;
      ld_dst_q <= ins[23:16];
      ld_stream_q <= ins_stream;
      ld_shift_q <= ins[mmf_isa_pkg::F_EMB_SHIFT_LSB +: 6];
      ld_len_q <= (op == mmf_isa_pkg::OP_LDS ? 16'd1 : ins[55:40]) << SplitW;
      ld_at_q <= '0;
      ld_end_q <= (op == mmf_isa_pkg::OP_LDS ? 16'd1 : ins[55:40]) << SplitW == 16'd1;
      ld_pc_q <= pc_q;
    end else if (ld_take) begin
      ld_at_q <= ld_at_q + 16'd1;
      ld_end_q <= ld_at_q + 16'd2 == ld_len_q;
      if (ld_last) ld_q <= 1'b0;
    end
    if (!rst_ni) begin
      ld_q <= 1'b0;
      ld_write_q <= 1'b0;
      ld_tail_q <= 1'b0;
    end
    if (ld_write_q && ld_op_q == mmf_isa_pkg::OP_LDC) c_mem[{ld_dst_q[1:0], ld_beat_at_q[WW-1:0]}] <= ld_beat_q;
  end

  // Scalar operands of all units, read a cycle before the instruction may issue: nothing writes them any more when it may.
  logic [32*Streams-1:0] scalar_a_q, scalar_b_q;
  always_ff @(posedge clk_i)
    for (int b = 0; b < Streams; b++) begin
      scalar_a_q[32*b +: 32] <= s_regs[1024*b + 32*ins[28:24] +: 32];
      scalar_b_q[32*b +: 32] <= cools ? temperature_q[32*b +: 32] : s_regs[1024*b + 32*second +: 32];
    end

  // ---------------------------------------------------------------- VEC
  logic vec_start, vec_code_we;
  logic [VW:0] vec_words;
  logic [VW-1:0] vec_addr, vec_code_addr;
  logic [PartW-1:0] vec_part_q;
  logic vec_z_q, vec_qnt_q;
  logic [4:0] vec_ss_q, vec_mx_q;
  logic vec_ss_we_q, vec_mx_we_q;
  logic [1:0] vec_bank_q;
  logic vec_dst_q;
  logic [PW-1:0] vec_pc_q;
  logic [16*VectorLanes-1:0] vec_gains;
  logic [32*Elems*Streams-1:0] x_word_q, z_word_q;
  logic [Beat-1:0] c_word_q;
  logic [8*VectorLanes*Streams-1:0] vec_codes;
  logic [32*Streams-1:0] vec_squares, vec_maximum;
  // Control of the streams' units, all alike: that of stream 0 counts.
  logic [Streams-1:0] vec_busies, vec_ends, vec_dones, vec_code_wes;
  logic [VW*Streams-1:0] vec_addrs, vec_code_addrs;
  assign vec_busy = vec_busies[0];
  assign vec_done = vec_dones[0];
  assign vec_code_we = vec_code_wes[0];
  assign vec_addr = vec_addrs[VW-1:0];
  assign vec_code_addr = vec_code_addrs[VW-1:0];
  assign vec_start = issue && unit == mmf_isa_pkg::UNIT_VEC;
  assign vec_words = (VW+1)'(ins[40 +: EW-5]) << (VW - EW + 6);
  always_ff @(posedge clk_i) begin
    x_word_q <= x_mem[vec_addr[VW-1:PartW]];
    z_word_q <= z_mem[vec_addr[VW-1:PartW]];
    c_word_q <= c_mem[{vec_bank_q, vec_addr[VW-1:PartW]}];
    vec_part_q <= vec_addr[PartW-1:0];
    if (!vec_busy) begin
      vec_z_q <= ins[24];
      vec_bank_q <= ins[33:32];
      vec_dst_q <= ins[16];
      vec_qnt_q <= op == mmf_isa_pkg::OP_QNT;
      vec_ss_q <= ins[20:16];
      vec_mx_q <= ins[mmf_isa_pkg::F_STAT_MX_LSB +: 5];
      vec_ss_we_q <= op == mmf_isa_pkg::OP_STAT && ins[mmf_isa_pkg::F_STAT_MODE_LSB];
      vec_mx_we_q <= op == mmf_isa_pkg::OP_STAT && ins[mmf_isa_pkg::F_STAT_MODE_LSB + 1];
      vec_pc_q <= pc_q;
    end
  end
  assign vec_gains = c_word_q[16*VectorLanes*vec_part_q +: 16*VectorLanes];
  for (genvar b = 0; b < Streams; b++) begin : g_vec
    logic [32*Elems-1:0] word;
    logic [32*VectorLanes-1:0] operand;
    assign word = vec_z_q ? z_word_q[32*Elems*b +: 32*Elems] : x_word_q[32*Elems*b +: 32*Elems];
    assign operand = word[32*VectorLanes*vec_part_q +: 32*VectorLanes];
    mmf_core_vec #(.Lanes(VectorLanes), .AddrW(VW)) u_vec (
      .clk_i, .rst_ni,
      .start_i(vec_start), .quantize_i(op == mmf_isa_pkg::OP_QNT), .raw_i(ins[mmf_isa_pkg::F_STAT_MODE_LSB + 2]),
      .words_i(vec_words), .bits_i(ins[24] ? z_bits_q[32*b +: 32] : x_bits_q[32*b +: 32]),
      .scale_i(scalar_b_q[32*b +: 32]),
      .busy_o(vec_busies[b]), .ends_o(vec_ends[b]), .done_o(vec_dones[b]), .addr_o(vec_addrs[VW*b +: VW]), .vector_i(operand), .gains_i(vec_gains),
      .code_we_o(vec_code_wes[b]), .code_addr_o(vec_code_addrs[VW*b +: VW]),
      .codes_o(vec_codes[8*VectorLanes*b +: 8*VectorLanes]),
      .squares_o(vec_squares[32*b +: 32]), .maximum_o(vec_maximum[32*b +: 32])
    );
  end
  always_ff @(posedge clk_i)
    if (vec_code_we)
      for (int b = 0; b < Streams; b++)
        for (int j = 0; j < Lanes / VectorLanes; j++)
          if (vec_code_addr[CodeW-1:0] == CodeW'(j))
            q_mem[{vec_dst_q, vec_code_addr[VW-1:CodeW]}][Beat*b + 8*VectorLanes*j +: 8*VectorLanes] <= vec_codes[8*VectorLanes*b +: 8*VectorLanes];

  // ---------------------------------------------------------------- SFU
  logic [32*Streams-1:0] sfu_result;
  logic [Streams-1:0] sfu_busies, sfu_ends, sfu_dones;
  assign sfu_busy = sfu_busies[0];
  assign sfu_done = sfu_dones[0];
  logic [4:0] sfu_dst_q;
  logic [PW-1:0] sfu_pc_q;
  logic sfu_start;
  assign sfu_start = issue && unit == mmf_isa_pkg::UNIT_SFU;
  logic [3:0] sfu_fn_q;
  logic [5:0] sfu_frac_q;
  always_ff @(posedge clk_i) begin
    sfu_fn_q <= cools ? 4'(mmf_isa_pkg::FN_SCL) : ins[mmf_isa_pkg::F_SFU_FN_LSB +: 4];
    sfu_frac_q <= ins[mmf_isa_pkg::F_SFU_FRAC_LSB +: 6];
  end
  for (genvar b = 0; b < Streams; b++) begin : g_sfu
    mmf_core_sfu u_sfu (
      .clk_i, .rst_ni, .start_i(sfu_start), .fn_i(sfu_fn_q), .frac_i(sfu_frac_q), .a_i(scalar_a_q[32*b +: 32]), .b_i(scalar_b_q[32*b +: 32]),
      .busy_o(sfu_busies[b]), .ends_o(sfu_ends[b]), .done_o(sfu_dones[b]), .result_o(sfu_result[32*b +: 32])
    );
  end
  always_ff @(posedge clk_i) begin
    if (!sfu_busy) begin
      sfu_dst_q <= ins[20:16];
      sfu_pc_q <= pc_q;
    end
  end

  // Scalar registers, written at constant positions under conditions: a write at a variable position would be synthesised as shifters
  // of the whole file.
  localparam int Loads = Lanes / 4;          // registers of a beat
  localparam int LoadW = $clog2(Loads);
  logic lds_q;
  logic [4:0] load_first_d, load_first;      // register of the beat's first
  logic [64*Loads-1:0] rotated;
  logic [32*Loads-1:0] loaded;               // [k]: for register k modulo Loads
  logic [31:0] load_hits_q, squares_hits_q, maximum_hits_q, sfu_hits_q;  // registers that are written
  assign load_first_d = ld_dst_q[4:0] + 5'(ld_at_q << LoadW);
  always_ff @(posedge clk_i) begin
    lds_q <= rst_ni && ld_take && ld_op_q == mmf_isa_pkg::OP_LDS;
    load_first <= load_first_d;
    for (int k = 0; k < 32; k++) load_hits_q[k] <= ld_take && ld_op_q == mmf_isa_pkg::OP_LDS && 5'(k) - load_first_d < 5'(Loads);
    squares_hits_q <= 32'(vec_ends[0] && vec_ss_we_q) << vec_ss_q;
    maximum_hits_q <= 32'(vec_ends[0] && vec_mx_we_q) << vec_mx_q;
    sfu_hits_q <= 32'(sfu_ends[0]) << sfu_dst_q;
  end
  assign rotated = {ld_beat_q, ld_beat_q} << {load_first[LoadW-1:0], 5'd0};
  assign loaded = rotated[32*Loads +: 32*Loads];
  always_ff @(posedge clk_i) begin
    if (lds_q || vec_done || sfu_done)
      for (int b = 0; b < Streams; b++)
        for (int k = 0; k < 32; k++) begin
          if (load_hits_q[k]) s_regs[1024*b + 32*k +: 32] <= loaded[32*(k % Loads) +: 32];
          if (squares_hits_q[k]) s_regs[1024*b + 32*k +: 32] <= vec_squares[32*b +: 32];
          if (maximum_hits_q[k]) s_regs[1024*b + 32*k +: 32] <= vec_maximum[32*b +: 32];
          if (sfu_hits_q[k]) s_regs[1024*b + 32*k +: 32] <= sfu_result[32*b +: 32];
        end
  end

  // ---------------------------------------------------------------- TMM
  // Front: takes beats, reads codes. tile_q: it has beats to take.
  logic [15:0] k_q, k_last_q;
  logic [RowW-1:0] rows_left_q;
  logic tile_q, code_bank_q, room, want;
  logic k_end_q, group_end_q;      // the last beat of a group, the last group
  logic [3:0] flight_q;
  logic group_valid, group_left;
  logic [120*Ports*Streams-1:0] group_sums;
  logic [Beat*Ports-1:0] beat1_q;
  logic [Beat*Streams-1:0] codes1_q;
  logic valid1_q, first1_q, last1_q;
  logic [PW-1:0] tile_pc_q, drain_pc_q;
  assign tile_busy = tile_q;
  assign tile_last = k_end_q && group_end_q;
  assign room = !k_end_q || flight_q < 4'd8;
  assign want = tile_q && tile_turn;
  assign tile_take = want && beat_valid && room;
  assign tile_ends = tile_take && tile_last;
  logic tmm_issue;
  assign tmm_issue = issue && unit == mmf_isa_pkg::UNIT_TMM;
  always_ff @(posedge clk_i) begin
    beat1_q <= beats;
    codes1_q <= q_mem[{code_bank_q, k_q[KW-1:0]}];
    valid1_q <= tile_take;
    first1_q <= k_q == 16'd0;
    last1_q <= k_end_q;
    if (tile_take) begin
      k_q <= k_end_q ? 16'd0 : k_q + 16'd1;
      k_end_q <= k_end_q ? k_last_q == 16'd0 : k_q + 16'd1 == k_last_q;
      if (k_end_q) begin
        rows_left_q <= rows_left_q - RowW'(GroupRows);
        group_end_q <= rows_left_q <= RowW'(2 * GroupRows);
      end
      if (tile_last) tile_q <= 1'b0;
    end
    if (tmm_issue) begin
      tile_q <= 1'b1;
      drain_pc_q <= tile_pc_q;
      tile_pc_q <= pc_q;
      k_q <= '0;
      k_last_q <= (ins[55:40] << SplitW) - 16'd1;
      k_end_q <= ins[55:40] << SplitW == 16'd1;
      rows_left_q <= ins[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24];
      group_end_q <= ins[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24] <= RowW'(GroupRows);
      code_bank_q <= ins[24];
    end
    flight_q <= flight_q + {3'd0, tile_take && k_end_q} - {3'd0, group_left};
    if (!rst_ni) begin
      valid1_q <= 1'b0;
      tile_q <= 1'b0;
      flight_q <= '0;
    end
  end
  logic [Ports-1:0] group_valids;
  assign group_valid = group_valids[0];
  for (genvar p = 0; p < Ports; p++) begin : g_tile
    logic [120*Streams-1:0] sums;
    mmf_core_tile #(.Lanes(Lanes), .Streams(Streams)) u_tile (
      .clk_i, .rst_ni, .valid_i(valid1_q), .first_i(first1_q), .last_i(last1_q), .beat_i(beat1_q[Beat*p +: Beat]), .codes_i(codes1_q),
      .valid_o(group_valids[p]), .sums_o(sums)
    );
    for (genvar b = 0; b < Streams; b++) begin : g_sums
      assign group_sums[120*(Ports*b + p) +: 120] = sums[120*b +: 120];
    end
  end

  // Epilogue and its memories. Control of the streams' pipelines is alike: that of stream 0 counts.
  logic [3:0] repi, wepi;
  logic [RowW-1:0] raddr, waddr;
  logic [HW-1:0] hraddr, hwaddr;
  logic [1:0] rbank;
  logic [18*Streams-1:0] t_read_q, t_write;
  logic [24*Streams-1:0] h_read_q, h_write;
  logic [32*Streams-1:0] x_read, v_write, v_bits;
  logic [15:0] bound;
  logic epi_we;
  logic [Streams-1:0] epi_wes, epi_dones, ctx_readies, group_lefts;
  logic [4*Streams-1:0] repis, wepis;
  logic [RowW*Streams-1:0] raddrs, waddrs;
  logic [HW*Streams-1:0] hraddrs, hwaddrs;
  logic [2*Streams-1:0] rbanks;
  assign epi_we = epi_wes[0];
  assign epi_done = epi_dones[0];
  assign ctx_ready = ctx_readies[0];
  assign group_left = group_lefts[0];
  assign repi = repis[3:0];
  assign wepi = wepis[3:0];
  assign raddr = raddrs[RowW-1:0];
  assign waddr = waddrs[RowW-1:0];
  assign hraddr = hraddrs[HW-1:0];
  assign hwaddr = hwaddrs[HW-1:0];
  assign rbank = rbanks[1:0];
  logic embeds_q;
  logic [WW-1:0] x_waddr;
  always_ff @(posedge clk_i) embeds_q <= rst_ni && ld_take && ld_op_q == mmf_isa_pkg::OP_EMB;
  assign x_waddr = embeds_q ? ld_beat_at_q[WW-1:0] : waddr[EW-1:ElemW];
  logic [32*Elems*Streams-1:0] x_row_q;
  logic [Beat-1:0] c_row_q;
  logic [ElemW-1:0] row_at_q;
  logic [Beat-1:0] c_row2_q;
  logic [ElemW-1:0] row_at2_q;
  assign bound = c_row2_q[16*row_at2_q +: 16];
  always_comb for (int b = 0; b < Streams; b++) x_read[32*b +: 32] = x_row_q[32*(Elems*b + 32'(row_at_q)) +: 32];
  always_ff @(posedge clk_i) begin
    x_row_q <= x_mem[raddr[EW-1:ElemW]];
    c_row_q <= c_mem[{rbank, raddr[EW-1:ElemW]}];
    row_at_q <= raddr[ElemW-1:0];
    c_row2_q <= c_row_q;
    row_at2_q <= row_at_q;
    t_read_q <= t_mem[raddr[EW-1:0]];
    h_read_q <= h_mem[hraddr];
    if (epi_we) begin
      case (wepi)
        4'(mmf_isa_pkg::EPI_SIGF), 4'(mmf_isa_pkg::EPI_SILU): t_mem[waddr[EW-1:0]] <= t_write;
        4'(mmf_isa_pkg::EPI_STATE): h_mem[hwaddr] <= h_write;
        4'(mmf_isa_pkg::EPI_SWISHG), 4'(mmf_isa_pkg::EPI_MULT): begin
          for (int b = 0; b < Streams; b++)
            for (int j = 0; j < Elems; j++)
              if (waddr[ElemW-1:0] == ElemW'(j)) z_mem[waddr[EW-1:ElemW]][32*(Elems*b + j) +: 32] <= v_write[32*b +: 32];
          z_bits_q <= v_bits;
        end
        4'(mmf_isa_pkg::EPI_RESADD): x_bits_q <= v_bits;
        default: ;
      endcase
    end
    // One write port of X: a beat of an embedding or a row. Both write X, so that never both come.
    if (embeds_q || (epi_we && wepi == 4'(mmf_isa_pkg::EPI_RESADD)))
      for (int b = 0; b < Streams; b++)
        for (int j = 0; j < Elems; j++)
          if (embeds_q ? ld_stream_q == SW'(b) : waddr[ElemW-1:0] == ElemW'(j))
            x_mem[x_waddr][32*(Elems*b + j) +: 32] <= embeds_q ? embedded[32*j +: 32] : v_write[32*b +: 32];
    embedded_q <= embedded;
    bits_write_q <= embeds_q;
    bits_first_q <= ld_beat_at_q == 16'd0;
    if (bits_write_q) x_bits_q[32*ld_stream_q +: 32] <= embedded_bits;
  end
  for (genvar b = 0; b < Streams; b++) begin : g_epi
    logic [GroupRows*SumW-1:0] sums;
    for (genvar r = 0; r < GroupRows; r++) begin : g_sum
      assign sums[SumW*r +: SumW] = group_sums[120*Ports*b + 24*r +: SumW];
    end
    mmf_core_epi #(.RowW(RowW), .StateW(HW), .SumW(SumW), .GroupRows(GroupRows)) u_epi (
      .clk_i, .rst_ni,
      .ctx_valid_i(tmm_issue), .ctx_epi_i(epi), .ctx_scale_i(scalar_b_q[32*b +: 32]),
      .ctx_rows_i(ins[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24]), .ctx_fresh_i(fresh_q[b]),
      .ctx_base_i(state_base_q), .ctx_bank_i(ins[mmf_isa_pkg::F_TMM_BANK_LSB +: 2]), .ctx_ready_o(ctx_readies[b]),
      .noisy_i(temperature_q[32*b +: 16] != 16'd0), .seed_i(seed_q[64*b +: 64]), .position_i(position_q[32*b +: 32]),
      .group_valid_i(group_valid), .group_sums_i(sums), .group_left_o(group_lefts[b]),
      .epi_o(repis[4*b +: 4]), .raddr_o(raddrs[RowW*b +: RowW]), .hraddr_o(hraddrs[HW*b +: HW]), .rbank_o(rbanks[2*b +: 2]),
      .t_i(t_read_q[18*b +: 18]), .h_i(h_read_q[24*b +: 24]), .x_i(x_read[32*b +: 32]), .bound_i(bound),
      .we_o(epi_wes[b]), .wepi_o(wepis[4*b +: 4]), .waddr_o(waddrs[RowW*b +: RowW]), .hwaddr_o(hwaddrs[HW*b +: HW]),
      .t_o(t_write[18*b +: 18]), .h_o(h_write[24*b +: 24]), .v_o(v_write[32*b +: 32]), .bits_o(v_bits[32*b +: 32]),
      .done_o(epi_dones[b]), .best_row_o(best_row[24*b +: 24]), .best_key_o(best_key[mmf_num_pkg::KEY_W*b +: mmf_num_pkg::KEY_W])
    );
  end

  // ---------------------------------------------------------------- counters and retirement
  always_ff @(posedge clk_i) begin
    if (!rst_ni || (start_i && !run_q)) begin
      cycles_o <= '0;
      tile_beats_o <= '0;
      wait_stream_o <= '0;
      wait_results_o <= '0;
    end else if (run_q) begin
      cycles_o <= cycles_o + 48'd1;
      if (tile_take) tile_beats_o <= tile_beats_o + 48'd1;
      if (want && !beat_valid) wait_stream_o <= wait_stream_o + 48'd1;
      if (want && beat_valid && !room) wait_results_o <= wait_results_o + 48'd1;
    end
    retire_o <= {epi_done, sfu_done, vec_done, ld_done};
    retire_pc_o <= {drain ? 16'(drain_pc_q) : 16'(tile_pc_q), 16'(sfu_pc_q), 16'(vec_pc_q), 16'(ld_pc_q)};
    if (!rst_ni) retire_o <= '0;
  end
endmodule
