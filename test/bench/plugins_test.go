package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// BenchmarkCNI attaches and detaches a pod with one published port by plugins, as an engine starts them, while more and more others
// stand: ours, those of Debian that an engine would use instead, and netavark. Cases are interleaved, sample by sample.
func BenchmarkCNI(b *testing.B) {
	s := configure(b)
	lan, h := testhost.New(b, testhost.WithName("lan")), testhost.New(b, testhost.WithName("bulkhead"))
	h.Connect(lan, testhost.Cable{Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	d := newDaemon(b, h, s.binary)
	fleet := newFleet(d)
	h.Run(b, "ln", "-s", d.socket, "/run/bulkhead/bulkhead.sock")
	cases := []*pluginCase{
		{name: ourPlugin, on: newRemote(b, h)},
		{name: "cni, firewall", on: newRemote(b, testhost.New(b, testhost.WithName("cni")))},
		{name: "netavark", on: newRemote(b, testhost.New(b, testhost.WithName("netavark")))},
	}
	section := report.section("10. a pod by a plugin: namespace, vNIC, addresses, routes, one published port; then without it again",
		"bulkhead-cni: both address families; pods that stand were made through the API. cni, firewall: bridge, portmap and firewall of Debian's",
		"containernetworking-plugins, IPv4 only. netavark: Debian's, IPv4 only, without its resolver, with an address that the caller chose.")
	standing := 0
	for _, n := range s.points {
		fleet.fill(standing, n)
		standing = n
		for _, c := range cases[1:] {
			for ; n <= s.cniMost && c.standing < n; c.standing++ {
				c.on.do(order{Op: "attach", Kind: c.name, Index: c.standing})
			}
		}
		for _, c := range cases {
			c.times = [2]series{}
		}
		begun := time.Now()
		for i := 0; i < s.cniSamples && !s.enough(i, begun); i++ {
			for _, c := range cases {
				if c == cases[0] || n <= s.cniMost {
					c.sample(b)
				}
			}
		}
		for op, what := range []string{"ADD", "DEL"} {
			metric := fmt.Sprintf("%s, %d standing", what, n)
			for _, c := range cases {
				if len(c.times[op]) > 0 {
					section.add(metric, c.name, "ms", c.times[op], cases[0].name)
				}
			}
			for _, c := range cases[1:] {
				if len(c.times[op]) > 0 {
					report.atLeast(fmt.Sprintf("%s by ours, %s", c.name, metric), ratio(section.median(metric, c.name), section.median(metric, cases[0].name)), 1)
				}
			}
		}
	}
	first, last := s.points[0], s.points[len(s.points)-1]
	if first != last {
		at := func(n int) float64 { return section.median(fmt.Sprintf("ADD, %d standing", n), cases[0].name) }
		report.atMost(fmt.Sprintf("ADD, growth to %d standing", last), ratio(at(last), at(first)), 1.4, "x")
	}
	b.ReportMetric(0, "ns/op")
}

type pluginCase struct {
	name     string
	on       *remote
	standing int
	times    [2]series
}

func (c *pluginCase) sample(b *testing.B) {
	b.Helper()
	for i, op := range []string{"attach", "detach"} {
		pause(b.Context(), settle)
		c.times[i] = append(c.times[i], milliseconds(c.on.do(order{Op: op, Kind: c.name, Index: extra}).Took))
	}
}
