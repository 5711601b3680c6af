package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestForeignAnswers: a flow spares its packets the source guard, so none may come to be
// under an address that its port does not have.
func TestForeignAnswers(t *testing.T) {
	w := newWire(t, AttachAuto)
	foreign := [2]netip.Addr{addr("10.1.9.9"), addr("fd00:1::9:9")}
	families(t, func(t *testing.T, family int) {
		f := foreign[family]
		question := th.Frame(eth(w.ma, w.mb), ip(w.ga[family], f), udp(1000, 53))
		if got := w.send(w.a, w.b, question); got != delivery {
			t.Fatalf("a's question by b's MAC: %s", got)
		}
		answer := th.Frame(eth(w.mb, w.ma), ip(f, w.ga[family]), udp(53, 1000))
		if got := w.send(w.b, w.a, answer); got != "source-address" {
			t.Errorf("b's answer under a foreign address: %s", got)
		}
		if n := len(w.flowsOf(w.ga[family], f)); n != 0 {
			t.Errorf("%d flows to an address that nobody has", n)
		}
		// An address that b loses takes its flows along.
		w.play(t, family, []step{
			{"question", false, datagram(1001, 53), delivery},
			{"answer", true, datagram(53, 1001), delivery},
		})
		had := w.b
		w.b = w.replace(w.b, func(p *plan.Port) { p.Addrs = p.Addrs[:2:2] })
		w.play(t, family, []step{
			{"answer under the lost address", true, datagram(53, 1001), "source-address"},
			{"another question by b's MAC", false, datagram(1001, 53), delivery},
			{"answer after that", true, datagram(53, 1001), "source-address"},
		})
		w.b = w.replace(w.b, func(p *plan.Port) { p.Addrs = had.Addrs })
		w.play(t, family, []step{{"answer, the address being b's again", true, datagram(53, 1001), delivery}})
	})
}

// TestAddressMoves gives an address of b, with b's MAC or its own, to a third container.
func TestAddressMoves(t *testing.T) {
	w := newWire(t, AttachAuto)
	d := w.container(1, 12)
	delete(w.plan.Ports, d.ID)
	w.devices(d)
	w.plan.Ports[d.ID] = d
	w.update(change(nil, d))
	w.up(d)
	w.heard[d.ID] = w.ns[d.ID].Capture("eth0", "")
	w.rulesA(nil, list(plan.Block))
	families(t, func(t *testing.T, family int) {
		moved := w.gb[family]
		w.play(t, family, handshake(1000, 80))
		had := w.b
		w.b = w.replace(w.b, func(p *plan.Port) { p.Addrs = p.Addrs[:2:2] })
		d = w.replace(d, func(p *plan.Port) { p.Addrs = append(p.Addrs[:2:2], moved) })
		if got := w.send(d, w.a, th.Frame(eth(hw(d.MAC), w.ma), ip(moved, w.ga[family]), th.TCP{SrcPort: 80, DstPort: 1000, Flags: "PA"})); got != policyIn {
			t.Errorf("the new owner goes on with b's connection: %s", got)
		}
		if got := w.send(w.b, w.a, th.Frame(eth(w.mb, w.ma), ip(moved, w.ga[family]), th.TCP{SrcPort: 80, DstPort: 1000, Flags: "PA"})); got != "source-address" {
			t.Errorf("b goes on with it: %s", got)
		}
		syn := th.Frame(eth(w.ma, hw(d.MAC)), ip(w.ga[family], moved), th.TCP{SrcPort: 1000, DstPort: 80, Flags: "S"})
		if got := w.send(w.a, d, syn); got != delivery {
			t.Errorf("a's SYN to the new owner: %s", got)
		}
		if got := w.send(d, w.a, th.Frame(eth(hw(d.MAC), w.ma), ip(moved, w.ga[family]), th.TCP{SrcPort: 80, DstPort: 1000, Flags: "SA"})); got != delivery {
			t.Errorf("the new owner's answer: %s", got)
		}
		d = w.replace(d, func(p *plan.Port) { p.Addrs = p.Addrs[:2:2] })
		w.b = w.replace(w.b, func(p *plan.Port) { p.Addrs = had.Addrs })
	})
}

