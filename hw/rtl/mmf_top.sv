// The accelerator as a host sees it: AXI4-Lite registers, AXI4 read ports of 512 bits, loader and core.
// Registers of 32 bits, by byte address (docs/hardware.md, "Registers"):
//   0x00 CONTROL  w: bit 0 start a token, bit 1 load the image, bit 2 logits wanted. One at a time, while not busy.
//   0x04 STATUS   r: bit 0 busy, 1 image loaded, 2 last command done; [15:8] error, [31:16] instruction that it is about
//   0x08, 0x0c    rw: bytes of the image, from address 0 of the memories, low and high
//   0x10 FRESH    rw: a bit a stream (of the first 32): forget its state first
//   0x14 BUILD    r: [7:0] streams, [15:8] ports;  0x18 widest vector;  0x1c entries of state;  0x20 instructions
//   0x40 ... 0x5c r: cycles, beats of weights, cycles waited for the stream, for the epilogue; low and high each
//   0x400 + 4 s   rw: token of stream s: written, the one to take; read after logits, the next one
//   0x1000 + 16 s rw: how stream s draws its next token: +0, +4 seed, low and high; +8 tokens that it has had so far, the one to take
//                 included; +12 1 / temperature as a scalar {exponent, mantissa}, mantissa 0: the likeliest token
// Anything else answers SLVERR.
module mmf_top #(
  parameter int Width       = 256,
  parameter int StateSize   = 768,
  parameter int ProgramSize = 128,
  parameter int FifoBeats   = 256,
  parameter int Streams     = 1,
  parameter int Ports       = 1
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  input  logic         awvalid_i,
  output logic         awready_o,
  input  logic [12:0]  awaddr_i,
  input  logic         wvalid_i,
  output logic         wready_o,
  input  logic [31:0]  wdata_i,
  output logic         bvalid_o,
  input  logic         bready_i,
  output logic [1:0]   bresp_o,
  input  logic         s_arvalid_i,
  output logic         s_arready_o,
  input  logic [12:0]  s_araddr_i,
  output logic         s_rvalid_o,
  input  logic         s_rready_i,
  output logic [31:0]  s_rdata_o,
  output logic [1:0]   s_rresp_o,
  output logic         irq_o,      // the last command is done
  output logic [Ports-1:0]     arvalid_o,
  input  logic [Ports-1:0]     arready_i,
  output logic [38*Ports-1:0]  araddr_o,
  output logic [8*Ports-1:0]   arlen_o,
  input  logic [Ports-1:0]     rvalid_i,
  output logic [Ports-1:0]     rready_o,
  input  logic [512*Ports-1:0] rdata_i,
  input  logic [Ports-1:0]     rlast_i
);
  localparam int PW = $clog2(ProgramSize);
  logic [47:0] image_bytes_q;
  logic [31:0] fresh_q;
  logic [24*Streams-1:0] token_q, token_out;
  logic [64*Streams-1:0] seed_q;
  logic [32*Streams-1:0] position_q, temperature_q;
  logic loaded_q, done_q, logits_q, start_q, load_q;
  logic [7:0] error_q;
  logic [15:0] error_pc_q;

  logic core_busy, core_done, load_busy, load_done, busy;
  logic [7:0] core_error, load_error;
  logic [15:0] core_error_pc;
  logic prog_we;
  logic [PW-1:0] prog_addr, prog_last;
  logic [127:0] prog_data;
  logic [23:0] mixer;
  logic run_valid, run_ready, beat_valid, beat_pop;
  logic [31:0] run_beat, run_len;
  logic [511:0] beat;
  logic [47:0] cycles, tile_beats, wait_stream, wait_results;
  logic [Streams-1:0] fresh;
  assign busy = core_busy || load_busy || start_q || load_q;
  assign irq_o = done_q;
  always_comb for (int b = 0; b < Streams; b++) fresh[b] = b < 32 ? fresh_q[b & 31] : 1'b0;

  // Writes: address and data are taken together.
  logic write, write_ok;
  logic [31:0] token_at, read_at;
  logic draws, read_draws;       // addresses of the registers that say how streams draw
  assign token_at = {21'd0, awaddr_i[12:2]} - 32'd256;
  assign draws = awaddr_i[12] && 32'(awaddr_i[11:4]) < 32'(Streams);
  assign write = awvalid_i && wvalid_i && !bvalid_o;
  assign awready_o = write;
  assign wready_o = write;
  always_comb begin
    case (awaddr_i)
      13'h000: write_ok = !busy;
      13'h008, 13'h00c, 13'h010: write_ok = !busy;
      default: write_ok = !busy && awaddr_i[1:0] == 2'd0 && (draws || token_at < 32'(Streams));
    endcase
  end
  always_ff @(posedge clk_i) begin
    start_q <= 1'b0;
    load_q <= 1'b0;
    if (!rst_ni) begin
      bvalid_o <= 1'b0;
      loaded_q <= 1'b0;
      done_q <= 1'b0;
      error_q <= '0;
      error_pc_q <= '0;
      image_bytes_q <= '0;
      fresh_q <= '0;
      temperature_q <= '0;
      logits_q <= 1'b0;
    end else begin
      if (write) begin
        bvalid_o <= 1'b1;
        bresp_o <= write_ok ? 2'b00 : 2'b10;
        if (write_ok)
          case (awaddr_i)
            13'h000: begin
              done_q <= 1'b0;
              logits_q <= wdata_i[2];
              error_pc_q <= '0;
              if (wdata_i[1]) begin
                load_q <= 1'b1;
                loaded_q <= 1'b0;
                error_q <= '0;
              end else if (wdata_i[0]) begin
                if (loaded_q) start_q <= 1'b1;
                else begin
                  error_q <= 8'(mmf_isa_pkg::ERROR_NOT_LOADED);
                  done_q <= 1'b1;
                end
              end
            end
            13'h008: image_bytes_q[31:0] <= wdata_i;
            13'h00c: image_bytes_q[47:32] <= wdata_i[15:0];
            13'h010: fresh_q <= wdata_i;
            default:
              if (!draws) token_q[24*token_at[7:0] +: 24] <= wdata_i[23:0];
              else
                case (awaddr_i[3:2])
                  2'd0: seed_q[64*awaddr_i[11:4] +: 32] <= wdata_i;
                  2'd1: seed_q[64*awaddr_i[11:4] + 32 +: 32] <= wdata_i;
                  2'd2: position_q[32*awaddr_i[11:4] +: 32] <= wdata_i;
                  default: temperature_q[32*awaddr_i[11:4] +: 32] <= wdata_i;
                endcase
          endcase
      end else if (bready_i) bvalid_o <= 1'b0;
      if (load_done) begin
        loaded_q <= load_error == 8'd0;
        error_q <= load_error;
        done_q <= 1'b1;
      end
      if (core_done) begin
        token_q <= token_out;
        error_q <= core_error;
        error_pc_q <= core_error_pc;
        done_q <= 1'b1;
        if (core_error != 8'd0) loaded_q <= 1'b0;
      end
    end
  end

  // Reads
  assign read_at = {21'd0, s_araddr_i[12:2]} - 32'd256;
  assign read_draws = s_araddr_i[12] && 32'(s_araddr_i[11:4]) < 32'(Streams);
  assign s_arready_o = !s_rvalid_o;
  always_ff @(posedge clk_i) begin
    if (!rst_ni) s_rvalid_o <= 1'b0;
    else if (s_arvalid_i && s_arready_o) begin
      s_rvalid_o <= 1'b1;
      s_rresp_o <= 2'b00;
      case (s_araddr_i)
        13'h004: s_rdata_o <= {error_pc_q, error_q, 5'd0, done_q, loaded_q, busy};
        13'h008: s_rdata_o <= image_bytes_q[31:0];
        13'h00c: s_rdata_o <= {16'd0, image_bytes_q[47:32]};
        13'h010: s_rdata_o <= fresh_q;
        13'h014: s_rdata_o <= {16'd0, 8'(Ports), 8'(Streams)};
        13'h018: s_rdata_o <= 32'(Width);
        13'h01c: s_rdata_o <= 32'(StateSize);
        13'h020: s_rdata_o <= 32'(ProgramSize);
        13'h040: s_rdata_o <= cycles[31:0];
        13'h044: s_rdata_o <= {16'd0, cycles[47:32]};
        13'h048: s_rdata_o <= tile_beats[31:0];
        13'h04c: s_rdata_o <= {16'd0, tile_beats[47:32]};
        13'h050: s_rdata_o <= wait_stream[31:0];
        13'h054: s_rdata_o <= {16'd0, wait_stream[47:32]};
        13'h058: s_rdata_o <= wait_results[31:0];
        13'h05c: s_rdata_o <= {16'd0, wait_results[47:32]};
        default: begin
          s_rdata_o <= 32'd0;
          if (s_araddr_i[1:0] == 2'd0 && read_draws)
            case (s_araddr_i[3:2])
              2'd0: s_rdata_o <= seed_q[64*s_araddr_i[11:4] +: 32];
              2'd1: s_rdata_o <= seed_q[64*s_araddr_i[11:4] + 32 +: 32];
              2'd2: s_rdata_o <= position_q[32*s_araddr_i[11:4] +: 32];
              default: s_rdata_o <= temperature_q[32*s_araddr_i[11:4] +: 32];
            endcase
          else if (s_araddr_i[1:0] == 2'd0 && read_at < 32'(Streams)) s_rdata_o <= {8'd0, token_q[24*read_at[7:0] +: 24]};
          else s_rresp_o <= 2'b10;
        end
      endcase
    end else if (s_rready_i) s_rvalid_o <= 1'b0;
  end

  mmf_core_load #(.Width(Width), .StateSize(StateSize), .ProgramSize(ProgramSize), .Ports(Ports)) u_load (
    .clk_i, .rst_ni, .start_i(load_q), .image_bytes_i(image_bytes_q), .busy_o(load_busy), .done_o(load_done), .error_o(load_error),
    .run_valid_o(run_valid), .run_ready_i(run_ready), .run_beat_o(run_beat), .run_len_o(run_len),
    .beat_valid_i(beat_valid), .beat_i(beat), .beat_pop_o(beat_pop),
    .prog_we_o(prog_we), .prog_addr_o(prog_addr), .prog_data_o(prog_data), .prog_last_o(prog_last), .mixer_o(mixer)
  );
  mmf_core #(.Width(Width), .StateSize(StateSize), .ProgramSize(ProgramSize), .FifoBeats(FifoBeats), .Streams(Streams), .Ports(Ports)) u_core (
    .clk_i, .rst_ni, .prog_we_i(prog_we), .prog_addr_i(prog_addr), .prog_data_i(prog_data), .prog_last_i(prog_last),
    .start_i(start_q), .token_i(token_q), .fresh_i(fresh),
    .temperature_i(temperature_q), .seed_i(seed_q), .position_i(position_q), .logits_i(logits_q), .mixer_i(mixer),
    .busy_o(core_busy), .done_o(core_done), .error_o(core_error), .error_pc_o(core_error_pc), .token_o(token_out),
    .ext_run_valid_i(run_valid), .ext_run_ready_o(run_ready), .ext_run_beat_i(run_beat), .ext_run_len_i(run_len),
    .ext_beat_valid_o(beat_valid), .ext_beat_o(beat), .ext_beat_pop_i(beat_pop),
    .arvalid_o, .arready_i, .araddr_o, .arlen_o, .rvalid_i, .rready_o, .rdata_i, .rlast_i,
    .cycles_o(cycles), .tile_beats_o(tile_beats), .wait_stream_o(wait_stream), .wait_results_o(wait_results),
    .retire_o(), .retire_pc_o()
  );
endmodule
