#!/usr/bin/env bash
# Installs chromium and its driver for the tests of the pages (tests/demo), where they are missing and that is allowed:
# on Debian or Ubuntu, as root or with sudo that asks for no password. Elsewhere those tests are skipped.
#   bash scripts/browser.sh          does nothing when both are there; MMVIT_BROWSER=none never installs
set -euo pipefail

if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
    echo "browser: chromium is there"
    exit 0
fi
if [ "${MMVIT_BROWSER:-}" = none ] || ! command -v apt-get >/dev/null; then
    echo "browser: chromium and chromedriver are not there: the tests of the pages will be skipped"
    exit 0
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "browser: install them with 'sudo apt-get install chromium chromium-driver'; without, tests are skipped"
        exit 0
    fi
    as_root=(sudo -n)
fi
echo "browser: installing chromium and chromium-driver"
log=$(mktemp)
install() {
    ${as_root[@]+"${as_root[@]}"} env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends chromium chromium-driver >"$log" 2>&1
}
# The package lists may be old: they are fetched anew only when that is so.
if install || { ${as_root[@]+"${as_root[@]}"} apt-get update >>"$log" 2>&1 && install; }; then
    echo "browser: done"
else
    tail -n 3 "$log" >&2
    echo "browser: that failed: the tests of the pages will be skipped" >&2
fi
rm -f "$log"
