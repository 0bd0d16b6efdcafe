#!/bin/sh
# Rust to a WASI preview 1 command. Needs Debian's rustc and libstd-rust-dev-wasm32 (a rustup with the target
# wasm32-wasip1 works too: RUSTC=rustc TARGET=wasm32-wasip1).
set -eu
cd "$(dirname "$0")"
"${RUSTC:-/usr/bin/rustc}" --edition 2021 --target "${TARGET:-wasm32-wasi}" -C opt-level=s -C panic=abort -C lto=fat \
  -C strip=symbols -C codegen-units=1 --remap-path-prefix "$PWD=." -o wordcount.wasm wordcount.rs
