package vswitch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// bothWays runs a test with each way to attach.
func bothWays(t *testing.T, fn func(t *testing.T, mode AttachMode)) {
	t.Helper()
	for _, mode := range []AttachMode{AttachTCX, AttachClsact} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel() // both wait more than they work
			fn(t, mode)
		})
	}
}

// pair is a live lab with containers a and b on switch 1 and c on switch 2.
type pair struct {
	*lab
	a, b, c          *plan.Port
	hostA, hostB     *th.Host
	hostC            *th.Host
	ma, mb, mg, mAll th.MAC
}

func newPair(t *testing.T, mode AttachMode) *pair {
	t.Helper()
	return newPairIn(newLab(t, mode))
}

func newPairIn(l *lab) *pair {
	l.t.Helper()
	l.nat(1)
	l.nat(2)
	p := &pair{lab: l, a: l.container(1, 10), b: l.container(1, 11), c: l.container(2, 10)}
	l.live()
	p.hostA, p.hostB, p.hostC = l.ns[p.a.ID], l.ns[p.b.ID], l.ns[p.c.ID]
	p.ma, p.mb, p.mg, p.mAll = hw(p.a.MAC), hw(p.b.MAC), hw(l.plan.Ports[plan.HostPortID(network(1))].MAC), th.Broadcast()
	return p
}

func (p *pair) ping(from *th.Host, to netip.Addr) {
	p.t.Helper()
	if err := from.Ping(to); err != nil {
		drops, _ := p.lab.a.Drops()
		p.t.Errorf("%v; drops: %v", err, drops)
	}
}

func (p *pair) drops(id plan.PortID, r Reason) uint64 {
	p.t.Helper()
	all, err := p.lab.a.Drops()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, d := range all {
		if d.Port == id && d.Reason == r {
			return d.Packets
		}
	}
	return 0
}

func TestReachability(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		if p.lab.a.Mode() != mode {
			t.Errorf("mode is %s, want %s", p.lab.a.Mode(), mode)
		}
		for i := range 2 {
			p.ping(p.hostA, p.b.Addrs[i])
			p.ping(p.hostB, p.a.Addrs[i])
			p.ping(p.host, p.a.Addrs[i])
		}
		p.ping(p.hostA, gateway4(1))
		p.ping(p.hostA, gateway6(1))
		// The host routes between its switches only where it is told to; here it is not.
		for i := range 2 {
			if err := p.hostA.Silent(p.c.Addrs[i]); err != nil {
				t.Error(err)
			}
		}
		c, err := p.lab.a.Counters(p.b.ID)
		if err != nil || c.RxPackets == 0 || c.RxBytes == 0 || c.TxPackets == 0 || c.TxBytes == 0 {
			t.Errorf("counters of b: %+v, %v; want all counted", c, err)
		}
	})
}

// TestResolverPort has a web-like echo on the host's gateway address and one in the
// resolver's compartment on port 53: the same address leads to either by port.
func TestResolverPort(t *testing.T) {
	p := newPair(t, AttachAuto)
	resolver := p.ns[plan.ResolverPortID(network(1))]
	for _, gw := range []netip.Addr{gateway4(1), gateway6(1)} {
		resolver.UDPEcho(netip.AddrPortFrom(gw, 53))
		resolver.TCPEcho(netip.AddrPortFrom(gw, 53))
		p.host.UDPEcho(netip.AddrPortFrom(gw, 54))
		for _, port := range []uint16{53, 54} {
			if _, err := p.hostA.UDPAsk(netip.AddrPortFrom(gw, port), "who"); err != nil {
				t.Errorf("UDP port %d of %s: %v", port, gw, err)
			}
		}
		if err := echo(p.hostA, netip.AddrPortFrom(gw, 53), 1000); err != nil {
			t.Errorf("TCP port 53 of %s: %v", gw, err)
		}
	}
	// Port 53 on the host itself stays free, and what listens there is not reached.
	p.host.UDPEcho(netip.AddrPortFrom(gateway4(2), 53))
	if got, err := p.hostC.UDPAsk(netip.AddrPortFrom(gateway4(2), 53), "who"); err == nil {
		t.Errorf("the host's own port 53 answered %q to a container", got)
	}
}

// echo sends n bytes through a TCP echo server and compares what returns.
func echo(from *th.Host, to netip.AddrPort, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	return exchange(conn, n)
}

func exchange(conn net.Conn, n int) error {
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make([]byte, n)
	_, _ = rand.Read(sent)
	done := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		done <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(conn, got); err != nil {
		return errors.Join(fmt.Errorf("read the echo: %w", err), conn.Close(), <-done)
	}
	if string(got) != string(sent) {
		return errors.New("the echo differs")
	}
	return <-done
}

