#!/bin/sh
# C to a WASI preview 1 command. Needs Debian's clang, lld, wasi-libc and libclang-rt-dev-wasm32.
set -eu
cd "$(dirname "$0")"
"${CC:-clang}" --target=wasm32-wasi -Os -flto -Wall -Wextra -Werror -Wl,--strip-all -o json.wasm json.c
