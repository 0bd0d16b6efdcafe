#!/bin/sh
# Python to a WASI preview 2 component with componentize-py from PyPI, in a virtual environment under target/.
set -eu
cd "$(dirname "$0")"
venv=${NOVUM_EXAMPLES_VENV:-../../target/examples/python}
[ -x "$venv/bin/componentize-py" ] || {
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet componentize-py==0.25.1
}
"$venv/bin/componentize-py" --quiet --wit-path world.wit --world function componentize app --output csv-summary.wasm
