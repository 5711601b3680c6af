package bench

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

const (
	setRules = 1000
	setSize  = 100_000
	loadSize = 10_000
)

// BenchmarkSets measures first packets under 1,000 rules, the first of which drops what comes from a set of 100,000
// addresses, and how long it takes to load such rules and sets.
//
//	client ── router: nothing, nftables or iptables ── server
//	container ── bulkhead: nothing, or the rules on the server's port ── container
func BenchmarkSets(b *testing.B) {
	s := configure(b)
	section := report.section(fmt.Sprintf("5. first packets under %d rules and a set of %d addresses; client and server on one CPU", setRules, setSize),
		"crr: as in part 3; udp, new port: one datagram each way from a port of its own.",
		"added by the rules: to one connection, or one exchange, beside the same path without rules.",
		"The rules let all of it pass by the last of them, and are on the server's side; nftables and iptables accept what is established first.")
	nft := ruled(b, "nftables")
	nft.loadNft(mixed(setRules, 0), 0)
	cases := []path{ruled(b, "routing").path("routing, no rules"), nft.path("nftables")}
	ipt := ruled(b, "iptables")
	if ipt.hasIpset() {
		ipt.loadIptables(mixed(setRules, 0), 0)
		cases = append(cases, ipt.path("iptables and ipset"))
	} else {
		section.Notes = append(section.Notes, "iptables: ipset is not here, so it cannot hold the set (apt-get install ipset).")
	}
	plain := switchPath(b, s, 0)
	plain.name = "bulkhead, no rules"
	f := newSetFleet(b, s)
	f.replaceSet(0, setSize)
	f.setRules(append([]rule{{remote: "@bad"}}, mixed(setRules, 0)...))
	cases = append(cases, plain, path{name: "bulkhead", client: f.compartment(0), server: f.compartment(1), at: f.addr(1), served: 80, port: 80})
	metrics := []string{metricCRR, metricNewPort}
	measurePaths(b, s, section, cases, metrics...)
	for _, m := range metrics {
		for _, p := range cases {
			base := "routing, no rules"
			if strings.HasPrefix(p.name, "bulkhead") {
				base = plain.name
			}
			if p.name != base {
				section.add(m+", added by the rules", p.name, "us", series{1000/section.median(m, p.name) - 1000/section.median(m, base)}, "")
			}
		}
	}
	measureLoading(b, s, nft, ipt, f)
	b.ReportMetric(0, "ns/op")
}

// measureLoading loads other rules and sets than those that are there, each time.
func measureLoading(b *testing.B, s settings, nft, ipt *router, f *setFleet) {
	b.Helper()
	section := report.section(fmt.Sprintf("6. loading %d rules, %d addresses, and one more address", loadSize, setSize),
		"bulkhead: one API call each, answered when it is in force and on disk; a set has no smaller change than the whole of it.",
		"nft, iptables, ipset: the command, with its start; one more address is one command.")
	times := map[string]map[string]series{}
	note := func(metric, name string, took time.Duration) {
		if times[metric] == nil {
			times[metric] = map[string]series{}
		}
		times[metric][name] = append(times[metric][name], milliseconds(took))
	}
	begun := time.Now()
	for i := 1; i <= s.runs && !s.enough(i-1, begun); i++ {
		rules := append([]rule{{remote: "@bad"}}, mixed(loadSize-1, i)...)
		note("rules", "bulkhead", f.setRules(rules))
		note("set", "bulkhead", f.replaceSet(i, setSize))
		note("one address", "bulkhead", f.replaceSet(i, setSize+1))
		inNft, set, one := nft.loadNft(rules[1:], i)
		note("rules", "nftables", inNft)
		note("set", "nftables", set)
		note("one address", "nftables", one)
		if ipt.hasIpset() {
			inIpt, set, one := ipt.loadIptables(rules[1:], i)
			note("rules", "iptables and ipset", inIpt)
			note("set", "iptables and ipset", set)
			note("one address", "iptables and ipset", one)
		}
	}
	for _, metric := range []string{"rules", "set", "one address"} {
		for _, name := range []string{"nftables", "iptables and ipset", "bulkhead"} {
			if got := times[metric][name]; len(got) > 0 {
				section.add(metric, name, "ms", got, "nftables")
			}
		}
	}
}

// address is number n of the addresses that are in sets; generation g has others than the one before.
func address(g, n int) string {
	return netip.AddrFrom4([4]byte{byte(100 + g), byte(n >> 16), byte(n >> 8), byte(n)}).String()
}

func addresses(g, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = address(g, i)
	}
	return out
}

// setFleet is ours with two endpoints on a network with a set.
type setFleet struct{ *fleet }

