#!/bin/sh
# Rust with crates from crates.io to a WASI preview 1 command. Needs Debian's rustc, cargo and libstd-rust-dev-wasm32, and
# any newer cargo in the path, which fetches the crates (Debian's cannot read today's registry index).
set -eu
cd "$(dirname "$0")"
work=$(mkdir -p ../../target/examples/markdown && cd ../../target/examples/markdown && pwd)
rm -rf "$work/src" && cp -r src Cargo.toml Cargo.lock "$work"
cd "$work"
rm -rf vendor .cargo
cargo vendor --quiet --locked
mkdir .cargo
cat > .cargo/config.toml <<'END'
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "vendor"
END
RUSTC=/usr/bin/rustc RUSTFLAGS="--remap-path-prefix $work=." CARGO_TARGET_DIR="$work/target" \
  /usr/bin/cargo build --quiet --frozen --release --target wasm32-wasi
cd - >/dev/null
cp "$work/target/wasm32-wasi/release/markdown.wasm" markdown.wasm
