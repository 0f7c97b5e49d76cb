#!/usr/bin/env bash
# Makes .venv with the one tested stack (constraints.txt) and mmvit in it; does nothing when that is already so.
#   bash scripts/setup.sh          faiss-cpu
#   bash scripts/setup.sh --gpu    faiss-gpu in its place
set -euo pipefail
cd "$(dirname "$0")/.."

flavour=cpu
[ "${1:-}" = "--gpu" ] && flavour=gpu

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
fi
[ -n "$python" ] || { echo "setup: Python 3.11 or newer (with venv) is needed; set PYTHON=/path/to/python" >&2; exit 1; }

stamp=".venv/.mmvit-$flavour-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)"
if [ -f "$stamp" ]; then
    echo "setup: .venv is up to date"
    exit 0
fi
started=$SECONDS
[ -x .venv/bin/python ] || { echo "setup: making .venv with $("$python" --version)"; "$python" -m venv .venv; }
echo "setup: installing the pinned stack (about 2.5 GB of wheels, some minutes)"
log=.venv/setup.log
if ! .venv/bin/python -m pip install --no-input --disable-pip-version-check -c constraints.txt -e '.[corpus,demo,dev]' >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: pip failed; the whole log is $log" >&2
    exit 1
fi
if [ "$flavour" = gpu ]; then
    .venv/bin/python -m pip uninstall --yes faiss-cpu >>"$log" 2>&1
    .venv/bin/python -m pip install --no-input --force-reinstall --no-deps -c constraints.txt faiss-gpu >>"$log" 2>&1
fi
rm -f .venv/.mmvit-*
touch "$stamp"
echo "setup: done in $((SECONDS - started)) s"