func newSetFleet(b *testing.B, s settings) *setFleet {
	b.Helper()
	h := testhost.New(b, testhost.WithName("bulkhead"))
	f := newFleet(newDaemon(b, h, s.binary))
	f.attach(0)
	f.attach(1)
	return &setFleet{f}
}

// replaceSet gives the set other members.
func (f *setFleet) replaceSet(g, n int) time.Duration {
	f.d.b.Helper()
	settings, err := json.Marshal(hcn.PolicyNetworkRequest{Policies: []hcn.NetworkPolicy{hcn.NewNetworkPolicy(hcn.SetPolicy, hcn.SetPolicySetting{
		Id: "bad", PolicyType: hcn.SetPolicyTypeIpSet, Values: strings.Join(addresses(g, n), ","),
	})}})
	if err != nil {
		f.d.b.Fatal(err)
	}
	r := hcn.ModifyNetworkSettingRequest{ResourceType: hcn.NetworkResourceTypePolicy, RequestType: hcn.RequestTypeUpdate, Settings: settings}
	start := time.Now()
	f.d.call(http.MethodPost, "/hcn/v2/networks/"+string(f.network)+"/modify", r, nil)
	return time.Since(start)
}

// setRules gives the server other rules.
func (f *setFleet) setRules(rules []rule) time.Duration {
	f.d.b.Helper()
	policies := acl(rules, hcn.DirectionTypeIn)
	start := time.Now()
	f.modify(1, hcn.RequestTypeUpdate, policies)
	return time.Since(start)
}

// router is a host between two namespaces.
type router struct {
	*testhost.Host
	b              *testing.B
	client, server *testhost.Host
}

func ruled(b *testing.B, name string) *router {
	b.Helper()
	r := &router{Host: testhost.New(b, testhost.WithName(name)), b: b}
	r.Forwarding(true)
	r.client, r.server = r.NewNamespace("client"), r.NewNamespace("server")
	r.Connect(r.client, testhost.Cable{Dev: "veth0", Addrs: []string{"10.9.0.1/24"}, PeerAddrs: []string{"10.9.0.2/24"}})
	r.Connect(r.server, testhost.Cable{Dev: "veth1", Addrs: []string{"10.9.1.1/24"}, PeerAddrs: []string{"10.9.1.2/24"}})
	r.client.Route("default", "10.9.0.1")
	r.server.Route("default", "10.9.1.1")
	return r
}

func (r *router) path(name string) path {
	return path{name: name, client: r.client, server: r.server, at: netip.MustParseAddr("10.9.1.2"), served: 80, port: 80}
}

func (r *router) hasIpset() bool {
	_, err := exec.LookPath("ipset")
	return err == nil
}

// load runs a command over a file.
func (r *router) load(content string, command ...string) time.Duration {
	r.b.Helper()
	r.WriteFile("/run/load", content)
	start := time.Now()
	r.Run(r.b, command[0], append(command[1:], "/run/load")...)
	return time.Since(start)
}

// loadNft loads rules, the members of the set, and one more.
func (r *router) loadNft(rules []rule, g int) (inForce, set, one time.Duration) {
	r.b.Helper()
	const names = "table ip filter {\n\tset bad {\n\t\ttype ipv4_addr\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority 0\n\t}\n}\n"
	head := names + "flush chain ip filter forward\n"
	inForce = r.load(head+"table ip filter {\n\tchain forward {\n"+nftRules(append([]rule{{remote: "@bad"}}, rules...))+"\t}\n}\n", "nft", "-f")
	set = r.load("flush set ip filter bad\nadd element ip filter bad { "+strings.Join(addresses(g, setSize), ", ")+" }\n", "nft", "-f")
	start := time.Now()
	r.Run(r.b, "nft", "add", "element", "ip", "filter", "bad", "{ "+address(g, setSize)+" }")
	return inForce, set, time.Since(start)
}

// loadIptables does the same.
func (r *router) loadIptables(rules []rule, g int) (inForce, set, one time.Duration) {
	r.b.Helper()
	r.Run(r.b, "ipset", "-exist", "create", "bad", "hash:ip", "maxelem", fmt.Sprint(2*setSize))
	inForce = r.load(iptablesRules(append([]rule{{remote: "@bad"}}, rules...)), "iptables-restore")
	set = r.load("flush bad\nadd bad "+strings.Join(addresses(g, setSize), "\nadd bad ")+"\n", "ipset", "restore", "-file")
	start := time.Now()
	r.Run(r.b, "ipset", "add", "bad", address(g, setSize))
	return inForce, set, time.Since(start)
}
