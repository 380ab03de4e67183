#!/bin/sh
# Installs the Debian packages that are missing: what the build, the tests and the quick start's text need.
# Changes nothing, and asks for nothing, when all are there. As root, or with sudo.
#
# usage: scripts/setup.sh [--checks] [--hw] [--synth] [--arm64]
#   --checks: also what the file-format and source-format checks need
#   --hw: also what simulates and proves the accelerator
#   --synth: also what places, routes and times it (hw/synth/setup.sh adds tools from PyPI)
#   --arm64: also the cross compiler and the emulator for 64-bit ARM
set -eu

# Compiler and build tools; libraries; plots; the quick start's text.
packages="g++ cmake ninja-build pkg-config git ca-certificates
  libcli11-dev nlohmann-json3-dev libsentencepiece-dev libfmt-dev libgtest-dev libbenchmark-dev
  gnuplot-nox
  python3 python3-numpy
  bible-kjv fortunes fortunes-min"

for argument in "$@"; do
  case $argument in
    --checks) packages="$packages python3-venv python3-pip clang-format" ;;
    --hw) packages="$packages verilator iverilog yosys z3" ;;
    --synth) packages="$packages yosys nextpnr-ice40 qflow-tech-osu018 opensta python3-venv python3-pip" ;;
    --arm64) packages="$packages g++-aarch64-linux-gnu qemu-user" ;;
    *)
      echo "setup.sh: unknown option '$argument' (expected: --checks, --hw, --synth, --arm64)" >&2
      exit 2
      ;;
  esac
done

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
  echo "setup.sh: this is not a Debian system (no dpkg-query and apt-get); install by hand:" $packages >&2
  exit 2
fi

missing=
for package in $packages; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) || state=
  [ "$state" = installed ] || missing="$missing $package"
done
if [ -z "$missing" ]; then
  exit 0
fi

if [ "$(id -u)" -eq 0 ]; then
  as_root="env"
elif command -v sudo >/dev/null 2>&1; then
  as_root="sudo env"
else
  echo "setup.sh: missing packages, and neither root nor sudo to install them:$missing" >&2
  exit 1
fi

echo "setup.sh: installing$missing" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    echo "setup.sh: failed: $*" >&2
    exit 1
  fi
}
quietly $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 update
quietly $as_root DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
  install --no-install-recommends $missing
