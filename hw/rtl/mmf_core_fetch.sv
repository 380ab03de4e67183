// Prefetcher: reads runs of beats in the order in which they were appended, by AXI4 bursts that never cross 4 KiB, and
// keeps them in a FIFO that its consumers empty. A burst is asked for only if the FIFO has room for all of it beside what is
// under way, so rready_o never falls and the memory cannot be blocked.
module mmf_core_fetch #(
  parameter int FifoBeats  = 256,  // power of two, at least 2 * BurstBeats
  parameter int BurstBeats = 64,   // power of two, at most 64
  parameter int Bursts     = 16,   // most that are outstanding
  parameter int Queue      = 4,    // runs that wait; power of two
  parameter int BeatBytes  = 64,   // power of two, at most 64
  parameter int BeatBits   = 8 * BeatBytes  // another number for proofs only
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  // Runs: first beat (from address 0) and number of beats.
  input  logic         run_valid_i,
  output logic         run_ready_o,
  input  logic [31:0]  run_beat_i,
  input  logic [31:0]  run_len_i,
  // AXI4 read channel.
  output logic         arvalid_o,
  input  logic         arready_i,
  output logic [37:0]  araddr_o,
  output logic [7:0]   arlen_o,
  input  logic         rvalid_i,
  output logic         rready_o,
  input  logic [BeatBits-1:0] rdata_i,
  input  logic         rlast_i,
  output logic         idle_o,       // nothing asked for, under way or in the FIFO
  // Head of the FIFO.
  output logic         valid_o,
  output logic [BeatBits-1:0] data_o,
  input  logic         pop_i
);
  localparam int FW = $clog2(FifoBeats);
  localparam int QW = $clog2(Queue);

  logic [31:0] queue_beat [0:Queue-1];
  logic [31:0] queue_len  [0:Queue-1];
  logic [QW:0] queue_in_q, queue_out_q;
  logic [31:0] beat_q, left_q;                // of the run being asked for
  (* ram_style = "distributed" *) logic [BeatBits-1:0] fifo [0:FifoBeats-1];  // answers at once, as block RAM would not
  logic [FW:0] in_q, out_q;
  logic filled_q, single;                     // the FIFO is not empty, has one beat
  logic [FW:0] promised_q;                    // beats in the FIFO or under way; one that is taken counts a cycle longer
  logic pop_q;
  logic [$clog2(Bursts+1)-1:0] outstanding_q;

  logic [31:0] burst_q;                       // beats of the next request
  logic sized_q, room_q;                      // it is known, there is room for it
  logic none_left_q, ends_q;                  // left_q is 0, the next request asks for all of it
  logic [6:0] to_page;                        // beats to the end of 64, which lie in one 4 KiB
  logic [6:0] most;
  logic [31:0] burst;
  logic queue_empty, load, room, ask, ends;
  assign queue_empty = queue_in_q == queue_out_q;
  assign run_ready_o = !(queue_in_q[QW-1:0] == queue_out_q[QW-1:0] && queue_in_q[QW] != queue_out_q[QW]);
  assign to_page = 7'd64 - {1'b0, beat_q[5:0]};
  always_comb begin
    most = BurstBeats < 64 && to_page > 7'(BurstBeats) ? 7'(BurstBeats) : to_page;
    ends = left_q[31:7] == '0 && left_q[6:0] <= most;
    burst = {25'd0, ends ? left_q[6:0] : most};
  end
  // Room that there is stays until a request takes it.
  assign room = {{(31-FW){1'b0}}, promised_q} + burst_q <= 32'(FifoBeats) && outstanding_q < ($clog2(Bursts+1))'(Bursts);
  assign arvalid_o = room_q;
  assign araddr_o = 38'({6'd0, beat_q} << $clog2(BeatBytes));
  assign arlen_o = 8'(burst_q - 32'd1);
  assign ask = arvalid_o && arready_i;
  assign load = none_left_q && !queue_empty;

  assign idle_o = queue_empty && none_left_q && promised_q == '0;
  assign rready_o = 1'b1;
  assign valid_o = filled_q;
  assign single = in_q == out_q + 1'b1;
  assign data_o = fifo[out_q[FW-1:0]];

  always_ff @(posedge clk_i) begin
    if (rvalid_i) fifo[in_q[FW-1:0]] <= rdata_i;
    if (run_valid_i && run_ready_o) begin
      queue_beat[queue_in_q[QW-1:0]] <= run_beat_i;
      queue_len[queue_in_q[QW-1:0]]  <= run_len_i;
    end
    if (!rst_ni) begin
      queue_in_q <= '0;
      queue_out_q <= '0;
      beat_q <= '0;
      left_q <= '0;
      none_left_q <= 1'b1;
      sized_q <= 1'b0;
      in_q <= '0;
      out_q <= '0;
      filled_q <= 1'b0;
      promised_q <= '0;
      outstanding_q <= '0;
      room_q <= 1'b0;
      pop_q <= 1'b0;
    end else begin
      room_q <= sized_q && room && !ask;
      if (run_valid_i && run_ready_o) queue_in_q <= queue_in_q + 1'b1;
      if (load) begin
        queue_out_q <= queue_out_q + 1'b1;
        beat_q <= queue_beat[queue_out_q[QW-1:0]];
        left_q <= queue_len[queue_out_q[QW-1:0]];
        none_left_q <= queue_len[queue_out_q[QW-1:0]] == 32'd0;
      end else if (ask) begin
        beat_q <= beat_q + burst_q;
        left_q <= left_q - burst_q;
        none_left_q <= ends_q;
        sized_q <= 1'b0;
      end else if (!none_left_q) begin
        burst_q <= burst;
        ends_q <= ends;
        sized_q <= 1'b1;
      end
      if (rvalid_i) in_q <= in_q + 1'b1;
      if (pop_i) out_q <= out_q + 1'b1;
      filled_q <= rvalid_i || (filled_q && !(pop_i && single));
      promised_q <= promised_q + (ask ? burst_q[FW:0] : '0) - {{FW{1'b0}}, pop_q};
      pop_q <= pop_i;
      case ({ask, rvalid_i && rlast_i})
        2'b10: outstanding_q <= outstanding_q + 1'b1;
        2'b01: outstanding_q <= outstanding_q - 1'b1;
        default: ;
      endcase
    end
  end
endmodule
