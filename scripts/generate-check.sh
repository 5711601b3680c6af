#!/usr/bin/env bash
# Fails when go generate changes anything. What was changed and not committed before does not count.
set -euo pipefail
cd "$(dirname "$0")/.."

state() {
	git diff
	git ls-files --others --exclude-standard -z | xargs -0 -r sha256sum
}

before=$(mktemp)
after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
state >"$before"
go generate ./...
state >"$after"
if ! cmp -s "$before" "$after"; then
	diff "$before" "$after" | head -50 || true
	git status --short
	echo "generate-check: generated files are out of date; run make generate and commit the result" >&2
	exit 1
fi
echo "generate-check: up to date"
