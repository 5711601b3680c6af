package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
)

func host(n int, addrs ...string) overlay.Host {
	h := overlay.Host{ID: hcn.GUID(fmt.Sprintf("AAAAAAAA-0000-4000-8000-%012X", n)), Name: fmt.Sprintf("web%d", n)}
	for _, a := range addrs {
		h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
	}
	return h
}

// TestDiagnose: what is seen at both ends of a way becomes a cause and a next step.
func TestDiagnose(t *testing.T) {
	const none, whole, left = overlay.SumNone, overlay.SumWhole, overlay.SumLeft
	for _, tc := range []struct {
		name           string
		six            bool
		sent, heard    overlay.PathFound // of the way from web1 to web2, at its begin and its end
		silent, failed bool
		cut            bool // the time was over before all was tried
		want           string
	}{
		{name: "whole", sent: overlay.PathFound{Size: 1500, Answered: none | whole | left}, heard: overlay.PathFound{Heard: none | whole | left}, want: "arrives 1500"},
		{name: "smaller", sent: overlay.PathFound{Size: 1450, Answered: none}, heard: overlay.PathFound{Heard: none}, want: "arrives 1450; the networks' MTU on web1 is 1400 or less"},
		{name: "too small", sent: overlay.PathFound{Size: 1320, Answered: none}, heard: overlay.PathFound{Heard: none}, want: "arrives 1320; only packets of up to 1320 bytes pass from web1 to web2, which leaves 1270"},
		{name: "blocked", want: "lost 0; nothing that web1 sends to UDP port 4789 of web2 arrives; let UDP port 4789 pass from 192.0.2.1 to 192.0.2.2"},
		{name: "no route", sent: overlay.PathFound{Error: "send: no route to host"}, want: "lost 0; web1 cannot send to 192.0.2.2: send: no route to host; on web1: ip route get 192.0.2.2"},
		{name: "cut", cut: true, sent: overlay.PathFound{Size: 900, Answered: none}, heard: overlay.PathFound{Heard: none}, want: "arrives 0; web1 did not come to the end of checking the way to web2 in time; check fewer hosts"},
		{name: "cut early", cut: true, want: "lost 0; web1 did not come to the end"},
		{name: "one way", heard: overlay.PathFound{Heard: none | whole | left}, want: "arrives 0; but no answer comes back"},
		{name: "no checksum", sent: overlay.PathFound{Size: 1500, Answered: whole | left}, heard: overlay.PathFound{Heard: whole | left}, want: "lost 1500; packets without a UDP checksum"},
		{name: "offload", six: true, sent: overlay.PathFound{Size: 1500, Answered: whole}, heard: overlay.PathFound{Heard: whole, Bad: left}, want: "lost 1500; checksums that the NIC of web1 is to compute are wrong when they arrive at web2; on web1: ethtool -K eth0 tx off"},
		{name: "damaged", sent: overlay.PathFound{Size: 1500, Answered: none | whole | left}, heard: overlay.PathFound{Heard: none, Damaged: none | whole | left}, want: "packets from web1 are changed on the way to web2; look for what changes"},
		{name: "firewall", six: true, sent: overlay.PathFound{Size: 1500, Answered: whole | left}, heard: overlay.PathFound{Heard: whole | left, Inside: true}, want: "arrives 1500; packets from web1 arrive at web2, and its own firewall drops them"},
		{name: "let in", six: true, sent: overlay.PathFound{Size: 1500, Answered: whole | left}, heard: overlay.PathFound{Heard: whole | left, Let: left, Inside: true}, want: "arrives 1500"},
		{name: "silent", sent: overlay.PathFound{Size: 1500, Answered: none | whole | left}, silent: true, want: "arrives 1500; host web2 said nothing within the time"},
		{name: "failed", sent: overlay.PathFound{Size: 1500, Answered: none | whole | left}, failed: true, want: "arrives 1500; host web2 could not take part: no packets here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := host(1, "192.0.2.1"), host(2, "192.0.2.2")
			if tc.six {
				a, b = host(1, "2001:db8::1"), host(2, "2001:db8::2")
			}
			tc.sent.Host, tc.sent.Port, tc.sent.MTU, tc.sent.NIC, tc.sent.Done = b.ID, 4789, 1500, "eth0", !tc.cut
			tc.heard.Host, tc.heard.Port, tc.heard.MTU, tc.heard.Size, tc.heard.Answered, tc.heard.Done = a.ID, 4789, 1500, 1500, none|whole|left, true
			found := map[hcn.GUID]overlay.Checked{a.ID: {Paths: []overlay.PathFound{tc.sent}}, b.ID: {Paths: []overlay.PathFound{tc.heard}}}
			if tc.silent {
				delete(found, b.ID)
			}
			if tc.failed {
				found[b.ID] = overlay.Checked{Error: "no packets here"}
			}
			c := diagnose([]overlay.Host{a, b}, []uint16{4789}, found, 1280)
			got := said(c)
			at := 0
			for part := range strings.SplitSeq(tc.want, "; ") {
				i := strings.Index(got[at:], part)
				if i < 0 {
					t.Fatalf("%s\nwant %s", got, tc.want)
				}
				at += i
			}
			if wrong := strings.Count(tc.want, ";") > 0 && tc.name != "smaller" && tc.name != "one way"; c.OK == wrong {
				t.Errorf("ok: %v: %s", c.OK, got)
			}
		})
	}
	mixed := diagnose([]overlay.Host{host(1, "192.0.2.1"), host(2, "2001:db8::2", "192.0.2.2")}, []uint16{4789}, map[hcn.GUID]overlay.Checked{host(1).ID: {}, host(2).ID: {}}, 1280)
	if got := said(mixed); mixed.OK || !strings.Contains(got, "of different families") {
		t.Error(got)
	}
}

