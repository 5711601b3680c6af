package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// vips are a service's addresses, by family.
var vips = [2]netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")}

// balanced is a live switch with a client and three back ends, each of which says its number.
type balanced struct {
	*lab
	client *plan.Port
	ends   []*plan.Port
}

func newBalanced(t *testing.T, mode AttachMode) *balanced {
	t.Helper()
	b := &balanced{lab: newLab(t, mode)}
	b.nat(1)
	b.client = b.container(1, 10)
	for i := range 3 {
		b.ends = append(b.ends, b.container(1, 11+i))
	}
	b.live()
	for i, e := range b.ends {
		for _, a := range e.Addrs[:2] {
			b.says(b.ns[e.ID], netip.AddrPortFrom(a, 8080), strconv.Itoa(i))
		}
	}
	return b
}

// says has a host answer each line over TCP, and each datagram, with a word.
func (b *balanced) says(h *th.Host, at netip.AddrPort, word string) {
	b.t.Helper()
	l, err := h.Listen("tcp", at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	u, err := h.ListenPacket("udp", at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close(); u.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					fmt.Fprintf(c, "%s %s\n", word, c.RemoteAddr())
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			answer := []byte(fmt.Sprintf("%s %s", word, from))
			for len(answer) < n { // as long as the question
				answer = append(answer, '.')
			}
			if _, err := u.WriteTo(answer, from); err != nil {
				return
			}
		}
	}()
}

// serve makes the service of the load balancer with a number what the back ends are.
func (b *balanced) serve(number int, change func(*plan.Service), ends ...*plan.Port) {
	b.t.Helper()
	id := hcn.GUID(fmt.Sprintf("lb-%d", number))
	next := &plan.Balancer{ID: id, Network: network(1), Switch: 1}
	for family, vip := range vips {
		for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			s := plan.Service{Protocol: proto, VIP: vip, Port: uint16(80 + number), Self: vip}
			for _, e := range ends {
				s.Backends = append(s.Backends, netip.AddrPortFrom(e.Addrs[family], 8080))
			}
			if change != nil {
				change(&s)
			}
			next.Services = append(next.Services, s)
		}
	}
	if b.plan.Balancers == nil {
		b.plan.Balancers = map[hcn.GUID]*plan.Balancer{}
	}
	old := b.plan.Balancers[id]
	b.plan.Balancers[id] = next
	b.update(&plan.Delta{Balancers: map[hcn.GUID]plan.Change[plan.Balancer]{id: {Old: old, New: next}}})
}

func (b *balanced) dial(h *th.Host, protocol string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := h.DialContext(ctx, protocol, to.String())
	if err == nil {
		err = c.SetDeadline(time.Now().Add(5 * time.Second))
	}
	return c, err
}

// whoIs sends a word and gives what the back end says: its number, and whom it sees.
func whoIs(c net.Conn) (end, sees string, err error) {
	if _, err := c.Write([]byte("who")); err != nil {
		return "", "", err
	}
	buf := make([]byte, 256)
	n, err := c.Read(buf)
	if err != nil {
		return "", "", err
	}
	end, sees, _ = strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	return end, sees, nil
}

// once asks over a connection of its own.
func (b *balanced) once(h *th.Host, protocol string, to netip.AddrPort) (end, sees string, err error) {
	c, err := b.dial(h, protocol, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return whoIs(c)
}

func each(t *testing.T, fn func(protocol string, family int, vip netip.Addr)) {
	t.Helper()
	for _, protocol := range []string{"tcp", "udp"} {
		for family, vip := range vips {
			fn(protocol, family, vip)
		}
	}
}

func TestBalance(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		b := newBalanced(t, mode)
		client := b.ns[b.client.ID]
		b.serve(0, nil, b.ends...)
		// Connections are spread, and the back end sees who the client is.
		each(t, func(protocol string, family int, vip netip.Addr) {
			seen := map[string]int{}
			for range 30 {
				end, sees, err := b.once(client, protocol, netip.AddrPortFrom(vip, 80))
				if err != nil {
					drops, _ := b.a.Drops()
					t.Fatalf("%s to %s: %v; drops: %v", protocol, vip, err, drops)
				}
				seen[end]++
				if from := netip.MustParseAddrPort(sees); from.Addr() != b.client.Addrs[family] {
					t.Errorf("%s to %s: the back end sees %s", protocol, vip, from)
				}
			}
			if len(seen) != 3 {
				t.Errorf("%s to %s: 30 connections went to %v", protocol, vip, seen)
			}
		})
		// Segments of all sizes pass, in both directions.
		b.serve(1, func(s *plan.Service) {
			for i := range s.Backends {
				s.Backends[i] = netip.AddrPortFrom(s.Backends[i].Addr(), 9000)
			}
		}, b.ends[0])
		for family, vip := range vips {
			b.ns[b.ends[0].ID].TCPEcho(netip.AddrPortFrom(b.ends[0].Addrs[family], 9000))
			if err := echo(client, netip.AddrPortFrom(vip, 81), 1<<20); err != nil {
				t.Errorf("a megabyte by %s: %v", vip, err)
			}
		}
	})
}

