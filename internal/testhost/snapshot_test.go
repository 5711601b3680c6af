package testhost_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestSnapshot leaves one thing of each kind behind and expects to find exactly these.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	h.Run(t, "ip", "netns", "add", "first") // which makes /run/netns a mount of its own, once
	before := h.Snapshot(t)
	if again := h.Snapshot(t); again != before {
		t.Fatalf("two snapshots of the same differ:\n%s", cmp.Diff(before, again))
	}
	h.Run(t, "bash", "-ec", `
		ip link add bhp1 mtu 1400 type veth peer bhh1
		ip link set bhh1 alias "bulkhead port x"
		ip link set lo down; ip link set lo up
		ip addr add 192.0.2.1/32 dev lo
		ip route add blackhole 198.51.100.0/24
		nft add table inet bulkhead
		ip netns add hns-x
		mkdir /sys/fs/bpf/bulkhead
		touch /var/lib/bulkhead/state
		mount -t tmpfs x /mnt
		setsid sleep 1000 >/dev/null 2>&1 </dev/null &
		for d in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ ! -e $d/cgroup.procs ] || break; done
		mkdir -p $d`+h.CgroupParent()+`/leaf`)
	after := h.Snapshot(t)
	var added []string
	for line := range strings.Lines(after) {
		if line = strings.TrimSuffix(line, "\n"); !strings.Contains("\n"+before+"\n", "\n"+line+"\n") {
			added = append(added, strings.Replace(line, "/memory"+h.CgroupParent(), h.CgroupParent(), 1))
		}
	}
	want := []string{
		"link bhh1 mtu 1500 alias bulkhead port x",
		"link bhp1 mtu 1400",
		"addr lo 192.0.2.1/32",
		"route blackhole 198.51.100.0/24 ",
		"route local 192.0.2.1 dev lo table local proto kernel scope host src 192.0.2.1 ",
		"nft table inet bulkhead {", "nft }",
		"netns /run/netns/hns-x",
		"pin /sys/fs/bpf/bulkhead",
		"file /var/lib/bulkhead/state",
		"mount /mnt", "mount /run/netns/hns-x",
		"cgroup /sys/fs/cgroup" + h.CgroupParent() + "/leaf",
		"process sleep 1000 ",
	}
	if d := cmp.Diff(want, added); d != "" {
		t.Errorf("what a snapshot adds (-want +got):\n%s", d)
	}
	if got := h.Snapshot(t, "netns", "pin"); got != "netns /run/netns/first\nnetns /run/netns/hns-x\npin /sys/fs/bpf/bulkhead" {
		t.Errorf("selected parts: %q", got)
	}
}
