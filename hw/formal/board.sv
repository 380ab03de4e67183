// The scoreboard with units that behave as they promise, and a record kept beside it of what is under way for one resource, chosen once
// and arbitrary. Proved: nothing issues while another unit has an unfinished writer of what it reads or writes, or an unfinished reader
// of what it writes; and nothing waits unless some other unit has something under way.
module board (
  input logic clk_i,
  input logic [2:0] unit_i,
  input logic [N-1:0] reads_i,
  input logic [N-1:0] writes_i,
  input logic want_i,
  input logic ld_done_i,
  input logic vec_done_i,
  input logic sfu_done_i,
  input logic codes_done_i,
  input logic tmm_done_i
);
  localparam int N = 42, Codes = 4;
  logic rst_n = 1'b0;
  always_ff @(posedge clk_i) rst_n <= 1'b1;
  (* anyconst *) logic [5:0] r;

  logic hazard, issue, open, drain;
  mmf_core_board #(.N(N), .Codes(Codes)) dut (
    .clk_i, .rst_ni(rst_n), .unit_i, .reads_i, .writes_i, .hazard_o(hazard), .issue_i(issue),
    .ld_done_i, .vec_done_i, .sfu_done_i, .codes_done_i, .tmm_done_i, .tmm_open_o(open), .tmm_drain_o(drain));

  // The record. [0] LD, [1] VEC, [2] SFU, [3] the matrix in the tile, [4] the one before it: under way, reads r, writes r.
  logic [4:0] busy = '0, rd = '0, wr = '0;
  logic beats = 1'b0;              // the matrix in the tile has beats to take
  logic [4:0] unit_free, starts, other;
  logic is_codes;
  assign is_codes = r == 6'(Codes) || r == 6'(Codes + 1);
  assign unit_free = {1'b0, !beats && !busy[4], ~busy[2:0]};
  assign starts = {1'b0, issue && unit_i == 3'd4, issue && unit_i == 3'd3, issue && unit_i == 3'd2, issue && unit_i == 3'd1};
  assign other = {{2{unit_i != 3'd4}}, unit_i != 3'd3, unit_i != 3'd2, unit_i != 3'd1};
  assign issue = rst_n && want_i && !hazard && (unit_i == 3'd0 || (unit_i < 3'd5 && unit_free[unit_i - 3'd1]));

  // The scoreboard's own registers, connected by run.sh: they say what the record says, which is what induction needs.
  (* keep *) logic [N-1:0] b_ld_w, b_vec_r, b_vec_w, b_sfu_r, b_sfu_w, b_tile_r, b_tile_w, b_drain_r, b_drain_w;

  always_ff @(posedge clk_i) begin
    assume (r < 6'(N));
    assume (!ld_done_i || busy[0]);
    assume (!vec_done_i || busy[1]);
    assume (!sfu_done_i || busy[2]);
    assume (!codes_done_i || beats);
    assume (!tmm_done_i || busy[4] || (busy[3] && !beats));
    if (rst_n) begin
      for (int u = 0; u < 3; u++) begin
        if (starts[u]) begin
          busy[u] <= 1'b1;
          rd[u] <= reads_i[r];
          wr[u] <= writes_i[r];
        end else if (u == 0 ? ld_done_i : u == 1 ? vec_done_i : sfu_done_i) busy[u] <= 1'b0;
      end
      if (codes_done_i) begin
        beats <= 1'b0;
        if (is_codes) rd[3] <= 1'b0;
      end
      if (tmm_done_i && busy[4]) busy[4] <= 1'b0;
      if (tmm_done_i && !busy[4]) busy[3] <= 1'b0;
      if (starts[3]) begin
        if (busy[3] && !tmm_done_i) begin
          busy[4] <= 1'b1;
          rd[4] <= rd[3];
          wr[4] <= wr[3];
        end
        busy[3] <= 1'b1;
        beats <= 1'b1;
        rd[3] <= reads_i[r];
        wr[3] <= writes_i[r];
      end
      // What is proved.
      if (issue) begin
        assert (!(|(busy & wr & other) && (reads_i[r] || writes_i[r])));
        assert (!(|(busy & rd & other & 5'b11110) && writes_i[r]));
      end
      if (hazard) assert (|(busy & other));
      // The record and the scoreboard agree.
      assert (open == busy[3] && drain == busy[4]);
      assert (b_ld_w[r] == (busy[0] && wr[0]));
      assert (b_vec_r[r] == (busy[1] && rd[1]) && b_vec_w[r] == (busy[1] && wr[1]));
      assert (b_sfu_r[r] == (busy[2] && rd[2]) && b_sfu_w[r] == (busy[2] && wr[2]));
      assert (b_tile_r[r] == (busy[3] && rd[3]) && b_tile_w[r] == (busy[3] && wr[3]));
      assert (b_drain_r[r] == (busy[4] && rd[4]) && b_drain_w[r] == (busy[4] && wr[4]));
      assert (!beats || busy[3]);
      assert (!busy[4] || busy[3]);
      // Nothing is kept of what is not under way, for any resource.
      assert (busy[0] || b_ld_w == '0);
      assert (busy[1] || (b_vec_r | b_vec_w) == '0);
      assert (busy[2] || (b_sfu_r | b_sfu_w) == '0);
      assert (busy[3] || (b_tile_r | b_tile_w) == '0);
      assert (busy[4] || (b_drain_r | b_drain_w) == '0);
    end
  end
endmodule