func TestBalanceAffinity(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	client := b.ns[b.client.ID]
	b.serve(0, func(s *plan.Service) { s.Spread = plan.SpreadSource }, b.ends...)
	each(t, func(protocol string, family int, vip netip.Addr) {
		first := ""
		for range 12 {
			end, _, err := b.once(client, protocol, netip.AddrPortFrom(vip, 80))
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = end
			}
			if end != first {
				t.Errorf("%s to %s: one client is at %s and at %s", protocol, vip, first, end)
			}
		}
	})
}

// TestBalanceChanges changes the back ends under running connections.
func TestBalanceChanges(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		b := newBalanced(t, mode)
		client := b.ns[b.client.ID]
		b.serve(0, nil, b.ends...)
		type running struct {
			net.Conn
			end, title string
			tcp        bool
		}
		var all []running
		each(t, func(protocol string, family int, vip netip.Addr) {
			for range 12 {
				c, err := b.dial(client, protocol, netip.AddrPortFrom(vip, 80))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				end, _, err := whoIs(c)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, running{c, end, protocol + " to " + vip.String(), protocol == "tcp"})
			}
		})
		check := func(what string, gone string) {
			t.Helper()
			for _, r := range all {
				if err := r.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
					t.Error(err)
				}
				end, _, err := whoIs(r)
				switch {
				case r.end != gone && (err != nil || end != r.end):
					t.Errorf("%s: %s was at %s and is at %q: %v", what, r.title, r.end, end, err)
				case r.end == gone && r.tcp && !errors.Is(err, unix.ECONNRESET):
					t.Errorf("%s: %s was at %s, which is none any more: %q, %v, want a reset", what, r.title, r.end, end, err)
				case r.end == gone && !r.tcp && (err != nil || end == gone):
					t.Errorf("%s: %s was at %s, which is none any more: %q, %v, want another", what, r.title, r.end, end, err)
				}
			}
		}
		check("before", "none")
		b.serve(0, nil, b.ends[0], b.ends[1])
		check("one is gone", "2")
		// A restarted daemon writes nothing and cuts nothing.
		if err := b.a.Close(); err != nil {
			t.Fatal(err)
		}
		b.open()
		b.sync()
		if n := b.a.Writes(); n != 0 {
			t.Errorf("a restart wrote %d times", n)
		}
		// None is left: who asks is told at once, and not by a time-out.
		b.serve(0, nil)
		each(t, func(protocol string, family int, vip netip.Addr) {
			begin := time.Now()
			if _, _, err := b.once(client, protocol, netip.AddrPortFrom(vip, 80)); !errors.Is(err, unix.ECONNREFUSED) || time.Since(begin) > 3*time.Second {
				t.Errorf("%s to %s without a back end: %v after %s, want refused", protocol, vip, err, time.Since(begin))
			}
		})
		if b.drops(b.client.ID, ReasonNoBackend) == 0 {
			t.Error("nothing counts what was refused")
		}
		b.serve(0, nil, b.ends[2])
		each(t, func(protocol string, family int, vip netip.Addr) {
			if end, _, err := b.once(client, protocol, netip.AddrPortFrom(vip, 80)); err != nil || end != "2" {
				t.Errorf("%s to %s: %q, %v", protocol, vip, end, err)
			}
		})
	})
}

func (b *balanced) drops(id plan.PortID, r Reason) (n uint64) {
	b.t.Helper()
	all, err := b.a.Drops()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, d := range all {
		if d.Port == id && d.Reason == r {
			n += d.Packets
		}
	}
	return n
}

