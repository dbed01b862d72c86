#!/usr/bin/env bash
# Sets up .venv with the development requirements, then runs the tests: bash tests/run.sh [pytest options]
# Without options it runs the default tier. `-m slow` and `-m browser` run the other tiers (pyproject.toml).
# Two processes share the files of tests; `-n 0` runs all in one, for a debugger.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash train.sh --setup dev
exec .venv/bin/python -m pytest -n 2 --dist loadfile "$@"
