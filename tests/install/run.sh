#!/bin/sh
# Installs a build into a scratch folder, builds the consumer against it and runs it on a model.
# usage: run.sh BUILD_DIR MODEL
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=$1
model=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cmake --install "$build" --prefix "$scratch/prefix" >/dev/null
cmake -S "$here" -B "$scratch/build" -G Ninja -DCMAKE_PREFIX_PATH="$scratch/prefix" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$scratch/build" >/dev/null
"$scratch/build/consumer" "$model"
"$scratch/prefix/bin/mmfree" --version