// TestReattach takes b away and gives its addresses and MAC to a port anew.
func TestReattach(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		w.rulesA(nil, list(plan.Block))
		for family := range 2 {
			w.play(t, family, handshake(1000, 80))
		}
		old := w.b
		delete(w.plan.Ports, old.ID)
		w.in(func() error { return w.lab.a.Cut(context.Background(), change(old, nil)) })
		for family := range 2 {
			w.play(t, family, []step{{"data to a port that is cut off", false, tcp(1000, 80, "PA"), "unknown-mac"}})
			before := w.drops("", ReasonUnknownPort)
			w.hostB.SendFrame("eth0", th.Frame(eth(w.mb, w.ma), ip(w.gb[family], w.ga[family]), th.TCP{SrcPort: 80, DstPort: 1000, Flags: "PA"}))
			th.Eventually(t, 3*time.Second, func() error {
				if w.drops("", ReasonUnknownPort) == before {
					return errors.New("what the port sends is not dropped")
				}
				return nil
			})
		}
		w.update(change(old, nil))
		if err := w.host.Netlink().LinkDel(w.host.Link(old.Device)); err != nil {
			t.Fatal(err)
		}
		next := *old
		w.b = &next
		w.b.Device = plan.DeviceName(plan.PortPrefix, w.b.ID+"-again")
		w.devices(w.b)
		w.hostB = w.ns[w.b.ID]
		w.plan.Ports[w.b.ID] = w.b
		w.update(change(nil, w.b))
		w.hostB.Up(w.b.VNIC.Device)
		w.host.Up(w.b.Device)
		w.heard[w.b.ID] = w.hostB.Capture("eth0", "")
		families(t, func(t *testing.T, family int) {
			w.play(t, family, []step{
				{"data from the new one", true, tcp(80, 1000, "PA"), policyIn},
				{"data to it", false, tcp(1000, 80, "PA"), delivery},
				{"data from it after that", true, tcp(80, 1000, "PA"), policyIn},
			})
			w.play(t, family, handshake(1000, 80))
			w.play(t, family, []step{{"data back", true, tcp(80, 1000, "PA"), delivery}})
		})
	})
}

// full opens the switch anew with room for few flows.
func (w *wire) full(n int) {
	w.t.Helper()
	w.in(func() error {
		if err := w.lab.a.Close(); err != nil {
			return err
		}
		var err error
		w.lab.a, err = New(Options{Attach: w.mode, FlowsPerPort: n, most: w.most})
		return err
	})
	w.sync()
}

// TestShareIsUsedUp: a flood of flows of one port takes its own share and nobody else's,
// what exists goes on, what needs no flow passes without one, and the share comes back.
func TestShareIsUsedUp(t *testing.T) {
	w := newWire(t, AttachAuto)
	inward := list(plan.Block)
	w.rulesA(nil, inward)
	w.full(20)
	base := int(w.share(w.a))
	w.play(t, 0, handshake(1000, 80))
	w.play(t, 1, handshake(1000, 80))
	refused := 0
	for i := range 40 {
		frame := th.Frame(eth(w.ma, w.mb), v4(w.ga[0], w.gb[0]), th.TCP{SrcPort: uint16(2000 + i), DstPort: 80, Flags: "S"})
		switch got := w.send(w.a, w.b, frame); got {
		case delivery:
		case "flow-table":
			refused++
		default:
			t.Errorf("flow %d: %s", i, got)
		}
	}
	if want := 40 - (20 - base - 2); refused != want {
		t.Errorf("%d flows refused, want %d: the share holds 20, and had %d", refused, want, base)
	}
	alive := []step{
		{"data on an old flow", false, tcp(1000, 80, "PA"), delivery},
		{"data back", true, tcp(80, 1000, "PA"), delivery},
	}
	w.play(t, 0, alive)
	w.play(t, 1, alive)
	// b's own share is free, but a lets nothing in; what b may send has room.
	w.rulesA(nil, list(plan.Block, own(plan.Allow, unix.IPPROTO_UDP, 53)))
	w.play(t, 0, []step{
		{"b asks a", true, datagram(4000, 53), delivery},
		{"a answers", false, datagram(53, 4000), delivery},
		{"a asks b", false, datagram(4001, 53), "flow-table"},
	})
	// Without a rule that would stop its answers a flow only goes uncached.
	w.rulesA(nil, nil)
	w.play(t, 0, []step{
		{"SYN", false, tcp(3000, 80, "S"), delivery},
		{"SYN-ACK", true, tcp(80, 3000, "SA"), delivery},
		{"question", false, datagram(3000, 53), delivery},
		{"answer", true, datagram(53, 3000), delivery},
	})
	w.play(t, 0, alive)
	// The flood is reset: two seconds later its places are free.
	for i := range 40 {
		w.send(w.a, w.b, th.Frame(eth(w.ma, w.mb), v4(w.ga[0], w.gb[0]), th.TCP{SrcPort: uint16(2000 + i), DstPort: 80, Flags: "R"}))
	}
	th.Eventually(t, 8*time.Second, func() error {
		if n := int(w.share(w.a)); n > base+2 {
			return fmt.Errorf("a has %d flows, want at most %d", n, base+2)
		}
		return nil
	})
	w.rulesA(nil, inward)
	w.play(t, 1, handshake(2000, 80))
	w.play(t, 0, alive)
}

