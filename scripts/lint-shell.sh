#!/usr/bin/env bash
# Checks the shell scripts of the repository.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v shellcheck >/dev/null; then
	echo "lint: no shellcheck; install it with: sudo scripts/deps.sh test" >&2
	exit 1
fi
git ls-files -c -o --exclude-standard -z -- '*.sh' .ci/run | xargs -0 -r shellcheck --shell=bash
