#include "mmfree/cli/ids_file.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

#include "mmfree/core/error.h"
#include "mmfree/core/file.h"

namespace mmfree {
namespace {

using nlohmann::json;

// The rows under `key`, each value an integer in [0, limit).
template <class T>
std::vector<T> read_rows(const json& object, const char* key, idx limit, const std::string& name,
                         idx& batch, idx& length) {
  const json& rows = object.at(key);
  const auto wrong = [&](const std::string& message) {
    fail(ErrorKind::format, fmt::format("{}: {}", name, message));
  };
  if (!rows.is_array() || rows.empty())
    wrong(fmt::format("{} is {}, expected a list of at least one row of integers", key,
                      rows.is_array() ? "an empty list" : rows.type_name()));
  std::vector<T> values;
  batch = static_cast<idx>(rows.size());
  length = 0;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const json& row = rows[r];
    if (!row.is_array() || row.empty())
      wrong(fmt::format("{} row {} is {}, expected a list of at least one integer", key, r,
                        row.is_array() ? "an empty list" : row.type_name()));
    if (r == 0) length = static_cast<idx>(row.size());
    if (static_cast<idx>(row.size()) != length)
      wrong(fmt::format(
          "{} row {} has {} values, expected {} as row 0 has; pad shorter rows and give "
          "an attention_mask",
          key, r, row.size(), length));
    for (std::size_t t = 0; t < row.size(); ++t) {
      const json& v = row[t];
      const bool fits =
          v.is_number_integer() && (!v.is_number_unsigned() || v.get<std::uint64_t>() <= INT32_MAX);
      if (!fits || v.get<std::int64_t>() < 0 || v.get<std::int64_t>() >= limit)
        wrong(fmt::format("{} row {} position {} is {}, expected an integer in 0..{}", key, r, t,
                          v.dump(), limit - 1));
      values.push_back(static_cast<T>(v.get<std::int64_t>()));
    }
  }
  return values;
}

}  // namespace

IdsFile read_ids_file(const std::filesystem::path& path, idx vocab) {
  const std::string name = path.string();
  const json object = json::parse(read_text_file(path), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object() || !object.contains("input_ids"))
    fail(ErrorKind::format,
         fmt::format("{}: expected a JSON object {{\"input_ids\": [[...], ...]}}, found {}", name,
                     object.is_discarded() ? "text that is not JSON"
                                           : (object.is_object() ? "an object without input_ids"
                                                                 : object.type_name())));
  IdsFile file;
  file.ids = read_rows<std::int32_t>(object, "input_ids", vocab, name, file.batch, file.length);
  if (object.contains("attention_mask")) {
    idx batch = 0;
    idx length = 0;
    file.mask = read_rows<std::uint8_t>(object, "attention_mask", 2, name, batch, length);
    if (batch != file.batch || length != file.length)
      fail(ErrorKind::format,
           fmt::format("{}: attention_mask is {} x {}, expected {} x {} as input_ids", name, batch,
                       length, file.batch, file.length));
  }
  return file;
}

}  // namespace mmfree
