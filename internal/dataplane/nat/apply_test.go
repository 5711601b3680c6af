package nat

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestApply(t *testing.T) {
	tp := newTopology(t)
	tp.plan.Ports["web"].Forwards = []plan.Forward{
		forward(6, "127.0.0.1", 8080, addr("10.77.1.2"), 80), forward(6, "::1", 8080, addr("fd77:1::2"), 80),
		forward(6, "all", 8081, addr("10.77.1.2"), 80), forward(17, "lan", 8082, addr("fd77:1::2"), 80),
	}
	tp.nft("add", "table", "inet", "other")
	tp.nft("add", "chain", "inet", "other", "forward", "{ type filter hook forward priority 0 ; policy accept ; }")
	tp.nft("add", "table", "ip", TableName)
	foreign := func() string {
		return tp.nft("list", "table", "inet", "other") + tp.nft("list", "table", "ip", TableName)
	}
	others := foreign()

	if drift := tp.sync(); len(drift) != 0 {
		t.Errorf("drift on an empty host: %v", drift)
	}
	first := tp.nft("-a", "list", "table", "inet", TableName)
	for _, want := range []string{`"bhha"`, "10.77.1.0/24", "127.0.0.1 . tcp . 8080 : 10.77.1.2 . 80", "udp . 8082 : fd77:1::2 . 80"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in\n%s", want, first)
		}
	}

	t.Run("twice writes nothing", func(t *testing.T) {
		gen := tp.generation()
		for _, a := range []*Applier{tp.a, tp.applier()} { // the second is a restarted daemon
			if drift, err := a.Sync(t.Context(), tp.plan); err != nil || (a == tp.a && len(drift) != 0) {
				t.Errorf("sync: drift %v, error %v", drift, err)
			}
		}
		if now := tp.generation(); now != gen {
			t.Errorf("ruleset generation went from %d to %d", gen, now)
		}
	})

	for _, broken := range []struct{ name, nft, found string }{
		{"rule deleted", "delete rule inet bulkhead guard_network handle %HANDLE%", "changed"},
		{"foreign rule", "add rule inet bulkhead forward accept", "changed"},
		{"chain added", "add chain inet bulkhead own", "changed"},
		{"policy changed", "add chain inet bulkhead forward { policy drop ; }", "changed"},
		{"rules flushed", "flush table inet bulkhead", "changed"},
		{"element deleted", "delete element inet bulkhead nat_vnics { bhha }", "missing"},
		{"element added", "add element inet bulkhead ports_all4 { tcp . 22 : 10.77.1.2 . 22 }", "not ours"},
		{"prefix deleted", "delete element inet bulkhead prefixes4 { 10.77.2.0/24 }", "missing"},
		{"target changed", "delete element inet bulkhead ports_all4 { tcp . 8081 }; add element inet bulkhead ports_all4 { tcp . 8081 : 10.77.2.2 . 80 }", "changed"},
		{"dormant", "add table inet bulkhead { flags dormant ; }", "changed"},
		{"table deleted", "delete table inet bulkhead", "missing"},
		{"ruleset flushed", "flush ruleset", "missing"},
	} {
		t.Run(broken.name, func(t *testing.T) {
			listed := tp.nft("-a", "list", "chain", "inet", TableName, "guard_network")
			cmd := strings.Replace(broken.nft, "%HANDLE%", handleOf(listed, "ip6 daddr"), 1)
			tp.nft(cmd)
			drift := tp.sync()
			if len(drift) == 0 || drift[0].Found != broken.found {
				t.Errorf("drift %+v, want %q", drift, broken.found)
			}
			if diff := cmp.Diff(plain(first), plain(tp.nft("-a", "list", "table", "inet", TableName))); diff != "" {
				t.Errorf("repaired table differs (-want +got):\n%s", diff)
			}
			if drift := tp.sync(); len(drift) != 0 {
				t.Errorf("drift after the repair: %v", drift)
			}
			if broken.name == "table deleted" && foreign() != others {
				t.Errorf("others' tables changed:\n%s", foreign())
			}
		})
	}

	t.Run("update of a flushed ruleset", func(t *testing.T) {
		tp.nft("flush", "ruleset")
		tp.publish("far", forward(6, "all", 8088, addr("10.77.2.2"), 80))
		if got := tp.nft("list", "table", "inet", TableName); !strings.Contains(got, "tcp . 8088 : 10.77.2.2 . 80") || !strings.Contains(got, "8080 : 10.77.1.2 . 80") {
			t.Errorf("after the update:\n%s", got)
		}
		if drift := tp.sync(); len(drift) != 1 || drift[0].Found != "missing" {
			t.Errorf("drift %v", drift)
		}
		tp.publish("far")
		if drift := tp.sync(); len(drift) != 0 {
			t.Errorf("drift after the repair: %v", drift)
		}
	})

	t.Run("reset", func(t *testing.T) {
		tp.nft("add", "table", "inet", "other")
		if left, err := tp.a.Leftovers(t.Context()); err != nil || len(left) != 1 {
			t.Errorf("leftovers before: %v, %v", left, err)
		}
		for range 2 { // what is absent is success
			if err := tp.a.Reset(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.TrimSpace(tp.nft("list", "tables")); got != "table inet other" {
			t.Errorf("tables after reset: %s", got)
		}
		if left, err := tp.a.Leftovers(t.Context()); err != nil || len(left) != 0 {
			t.Errorf("leftovers after: %v, %v", left, err)
		}
		if l, err := tp.host.Listen("tcp", "0.0.0.0:8081"); err != nil {
			t.Errorf("a released port: %v", err)
		} else {
			l.Close()
		}
	})
}

func (tp *topology) generation() uint32 {
	tp.t.Helper()
	c, err := tp.a.k.dial()
	if err != nil {
		tp.t.Fatal(err)
	}
	defer c.Close()
	g, err := generation(c)
	if err != nil {
		tp.t.Fatal(err)
	}
	return g
}

func handleOf(listing, rule string) string {
	for line := range strings.Lines(listing) {
		if strings.Contains(line, rule) {
			_, handle, _ := strings.Cut(line, "# handle ")
			return strings.TrimSpace(handle)
		}
	}
	return "0"
}

// plain leaves out handles, counter values, and the order in which a hash lists its elements.
func plain(listing string) []string {
	var out []string
	for line := range strings.Lines(listing) {
		line, _, _ = strings.Cut(line, "# handle")
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "packets ") || line == "" {
			continue
		}
		for part := range strings.SplitSeq(line, ", ") {
			part = strings.TrimSuffix(strings.TrimPrefix(part, "elements = { "), " }")
			out = append(out, strings.TrimSuffix(strings.TrimSpace(part), ","))
		}
	}
	return sorted(out)
}

func TestForeign(t *testing.T) {
	testhost.RequireRoot(t)
	tp := newTopology(t)
	tp.nft("add", "table", "inet", "fw")
	tp.nft("add", "chain", "inet", "fw", "input_not", "{ type filter hook forward priority 0 ; policy drop ; }")
	tp.nft("add", "table", "ip", "filter")
	tp.sync()
	found, err := tp.a.Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(found, "\n")
	for _, want := range []string{"table inet fw, chain input_not: drops forwarded", "table ip filter: written by iptables-nft"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in %s", want, all)
		}
	}
	if strings.Contains(all, TableName) {
		t.Errorf("our own table is called foreign: %s", all)
	}
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
