#!/usr/bin/env bash
# Sets up .venv with the development requirements, then runs the tests: bash tests/run.sh [pytest options]
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
bash train.sh --setup dev
exec .venv/bin/python -m pytest "$@"
