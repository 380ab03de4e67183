// A complete small core between shift registers: all inputs come out of one, all outputs go into another.
module pnr_core (
  input  logic clk_i,
  input  logic rst_ni,
  input  logic bit_i,
  output logic bit_o
);
  localparam int In = 903, Out = 872;
  logic [In-1:0] chain_q, in_q;
  logic [Out-1:0] out, seen_q, out_q;
  logic [9:0] turn_q;
  logic rst_nq;
  always_ff @(posedge clk_i) begin
    rst_nq <= rst_ni;
    chain_q <= {chain_q[In-2:0], bit_i};
    in_q <= chain_q;
    seen_q <= out;
    turn_q <= rst_nq ? turn_q + 10'd1 : '0;
    out_q <= turn_q == '0 ? seen_q : {out_q[Out-2:0], 1'b0};
    bit_o <= out_q[Out-1];
  end
  mmf_core #(.Width(256), .StateSize(768), .ProgramSize(128), .FifoBeats(128)) u_core (
    .clk_i, .rst_ni(rst_nq),
    .prog_we_i(in_q[0]), .prog_addr_i(in_q[7:1]), .prog_data_i(in_q[135:8]), .prog_last_i(in_q[142:136]),
    .start_i(in_q[143]), .token_i(in_q[167:144]), .fresh_i(in_q[168]), .logits_i(in_q[169]), .mixer_i(in_q[193:170]),
    .temperature_i(in_q[806:775]), .seed_i(in_q[870:807]), .position_i(in_q[902:871]),
    .busy_o(out[0]), .done_o(out[1]), .error_o(out[9:2]), .error_pc_o(out[25:10]), .token_o(out[49:26]),
    .ext_run_valid_i(in_q[194]), .ext_run_ready_o(out[50]), .ext_run_beat_i(in_q[226:195]), .ext_run_len_i(in_q[258:227]),
    .ext_beat_valid_o(out[51]), .ext_beat_o(out[563:52]), .ext_beat_pop_i(in_q[259]),
    .arvalid_o(out[564]), .arready_i(in_q[260]), .araddr_o(out[602:565]), .arlen_o(out[610:603]),
    .rvalid_i(in_q[261]), .rready_o(out[611]), .rdata_i(in_q[773:262]), .rlast_i(in_q[774]),
    .cycles_o(out[659:612]), .tile_beats_o(out[707:660]), .wait_stream_o(out[755:708]), .wait_results_o(out[803:756]),
    .retire_o(out[807:804]), .retire_pc_o(out[871:808])
  );
endmodule
