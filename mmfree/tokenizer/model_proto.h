#pragma once
// The parts of a serialised SentencePiece model that its library does not hand out or does not
// check. The file is a protocol-buffer message; this reads it without the generated classes.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mmfree {

// The numbers are those of the SentencePiece format, and of GGUF's token types.
enum class PieceType : std::uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6
};

struct ModelPiece {
  std::string text;
  float score = 0.0F;
  PieceType type = PieceType::normal;
};

struct ModelProto {
  std::vector<ModelPiece> pieces;
  int model_type = 1;  // 1 unigram, 2 BPE, 3 word, 4 char
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  std::string unknown_surface = " \xE2\x81\x87 ";
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool has_normalizer_map = false;  // anything but the identity
  bool has_denormalizer = false;
};

// Throws a format Error that names `name` if the bytes are no such message or contradict themselves
// in a way that the SentencePiece library would not survive: pieces that are empty, repeated, not
// UTF-8 or with a score that is not finite, byte pieces that name no byte, a normaliser table that
// points outside itself.
ModelProto parse_model_proto(std::string_view bytes, const std::string& name);

}  // namespace mmfree
