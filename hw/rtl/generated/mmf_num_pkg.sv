// Written by hw/isa/generate.cpp; change numbers.def or isa.def instead.
// Number formats; mmfree/hw/fixed.h is the arithmetic, bit for bit.
package mmf_num_pkg;
  localparam int LANES = 64;  // inputs of one beat: the tile's columns
  localparam int ROWS = 5;  // outputs of one beat: trits of a byte, the tile's rows
  localparam int BEAT_BYTES = 64;  // bytes of a beat: byte j holds the trits of the rows for lane j, row 0 the most significant digit
  localparam int ZERO_TRITS = 128;  // the byte of five zero trits: padding of rows and columns
  localparam int CODE_W = 8;  // activation codes of the tile, -128..127
  localparam int ACC_W = 24;  // row sums: |sum| <= 128 * K for K <= MAX_K
  localparam int MAX_K = 16384;  // most inputs of a matrix
  localparam int VEC_W = 32;  // elements of the vectors X (residual) and Z (gated values), saturating
  localparam int NORM_W = 16;  // an element shifted so that the vector's largest magnitude has 15 bits
  localparam int GAIN_W = 16;  // constants: folded gains with one exponent a vector, lower bounds Q0.15 unsigned
  localparam int PROD_W = 32;  // normalised element times gain
  localparam int SQUARE_SHIFT = 15;  // products are rounded by this before they are squared
  localparam int SUM_W = 48;  // sum of squares, unsigned
  localparam int MANT_W = 16;  // mantissa of a scalar, unsigned: 0, or the top bit is set
  localparam int EXP_W = 16;  // exponent of a scalar: value = mantissa * 2^exponent
  localparam int SHIFT_W = 6;  // right shift of a scale: y = (v * mantissa + 2^(shift-1)) >> shift
  localparam int MAX_SHIFT = 47;  // largest shift of a scale; smaller scales are zero
  localparam int ACT_W = 18;  // gate inputs and outputs of SiLU, saturating
  localparam int ACT_F = 13;  // their fraction bits: Q4.13
  localparam int SIG_W = 16;  // sigmoid, forget gate, lower bound: unsigned, 0..2^15 is 0..1
  localparam int SIG_F = 15;  // their fraction bits: Q1.15 unsigned
  localparam int SEG_W = 8;  // address of the sigmoid table: segments of |x| over [0, 16)
  localparam int SEG_F = 9;  // bits of |x| inside a segment: ACT_W - 1 - SEG_W
  localparam int SEG_VALUE_W = 16;  // table: (sigmoid - 1/2) * 2^17 at the start of the segment, unsigned
  localparam int SEG_SLOPE_W = 12;  // table: growth over the segment in the same unit, unsigned
  localparam int SEG_EXTRA = 2;  // fraction bits of the table beyond SIG_F, rounded away at the end
  localparam int H_W = 24;  // recurrent state, saturating
  localparam int H_F = 19;  // its fraction bits: Q4.19
  localparam int GATE_SHIFT = 4;  // gated values Z = (row sum * SiLU) >> this, rounded
  localparam int RESIDUAL_F = 18;  // fraction bits of the residual X: Q13.18 (known to the compiler only)
  localparam int LOGIT_F = 16;  // fraction bits of scaled logits: Q15.16
  localparam int NOISE_W = 20;  // Gumbel noise, signed; -3.2 .. 22.9
  localparam int NOISE_F = 14;  // its fraction bits
  localparam int NOISE_SEG_W = 4;  // segments of an octave of the uniform number in the table of noise
  localparam int NOISE_INSIDE_W = 10;  // bits inside a segment
  localparam int NOISE_SLOPE_W = 11;  // table: change over the segment, unsigned
  localparam int NOISE_ROUNDS = 13;  // rounds of Threefry-2x32 that make the uniform numbers
  localparam int KEY_W = 33;  // what SAMPLE compares: scaled logit of 32 bits, saturated, plus noise; fraction bits LOGIT_F
  localparam int RSQ_NUM_W = 49;  // numerator 2^48 of the divider for 1/sqrt
  localparam int SCALARS = 32;  // scalar registers of a stream
  localparam int CONST_BANKS = 4;  // banks of constants (gains, lower bounds)
  localparam int CODE_BANKS = 2;  // banks of activation codes
  localparam int EPILOGUE_STAGES = 15;  // cycles from a row's entry into the epilogue to the first that may read what it wrote
  localparam int CHOICE_STAGES = 20;  // the same for ARGMAX and SAMPLE
  localparam int LEAST_ROWS = 11;  // of a matrix that writes a vector: groups of five keep the epilogue five cycles each, and the next matrix may read its first row
  localparam int IMAGE_VERSION = 2;  // of the layout of images; another one is refused
  localparam int ISA_VERSION = 2;  // of the instruction set; another one is refused
  localparam int PAGE_BYTES = 4096;  // alignment of sections of an image; addresses count pages
endpackage
