package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// drip is a UDP flow of numbered packets, each of which is echoed.
type drip struct {
	e        *edge
	f        edgeFlow
	sent     atomic.Uint64
	received atomic.Uint64 // the highest number at the server
	echoed   atomic.Uint64 // the same at the client
}

func (e *edge) drip(f edgeFlow) *drip {
	e.t.Helper()
	d := &drip{e: e, f: f}
	server, err := f.at.ListenPacket("udp", f.listen.String())
	if err != nil {
		e.t.Fatal(err)
	}
	client, err := f.from.DialContext(e.t.Context(), "udp", f.ask.String())
	if err != nil {
		e.t.Fatal(err)
	}
	done := make(chan struct{})
	e.t.Cleanup(func() {
		close(done)
		server.Close()
		client.Close()
	})
	go func() {
		buf := make([]byte, 64)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			raise(&d.received, buf[:n])
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	go func() {
		buf := make([]byte, 64)
		for {
			n, err := client.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			} else if err != nil {
				continue // the host says that it is unreachable
			}
			raise(&d.echoed, buf[:n])
		}
	}()
	go func() {
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			_, _ = client.Write(binary.BigEndian.AppendUint64(nil, d.sent.Add(1)))
		}
	}()
	return d
}

func raise(to *atomic.Uint64, b []byte) {
	if len(b) >= 8 {
		if n := binary.BigEndian.Uint64(b); n > to.Load() {
			to.Store(n)
		}
	}
}

// flowing waits until packets are carried both ways.
func (d *drip) flowing() {
	d.e.t.Helper()
	s := d.e.state().Stats
	th.Eventually(d.e.t, 10*time.Second, func() error {
		if now := d.e.state().Stats; now.Out < s.Out+50 || now.In < s.In+50 {
			return fmt.Errorf("%s is not carried: %+v, at first %+v", d.f.name, now, s)
		}
		return nil
	})
}

// cut is called when something has just forbidden the flow: nothing that is sent from now
// on may arrive, in neither direction.
func (d *drip) cut(what string) {
	d.e.t.Helper()
	last := d.sent.Load()
	// A packet in flight has been counted as sent; those after it must not arrive.
	<-time.After(400 * time.Millisecond)
	if got := d.received.Load(); got > last+1 {
		d.e.t.Errorf("%s, %s: %d packets passed afterwards", d.f.name, what, got-last)
	}
}

// TestOffloadObeysRules: whoever forbids a flow is obeyed when the command is over.
func TestOffloadObeysRules(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		e := newEdge(t, mode)
		for _, f := range e.flows() {
			if f.network != "udp" {
				continue
			}
			d := e.drip(f)
			d.flowing()
			for range 3 {
				e.nft("table inet other {\n chain f {\n type filter hook forward priority 10;\n meta l4proto udp drop\n }\n}\n")
				d.cut("nft")
				e.host.Run(t, "nft", "delete", "table", "inet", "other")
				d.flowing()
			}
		}
	})
}

// TestOffloadObeysIptables: in its newer form it writes nftables rules, as ufw and firewalld
// do. The older form tells nobody, and is obeyed as soon as netfilter sees a packet again.
func TestOffloadObeysIptables(t *testing.T) {
	e := newEdge(t, AttachAuto)
	d := e.drip(e.flows()[5])
	for tool, patience := range map[string]time.Duration{"iptables-nft": 0, "iptables-legacy": 1100 * time.Millisecond} {
		if out, err := e.host.Command(t.Context(), tool, "-S", "FORWARD").CombinedOutput(); err != nil {
			t.Logf("no %s here: %s", tool, out)
			continue
		}
		d.flowing()
		e.host.Run(t, tool, "-I", "FORWARD", "-p", "udp", "-j", "DROP")
		<-time.After(patience)
		d.cut(tool)
		e.host.Run(t, tool, "-D", "FORWARD", "-p", "udp", "-j", "DROP")
		d.flowing()
	}
}

