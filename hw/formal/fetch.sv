// The prefetcher with a FIFO of 4 beats against a memory that answers in order whenever it likes. Proved for all executions, by
// induction: AXI rules (a request stays as it is until it is taken, bursts of 1 to 2 beats inside 4 KiB), requests are the runs and
// nothing else, the FIFO never overflows, no beat is lost, doubled or out of order. Runs have at most 7 beats here, so that counters
// of 5 bits may wrap, and start in the first page, so that addresses have 7 bits.
module fetch (
  input logic clk_i,
  input logic run_valid_i,
  input logic [31:0] run_beat_i,
  input logic [31:0] run_len_i,
  input logic arready_i,
  input logic rvalid_i,
  input logic [1:0] rdata_i,
  input logic pop_i,
  input logic pick_i,
  input logic [4:0] offset_i
);
  localparam int Fifo = 4, Burst = 2;
  logic rst_n = 1'b0;
  always_ff @(posedge clk_i) rst_n <= 1'b1;
  logic run_ready, arvalid, rready, rlast, valid, idle;
  logic [37:0] araddr;
  logic [7:0] arlen;
  logic [1:0] data;
  mmf_core_fetch #(.FifoBeats(Fifo), .BurstBeats(Burst), .Bursts(2), .Queue(2), .BeatBits(2)) dut (
    .clk_i, .rst_ni(rst_n), .run_valid_i, .run_ready_o(run_ready), .run_beat_i, .run_len_i,
    .arvalid_o(arvalid), .arready_i, .araddr_o(araddr), .arlen_o(arlen), .rvalid_i, .rready_o(rready), .rdata_i, .rlast_i(rlast),
    .idle_o(idle), .valid_o(valid), .data_o(data), .pop_i);

  // Beats wanted by runs, asked for, come, popped: counted modulo 32.
  logic [4:0] wanted = '0, asked = '0, came = '0, popped = '0;
  logic [4:0] open0 = '0, open1 = '0;   // beats to come of the first and second open burst
  logic ask, give;
  assign ask = rst_n && arvalid && arready_i;
  assign give = rst_n && rvalid_i;
  assign rlast = open0 == 5'd1;
  // The request before; one beat of some run, followed from the run to its pop.
  logic was_waiting = 1'b0;
  logic [37:0] was_addr;
  logic [7:0] was_len;
  logic followed = 1'b0;
  logic [4:0] pos;
  logic [6:0] addr;
  (* anyconst *) logic [1:0] value;

  // The prefetcher's own registers, connected by run.sh, for what induction must know of them.
  (* keep *) logic [1:0] b_queue_in_q, b_queue_out_q;
  (* keep *) logic [31:0] b_queue_beat_0, b_queue_beat_1, b_queue_len_0, b_queue_len_1, b_beat_q, b_left_q, b_burst_q;
  (* keep *) logic b_sized_q, b_room_q, b_pop_q, b_filled_q, b_none_left_q, b_ends_q;
  (* keep *) logic [1:0] b_fifo_0, b_fifo_1, b_fifo_2, b_fifo_3;
  (* keep *) logic [2:0] b_in_q, b_out_q, b_promised_q;
  (* keep *) logic [1:0] b_outstanding_q;
  logic [1:0] queued, slot, stored;
  logic [31:0] len_a, len_b, beat_a, beat_b;
  logic [4:0] from_head, left, to_ask;
  assign queued = b_queue_in_q - b_queue_out_q;
  assign len_a = queued == 2'd0 ? 32'd0 : b_queue_out_q[0] ? b_queue_len_1 : b_queue_len_0;
  assign len_b = queued != 2'd2 ? 32'd0 : b_queue_out_q[0] ? b_queue_len_0 : b_queue_len_1;
  assign beat_a = b_queue_out_q[0] ? b_queue_beat_1 : b_queue_beat_0;
  assign beat_b = b_queue_out_q[0] ? b_queue_beat_0 : b_queue_beat_1;
  assign to_ask = pos - asked;
  assign left = b_left_q[4:0];
  assign from_head = pos - popped;
  assign slot = b_out_q[1:0] + from_head[1:0];
  assign stored = slot == 2'd0 ? b_fifo_0 : slot == 2'd1 ? b_fifo_1 : slot == 2'd2 ? b_fifo_2 : b_fifo_3;
  logic [4:0] in_fifo, under_way, to_come, to_be_asked;
  assign in_fifo = came - popped;
  assign under_way = asked - popped;
  assign to_come = asked - came;
  assign to_be_asked = wanted - asked;

  always_ff @(posedge clk_i) begin
    was_waiting <= rst_n && arvalid && !arready_i;
    was_addr <= araddr;
    was_len <= arlen;
    if (!rst_n) begin
      assume (!run_valid_i && !rvalid_i && !pop_i);
      assert ({wanted, asked, came, popped, open0, open1} == '0 && !followed);
    end else begin
      assume (run_len_i <= 32'd7 && run_len_i != 32'd0);
      assume (run_beat_i < 32'd64);
      assume (!pop_i || valid);
      assume (!rvalid_i || open0 != 5'd0);
      if (run_valid_i && run_ready) begin
        wanted <= wanted + run_len_i[4:0];
        if (!followed && pick_i && {27'd0, offset_i} < run_len_i) begin
          followed <= 1'b1;
          pos <= wanted + offset_i;
          addr <= run_beat_i[6:0] + {2'd0, offset_i};
        end
      end
      if (ask) begin
        asked <= asked + arlen[4:0] + 5'd1;
        assert (araddr[5:0] == 6'd0);
        assert (arlen < 8'(Burst));
        assert ({26'd0, araddr[11:6]} + {24'd0, arlen} < 32'd64);  // inside 4 KiB
        assert (arlen[4:0] < to_be_asked);
        if (followed && from_head >= under_way && to_ask <= arlen[4:0]) assert (araddr[12:6] + {2'd0, to_ask} == addr && araddr[37:13] == '0);
      end
      if (was_waiting) assert (arvalid && araddr == was_addr && arlen == was_len);
      // Open bursts, at most two, in order.
      if (ask && give && open0 == 5'd1) begin
        open0 <= open1 != 5'd0 ? open1 : arlen[4:0] + 5'd1;
        open1 <= open1 != 5'd0 ? arlen[4:0] + 5'd1 : 5'd0;
      end else if (ask) begin
        assert (open1 == 5'd0);
        if (open0 == 5'd0) open0 <= arlen[4:0] + 5'd1;
        else open1 <= arlen[4:0] + 5'd1;
        if (give) open0 <= open0 - 5'd1;
      end else if (give) begin
        open0 <= open0 == 5'd1 ? open1 : open0 - 5'd1;
        if (open0 == 5'd1) open1 <= 5'd0;
      end
      if (give) begin
        assert (rready);
        came <= came + 5'd1;
        if (followed && came == pos && from_head < under_way) assume (rdata_i == value);
        assert (in_fifo < 5'(Fifo));
      end
      assert (valid == (in_fifo != 5'd0));
      if (pop_i) begin
        popped <= popped + 5'd1;
        if (followed && popped == pos) begin
          assert (data == value);
          followed <= 1'b0;
        end
      end
      if (idle) assert (wanted == popped);

      // What the prefetcher's registers mean; induction needs it.
      assert (queued <= 2'd2);
      assert (len_a <= 32'd7 && len_b <= 32'd7 && b_left_q <= 32'd7);
      assert ((len_a != 32'd0 || queued == 2'd0) && (len_b != 32'd0 || queued != 2'd2));
      assert (to_be_asked == left + len_a[4:0] + len_b[4:0]);
      assert (b_beat_q + b_left_q <= 32'd71 && b_beat_q <= 32'd71);
      assert (queued == 2'd0 || beat_a < 32'd64);
      assert (queued != 2'd2 || beat_b < 32'd64);
      assert (b_in_q - b_out_q == in_fifo[2:0] && in_fifo <= 5'(Fifo));
      assert (b_promised_q == under_way[2:0] + {2'd0, b_pop_q} && under_way + {4'd0, b_pop_q} <= 5'(Fifo));
      assert (in_fifo <= under_way);
      assert (b_filled_q == (in_fifo != 5'd0) && b_none_left_q == (b_left_q == 32'd0));
      if (b_sized_q) assert (b_ends_q == (b_burst_q == b_left_q));
      assert (to_come == open0 + open1 && open0 <= 5'(Burst) && open1 <= 5'(Burst));
      assert (open1 == 5'd0 || open0 != 5'd0);
      assert (b_outstanding_q == {1'b0, open0 != 5'd0} + {1'b0, open1 != 5'd0});
      if (was_waiting) assert (b_sized_q && b_room_q);
      if (b_room_q) assert (b_sized_q && {29'd0, b_promised_q} + b_burst_q <= 32'(Fifo) && b_outstanding_q < 2'd2);
      if (b_sized_q) assert (b_left_q != 32'd0 && b_burst_q == (b_left_q == 32'd1 || b_beat_q[5:0] == 6'd63 ? 32'd1 : 32'(Burst)));
      if (followed) begin
        assert (from_head < under_way + to_be_asked);
        if (from_head >= under_way) begin
          if (to_ask < left) assert (b_beat_q[6:0] + {2'd0, to_ask} == addr);
          else if (to_ask < left + len_a[4:0]) assert (beat_a[6:0] + {2'd0, to_ask - left} == addr);
          else assert (beat_b[6:0] + {2'd0, to_ask - left - len_a[4:0]} == addr);
        end else if (from_head < in_fifo) assert (stored == value);
      end
    end
  end
endmodule
