// Decoder: an instruction's unit, the resources that it reads and writes, and whether this core can execute it. The resources: X, Z, T,
// H, two banks of codes, four banks of constants, 32 scalar registers.
module mmf_core_decode #(
  parameter int Width   = 256,
  parameter int Streams = 1,
  parameter int Ports   = 1
) (
  input  logic [127:0] ins_i,
  output logic [2:0]   unit_o,
  output logic [41:0]  reads_o,
  output logic [41:0]  writes_o,
  output logic         known_o,    // the operation exists
  output logic         legal_o     // its operands do, and its lengths fit the memories
);
  localparam int RX = 0, RZ = 1, RT = 2, RH = 3, RQ = 4, RC = 6, RS = 10;
  logic [7:0] op;
  logic [3:0] epi;
  assign op = ins_i[7:0];
  assign epi = ins_i[mmf_isa_pkg::F_TMM_EPI_LSB +: 4];
  always_comb begin
    reads_o = '0;
    writes_o = '0;
    unit_o = mmf_isa_pkg::UNIT_SEQ;
    known_o = 1'b1;
    case (op)
      mmf_isa_pkg::OP_NOP, mmf_isa_pkg::OP_HALT, mmf_isa_pkg::OP_FENCE, mmf_isa_pkg::OP_LOOP, mmf_isa_pkg::OP_ENDL,
      mmf_isa_pkg::OP_WST, mmf_isa_pkg::OP_TOK: ;
      mmf_isa_pkg::OP_EMB: begin
        unit_o = mmf_isa_pkg::UNIT_LD;
        writes_o[RX] = 1'b1;
      end
      mmf_isa_pkg::OP_LDC: begin
        unit_o = mmf_isa_pkg::UNIT_LD;
        writes_o[RC +: 4] = 4'd1 << ins_i[17:16];
      end
      mmf_isa_pkg::OP_LDS: begin
        unit_o = mmf_isa_pkg::UNIT_LD;
        writes_o[RS +: 32] = 32'hffff << ins_i[20:16];
      end
      mmf_isa_pkg::OP_STAT: begin
        unit_o = mmf_isa_pkg::UNIT_VEC;
        reads_o[RX] = !ins_i[24];
        reads_o[RZ] = ins_i[24];
        reads_o[RC +: 4] = 4'd1 << ins_i[33:32];
        if (ins_i[mmf_isa_pkg::F_STAT_MODE_LSB]) writes_o[RS +: 32] = writes_o[RS +: 32] | 32'd1 << ins_i[20:16];
        if (ins_i[mmf_isa_pkg::F_STAT_MODE_LSB + 1]) writes_o[RS +: 32] = writes_o[RS +: 32] | 32'd1 << ins_i[mmf_isa_pkg::F_STAT_MX_LSB +: 5];
      end
      mmf_isa_pkg::OP_QNT: begin
        unit_o = mmf_isa_pkg::UNIT_VEC;
        reads_o[RX] = !ins_i[24];
        reads_o[RZ] = ins_i[24];
        reads_o[RC +: 4] = 4'd1 << ins_i[33:32];
        reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[mmf_isa_pkg::F_QNT_R_LSB +: 5];
        writes_o[RQ +: 2] = 2'd1 << ins_i[16];
      end
      mmf_isa_pkg::OP_SFU: begin
        unit_o = mmf_isa_pkg::UNIT_SFU;
        reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[28:24];
        if (ins_i[mmf_isa_pkg::F_SFU_FN_LSB + 1]) reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
        writes_o[RS +: 32] = writes_o[RS +: 32] | 32'd1 << ins_i[20:16];
      end
      mmf_isa_pkg::OP_TMM: begin
        unit_o = mmf_isa_pkg::UNIT_TMM;
        reads_o[RQ +: 2] = 2'd1 << ins_i[24];
        case (epi)
          4'(mmf_isa_pkg::EPI_SIGF): begin
            reads_o[RC +: 4] = 4'd1 << ins_i[mmf_isa_pkg::F_TMM_BANK_LSB +: 2];
            reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
            writes_o[RT] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_STATE): begin
            reads_o[RT] = 1'b1;
            reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
            writes_o[RH] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_SWISHG): begin
            reads_o[RH] = 1'b1;
            writes_o[RZ] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_RESADD): begin
            reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
            writes_o[RX] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_SILU): begin
            reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
            writes_o[RT] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_MULT): begin
            reads_o[RT] = 1'b1;
            writes_o[RZ] = 1'b1;
          end
          4'(mmf_isa_pkg::EPI_ARGMAX): ;
          4'(mmf_isa_pkg::EPI_SAMPLE): reads_o[RS +: 32] = reads_o[RS +: 32] | 32'd1 << ins_i[36:32];
          default: known_o = 1'b0;
        endcase
      end
      default: known_o = 1'b0;
    endcase
  end

  // Operands that exist in this core; lengths that fit its memories.
  logic len_ok;
  assign len_ok = ins_i[55:40] != 16'd0 && ins_i[55:40] <= 16'(Width / 64);
  always_comb begin
    legal_o = 1'b1;
    case (op)
      mmf_isa_pkg::OP_EMB: legal_o = {1'b0, ins_i[31:24]} < 9'(Streams) && ins_i[55:40] != 16'd0 && ins_i[55:40] <= 16'(Width / 32);
      // Runs are whole wide beats.
      mmf_isa_pkg::OP_WST: legal_o = (ins_i[mmf_isa_pkg::F_WST_BEATS_LSB +: 32] & 32'(Ports - 1)) == 32'd0;
      mmf_isa_pkg::OP_LDC: legal_o = ins_i[23:18] == 6'd0 && ins_i[55:40] != 16'd0 && ins_i[55:40] <= 16'(Width / 32);
      mmf_isa_pkg::OP_LDS: legal_o = ins_i[23:16] <= 8'd16;
      mmf_isa_pkg::OP_STAT:
        legal_o = len_ok && ins_i[23:21] == 3'd0 && ins_i[31:25] == 7'd0 && ins_i[39:34] == 6'd0 &&
                ins_i[mmf_isa_pkg::F_STAT_MX_LSB + 5 +: 3] == 3'd0;
      mmf_isa_pkg::OP_QNT:
        legal_o = len_ok && ins_i[23:17] == 7'd0 && ins_i[31:25] == 7'd0 && ins_i[39:34] == 6'd0 &&
                ins_i[mmf_isa_pkg::F_QNT_R_LSB + 5 +: 3] == 3'd0;
      mmf_isa_pkg::OP_SFU:
        legal_o = ins_i[23:21] == 3'd0 && ins_i[31:29] == 3'd0 && ins_i[39:37] == 3'd0 &&
                ins_i[mmf_isa_pkg::F_SFU_FN_LSB +: 4] <= 4'(mmf_isa_pkg::FN_SCT);
      mmf_isa_pkg::OP_TMM:
        legal_o = len_ok && ins_i[31:25] == 7'd0 && ins_i[39:37] == 3'd0 && ins_i[mmf_isa_pkg::F_TMM_BANK_LSB + 2 +: 6] == 6'd0 &&
                ins_i[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24] != 24'd0 &&
                (epi == 4'(mmf_isa_pkg::EPI_ARGMAX) || epi == 4'(mmf_isa_pkg::EPI_SAMPLE) ||
                 (ins_i[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24] >= 24'(mmf_num_pkg::LEAST_ROWS) && ins_i[mmf_isa_pkg::F_TMM_ROWS_LSB +: 24] <= 24'(Width)));
      default: ;
    endcase
  end
endmodule