// TestShortConnections: of some thousand connections none is left in the table.
func TestShortConnections(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.rulesA(nil, list(plan.Block))
	base := w.share(w.a)
	var wg sync.WaitGroup
	for worker := range 4 {
		to := w.hostB.TCPEcho(netip.AddrPortFrom(w.b.Addrs[worker%2], uint16(80+worker)))
		wg.Go(func() {
			w.hostA.Do(func() { // a literal address is dialled on this thread
				for i := range 1000 {
					if err := once(t.Context(), to, i%2 == 0); err != nil {
						t.Errorf("connection %d of worker %d: %v", i, worker, err)
						return
					}
				}
			})
		})
	}
	wg.Wait()
	th.Eventually(t, 20*time.Second, func() error {
		left := 0
		for k := range w.flowTable() {
			if k.Proto == unix.IPPROTO_TCP {
				left++
			}
		}
		if n := w.share(w.a); left != 0 || n > base+4 {
			return fmt.Errorf("%d TCP flows are left, and a's share holds %d; it held %d", left, n, base)
		}
		return nil
	})
}

// TestEveryFlowHasItsEntry: thousands that begin within milliseconds, which leaves the kernel
// no time to make room for what it allocates on a packet's path.
func TestEveryFlowHasItsEntry(t *testing.T) {
	w := newWire(t, AttachAuto)
	families(t, func(t *testing.T, family int) {
		const flows = 3000
		var conn *net.UDPConn
		var err error
		w.hostA.Do(func() {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.a.Addrs[family], 4000)))
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for port := range uint16(flows) {
			if _, err := conn.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(w.b.Addrs[family], 10_000+port)); err != nil {
				t.Fatal(err)
			}
		}
		have := 0
		for k := range w.flowTable() {
			if k.Proto == unix.IPPROTO_UDP && netip.AddrFrom16([16]byte(k.A[:])).Unmap().Is4() == (family == 0) {
				have++
			}
		}
		if have < flows {
			t.Errorf("%d of %d flows have an entry", have, flows)
		}
	})
}

// TestLastWordMakesRoom: where a port has many flows, a connection that has ended does not
// wait for the sweep.
func TestLastWordMakesRoom(t *testing.T) {
	w := newWire(t, AttachAuto)
	w.full(400)
	to := w.hostB.TCPEcho(netip.AddrPortFrom(w.b.Addrs[0], 80))
	w.hostA.Do(func() {
		for i := range 350 {
			if err := once(t.Context(), to, false); err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
		}
	})
	if n := w.share(w.a); n > 60 {
		t.Errorf("a's share holds %d flows of ended connections; with a sixty-fourth of 400 it should make room", n)
	}
}

// once connects, asks, and closes, in order or by a reset.
func once(ctx context.Context, to netip.AddrPort, reset bool) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return err
	}
	if reset {
		return conn.(*net.TCPConn).SetLinger(0)
	}
	return nil
}
