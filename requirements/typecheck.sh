#!/usr/bin/env bash
# mypy --strict over the installed namespace. The packages live at the top level (core/, train/, ...) and install as
# tunegate.*; a folder of links gives the type checker that layout.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=build/types
rm -rf $tree && mkdir -p $tree/tunegate
for package in core advisor serve train evalkit; do ln -s "$PWD/$package" $tree/tunegate/$package; done
MYPYPATH=$tree .venv/bin/mypy --namespace-packages --explicit-package-bases -p tunegate "$@"
