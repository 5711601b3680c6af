#!/usr/bin/env bash
# Measures bin/bulkhead beside the kernel's limits and other tools, in throwaway namespaces, and prints a table. It
# leaves bench.txt and bench.json in dist/. How to read them: docs/benchmarks.md.
#   scripts/bench.sh [-o text|json] [REGEXP]     REGEXP picks from Attach Path Published Run Isolation Sets LAN Balance Overlay Cycles; all by default
# BENCH_QUICK=1: in three minutes, with few samples.    BENCH_MAX=N: at most N standing endpoints (1000)
# BENCH_CYCLES=N: make and remove so many endpoints and containers in Cycles (50); BENCH_CONTAINERS=N: fewer containers
set -euo pipefail
cd "$(dirname "$0")/.."

output=text
while (($#)); do
	case $1 in
	-o)
		output=${2-}
		shift 2
		;;
	-*)
		echo "usage: $0 [-o text|json] [REGEXP]" >&2
		exit 2
		;;
	*) break ;;
	esac
done
if [[ $output != text && $output != json ]]; then
	echo "bench: -o $output is not known: use text or json" >&2
	exit 2
fi
if ((EUID != 0)); then
	echo "bench: needs root, for namespaces: sudo $0" >&2
	exit 1
fi
if [[ ! -x bin/bulkhead ]]; then
	echo "bench: there is no bin/bulkhead: run make build" >&2
	exit 1
fi
./scripts/deps.sh runtime test bench >&2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p dist
go test -c -o "$work/bench.test" ./test/bench
echo "bench: measuring; with all sections this takes a quarter of an hour (BENCH_QUICK=1: three minutes)" >&2
BENCH_OUT=$work BENCH_KERNEL=$PWD/.cache/vm BENCH_BINARY=$PWD/bin/bulkhead TMPDIR=$work REQUIRE_ROOT=1 \
	"$work/bench.test" -test.run '^$' -test.bench "${1-.}" -test.benchtime 1x -test.timeout 90m >"$work/log" 2>&1 || {
	cat "$work/log" >&2
	exit 1
}
if [[ ! -e $work/bench.txt ]]; then
	echo "bench: nothing matches ${1-.}" >&2
	exit 1
fi
cp "$work/bench.txt" "$work/bench.json" dist/
case $output in
text) cat dist/bench.txt ;;
json) cat dist/bench.json ;;
esac
