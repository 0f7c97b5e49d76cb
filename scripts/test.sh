#!/usr/bin/env bash
# Sets up (scripts/setup.sh, scripts/browser.sh) and runs the tests; further arguments go to pytest.
#   bash scripts/test.sh                   everything but the long forms
#   bash scripts/test.sh -m slow           the long forms
#   bash scripts/test.sh tests/losses -x   one folder, stop at the first failure
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
bash scripts/browser.sh

# One thread a process: two test workers share two cores, and gloo ranks would otherwise fight for them.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
marks=(-m "not slow")
for argument in "$@"; do
    [ "$argument" = "-m" ] && marks=()
done
exec .venv/bin/python -m pytest -n "${MMVIT_TEST_WORKERS:-2}" --dist worksteal ${marks[@]+"${marks[@]}"} "$@"
