// The prefetcher with a FIFO of 4 beats against a memory that answers in order whenever it likes: AXI rules (a request stays as it is
// until it is taken, bursts of 1 to 64 beats inside 4 KiB), requests are the runs and nothing else, the FIFO never overflows, no beat
// is lost, doubled or out of order.
module fetch (
  input logic clk_i,
  input logic run_valid_i,
  input logic [31:0] run_beat_i,
  input logic [31:0] run_len_i,
  input logic arready_i,
  input logic rvalid_i,
  input logic [1:0] rdata_i,
  input logic pop_i
);
  localparam int Fifo = 4, Burst = 2;
  logic rst_n = 1'b0;
  logic [7:0] cycle = '0;
  always_ff @(posedge clk_i) begin
    rst_n <= 1'b1;
    cycle <= cycle + 8'd1;
  end
  logic run_ready, arvalid, rready, rlast, valid, idle;
  logic [37:0] araddr;
  logic [7:0] arlen;
  logic [1:0] data;
  mmf_core_fetch #(.FifoBeats(Fifo), .BurstBeats(Burst), .Bursts(2), .Queue(2), .BeatBits(2)) dut (
    .clk_i, .rst_ni(rst_n), .run_valid_i, .run_ready_o(run_ready), .run_beat_i, .run_len_i,
    .arvalid_o(arvalid), .arready_i, .araddr_o(araddr), .arlen_o(arlen), .rvalid_i, .rready_o(rready), .rdata_i, .rlast_i(rlast),
    .idle_o(idle), .valid_o(valid), .data_o(data), .pop_i);

  // What was asked for: beats in total, and the bursts that are open.
  logic [7:0] wanted = '0, asked = '0, came = '0, popped = '0;
  logic [7:0] open0 = '0, open1 = '0;   // beats to come of the first and second open burst
  logic ask, give;
  assign ask = rst_n && arvalid && arready_i;
  assign give = rst_n && rvalid_i;
  assign rlast = open0 == 8'd1;
  // The request before, and the address of a beat of the runs, chosen once.
  logic was_waiting = 1'b0;
  logic [37:0] was_addr;
  logic [7:0] was_len;
  (* anyconst *) logic [7:0] which;
  (* anyconst *) logic [1:0] value;
  logic [31:0] which_beat;
  logic [31:0] off_run, off_ask;
  assign off_run = {24'd0, which - wanted};
  assign off_ask = {24'd0, which - asked};

  always_ff @(posedge clk_i) begin
    was_waiting <= rst_n && arvalid && !arready_i;
    was_addr <= araddr;
    was_len <= arlen;
    if (!rst_n) begin
      assume (!run_valid_i && !rvalid_i && !pop_i);
    end else begin
      assume (run_len_i <= 32'd5 && run_len_i != 32'd0);
      assume (run_beat_i < 32'd128);
      assume (wanted < 8'd16);
      assume (!pop_i || valid);
      assume (!rvalid_i || open0 != 8'd0);
      if (run_valid_i && run_ready) begin
        wanted <= wanted + run_len_i[7:0];
        if (which >= wanted && off_run < run_len_i) which_beat <= run_beat_i + off_run;
      end
      if (ask) begin
        asked <= asked + arlen + 8'd1;
        assert (araddr[5:0] == 6'd0);
        assert (arlen < 8'd2);
        assert ({26'd0, araddr[11:6]} + {24'd0, arlen} < 32'd64);  // inside 4 KiB
        assert (asked + arlen < wanted);
        if (which >= asked && off_ask <= {24'd0, arlen}) assert (araddr[37:6] + off_ask == which_beat);
      end
      if (was_waiting) assert (arvalid && araddr == was_addr && arlen == was_len);
      // Open bursts, at most two, in order.
      if (ask && give && open0 == 8'd1) begin
        open0 <= open1 != 8'd0 ? open1 : arlen + 8'd1;
        open1 <= open1 != 8'd0 ? arlen + 8'd1 : 8'd0;
      end else if (ask) begin
        assert (open1 == 8'd0);
        if (open0 == 8'd0) open0 <= arlen + 8'd1;
        else open1 <= arlen + 8'd1;
        if (give) open0 <= open0 - 8'd1;
      end else if (give) begin
        open0 <= open0 == 8'd1 ? open1 : open0 - 8'd1;
        if (open0 == 8'd1) open1 <= 8'd0;
      end
      if (give) begin
        assert (rready);
        came <= came + 8'd1;
        if (came == which) assume (rdata_i == value);
        assert (came - popped < 8'(Fifo));
      end
      assert (valid == (came != popped));
      if (pop_i) begin
        popped <= popped + 8'd1;
        if (popped == which) assert (data == value);
      end
      if (idle) assert (wanted == popped);
    end
  end
endmodule
