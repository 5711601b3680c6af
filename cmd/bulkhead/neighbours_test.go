package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNeighbourCheck(t *testing.T) {
	const stat = "entries  allocs unresolved_discards table_fulls\n00000402 00000001 00000000 0000000a\n00000402 00000001 00000000 00000001\n"
	for _, c := range []struct {
		name, limit, stat string
		ports             int
		status, says      string
	}{
		{"plenty", "1024\n", "", 100, "ok", "room for 1024 entries, 100 ports"},
		{"near", "1024\n", "", 768, "warn", "sysctl -w net.ipv4.neigh.default.gc_thresh3=4096 net.ipv4.neigh.default.gc_thresh2=2048"},
		{"beyond", "1024\n", "", 3000, "warn", "gc_thresh3=12000"},
		{"was full", "1024\n", stat, 3, "warn", "was full 11 times"},
		{"never full", "1024\n", strings.NewReplacer("0000000a", "00000000", "00000001\n", "00000000\n").Replace(stat), 3, "ok", ""},
		{"older kernel", "1024\n", "entries  allocs\n00000402 00000001\n", 3, "ok", ""},
		{"in a namespace", "", "", 3000, "ok", "not visible"},
		{"nonsense", "many\n", "", 3, "warn", "gc_thresh3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			write := func(name, text string) {
				name = filepath.Join(proc, name)
				if text == "" {
					return
				}
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("sys/net/ipv4/neigh/default/gc_thresh3", c.limit)
			write("net/stat/arp_cache", c.stat)
			got := neighbourCheck(proc, "IPv4", "net.ipv4.neigh.default.gc_thresh", "arp_cache", c.ports)
			if got.Status != c.status || !strings.Contains(got.Detail+" "+got.Next, c.says) {
				t.Errorf("%+v, want %s with %q", got, c.status, c.says)
			}
		})
	}
}
