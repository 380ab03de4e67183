// A complete small core, of 16 lanes and 4 of the vector unit, between shift registers: all inputs come out of one, all outputs go into
// another. hw/cosim/CMakeLists.txt simulates one of the same parameters.
module pnr_core (
  input  logic clk_i,
  input  logic rst_ni,
  input  logic bit_i,
  output logic bit_o
);
  localparam int In = 519, Out = 488;
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
  mmf_core #(.Width(256), .StateSize(768), .ProgramSize(128), .FifoBeats(128), .Lanes(16), .VectorLanes(4)) u_core (
    .clk_i, .rst_ni(rst_nq),
    .prog_we_i(in_q[0]), .prog_addr_i(in_q[7:1]), .prog_data_i(in_q[135:8]), .prog_last_i(in_q[142:136]),
    .start_i(in_q[143]), .token_i(in_q[167:144]), .fresh_i(in_q[168]), .logits_i(in_q[169]), .mixer_i(in_q[193:170]),
    .temperature_i(in_q[422:391]), .seed_i(in_q[486:423]), .position_i(in_q[518:487]),
    .busy_o(out[0]), .done_o(out[1]), .error_o(out[9:2]), .error_pc_o(out[25:10]), .token_o(out[49:26]),
    .ext_run_valid_i(in_q[194]), .ext_run_ready_o(out[50]), .ext_run_beat_i(in_q[226:195]), .ext_run_len_i(in_q[258:227]),
    .ext_beat_valid_o(out[51]), .ext_beat_o(out[179:52]), .ext_beat_pop_i(in_q[259]),
    .arvalid_o(out[180]), .arready_i(in_q[260]), .araddr_o(out[218:181]), .arlen_o(out[226:219]),
    .rvalid_i(in_q[261]), .rready_o(out[227]), .rdata_i(in_q[389:262]), .rlast_i(in_q[390]),
    .cycles_o(out[275:228]), .tile_beats_o(out[323:276]), .wait_stream_o(out[371:324]), .wait_results_o(out[419:372]),
    .retire_o(out[423:420]), .retire_pc_o(out[487:424])
  );
endmodule
