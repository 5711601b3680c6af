package testhost

import (
	"strings"
	"testing"
)

// snapshotScript prints what a host has, one thing a line, in an order and a form that do not depend on when it was made:
// no interface numbers, counters or timers, and no spare pairs of a daemon that runs, which has others from moment to moment.
const snapshotScript = `
export LC_ALL=C
ip -o -d link show | sed -E 's/^[0-9]+: ([^:@]+)[^:]*:.* mtu ([0-9]+).* master ([^ ]+).*alias (.*)/link \1 mtu \2 master \3 alias \4/; t
	s/^[0-9]+: ([^:@]+)[^:]*:.* mtu ([0-9]+).*\\ +alias (.*)/link \1 mtu \2 alias \3/; t
	s/^[0-9]+: ([^:@]+)[^:]*:.* mtu ([0-9]+).*/link \1 mtu \2/' | if cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' ' ' | grep -q 'bulkhead[^ ]* daemon '; then grep -v ' alias bulkhead spare$'; else cat; fi | sort
ip -o addr show | awk '{print "addr", $2, $4}' | sort
for f in -4 -6; do ip $f rule show | sed 's/^/rule /'; ip $f route show table all | sed 's/^/route /; s/ expires [^ ]*//'; done | sort
nft -s list ruleset | sed 's/^/nft /'
find /run/netns -mindepth 1 | sed 's/^/netns /' | sort
find /sys/fs/bpf -mindepth 1 ! -name '*.debug' | sed 's/^/pin /' | sort
find /var/lib/bulkhead /run/bulkhead -mindepth 1 | sed 's/^/file /' | sort
awk '{print "mount", $5}' /proc/self/mountinfo | sort -u
find "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1" -mindepth 1 -type d 2>/dev/null | sed 's/^/cgroup /' | sort
for p in /proc/[0-9]*; do
	pid=${p#/proc/}
	[ "$pid" = $$ ] && continue
	{ read -r _ _ _ parent _ <"$p/stat"; } 2>/dev/null || continue
	[ "$parent" = $$ ] && continue
	words=()
	{ mapfile -d '' -t words <"$p/cmdline"; } 2>/dev/null # without a program of its own for each
	echo "process ${words[*]}${words:+ }"
done | cut -c1-200 | sort
`

// Snapshot is what the host has as text: devices, addresses, routes, rules, nftables, network namespaces, pinned BPF
// objects, state files, mounts, cgroups below CgroupParent, processes. Compare two of them to find what an operation left
// behind. With parts ("link", "nft", …) only lines of these kinds are given.
func (h *Host) Snapshot(t testing.TB, parts ...string) string {
	t.Helper()
	all := h.Run(t, "bash", "-c", snapshotScript, "snapshot", strings.TrimPrefix(h.CgroupParent(), "/"))
	if len(parts) == 0 {
		return all
	}
	var kept []string
	for line := range strings.Lines(all) {
		for _, p := range parts {
			if strings.HasPrefix(line, p+" ") {
				kept = append(kept, strings.TrimSuffix(line, "\n"))
			}
		}
	}
	return strings.Join(kept, "\n")
}
