#!/bin/sh
# Installs what is missing, builds with assertions and warnings as errors, and runs the fast tests.
# usage: scripts/test.sh [CTEST OPTIONS]
set -eu
cd "$(dirname "$0")/.."
scripts/setup.sh
cmake --preset dev
cmake --build --preset dev
ctest --preset dev --label-exclude 'slow|gpu' "$@"