// TestBalanceHairpin has back ends ask their own service, also with rules that let nobody in.
func TestBalanceHairpin(t *testing.T) {
	bothWays(t, func(t *testing.T, mode AttachMode) {
		b := newBalanced(t, mode)
		end := b.ends[0]
		b.serve(0, nil, end)
		for _, rules := range []*plan.RuleList{nil, list(plan.Block)} {
			end = b.replace(end, func(p *plan.Port) { p.Policy.In = rules })
			each(t, func(protocol string, family int, vip netip.Addr) {
				c, err := b.dial(b.ns[end.ID], protocol, netip.AddrPortFrom(vip, 80))
				if err != nil {
					t.Fatalf("%s to %s: %v", protocol, vip, err)
				}
				defer c.Close()
				for range 3 {
					got, sees, err := whoIs(c)
					if err != nil || got != "0" {
						t.Fatalf("%s to %s: %q, %v", protocol, vip, got, err)
					}
					if from := netip.MustParseAddrPort(sees); from.Addr() != vip {
						t.Errorf("%s to %s: it sees itself as %s", protocol, vip, from)
					}
					// With its next packet it is judged anew.
					b.in(b.a.raiseGeneration)
				}
			})
		}
	})
}

// TestBalanceKeep delivers packets as they are, in fragments as well, and what errors say of them.
func TestBalanceKeep(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.haveVIPs()
	for i, e := range b.ends {
		for _, vip := range vips {
			b.says(b.ns[e.ID], netip.AddrPortFrom(vip, 80), strconv.Itoa(i))
		}
	}
	b.serve(0, b.keeps, b.ends...)
	client := b.ns[b.client.ID]
	each(t, func(protocol string, family int, vip netip.Addr) {
		seen := map[string]int{}
		for range 20 {
			c, err := b.dial(client, protocol, netip.AddrPortFrom(vip, 80))
			if err != nil {
				t.Fatalf("%s to %s: %v", protocol, vip, err)
			}
			first := ""
			for range 3 {
				end, _, err := whoIs(c)
				if err != nil {
					t.Fatalf("%s to %s: %v", protocol, vip, err)
				}
				if first == "" {
					first = end
				}
				if end != first {
					t.Errorf("%s to %s: a connection went from %s to %s", protocol, vip, first, end)
				}
				b.in(b.a.raiseGeneration)
			}
			seen[first]++
			c.Close()
		}
		if len(seen) != 3 {
			t.Errorf("%s to %s: 20 connections went to %v", protocol, vip, seen)
		}
	})
	b.serve(1, b.keeps, b.ends[0]) // where nobody listens
	b.serve(0, b.keeps, b.ends[0])
	for _, vip := range vips {
		b.large(client, netip.AddrPortFrom(vip, 80))
		b.refused(client, "udp", netip.AddrPortFrom(vip, 81))
		b.lateAnswers(netip.AddrPortFrom(vip, 80), netip.AddrPortFrom(vip, 80), b.ends[0])
	}
	b.lostEnd()
}

// TestBalanceFragments sends datagrams that need several packets each way.
func TestBalanceFragments(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, nil, b.ends[0])
	for _, h := range []*th.Host{b.ns[b.client.ID], b.ns[b.ends[0].ID]} { // the second one asks itself
		for _, vip := range vips {
			b.large(h, netip.AddrPortFrom(vip, 80))
		}
	}
}

// TestBalanceRules has the back end's rules see the client, and its own port.
func TestBalanceRules(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, nil, b.ends[0])
	client := b.ns[b.client.ID]
	b.ends[0] = b.replace(b.ends[0], func(p *plan.Port) {
		p.Policy.In = list(plan.Block, own(plan.Allow, unix.IPPROTO_TCP, 8080))
	})
	for _, vip := range vips {
		if _, _, err := b.once(client, "tcp", netip.AddrPortFrom(vip, 80)); err != nil {
			t.Errorf("allowed: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		c, err := client.DialContext(ctx, "udp", netip.AddrPortFrom(vip, 80).String())
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if end, _, err := whoIs(c); err == nil {
			t.Errorf("blocked, and answered by %s", end)
		}
		c.Close()
	}
	if n := b.drops(b.ends[0].ID, ReasonPolicyIn); n == 0 {
		t.Error("the drop is not the back end's")
	}
}

// TestBalanceUnreachable: a back end's refusal comes from what the client has asked, and the client's goes to the back end.
func TestBalanceUnreachable(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, func(s *plan.Service) {
		for i := range s.Backends {
			s.Backends[i] = netip.AddrPortFrom(s.Backends[i].Addr(), 7) // where nobody listens
		}
	}, b.ends[0])
	each(t, func(protocol string, family int, vip netip.Addr) {
		b.refused(b.ns[b.client.ID], protocol, netip.AddrPortFrom(vip, 80))
	})
	b.serve(1, nil, b.ends[0])
	for family, vip := range vips {
		b.lateAnswers(netip.AddrPortFrom(vip, 81), netip.AddrPortFrom(b.ends[0].Addrs[family], 8080), b.ends[0])
	}
}