// TestStream sends enough for segmentation offload to build its largest packets, also
// past a frame's usual size.
func TestStream(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		for i := range 2 {
			to := p.hostB.TCPEcho(netip.AddrPortFrom(p.b.Addrs[i], 7))
			if err := echo(p.hostA, to, 32<<20); err != nil {
				t.Errorf("a to b: %v", err)
			}
			if err := echo(p.host, to, 32<<20); err != nil {
				t.Errorf("host to b: %v", err)
			}
		}
		// Most frames of such a stream are far larger than the MTU.
		c, err := p.lab.a.Counters(p.b.ID)
		if err != nil || c.RxPackets == 0 || c.RxBytes/c.RxPackets < 3000 {
			t.Errorf("counters of b: %+v, %v; want the mean received frame beyond 3000 bytes", c, err)
		}
	})
}

func TestBroadcastReach(t *testing.T) {
	p := newPair(t, AttachAuto)
	marker := "to everybody here"
	atB, atHost := p.hostB.Capture("eth0", "udp"), p.host.Capture(p.plan.Switches[network(1)].HostDevice, "udp")
	atC := p.hostC.Capture("eth0", "udp")
	atA := p.hostA.Capture("eth0", "udp")
	p.hostA.SendFrame("eth0", th.Frame(eth(p.ma, p.mAll), v4(p.a.Addrs[0], addr("255.255.255.255")), udp(9, 9), th.Text(marker)))
	for _, c := range []*th.Capture{atB, atHost} {
		if f := c.Wait("udp"); !strings.Contains(string(f.Data), marker) {
			t.Errorf("got %s", th.Describe(f.Data))
		}
	}
	if got := atC.Stop(); len(got) != 0 {
		t.Errorf("switch 2 got %d frames of switch 1", len(got))
	}
	for _, f := range atA.Stop() {
		if !f.Outgoing {
			t.Error("the sender got its own broadcast")
		}
	}
	if n := len(atB.Stop()); n != 1 {
		t.Errorf("b got %d copies, want 1", n)
	}
}

// TestSpoofedFramesLive sends some of what the table tests try through the real path, and
// frames that BPF_PROG_TEST_RUN would not take.
func TestSpoofedFramesLive(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		a4, a6, b4, b6 := p.a.Addrs[0], p.a.Addrs[1], p.b.Addrs[0], p.b.Addrs[1]
		heard := p.hostB.Capture("eth0", "")
		honest := th.Frame(eth(p.ma, p.mb), v4(a4, b4), udp(7777, 7777))
		cases := []struct {
			name  string
			want  Reason
			frame []byte
		}{
			{"MAC of the gateway", ReasonSourceMAC, th.Frame(eth(p.mg, p.mb), v4(a4, b4), udp(6666, 1))},
			{"IPv4 of the gateway", ReasonSourceAddress, th.Frame(eth(p.ma, p.mb), v4(gateway4(1), b4), udp(6666, 1))},
			{"IPv6 of the gateway", ReasonSourceAddress, th.Frame(eth(p.ma, p.mb), v6(gateway6(1), b6), udp(6666, 1))},
			{"ARP for the gateway", ReasonARPSpoof, th.Frame(eth(p.ma, p.mb), th.ARP{Reply: true, SenderMAC: p.ma, SenderIP: gateway4(1), TargetMAC: p.mb, TargetIP: b4})},
			{"ND for the gateway", ReasonNDSpoof, th.Frame(eth(p.ma, p.mb), v6(a6, b6), th.NA{Target: gateway6(1), TargetMAC: p.ma, Override: true})},
			{"tagged", ReasonVLAN, th.Frame(eth(p.ma, p.mb), th.VLAN{ID: 1}, v4(a4, b4), udp(6666, 1))},
			{"tagged twice", ReasonVLAN, th.Frame(th.Ethernet{Src: p.ma, Dst: p.mb, Type: 0x88a8}, th.VLAN{ID: 1}, th.VLAN{ID: 2}, v4(a4, b4), udp(6666, 1))},
			{"IPv4 header cut", ReasonMalformed, honest[:30]},
			{"IPv6 header cut", ReasonMalformed, th.Frame(eth(p.ma, p.mb), v6(a6, b6), udp(6666, 1))[:44]},
			{"Ethernet header alone", ReasonMalformed, honest[:14]},
			{"unknown MAC", ReasonUnknownMAC, th.Frame(eth(p.ma, th.ParseMAC("02:00:00:00:00:99")), v4(a4, addr("10.1.0.77")), udp(6666, 1))},
		}
		for _, c := range cases {
			before := p.drops(p.a.ID, c.want)
			p.hostA.SendFrame("eth0", c.frame)
			th.Eventually(t, 2*time.Second, func() error {
				if n := p.drops(p.a.ID, c.want); n == before {
					return fmt.Errorf("%s: no drop with reason %s", c.name, c.want)
				}
				return nil
			})
		}
		p.hostA.SendFrame("eth0", honest)
		heard.Wait("udp")
		for _, f := range heard.Stop() {
			if s := th.Describe(f.Data); !f.Outgoing && (strings.Contains(s, "6666") || strings.Contains(s, gateway4(1).String()+" is-at")) {
				t.Errorf("b received %s", s)
			}
		}
		if c, err := p.lab.a.Counters(p.a.ID); err != nil || c.TxDropped < uint64(len(cases)) {
			t.Errorf("counters of a: %+v, %v; want at least %d dropped", c, err, len(cases))
		}
	})
}