// TestOffloadObeysSets: an address that joins a set is a change of the ruleset, too.
func TestOffloadObeysSets(t *testing.T) {
	e := newEdge(t, AttachAuto)
	e.nft("table inet ban {\n set bad {\n type ipv4_addr;\n }\n chain f {\n type filter hook forward priority 10;\n ip daddr @bad drop\n ip saddr @bad drop\n }\n}\n")
	for _, f := range e.flows()[4:6] {
		d := e.drip(f)
		d.flowing()
		e.host.Run(t, "nft", "add", "element", "inet", "ban", "bad", "{ 192.0.2.2 }")
		d.cut("nft add element")
		e.host.Run(t, "nft", "delete", "element", "inet", "ban", "bad", "{ 192.0.2.2 }")
		d.flowing()
	}
}

// TestOffloadObeysPolicy: so are the rules of the switch, both those for what the container
// sends and those for what it receives.
func TestOffloadObeysPolicy(t *testing.T) {
	e := newEdge(t, AttachAuto)
	block := &plan.RuleList{Rules: []plan.Rule{{Number: 5, Action: plan.Block, Protocols: []uint8{17}}}, Default: plan.Allow, Hash: [16]byte{5}}
	for _, f := range e.flows()[4:] {
		d := e.drip(f)
		d.flowing()
		was := e.plan.Ports[e.c.ID]
		is := *was
		// Both ways, for an answer under way would open the flow anew from its side.
		is.Policy = plan.Policy{Out: block, In: block}
		e.plan.Ports[e.c.ID] = &is
		e.update(change(was, &is))
		d.cut("ACL")
		e.plan.Ports[e.c.ID] = was
		e.update(change(&is, was))
		d.flowing()
	}
}

// TestOffloadWithoutWatch: when nobody watches, flows go on through the stack.
func TestOffloadWithoutWatch(t *testing.T) {
	e := newEdge(t, AttachAuto)
	for _, f := range e.flows() {
		conn := e.open(f)
		e.carried(conn)
		e.stop()
		before := e.state().Stats
		for range 200 {
			if err := oneByte(conn); err != nil {
				t.Fatalf("%s: %v", f.name, err)
			}
		}
		if after := e.state().Stats; after.In != before.In || after.Out != before.Out {
			t.Errorf("%s: carried without a watch: %+v, then %+v", f.name, before, after)
		}
		e.watchOver()
		e.carried(conn)
		conn.Close()
	}
}

// TestOffloadLease: a watch that hangs is as good as none.
func TestOffloadLease(t *testing.T) {
	e := newEdge(t, AttachAuto)
	conn := e.open(e.flows()[0])
	e.carried(conn)
	e.a.offload.mu.Lock()
	<-time.After(offloadLease + 100*time.Millisecond)
	count := func() (n uint64) {
		for _, which := range []uplinkOffloadStat{uplinkOffloadStatOFFLOAD_IN, uplinkOffloadStatOFFLOAD_OUT} {
			var perCPU []uint64
			if err := e.a.offload.objs.Stats.Lookup(uint32(which), &perCPU); err != nil {
				t.Error(err)
			}
			for _, c := range perCPU {
				n += c
			}
		}
		return n
	}
	before := count()
	var err error
	for range 100 {
		if err = oneByte(conn); err != nil {
			break
		}
	}
	after := count()
	e.a.offload.mu.Unlock()
	if err != nil || after != before {
		t.Errorf("%d packets were carried, %v", after-before, err)
	}
	e.carried(conn)
}

// TestOffloadKeepsTrack: conntrack's entry stays, however long a flow is carried.
func TestOffloadKeepsTrack(t *testing.T) {
	e := newEdge(t, AttachAuto)
	e.host.Sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", "3")
	e.host.Sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", "3")
	for _, f := range []edgeFlow{e.flows()[0], e.flows()[7]} {
		conn := e.open(f)
		e.carried(conn)
		end := time.Now().Add(7 * time.Second)
		e.until(f.name, conn, func() bool { return time.Now().After(end) })
		if got := e.host.Run(t, "conntrack", "-L", "-p", f.network, "-f", family(f.ask.Addr())); !strings.Contains(got, "ASSURED") {
			t.Errorf("%s: no entry: %s", f.name, got)
		}
		conn.Close()
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "ipv4"
	}
	return "ipv6"
}

