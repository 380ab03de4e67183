// Written by hw/isa/generate.cpp; change numbers.def or isa.def instead.
package mmf_isa_pkg;
  localparam int INSTR_W = 128;
  localparam int FLAGS_LSB = 8;
  localparam logic [2:0] UNIT_SEQ = 3'd0;  // sequencer: takes effect when it issues
  localparam logic [2:0] UNIT_LD = 3'd1;  // takes constants and embeddings from the stream of beats
  localparam logic [2:0] UNIT_VEC = 3'd2;  // passes over a vector: maximum, sum of squares, codes
  localparam logic [2:0] UNIT_SFU = 3'd3;  // scalar divider, square root and multiplier
  localparam logic [2:0] UNIT_TMM = 3'd4;  // ternary tile and the epilogue behind it
  localparam int FLAG_LOGITS = 1;  // executed only if the host asked for logits (not for prompt tokens)
  localparam int VEC_X = 0;  // residual, int32
  localparam int VEC_Z = 1;  // gated values, int32
  localparam int MODE_SS = 1;  // write the sum of squares
  localparam int MODE_MX = 2;  // write the maximum of |gained element|
  localparam int MODE_SSMX = 3;  // write both
  localparam int MODE_RAWSSMX = 7;  // write both, the squares of elements without gain
  localparam int FN_RSQ = 0;  // dst = 1 / sqrt(a)
  localparam int FN_RCP = 1;  // dst = 127 / a as a scale
  localparam int FN_MUL = 2;  // dst = a * b
  localparam int FN_SCL = 3;  // dst = a * b * 2^frac as a scale
  localparam int FN_SCT = 4;  // dst = a * (1 / temperature of the stream) * 2^frac as a scale; 0 if the stream takes the likeliest
  localparam int EPI_SIGF = 0;  // T = bound + (1 - bound) * sigmoid(sum * scale); bound from a bank of constants
  localparam int EPI_STATE = 1;  // H[layer] = T * H + (1 - T) * SiLU(sum * scale); H counts as 0 for a fresh stream
  localparam int EPI_SWISHG = 2;  // Z = sum * SiLU(H[layer])
  localparam int EPI_RESADD = 3;  // X = X + sum * scale
  localparam int EPI_SILU = 4;  // T = SiLU(sum * scale)
  localparam int EPI_MULT = 5;  // Z = sum * T
  localparam int EPI_ARGMAX = 6;  // keep the row of the largest sum, the first of equals
  localparam int EPI_SAMPLE = 7;  // keep the row of the largest sum * scale + Gumbel noise(seed, position, row); ARGMAX for streams without temperature
  localparam int ERROR_NONE = 0;  // all is well
  localparam int ERROR_OPCODE = 1;  // operation unknown
  localparam int ERROR_OPERAND = 2;  // operand outside what this core has: stream, register, bank, length, rows
  localparam int ERROR_PROGRAM = 3;  // the program's last instruction is not HALT
  localparam int ERROR_STREAM = 4;  // beats taken that were not asked for, or asked for and not taken
  localparam int ERROR_MAGIC = 5;  // the memory does not start with an image
  localparam int ERROR_VERSION = 6;  // image or instruction set of another version
  localparam int ERROR_HEADER_CRC = 7;  // the header is damaged
  localparam int ERROR_LENGTH = 8;  // the image is cut off, or its sections lie outside it
  localparam int ERROR_SHAPE = 9;  // shape that this core is too small for
  localparam int ERROR_SECTION_CRC = 10;  // a section is damaged
  localparam int ERROR_NOT_LOADED = 11;  // started without an image
  localparam int ERROR_PORTS = 12;  // the image is for another number of ports
  localparam logic [7:0] OP_NOP = 8'h00;  // nothing
  localparam logic [7:0] OP_HALT = 8'h01;  // wait until all units are idle; the token is done
  localparam logic [7:0] OP_FENCE = 8'h02;  // wait until all units are idle
  localparam logic [7:0] OP_LOOP = 8'h03;  // layer = 0; the body is what lies between this and ENDL
  localparam logic [7:0] OP_ENDL = 8'h04;  // layer = layer + 1; another round, or on with layer = 0
  localparam logic [7:0] OP_WST = 8'h05;  // append a run of beats to what the prefetcher reads
  localparam logic [7:0] OP_EMB = 8'h06;  // X = row of the token's embedding << shift; the row is appended to what the prefetcher reads
  localparam logic [7:0] OP_LDC = 8'h07;  // constants from the stream to a bank
  localparam logic [7:0] OP_LDS = 8'h08;  // one beat from the stream to 16 scalar registers of every stream: mantissa, exponent, 16 bit each
  localparam logic [7:0] OP_STAT = 8'h09;  // sum of squares and maximum of a vector times a bank of gains
  localparam logic [7:0] OP_QNT = 8'h0a;  // codes = gained elements * scale
  localparam logic [7:0] OP_SFU = 8'h0b;  // scalar arithmetic
  localparam logic [7:0] OP_TMM = 8'h0c;  // ternary matrix from the stream times codes, then the epilogue on every row
  localparam logic [7:0] OP_TOK = 8'h0d;  // wait until all units are idle; the row that ARGMAX or SAMPLE kept is the next token
  localparam int F_LOOP_COUNT_LSB = 56;
  localparam int F_LOOP_COUNT_W = 16;
  localparam int F_ENDL_TARGET_LSB = 56;
  localparam int F_ENDL_TARGET_W = 16;
  localparam int F_WST_PAGE_LSB = 56;
  localparam int F_WST_PAGE_W = 24;
  localparam int F_WST_BEATS_LSB = 80;
  localparam int F_WST_BEATS_W = 32;
  localparam int F_EMB_A_LSB = 24;
  localparam int F_EMB_A_W = 8;
  localparam int F_EMB_LEN_LSB = 40;
  localparam int F_EMB_LEN_W = 16;
  localparam int F_EMB_PAGE_LSB = 56;
  localparam int F_EMB_PAGE_W = 24;
  localparam int F_EMB_SHIFT_LSB = 80;
  localparam int F_EMB_SHIFT_W = 6;
  localparam int F_LDC_DST_LSB = 16;
  localparam int F_LDC_DST_W = 8;
  localparam int F_LDC_LEN_LSB = 40;
  localparam int F_LDC_LEN_W = 16;
  localparam int F_LDS_DST_LSB = 16;
  localparam int F_LDS_DST_W = 8;
  localparam int F_STAT_DST_LSB = 16;
  localparam int F_STAT_DST_W = 8;
  localparam int F_STAT_A_LSB = 24;
  localparam int F_STAT_A_W = 8;
  localparam int F_STAT_B_LSB = 32;
  localparam int F_STAT_B_W = 8;
  localparam int F_STAT_LEN_LSB = 40;
  localparam int F_STAT_LEN_W = 16;
  localparam int F_STAT_MX_LSB = 56;
  localparam int F_STAT_MX_W = 8;
  localparam int F_STAT_MODE_LSB = 64;
  localparam int F_STAT_MODE_W = 3;
  localparam int F_QNT_DST_LSB = 16;
  localparam int F_QNT_DST_W = 8;
  localparam int F_QNT_A_LSB = 24;
  localparam int F_QNT_A_W = 8;
  localparam int F_QNT_B_LSB = 32;
  localparam int F_QNT_B_W = 8;
  localparam int F_QNT_LEN_LSB = 40;
  localparam int F_QNT_LEN_W = 16;
  localparam int F_QNT_R_LSB = 56;
  localparam int F_QNT_R_W = 8;
  localparam int F_SFU_DST_LSB = 16;
  localparam int F_SFU_DST_W = 8;
  localparam int F_SFU_A_LSB = 24;
  localparam int F_SFU_A_W = 8;
  localparam int F_SFU_B_LSB = 32;
  localparam int F_SFU_B_W = 8;
  localparam int F_SFU_FN_LSB = 56;
  localparam int F_SFU_FN_W = 4;
  localparam int F_SFU_FRAC_LSB = 60;
  localparam int F_SFU_FRAC_W = 6;
  localparam int F_TMM_A_LSB = 24;
  localparam int F_TMM_A_W = 8;
  localparam int F_TMM_B_LSB = 32;
  localparam int F_TMM_B_W = 8;
  localparam int F_TMM_LEN_LSB = 40;
  localparam int F_TMM_LEN_W = 16;
  localparam int F_TMM_EPI_LSB = 56;
  localparam int F_TMM_EPI_W = 4;
  localparam int F_TMM_ROWS_LSB = 60;
  localparam int F_TMM_ROWS_W = 24;
  localparam int F_TMM_BANK_LSB = 84;
  localparam int F_TMM_BANK_W = 8;
endpackage