// TestFailClosed takes the program away: nothing may pass then, not even to the host.
func TestFailClosed(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		p := newPair(t, mode)
		p.ping(p.hostA, p.b.Addrs[0])
		p.in(func() error { return p.lab.a.att.detach(p.lab.a.hooksOf(p.a.Kind, p.a.Device)[0]) })
		th.Eventually(t, 2*time.Second, func() error {
			var ok bool
			p.in(func() (err error) {
				ok, err = p.lab.a.att.attached([]spot{{p.lab.a.hooksOf(p.a.Kind, p.a.Device)[0], p.lab.a.applied[p.a.ID].index}})
				return err
			})
			if ok {
				return errors.New("still attached")
			}
			return nil
		})
		conn, err := p.host.ListenPacket("udp", ":9999")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, to := range append(p.b.Addrs, gateway4(1), gateway6(1)) {
			if err := p.hostA.Silent(to); err != nil {
				t.Error(err)
			}
		}
		// Frames that the host's stack takes for its own when the port's device hears them.
		device := p.host.MAC(p.a.Device)
		for _, dst := range []th.MAC{p.mg, p.mAll, device} {
			p.hostA.SendFrame("eth0", th.Frame(eth(p.ma, dst), v4(p.a.Addrs[0], gateway4(1)), udp(1, 9999), th.Text("in")))
			p.hostA.SendFrame("eth0", th.Frame(eth(p.ma, dst), v6(p.a.Addrs[1], gateway6(1)), udp(1, 9999), th.Text("in")))
		}
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		if n, from, err := conn.ReadFrom(make([]byte, 100)); err == nil {
			t.Errorf("the host received %d bytes from %s past the switch", n, from)
		}
		drift := p.sync()
		if len(drift) != 1 || drift[0].ID != string(p.a.ID) || drift[0].Found != "program detached" {
			t.Errorf("drift %v, want the detached program of a", drift)
		}
		p.ping(p.hostA, p.b.Addrs[0])
	})
}

// TestRestart starts a second applier over the pins of the first while a connection runs
// that only its flow lets pass, under rules, sets of addresses, and lists that have been
// changed to and fro.
func TestRestart(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		w := newWire(t, mode)
		w.sets(map[string][]netip.Prefix{"bad": {netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, "none": nil})
		out := list(plan.Allow, plan.Rule{Action: plan.Block, Remote: plan.Addresses{Sets: []string{"bad", "none"}}}, to(plan.Block, unix.IPPROTO_UDP, 9))
		w.rulesA(out, list(plan.Block))
		w.rulesA(nil, list(plan.Block))
		w.rulesA(out, list(plan.Block))
		server := w.hostB.TCPEcho(netip.AddrPortFrom(w.b.Addrs[0], 7))
		conn, err := w.hostA.DialContext(context.Background(), "tcp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := exchange(conn, 1<<16); err != nil {
			t.Fatal(err)
		}
		w.play(t, 1, handshake(1000, 80))
		before := w.flowTable()
		w.in(w.lab.a.Close)
		if err := exchange(conn, 1<<16); err != nil {
			t.Fatalf("without a daemon: %v", err)
		}
		w.open()
		if drift := w.sync(); len(drift) != 0 {
			t.Errorf("drift after a restart: %v", drift)
		}
		if n := w.lab.a.Writes(); n != 0 {
			t.Errorf("a restart wrote %d times to the kernel, want 0", n)
		}
		if err := exchange(conn, 1<<16); err != nil {
			t.Errorf("after the restart: %v", err)
		}
		w.play(t, 1, []step{{"data back", true, tcp(80, 1000, "PA"), delivery}})
		after := w.flowTable()
		for k, f := range before {
			if g, ok := after[k]; k.Proto == unix.IPPROTO_TCP && (!ok || g.Opened != f.Opened || g.Generation != f.Generation) {
				t.Errorf("the flow was %+v and is %+v", f, g)
			}
		}
	})
}

