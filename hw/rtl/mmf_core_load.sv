// Loader: reads an image once, checks header, shape, lengths and every checksum (CRC32C), and writes the program into the core.
// mmfree/hw/image.h is the format. Eight bytes of checksum a cycle, so a beat takes nine cycles.
module mmf_core_load #(
  parameter int Width       = 256,
  parameter int StateSize   = 768,
  parameter int ProgramSize = 128,
  parameter int Ports       = 1,
  localparam int PW = $clog2(ProgramSize)
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  input  logic         start_i,        // while idle
  input  logic [47:0]  image_bytes_i,  // what the memory holds
  output logic         busy_o,
  output logic         done_o,         // one cycle, with error_o
  output logic [7:0]   error_o,
  // Stream of beats, by the core's prefetcher.
  output logic         run_valid_o,
  input  logic         run_ready_i,
  output logic [31:0]  run_beat_o,
  output logic [31:0]  run_len_o,
  input  logic         beat_valid_i,
  input  logic [511:0] beat_i,
  output logic         beat_pop_o,
  // Program and what the core must know of the shape.
  output logic         prog_we_o,
  output logic [PW-1:0] prog_addr_o,
  output logic [127:0] prog_data_o,
  output logic [PW-1:0] prog_last_o,
  output logic [23:0]  mixer_o
);
  typedef enum logic [2:0] {StIdle, StRun, StBeat, StSum, StHeader, StSection, StDone} state_e;
  state_e state_q;
  logic header_q;                  // the beats are the header's
  logic [2:0] section_q, word_q;
  logic [47:0] bytes_q;            // left of what is summed
  logic [31:0] crc_q, run_beat_q, run_len_q, left_q;
  logic [511:0] beat_q;
  logic [1535:0] head_q;
  logic [7:0] error_q;
  logic [PW:0] at_q;

  // CRC32C (Castagnoli, reflected) of the first n bytes of a word.
  function automatic logic [31:0] crc32c(input logic [31:0] crc, input logic [63:0] word, input logic [3:0] n);
    logic [31:0] c;
    c = crc;
    for (int i = 0; i < 64; i++)
      if (4'(i / 8) < n) c = {1'b0, c[31:1]} ^ ((c[0] ^ word[i]) ? 32'h82f63b78 : 32'd0);
    crc32c = c;
  endfunction

  logic [63:0] word;
  logic [3:0] word_bytes;
  logic [31:0] crc_next;
  assign word = beat_q[64*word_q +: 64];
  assign word_bytes = bytes_q >= 48'd8 ? 4'd8 : bytes_q[3:0];
  assign crc_next = crc32c(crc_q, word, word_bytes);

  // Fields of the header
  logic [31:0] d, m, f, layers;
  logic [63:0] file_bytes, offset, bytes;
  logic [31:0] section_crc;
  logic [191:0] entry;
  assign d = head_q[8*24 +: 32];
  assign m = head_q[8*28 +: 32];
  assign f = head_q[8*32 +: 32];
  assign layers = head_q[8*36 +: 32];
  assign file_bytes = head_q[8*176 +: 64];
  assign entry = head_q[8*56 + 192*section_q +: 192];
  assign offset = entry[63:0];
  assign bytes = entry[127:64];
  assign section_crc = entry[159:128];

  logic [63:0] next_offset, next_bytes;
  logic [191:0] next_entry;
  logic [2:0] next_section;
  assign next_section = section_q == 3'd4 ? 3'd4 : section_q + 3'd1;
  assign next_entry = head_q[8*56 + 192*next_section +: 192];
  assign next_offset = next_entry[63:0];
  assign next_bytes = next_entry[127:64];

  function automatic logic fits(input logic [31:0] v);
    fits = v != 32'd0 && v[5:0] == 6'd0 && v <= 32'(Width);
  endfunction

  logic section_ok, code_ok;
  assign section_ok = offset[11:0] == 12'd0 && offset < file_bytes && bytes <= file_bytes - offset;
  assign code_ok = bytes != 64'd0 && bytes[3:0] == 4'd0 && bytes <= 64'(16 * ProgramSize);

  assign busy_o = state_q != StIdle;
  assign done_o = state_q == StDone;
  assign error_o = error_q;
  assign run_valid_o = state_q == StRun;
  assign run_beat_o = run_beat_q;
  assign run_len_o = run_len_q;
  assign beat_pop_o = state_q == StBeat && beat_valid_i;
  assign prog_we_o = state_q == StSum && !header_q && section_q == 3'd0 && word_q[0];
  assign prog_addr_o = at_q[PW-1:0];
  assign prog_data_o = beat_q[128*word_q[2:1] +: 128];
  assign mixer_o = m[23:0];

  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      state_q <= StIdle;
      error_q <= '0;
    end else begin
      case (state_q)
        StIdle: if (start_i) begin
          header_q <= 1'b1;
          section_q <= '0;
          at_q <= '0;
          error_q <= '0;
          crc_q <= 32'hffffffff;
          bytes_q <= 48'd188;
          run_beat_q <= '0;
          run_len_q <= 32'd3;
          left_q <= 32'd3;
          state_q <= StRun;
          if (image_bytes_i < 48'd192) begin
            error_q <= 8'(mmf_isa_pkg::ERROR_LENGTH);
            state_q <= StDone;
          end
        end
        StRun: if (run_ready_i) state_q <= StBeat;
        StBeat: if (beat_valid_i) begin
          beat_q <= beat_i;
          head_q <= header_q ? {beat_i, head_q[1535:512]} : head_q;
          word_q <= '0;
          left_q <= left_q - 32'd1;
          state_q <= StSum;
        end
        StSum: begin
          crc_q <= crc_next;
          bytes_q <= bytes_q - {44'd0, word_bytes};
          word_q <= word_q + 3'd1;
          if (prog_we_o && bytes_q != 48'd0) begin
            prog_last_o <= at_q[PW-1:0];
            at_q <= at_q + 1'b1;
          end
          if (word_q == 3'd7) state_q <= left_q != 32'd0 ? StBeat : header_q ? StHeader : StSection;
        end
        StHeader: begin  // all of it has come
          header_q <= 1'b0;
          state_q <= StDone;
          if (head_q[63:0] != 64'h57484545_52464d4d) error_q <= 8'(mmf_isa_pkg::ERROR_MAGIC);  // MMFREEHW
          else if (head_q[8*8 +: 32] != 32'(mmf_num_pkg::IMAGE_VERSION) || head_q[8*12 +: 32] != 32'(mmf_num_pkg::ISA_VERSION)) error_q <= 8'(mmf_isa_pkg::ERROR_VERSION);
          else if (~crc_q != head_q[8*188 +: 32]) error_q <= 8'(mmf_isa_pkg::ERROR_HEADER_CRC);
          else if (head_q[8*52 +: 32] != 32'(Ports)) error_q <= 8'(mmf_isa_pkg::ERROR_PORTS);
          else if (file_bytes != {16'd0, image_bytes_i}) error_q <= 8'(mmf_isa_pkg::ERROR_LENGTH);
          else if (head_q[8*16 +: 32] != 32'd64 || head_q[8*20 +: 32] != 32'd5 || !fits(d) || !fits(m) || !fits(f) ||
                   layers == 32'd0 || layers > 32'(StateSize) || layers * m > 32'(StateSize) || !code_ok)
            error_q <= 8'(mmf_isa_pkg::ERROR_SHAPE);
          else if (!section_ok) error_q <= 8'(mmf_isa_pkg::ERROR_LENGTH);
          else begin
            crc_q <= 32'hffffffff;
            bytes_q <= bytes[47:0];
            run_beat_q <= offset[37:6];
            run_len_q <= 32'((bytes[47:0] + 48'd63) >> 6);
            left_q <= 32'((bytes[47:0] + 48'd63) >> 6);
            state_q <= StRun;
          end
        end
        StSection: begin  // summed; on to the next that is not empty
          state_q <= StDone;
          if (~crc_q != section_crc) error_q <= 8'(mmf_isa_pkg::ERROR_SECTION_CRC);
          else if (section_q != 3'd4) begin
            section_q <= section_q + 3'd1;
            crc_q <= 32'hffffffff;
            bytes_q <= next_bytes[47:0];
            run_beat_q <= next_offset[37:6];
            run_len_q <= 32'((next_bytes[47:0] + 48'd63) >> 6);
            left_q <= 32'((next_bytes[47:0] + 48'd63) >> 6);
            if (next_bytes == 64'd0) state_q <= StSection;
            else if (next_offset[11:0] != 12'd0 || next_offset >= file_bytes || next_bytes > file_bytes - next_offset) begin
              error_q <= 8'(mmf_isa_pkg::ERROR_LENGTH);
              state_q <= StDone;
            end else state_q <= StRun;
          end
        end
        default: state_q <= StIdle;
      endcase
    end
  end
endmodule
