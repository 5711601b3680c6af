#!/usr/bin/env bash
# Runs every fuzz target of the module for FUZZTIME each, and all of them even when one fails.
set -euo pipefail
cd "$(dirname "$0")/.."

passed=0
failed=0
while IFS=: read -r file func; do
	name=$(sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/' <<<"$func")
	echo "=== fuzz $(dirname "$file") $name"
	if go test -run='^$' -fuzz="^$name\$" -fuzztime="${FUZZTIME:-15s}" -timeout 10m "./$(dirname "$file")"; then
		passed=$((passed + 1))
	else
		failed=$((failed + 1))
	fi
done < <(git ls-files -c -o --exclude-standard -- '*_test.go' | xargs -r grep -HE '^func Fuzz[A-Za-z0-9_]*\(' || true)
echo "$passed passed, $failed failed"
((failed == 0))