func (b *balanced) refused(h *th.Host, protocol string, to netip.AddrPort) {
	b.t.Helper()
	if _, _, err := b.once(h, protocol, to); !errors.Is(err, unix.ECONNREFUSED) {
		b.t.Errorf("%s to %s: %v, want refused", protocol, to, err)
	}
}

// TestBalanceTooBig: a message about a fragment that a back end, or a router for it, got from a client is about what the client has asked.
func TestBalanceTooBig(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, nil, b.ends[0])
	client := b.ns[b.client.ID]
	for family, vip := range vips {
		c, err := b.dial(client, "udp", netip.AddrPortFrom(vip, 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, _, err := whoIs(c); err != nil {
			t.Fatal(err)
		}
		from, end, port := b.client.Addrs[family], b.ends[0].Addrs[family], netip.MustParseAddrPort(c.LocalAddr().String()).Port()
		var quoted []byte
		if family == 0 {
			quoted = th.Frame(th.IPv4{Src: from, Dst: end, ID: 7, MoreFragments: true, Protocol: unix.IPPROTO_UDP}, th.Raw(payload(true, udp(port, 8080))))
		} else {
			quoted = extend(th.Frame(eth(hw(b.client.MAC), hw(b.ends[0].MAC)), ip(from, end), udp(port, 8080)), destOptions(), fragment(0, true))[14:]
		}
		message := append([]th.Layer{eth(hw(b.ends[0].MAC), hw(b.client.MAC)), ip(end, from)}, complaint(family, tooBig, quoted)...)
		b.ns[b.ends[0].ID].SendFrame("eth0", th.Frame(message...))
		th.Eventually(t, 3*time.Second, func() error {
			if route := client.Run(t, "ip", "route", "get", vip.String()); !strings.Contains(route, "mtu 1300") {
				return fmt.Errorf("the client did not learn that its service takes 1300 bytes: %s", route)
			}
			return nil
		})
	}
}

// TestBalanceTables: tables go when nobody uses them, are mended, and are the same after a restart; services move without a gap, and
// stay when they cannot be written.
func TestBalanceTables(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	for i := range 3 {
		b.serve(i, nil, b.ends[i])
	}
	b.serve(1, nil, b.ends[0], b.ends[2])
	b.a.collecting.Wait()
	count := func() (n int) {
		for _, t := range b.a.balance.byID {
			n += len(t.backends)
		}
		return n
	}
	tables := b.a.balance.t
	if got := len(tables.backends.have); got != count() || got != len(tables.standing.have) || len(b.a.balance.garbage) > 0 {
		t.Errorf("%d back ends and %d standing in the maps, want %d", got, len(tables.standing.have), count())
	}
	var lost bpfVipKey
	for k := range tables.vips.have {
		lost = k
	}
	if err := b.a.objs.BhVipsV2.Delete(&lost); err != nil {
		t.Fatal(err)
	}
	stranger := bpfVipKey{Sw: 9, Port: 1}
	if err := b.a.objs.BhVipsV2.Put(&stranger, &bpfVip{}); err != nil {
		t.Fatal(err)
	}
	if drift := b.sync(); len(drift) == 0 {
		t.Error("a changed map is no drift")
	}
	var v bpfVip
	if err := b.a.objs.BhVipsV2.Lookup(&lost, &v); err != nil {
		t.Errorf("what was lost is not there again: %v", err)
	}
	if err := b.a.objs.BhVipsV2.Lookup(&stranger, &v); err == nil {
		t.Error("what nobody asked for stays")
	}
	before := b.a.Writes()
	if b.sync(); b.a.Writes() != before {
		t.Error("a second Sync writes")
	}
	b.moves()
	b.failedWrites()
}

// TestBalanceChoicesEnd: connections end with what was noted for them.
func TestBalanceChoicesEnd(t *testing.T) {
	b := newBalanced(t, AttachAuto)
	b.serve(0, nil, b.ends...)
	client := b.ns[b.client.ID]
	for range 20 {
		for _, vip := range vips {
			c, err := b.dial(client, "tcp", netip.AddrPortFrom(vip, 80))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := whoIs(c); err != nil {
				t.Fatal(err)
			}
			c.Close()
		}
	}
	if len(b.choices()) == 0 {
		t.Error("nothing is noted")
	}
	th.Eventually(t, 10*time.Second, func() error {
		if n := len(b.choices()); n > 0 {
			return fmt.Errorf("%d choices are left", n)
		}
		return nil
	})
}
