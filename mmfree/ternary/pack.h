#pragma once
// Between one int8 code a byte and the packed formats of ternary/formats.h, a row at a time.
// Single-threaded, no allocation; callers split rows among threads.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "mmfree/core/types.h"
#include "mmfree/ternary/formats.h"

namespace mmfree {

// codes: (cols), each -1, 0 or +1. out: ternary_row_bytes(format, cols), overwritten. scale_f16 is
// stored in every block (unused by i8). `cols` must be allowed by the format.
void pack_row(TernaryFormat format, const std::int8_t* codes, idx cols, std::uint16_t scale_f16,
              std::byte* out) noexcept;

// row: ternary_row_bytes(format, cols). codes: (cols), overwritten. Defined for every byte: tq1_0
// bytes always give valid codes; the invalid 2-bit code 3 of tq2_0 gives +2 and i8 bytes are
// copied, so rows that come from a file go through validate_rows first.
void unpack_row(TernaryFormat format, const std::byte* row, idx cols, std::int8_t* codes) noexcept;

// Throws a format Error that names `name` and the row if the rows hold an i8 code outside {-1, 0,
// +1}, the 2-bit code 3, or a block scale that is not finite or, where scale_f16 is given, not
// equal to it. `name` says which tensor of which file. `cols` must be allowed by the format.
// rows_data: (rows, ternary_row_bytes(format, cols)).
void validate_rows(TernaryFormat format, const std::byte* rows_data, idx rows, idx cols,
                   std::optional<std::uint16_t> scale_f16, std::string_view name);

}  // namespace mmfree
