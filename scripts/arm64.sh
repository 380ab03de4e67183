#!/bin/sh
# Cross-compiles for 64-bit ARM and runs the fast tests under an emulator, with the NEON kernels; without those that start
# the program, which the kernel would have to know how to run. Installs Debian's cross
# compiler and qemu; the libraries' ARM packages are unpacked under build/, since not all can be installed beside their
# namesakes.
# usage: scripts/arm64.sh [CTEST OPTIONS]
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh --arm64
root=$PWD/build/arm64-root
packages="libfmt9 libfmt-dev libgtest-dev libsentencepiece0 libsentencepiece-dev"
if [ ! -e "$root/complete" ]; then
  rm -rf "$root"
  mkdir -p "$root/packages/lists/partial"
  options="-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::Lists=$root/packages/lists
    -o APT::Sandbox::User=root -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache="
  apt-get $options update >"$root/packages/log"
  (cd "$root/packages" && apt-get $options download $packages >>log)
  for package in "$root"/packages/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -r "$root/packages"
  touch "$root/complete"
fi
cmake --preset arm64
cmake --build --preset arm64
ctest --preset arm64 --label-exclude 'slow|gpu|x86' --exclude-regex '^inference_test' "$@"
