#!/bin/sh
# Makes plain English text from installed Debian packages, without a download: one UTF-8 file per source, documents
# separated by a line <|endoftext|>, and SOURCES.txt, which names package, version and licence of each.
#   bible.txt     the King James Bible, a chapter a document: 4.3 MB of one style, what the quick start trains on
#   fortunes.txt  short quotations and jokes
#
# usage: scripts/quickstart_text.sh OUT_DIR
set -eu
export LC_ALL=C

if [ $# -ne 1 ]; then
  echo "usage: scripts/quickstart_text.sh OUT_DIR" >&2
  exit 2
fi
out=$1
fortunes=/usr/share/games/fortunes
if ! command -v bible >/dev/null 2>&1 || [ ! -d "$fortunes" ]; then
  echo "quickstart_text.sh: the packages bible-kjv and fortunes are not installed; scripts/setup.sh installs them" >&2
  exit 1
fi
mkdir -p "$out"
work=$(mktemp -d "$out/.text.XXXXXX")
trap 'rm -rf "$work"' EXIT

# Lines "Ge1:1 In the beginning ...", one a verse. A chapter becomes one paragraph without the numbers.
COLUMNS=1000000 bible -f Gen1:1-Rev22:21 >"$work/verses" </dev/null
awk '
  {
    place = $1
    sub(/:.*/, "", place)
    text = substr($0, length($1) + 2)
    gsub(/[ \t]+/, " ", text)
    sub(/ $/, "", text)
    if (place != chapter) {
      if (NR > 1) printf "\n<|endoftext|>\n"
      printf "%s", text
      chapter = place
    } else {
      printf " %s", text
    }
  }
  END { print "" }' "$work/verses" >"$work/bible.txt"
bytes=$(wc -c <"$work/bible.txt")
if [ "$bytes" -lt 4000000 ]; then
  echo "quickstart_text.sh: the program bible printed $bytes bytes of text, expected over 4 MB" >&2
  exit 1
fi

# Entries end with a line "%". Wrapped lines are joined again; an indented line, or one that names the author, stays a
# line of its own. Entries with control characters (overstrikes) or much that is not prose (tables, drawings) are left
# out.
for name in fortunes humorists kids literature love men-women people pets platitudes riddles wisdom work; do
  file=$fortunes/$name
  [ -f "$file" ] || continue
  if iconv -f UTF-8 -t UTF-8 "$file" >"$work/entries" 2>/dev/null; then :; else
    iconv -f ISO-8859-1 -t UTF-8 "$file" >"$work/entries"
  fi
  cat "$work/entries"
  printf '%%\n'
done | awk '
  function flush() {
    prose = text
    gsub(/[A-Za-z .,;!?'"'"'"-]/, "", prose)
    if (text != "" && text !~ /[\001-\010\013-\037\177]/ && length(prose) * 10 < length(text)) {
      if (count++ > 0) printf "<|endoftext|>\n"
      print text
    }
    text = ""
  }
  /^%$/ { flush(); next }
  {
    line = $0
    own = line ~ /^[ \t]/ || line ~ /^ *--/ || line == ""
    gsub(/[ \t]+/, " ", line)
    sub(/^ /, "", line)
    sub(/ $/, "", line)
    if (text == "") text = line
    else if (own || broken) text = text "\n" line
    else text = text " " line
    broken = line == ""
  }
  END { flush() }' >"$work/fortunes.txt"

version() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || echo unknown; }
cat >"$work/SOURCES.txt" <<END
Text from Debian packages, made by scripts/quickstart_text.sh.

bible.txt
  package: bible-kjv-text $(version bible-kjv-text), printed by bible-kjv $(version bible-kjv)
  text: The Holy Bible, King James Version (1611)
  licence: public domain (copyright expired); the program: free use with its notice, and GPL-2+

fortunes.txt
  package: fortunes $(version fortunes), fortunes-min $(version fortunes-min)
  text: quotations and jokes collected by the authors of fortune-mod
  licence: BSD (the collection; quotations are of their authors)
END
mv "$work/bible.txt" "$work/fortunes.txt" "$work/SOURCES.txt" "$out/"
