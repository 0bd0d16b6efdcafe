#!/bin/sh
# Builds every example from source, or those that are named: examples/build-all.sh [--install] [--check] [NAME...]
#   --install  first installs the compilers from Debian (as root); npm and PyPI packages are taken by each build.sh
#   --check    fails if a committed .wasm differs from what its source gives now
set -eu
cd "$(dirname "$0")"
check=
while [ $# -gt 0 ]; do
  case "$1" in
    --install) apt-get install -y --no-install-recommends rustc libstd-rust-dev-wasm32 cargo \
      clang lld wasi-libc libclang-rt-dev-wasm32 nodejs npm python3-venv ;;
    --check) check=yes ;;
    -*) echo "unknown option: $1" >&2; exit 2 ;;
    *) break ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- */build.sh
for name; do
  name=${name%/build.sh}
  echo "== $name"
  "./$name/build.sh"
done
if [ -n "$check" ]; then
  git diff --exit-code --stat -- '*.wasm' && echo "every committed .wasm is what its source gives"
fi
