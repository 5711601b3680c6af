package vswitch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// edge is a host with a NAT network and a way out:
//
//	compartment "c" 10.1.0.10, fd00:1::1:a ── [program] ── host ── eth0 192.0.2.1, 2001:db8::1 ──── lan 192.0.2.2, 2001:db8::2
//
// What leaves the network is masqueraded; port 8080 of the host is c's port 80.
type edge struct {
	*lab
	c     *plan.Port
	inner *th.Host
	lan   *th.Host
	stop  func()
}

const edgeRules = `
table inet edge {
	chain out {
		type nat hook postrouting priority 100;
		iifname "bhh*" masquerade fully-random
	}
	chain in {
		type nat hook prerouting priority -100;
		ip daddr 192.0.2.1 meta l4proto { tcp, udp } th dport 8080 dnat ip to 10.1.0.10:80
		ip6 daddr 2001:db8::1 meta l4proto { tcp, udp } th dport 8080 dnat ip6 to [fd00:1::1:a]:80
	}
	chain strict {
		type filter hook forward priority 0;
		ct state invalid counter drop
	}
	chain strict_in {
		type filter hook input priority 0;
		iifname "eth0" ct state invalid counter drop
	}
}
`

func newEdge(t *testing.T, mode AttachMode) *edge {
	t.Helper()
	e := &edge{lab: newLabWith(t, mode, true)}
	if e.a.offload == nil {
		t.Skip(e.a.offloadReason)
	}
	e.nat(1)
	e.c = e.container(1, 10)
	e.lan = th.New(t, th.WithName("lan"))
	e.lan.Up("lo")
	e.host.Connect(e.lan, th.Cable{Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"}, PeerAddrs: []string{"192.0.2.2/24", "2001:db8::2/64"}})
	e.host.Route("default", "192.0.2.2")
	e.host.Route("default", "2001:db8::2")
	e.live()
	e.host.Forwarding(true)
	e.inner = e.ns[e.c.ID]
	e.nft(edgeRules)
	e.watchOver()
	return e
}

func (e *edge) nft(rules string) {
	e.t.Helper()
	e.host.WriteFile("/run/rules.nft", rules)
	e.host.Run(e.t, "nft", "-f", "/run/rules.nft")
}

// watchOver is the daemon's part. stop is its end.
func (e *edge) watchOver() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go e.host.DoMount(func() { done <- e.a.RunOffload(ctx) })
	ended := false
	e.stop = func() {
		cancel()
		if !ended {
			ended = true
			if err := <-done; err != nil {
				e.t.Error(err)
			}
		}
	}
	e.t.Cleanup(func() { e.stop() })
}

func (e *edge) state() OffloadState {
	e.t.Helper()
	s, err := e.a.Offload()
	if err != nil {
		e.t.Fatal(err)
	}
	return s
}

// talk keeps one byte going both ways on a connection until fn has no more to say.
func (e *edge) until(what string, conn net.Conn, ok func() bool) {
	e.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if err := oneByte(conn); err != nil {
			e.t.Fatalf("%s: %v", what, err)
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("%s: not within 10 s; %+v; %s", what, e.state(), e.host.Run(e.t, "conntrack", "-L"))
		}
	}
}

func oneByte(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 16))
	return err
}

// carried talks until packets of the connection are carried both ways.
func (e *edge) carried(conn net.Conn) {
	e.t.Helper()
	s := e.state().Stats
	e.until("carry "+conn.RemoteAddr().String(), conn, func() bool {
		now := e.state().Stats
		return now.Out > s.Out+20 && now.In > s.In+20
	})
}

type edgeFlow struct {
	name        string
	network     string
	from, at    *th.Host
	listen, ask netip.AddrPort
	peer        netip.Addr // as the server sees the client
}

func (e *edge) flows() []edgeFlow {
	addr := netip.MustParseAddr
	var out []edgeFlow
	for _, network := range []string{"tcp", "udp"} {
		for i, f := range []struct{ host, lan netip.Addr }{{addr("192.0.2.1"), addr("192.0.2.2")}, {addr("2001:db8::1"), addr("2001:db8::2")}} {
			v := fmt.Sprintf("v%d", 4+2*i)
			out = append(out,
				edgeFlow{"out " + network + v, network, e.inner, e.lan, netip.AddrPortFrom(f.lan, 7), netip.AddrPortFrom(f.lan, 7), f.host},
				edgeFlow{"published " + network + v, network, e.lan, e.inner, netip.AddrPortFrom(e.c.Addrs[i], 80), netip.AddrPortFrom(f.host, 8080), f.lan})
		}
	}
	return out
}

func (e *edge) open(f edgeFlow) net.Conn {
	e.t.Helper()
	if f.network == "tcp" {
		f.at.TCPEcho(f.listen)
	} else {
		f.at.UDPEcho(f.listen)
	}
	conn, err := f.from.DialContext(e.t.Context(), f.network, f.ask.String())
	if err != nil {
		e.t.Fatalf("%s: %v", f.name, err)
	}
	return conn
}

// invalid is how many packets the strict rules have dropped.
func (e *edge) invalid() string {
	var out []string
	for _, chain := range []string{"strict", "strict_in"} {
		for line := range strings.SplitSeq(e.host.Run(e.t, "nft", "list", "chain", "inet", "edge", chain), "\n") {
			if strings.Contains(line, "counter") && !strings.Contains(line, "packets 0 ") {
				out = append(out, line)
			}
		}
	}
	return strings.Join(out, "; ")
}

// TestOffload: each kind of flow across the host is carried, and ends cleanly.
func TestOffload(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		e := newEdge(t, mode)
		for _, f := range e.flows() {
			conn := e.open(f)
			e.carried(conn)
			if f.network == "tcp" {
				if err := exchange(conn, 8<<20); err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
			}
			conn.Close()
		}
		th.Eventually(t, 5*time.Second, func() error {
			if f := e.a.tcpEntries(t); f > 0 {
				return fmt.Errorf("%d entries of closed connections", f)
			}
			return nil
		})
		if got := e.invalid(); got != "" {
			t.Error(got)
		}
		e.cutOff()
	})
}

// cutOff takes the container away while a flow into it is carried.
func (e *edge) cutOff() {
	e.t.Helper()
	flows := e.flows()
	f := flows[len(flows)-1] // whose server runs
	conn, err := f.from.DialContext(e.t.Context(), f.network, f.ask.String())
	if err != nil {
		e.t.Fatal(err)
	}
	defer conn.Close()
	e.carried(conn)
	e.in(func() error { return e.a.Cut(context.Background(), change(e.c, nil)) })
	before := e.state().Stats.In
	for range 3 {
		if _, err := conn.Write([]byte("x")); err != nil {
			e.t.Fatal(err)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 16)); err == nil {
		e.t.Error("who is cut off answers")
	}
	if now := e.state().Stats.In; now != before {
		e.t.Errorf("%d packets were carried to who is cut off", now-before)
	}
}

func (a *Applier) tcpEntries(t *testing.T) (n int) {
	t.Helper()
	err := eachEntry("bh_offload_v1", a.offload.objs.Flows, batch, func(k *uplinkOffloadKey, _ *uplinkOffload) bool {
		if k.Proto == 6 {
			n++
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