// TestNetworkMTU: what a host's networks have is by all checks, this one and those before, and no less than its networks need.
func TestNetworkMTU(t *testing.T) {
	a, b := host(1, "192.0.2.1"), host(2, "192.0.2.2")
	path := func(to hcn.GUID, size int) []overlay.PathFound {
		return []overlay.PathFound{{Host: to, Port: 4789, MTU: 1500, Size: size, Done: true, Answered: overlay.SumNone}}
	}
	for _, tc := range []struct {
		size, held, least, want int
		ok                      bool
	}{
		{size: 1500, least: 1280, want: 1450, ok: true},
		{size: 1500, held: 1420, least: 1280, want: 1370, ok: true}, // a way to a host that is away
		{size: 1400, held: 1400, least: 1280, want: 1350, ok: true},
		{size: 1200, held: 1200, least: 576, want: 1150, ok: true},
		{size: 1200, held: 1200, least: 1280, want: 1280},
		{size: 1500, held: 9000, least: 1280, want: 1450, ok: true}, // the NIC has become smaller since
	} {
		c := diagnose([]overlay.Host{a, b}, []uint16{4789}, map[hcn.GUID]overlay.Checked{a.ID: {Held: tc.held, Paths: path(b.ID, tc.size)}, b.ID: {Paths: path(a.ID, 1500)}}, tc.least)
		if got := c.Hosts[0].NetworkMTU; got != tc.want || c.OK != tc.ok {
			t.Errorf("%+v: %d, %v: %s", tc, got, c.OK, said(c))
		}
	}
}

// TestManyPorts: a cluster has more ports than a check has.
func TestManyPorts(t *testing.T) {
	a, b := host(1, "192.0.2.1"), host(2, "192.0.2.2")
	var ports []uint16
	for i := range uint16(2*overlay.MaxPorts + 1) {
		ports = append(ports, 4789+i)
	}
	rounds := 0
	found, err := checkAll(ports, func(part []uint16) (map[hcn.GUID]overlay.Checked, error) {
		rounds++
		out := map[hcn.GUID]overlay.Checked{}
		for _, way := range [][2]hcn.GUID{{a.ID, b.ID}, {b.ID, a.ID}} {
			var c overlay.Checked
			for _, port := range part {
				c.Paths = append(c.Paths, overlay.PathFound{Host: way[1], Port: port, MTU: 1500, Size: 1500, Done: true, Answered: overlay.SumNone})
			}
			out[way[0]] = c
		}
		return out, nil
	})
	if c := diagnose([]overlay.Host{a, b}, ports, found, 1280); err != nil || rounds != 3 || !c.OK || len(c.Paths) != 2*len(ports) {
		t.Errorf("%d rounds, %v: %+v", rounds, err, c)
	}
}

// said is what a check says of the way from web1, and of hosts.
func said(c api.ClusterCheck) string {
	p := c.Paths[0]
	out := "lost"
	if p.Arrives {
		out = "arrives"
	}
	out += fmt.Sprintf(" %d %s", p.Bytes, p.Note)
	for _, x := range p.Problems {
		out += "; " + x.Reason + "; " + x.Next
	}
	for _, h := range c.Hosts {
		for _, x := range h.Problems {
			out += "; " + x.Reason
		}
	}
	return out
}

// TestNamed: a host is found by its name, its ID or the begin of one, also one that is gone, and one of which nothing but its member of etcd is left.
func TestNamed(t *testing.T) {
	all := []overlay.HostStatus{{Host: host(1), Alive: true}, {Host: host(0x22)}, {Host: overlay.Host{ID: host(3).ID, Name: "web1"}}}
	for ref, want := range map[string]int{
		"web34": 1, "web1": 2, "web9": 0, "aaaaaaaa": 3, string(host(1).ID): 1, "bulkhead-" + host(9).ID.Lower(): 1, "aaaa": 0,
	} {
		if got := named(all, ref); len(got) != want {
			t.Errorf("%s: %v, want %d", ref, got, want)
		}
	}
}