// TestUpgrade has another program attached, as an older version leaves it: it is replaced
// by a link update, and the pins of its maps go.
func TestUpgrade(t *testing.T) {
	p := newPair(t, AttachTCX)
	index := p.lab.a.applied[p.a.ID].index
	p.in(func() error {
		old, err := loadBpf()
		if err != nil {
			return err
		}
		for _, m := range old.Maps {
			m.Pinning = ebpf.PinNone
		}
		var objs bpfObjects
		if err := old.LoadAndAssign(&objs, nil); err != nil {
			return err
		}
		defer objs.Close()
		if err := objs.BhPortsV3.Pin(p.lab.a.pins.mapFile("bh_ports_v0")); err != nil {
			return err
		}
		l, err := link.LoadPinnedLink(p.lab.a.pins.link(p.a.Device), nil)
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Update(objs.BhFromPort)
	})
	if err := p.hostA.Silent(p.b.Addrs[0]); err != nil {
		t.Fatal(err) // the other program's maps are empty
	}
	if drift := p.sync(); len(drift) != 1 || drift[0].Found != "another program" {
		t.Errorf("drift %v, want the other program", drift)
	}
	p.ping(p.hostA, p.b.Addrs[0])
	p.in(func() error {
		res, err := link.QueryPrograms(link.QueryOptions{Target: int(index), Attach: ebpf.AttachTCXIngress})
		if err == nil && len(res.Programs) != 1 {
			err = fmt.Errorf("%d programs on the port, want 1", len(res.Programs))
		}
		if exists(p.lab.a.pins.mapFile("bh_ports_v0")) {
			err = errors.Join(err, errors.New("the old version's map is still pinned"))
		}
		return err
	})
}

func TestIncompatiblePin(t *testing.T) {
	l := newLab(t, AttachAuto)
	l.in(func() error {
		if err := l.a.Close(); err != nil {
			return err
		}
		if err := remove(l.a.pins.mapFile(bpfMapBhPortsV3)); err != nil {
			return err
		}
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 1})
		if err != nil {
			return err
		}
		defer m.Close()
		if err := m.Pin(l.a.pins.mapFile(bpfMapBhPortsV3)); err != nil {
			return err
		}
		_, err = New(Options{most: l.most})
		if err == nil {
			return errors.New("a map of another shape was taken")
		}
		if !errors.Is(err, ebpf.ErrMapIncompatible) || !strings.Contains(err.Error(), "bulkhead reset") {
			return fmt.Errorf("got %w, want an incompatible map and what to do", err)
		}
		if err := Reset(context.Background(), ""); err != nil {
			return err
		}
		l.a, err = New(Options{most: l.most})
		return err
	})
}

func TestDropEvents(t *testing.T) {
	p := newPair(t, AttachAuto)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events, err := p.lab.a.Events(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.lab.a.Events(ctx); !errors.Is(err, ErrEventsTaken) {
		t.Errorf("second reader: %v, want %v", err, ErrEventsTaken)
	}
	for range 1000 {
		p.hostA.SendFrame("eth0", th.Frame(eth(p.ma, p.mg), v6(p.b.Addrs[1], gateway6(1)), udp(4242, 80)))
	}
	deadline := time.After(2 * time.Second)
	got := 0
	for got == 0 {
		select {
		case d := <-events:
			if d.Reason != ReasonSourceAddress {
				continue
			}
			got++
			if d.Port != p.a.ID || d.Switch != 1 || d.Src != p.b.Addrs[1] || d.Dst != gateway6(1) || d.SPort != 4242 ||
				d.DPort != 80 || d.Protocol != unix.IPPROTO_UDP || d.SrcMAC != p.a.MAC || d.EtherType != 0x86dd {
				t.Errorf("event %+v", d)
			}
		case <-deadline:
			t.Fatal("no event")
		}
	}
	if n := p.drops(p.a.ID, ReasonSourceAddress); n != 1000 {
		t.Errorf("counted %d drops, want 1000", n)
	}
	cancel()
	for range events { // ends when the channel closes
		got++
	}
	if got > 500 {
		t.Errorf("%d events for 1000 drops: not sampled", got)
	}
}