// TestOffloadObeysConntrack: a connection whose entry is deleted is over within the time
// for which a flow may be carried unseen, as without the offload it is at once.
func TestOffloadObeysConntrack(t *testing.T) {
	e := newEdge(t, AttachAuto)
	e.nft("table inet new {\n chain f {\n type filter hook forward priority 10;\n ct state new meta l4proto udp ct mark 7 drop\n }\n}\n")
	d := e.drip(e.flows()[5])
	d.flowing()
	e.host.Run(t, "nft", "flush", "chain", "inet", "edge", "in") // no new one is translated
	d.flowing()
	e.host.Run(t, "conntrack", "-D", "-p", "udp")
	<-time.After(1200 * time.Millisecond)
	d.cut("conntrack -D")
}

// TestOffloadShortConnections leave nothing and trouble nobody.
func TestOffloadShortConnections(t *testing.T) {
	e := newEdge(t, AttachAuto)
	for _, f := range []edgeFlow{e.flows()[0], e.flows()[1]} {
		f.at.TCPEcho(f.listen)
		for i := range 1000 {
			conn, err := f.from.DialContext(t.Context(), "tcp", f.ask.String())
			if err != nil {
				t.Fatal(err)
			}
			if err := oneByte(conn); err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 { // a reset
				_ = conn.(*net.TCPConn).SetLinger(0)
			}
			conn.Close()
		}
	}
	if s := e.state(); s.Entries != 0 || s.Stats.Asked != 0 {
		t.Errorf("%+v", s)
	}
	if got := e.invalid(); got != "" {
		t.Error(got)
	}
}

// TestOffloadResets: a reset of a connection that was carried reaches the other end.
func TestOffloadResets(t *testing.T) {
	e := newEdge(t, AttachAuto)
	for _, f := range e.flows()[:2] {
		l, err := f.at.Listen("tcp", f.listen.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		for _, byServer := range []bool{false, true} {
			client, err := f.from.DialContext(t.Context(), "tcp", f.ask.String())
			if err != nil {
				t.Fatal(err)
			}
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				buf := make([]byte, 1<<16)
				for {
					n, err := server.Read(buf)
					if err != nil {
						return
					}
					_, _ = server.Write(buf[:n])
				}
			}()
			e.carried(client)
			if err := exchange(client, 16<<20); err != nil { // past what conntrack knows of the window
				t.Fatal(err)
			}
			first, second := client, server
			if byServer {
				first, second = server, client
			}
			_ = first.(*net.TCPConn).SetLinger(0)
			first.Close()
			_ = second.SetReadDeadline(time.Now().Add(3 * time.Second))
			th.Eventually(t, 3*time.Second, func() error {
				_, err := second.Write([]byte("x"))
				if err == nil {
					return fmt.Errorf("%s: the other end knows nothing of the reset", f.name)
				}
				return nil
			})
			second.Close()
		}
	}
	if got := e.invalid(); got != "" {
		t.Error(got)
	}
}

// TestOffloadFollowsNeighbours: the router's MAC changes, and flows go to the new one.
func TestOffloadFollowsNeighbours(t *testing.T) {
	e := newEdge(t, AttachAuto)
	for _, f := range e.flows()[:4] {
		conn := e.open(f)
		e.carried(conn)
		mac := fmt.Sprintf("02:00:00:00:99:%02x", time.Now().Nanosecond()%250)
		e.lan.Run(t, "ip", "link", "set", "eth0", "address", mac)
		e.host.Run(t, "ip", "neigh", "flush", "dev", "eth0")
		e.carried(conn)
		conn.Close()
	}
}

// TestOffloadFits: what is too large for the way on is left to the stack, which says so. Both ends of the wire carry less at once: a veth
// loses what its peer sends beyond its MTU, and a lone full segment of the echo then never arrives.
func TestOffloadFits(t *testing.T) {
	e := newEdge(t, AttachAuto)
	carries := func(mtu string) {
		for _, h := range []*th.Host{e.host, e.lan} {
			h.Run(t, "ip", "link", "set", "eth0", "mtu", mtu)
		}
	}
	for _, f := range e.flows()[:4] {
		if f.network != "tcp" {
			continue
		}
		conn := e.open(f)
		e.carried(conn)
		carries("1300")
		for _, n := range []int{1400, 1 << 20} { // one segment of the old size, and many in frames that are cut on the way
			if err := exchange(conn, n); err != nil {
				t.Errorf("%s, %d bytes: %v", f.name, n, err)
			}
		}
		carries("1500")
		conn.Close()
	}
}
