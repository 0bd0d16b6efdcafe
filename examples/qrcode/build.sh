#!/bin/sh
# JavaScript to a WASI preview 2 component (wasi:http) with componentize-js from npm. Everything that npm brings stays
# under target/.
set -eu
cd "$(dirname "$0")"
work=../../target/examples/qrcode
mkdir -p "$work"
cp package.json app.js build.mjs "$work"
cd "$work"
npm install --no-audit --no-fund --silent
node build.mjs
cd - >/dev/null
mv "$work/qrcode.wasm" qrcode.wasm
