// Scoreboard: what the units have under way, and whether an instruction must wait for it. Hazards are between different units; a unit
// keeps its own order. hw/formal/board.sv proves it.
module mmf_core_board #(
  parameter int N     = 42,        // resources
  parameter int Codes = 4          // the first of two that a matrix reads until its last beat only: the banks of codes
) (
  input  logic         clk_i,
  input  logic         rst_ni,
  // The instruction that may issue.
  input  logic [2:0]   unit_i,
  input  logic [N-1:0] reads_i,
  input  logic [N-1:0] writes_i,
  output logic         hazard_o,   // another unit writes what it reads or writes, or reads what it writes
  input  logic         issue_i,
  // Ends, in the order of issue within a unit.
  input  logic         ld_done_i,
  input  logic         vec_done_i,
  input  logic         sfu_done_i,
  input  logic         codes_done_i, // of the matrix issued last: its last beat has been taken
  input  logic         tmm_done_i,
  // Matrices under way: the one issued last, the one before it (in the epilogue only). None issues while there are two.
  output logic         tmm_open_o,
  output logic         tmm_drain_o
);
  logic [N-1:0] ld_w, vec_r, vec_w, sfu_r, sfu_w, tile_r, tile_w, drain_r, drain_w;
  logic open_q, drain_q;
  assign tmm_open_o = open_q;
  assign tmm_drain_o = drain_q;

  // Unit by unit, so that the trees of gates need not wait for which unit it is.
  logic [N-1:0] touches;
  logic with_ld, with_vec, with_sfu, with_tmm;
  assign touches = reads_i | writes_i;
  assign with_ld = |(ld_w & touches);
  assign with_vec = |((vec_w & touches) | (vec_r & writes_i));
  assign with_sfu = |((sfu_w & touches) | (sfu_r & writes_i));
  assign with_tmm = |(((tile_w | drain_w) & touches) | ((tile_r | drain_r) & writes_i));
  assign hazard_o = (with_ld && unit_i != mmf_isa_pkg::UNIT_LD) || (with_vec && unit_i != mmf_isa_pkg::UNIT_VEC) ||
                    (with_sfu && unit_i != mmf_isa_pkg::UNIT_SFU) || (with_tmm && unit_i != mmf_isa_pkg::UNIT_TMM);

  logic tmm_issue;
  assign tmm_issue = issue_i && unit_i == mmf_isa_pkg::UNIT_TMM;
  always_ff @(posedge clk_i) begin
    if (!rst_ni) begin
      ld_w <= '0;
      vec_r <= '0;
      vec_w <= '0;
      sfu_r <= '0;
      sfu_w <= '0;
      tile_r <= '0;
      tile_w <= '0;
      drain_r <= '0;
      drain_w <= '0;
      open_q <= 1'b0;
      drain_q <= 1'b0;
    end else begin
      if (ld_done_i) ld_w <= '0;
      if (vec_done_i) begin
        vec_r <= '0;
        vec_w <= '0;
      end
      if (sfu_done_i) begin
        sfu_r <= '0;
        sfu_w <= '0;
      end
      if (codes_done_i) tile_r[Codes +: 2] <= '0;
      // The matrix that ends is the draining one if there is one.
      if (tmm_done_i) begin
        if (drain_q) begin
          drain_q <= 1'b0;
          drain_r <= '0;
          drain_w <= '0;
        end else begin
          open_q <= 1'b0;
          tile_r <= '0;
          tile_w <= '0;
        end
      end
      if (issue_i && unit_i == mmf_isa_pkg::UNIT_LD) ld_w <= writes_i;
      if (issue_i && unit_i == mmf_isa_pkg::UNIT_VEC) begin
        vec_r <= reads_i;
        vec_w <= writes_i;
      end
      if (issue_i && unit_i == mmf_isa_pkg::UNIT_SFU) begin
        sfu_r <= reads_i;
        sfu_w <= writes_i;
      end
      if (tmm_issue) begin
        if (open_q && !tmm_done_i) begin
          drain_q <= 1'b1;
          drain_r <= tile_r;
          drain_w <= tile_w;
        end
        open_q <= 1'b1;
        tile_r <= reads_i;
        tile_w <= writes_i;
      end
    end
  end
endmodule
