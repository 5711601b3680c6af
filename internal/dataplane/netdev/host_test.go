package netdev

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestFacts(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.WriteFile("/etc/resolv.conf", "search example\nnameserver 127.0.0.53\n")
	h.WriteFile("/run/systemd/resolve/resolv.conf", "# real ones\nnameserver 192.0.2.53\nnameserver fe80::53%up0\nnameserver bad\n")
	h.Run(t, "bash", "-c", `set -e
		ip link add up0 mtu 9000 gso_max_size 100000 type veth peer name up1; ip link add up2 type veth peer name up3
		for l in up0 up1 up2 up3; do ip link set $l up; done
		ip addr add 192.0.2.2/24 dev up0; ip addr add 203.0.113.2/25 dev up2
		ip -6 addr add 2001:db8::2/64 dev up0 nodad
		ip route add default via 203.0.113.1 dev up2 metric 200
		ip route add default via 192.0.2.1 dev up0 metric 100
		ip route add 10.66.0.0/16 via 192.0.2.1
		ip route add 10.67.0.0/16 via 192.0.2.1 table 77
		ip route add blackhole 10.68.0.0/16
		ip -6 route add fd99::/48 via 2001:db8::1`)
	apply(t, n, &plan.Plan{}, sample())
	got, err := n.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.BootID == "" {
		t.Error("no boot ID")
	}
	want := plan.Facts{
		BootID: got.BootID, Uplink: "up0", UplinkMTU: 9000,
		Segments: got.Segments, UplinkSegments: plan.Segments{IP4: got.UplinkSegments.IP4, IP6: 100_000},
		HostAddrs: prefixes("192.0.2.2/24", "203.0.113.2/25", "2001:db8::2/64"),
		Routes: prefixes("192.0.2.0/24", "203.0.113.0/25", "2001:db8::/64", "10.66.0.0/16", "10.67.0.0/16", "10.68.0.0/16", "fd99::/48",
			"192.0.2.2/32", "203.0.113.2/32", "2001:db8::2/128"),
		Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::53%up0")},
	}
	nics := []plan.NIC{
		{Name: "up0", MTU: 9000, Up: true, Addrs: prefixes("192.0.2.2/24", "2001:db8::2/64")},
		{Name: "up1", MTU: 1500, Up: true},
		{Name: "up2", MTU: 1500, Up: true, Addrs: prefixes("203.0.113.2/25")},
		{Name: "up3", MTU: 1500, Up: true},
	}
	for i, nic := range nics { // what the kernel has chosen
		if at := slices.IndexFunc(got.NICs, func(n plan.NIC) bool { return n.Name == nic.Name }); at >= 0 {
			nics[i].Index, nics[i].MAC, nics[i].Segments, nics[i].GUID = got.NICs[at].Index, got.NICs[at].MAC, got.NICs[at].Segments, got.NICs[at].GUID
			if nics[i].MAC == (plan.MAC{}) {
				t.Errorf("%s has no MAC", nic.Name)
			}
		}
	}
	want.NICs = nics
	byText := cmpopts.SortSlices(func(a, b netip.Prefix) bool { return a.String() < b.String() })
	byName := cmpopts.SortSlices(func(a, b plan.NIC) bool { return a.Name < b.Name })
	text := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff(want, got, byText, byName, text, addr); d != "" {
		t.Errorf("facts (-want +got):\n%s", d)
	}
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestFactsOfAnEmptyHost(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Run(t, "rm", "-f", "/etc/resolv.conf")
	got, err := n.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got.Uplink != "" || got.UplinkMTU != 1500 || len(got.Routes)+len(got.HostAddrs)+len(got.Resolvers) > 0 {
		t.Errorf("facts %+v", got)
	}
}

func TestReadResolvers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stub, behind, empty := filepath.Join(dir, "stub"), filepath.Join(dir, "behind"), filepath.Join(dir, "empty")
	for file, text := range map[string]string{
		stub:   "nameserver 127.0.0.53\noptions edns0\n",
		behind: "nameserver 192.0.2.53\nnameserver ::ffff:192.0.2.53\nnameserver  2001:db8::53 # second\n",
		empty:  "",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, file, behind, want string }{
		{"stub of systemd-resolved", stub, behind, "[192.0.2.53 2001:db8::53]"},
		{"stub with nothing behind it", stub, filepath.Join(dir, "missing"), "[127.0.0.53]"},
		{"no stub", behind, stub, "[192.0.2.53 2001:db8::53]"},
		{"missing", filepath.Join(dir, "missing"), behind, "[]"},
		{"empty", empty, behind, "[]"},
	} {
		got, err := readResolvers(c.file, c.behind)
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v, want %s", c.name, got, err, c.want)
		}
	}
}

// causes collects wake-ups.
type causes struct {
	mu  sync.Mutex
	all []string
}

func (c *causes) wake(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, s)
}

// take returns what came so far and forgets it.
func (c *causes) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

func TestWatch(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	h.Run(t, "bash", "-c", "ip link add up0 type veth peer name up1; ip netns add others")
	host, one := p.Ports[plan.HostPortID(network)], p.Ports[plan.EndpointPortID(guid('E', 1))]
	eth0 := "ip -n hns-" + guid('C', 1).Lower() + " "

	ctx, cancel := context.WithCancel(t.Context())
	var c causes
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- n.Watch(ctx, c.wake, func(nic string) { c.wake(nic + " moved") }, ready) }()
	<-ready

	// A mark that surely wakes tells that all earlier events have been judged.
	marks := 0
	settle := func() []string {
		t.Helper()
		marks++
		mark := fmt.Sprintf("198.51.100.%d/32", marks)
		h.Run(t, "ip", "addr", "add", mark, "dev", "up0")
		var seen []string
		testhost.Eventually(t, 5*time.Second, func() error {
			seen = append(seen, c.take()...)
			if i := slices.Index(seen, "address "+mark+" changed"); i >= 0 {
				seen = slices.Delete(seen, i, i+1)
				return nil
			}
			return errors.New("the mark has not come")
		})
		return seen
	}
	settle()

	grown := *p
	grown.Namespaces, grown.Ports = maps.Clone(p.Namespaces), maps.Clone(p.Ports)
	_, third := addEndpoint(&grown, 3)
	apply(t, n, p, &grown)
	testhost.Eventually(t, 5*time.Second, func() error {
		if out := h.Run(t, "ip", "-o", "link", "show", third.Device); !strings.Contains(out, "LOWER_UP") {
			return errors.New("no carrier yet")
		}
		return nil
	})
	apply(t, n, &grown, p)
	seen := settle()
	if _, err := resync(t, openIn(t, h), p); err != nil { // a second daemon finds nothing to do
		t.Fatal(err)
	}
	if seen = append(seen, settle()...); len(seen) > 0 {
		t.Errorf("our own attach and detach woke: %q", seen)
	}

	for _, x := range []struct{ do, cause string }{
		{"ip link set " + one.Device + " down", "link " + one.Device + " changed"},
		{"ip link set " + one.Device + " mtu 1399", "link " + one.Device + " changed"},
		{"ip -n hns-" + guid('C', 1).Lower() + " link set eth0 netns others", "link " + one.Device + " changed"},
		{"ip link del " + one.Device, "link " + one.Device + " was deleted"},
		{"ip addr del 10.77.0.1/16 dev " + host.VNIC.Device, "address 10.77.0.1/16 changed"},
		{"ip -6 route del local ::1 table local dev " + host.VNIC.Device, "route ::1/128 changed"},
		{"ip neigh del 10.77.1.1 dev " + host.VNIC.Device, "neighbour 10.77.1.1 changed"},
		{"ip neigh change fd77::1:1 lladdr 02:99:99:99:99:99 dev " + host.VNIC.Device, "neighbour fd77::1:1 changed"},
		{"ip link set " + host.VNIC.Device + " address 02:99:99:99:99:99", "link " + host.VNIC.Device + " changed"},
		{eth0 + "link set eth0 mtu 1300", "link eth0 in a compartment changed"},
		{eth0 + "addr del 10.77.1.1/16 dev eth0", "address 10.77.1.1/16 in a compartment changed"},
		{eth0 + "addr del fd77::1:1/64 dev eth0", "address fd77::1:1/64 in a compartment changed"},
		{eth0 + "route del default", "route 0.0.0.0/0 in a compartment changed"},
		{eth0 + "route replace default via 10.77.0.9 proto 98", "route 0.0.0.0/0 in a compartment changed"},
		{eth0 + "-6 route del fd77::/64 dev eth0", "route fd77::/64 in a compartment changed"},
		{"ip link set up0 mtu 1400", "link up0 changed"},
		{"ip link set up0 up; ip route add 10.5.0.0/16 dev up0", "route 10.5.0.0/16 changed"},
		{"ip netns del hns-" + guid('C', 2).Lower(), "compartment " + plan.NamespacePath(guid('C', 2)) + " changed"},
	} {
		testhost.Eventually(t, 5*time.Second, func() error { return n.known.grown(one.Device) })
		h.Run(t, "bash", "-c", x.do)
		var seen []string
		testhost.Eventually(t, 5*time.Second, func() error {
			seen = append(seen, c.take()...)
			if !slices.Contains(seen, x.cause) {
				return fmt.Errorf("%s: woke for %q, want %q", x.do, seen, x.cause)
			}
			return nil
		})
		// The engine would do this now, and not because of the repair once more.
		if _, err := resync(t, n, p); err != nil {
			t.Fatal(err)
		}
		settle()
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch ended with %v", err)
	}
}

// TestMoved: what the kernel sends when it reminds the neighbours of a link (drivers of bonds, teams and migrated machines have it do so)
// is told apart from other changes.
func TestMoved(t *testing.T) {
	var moved []string
	w := &watcher{n: &Netdev{host: &conn{}, grim: &conn{}}, moved: func(nic string) { moved = append(moved, nic) }, ours: map[int]bool{}}
	event := func(kind uint16, attrs ...[]byte) syscall.NetlinkMessage {
		head := nl.NewIfInfomsg(unix.AF_UNSPEC)
		head.Index = 7
		return syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: slices.Concat(append([][]byte{head.Serialize()}, attrs...)...)}
	}
	name := nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("bond0")).Serialize()
	why := func(e uint32) []byte { return nl.NewRtAttr(unix.IFLA_EVENT, nl.Uint32Attr(e)).Serialize() }
	for _, m := range []syscall.NetlinkMessage{
		event(unix.RTM_NEWLINK, name), event(unix.RTM_NEWLINK, name, why(unix.IFLA_EVENT_FEATURES)), event(unix.RTM_DELLINK, name),
		event(unix.RTM_NEWLINK, name, why(unix.IFLA_EVENT_NOTIFY_PEERS)),
	} {
		if cause := w.judge(m); cause != "link bond0 changed" {
			t.Errorf("woke for %q", cause)
		}
	}
	if !slices.Equal(moved, []string{"bond0"}) {
		t.Errorf("moved: %v, want bond0 once", moved)
	}
}

func TestSocketsInACompartment(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	r := p.Ports[plan.ResolverPortID(network)].VNIC
	for _, addr := range []string{"10.77.0.1:53", "[fd77::1]:53"} {
		at := netip.MustParseAddrPort(addr)
		c, err := n.ListenPacket(t.Context(), r.Namespace, r.Device, "udp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		l, err := n.Listen(t.Context(), r.Namespace, r.Device, "tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	out := h.Run(t, "ip", "netns", "exec", "hns-resolver", "ss", "-Hlntu")
	if strings.Count(out, ":53 ") != 4 || strings.Count(out, "%"+r.Device) != 4 {
		t.Errorf("sockets in the compartment:\n%s", out)
	}
	if out := h.Run(t, "ss", "-Hlntu"); out != "" {
		t.Errorf("sockets in the host:\n%s", out)
	}
	if _, err := n.ListenPacket(t.Context(), plan.NamespacePath(guid('C', 9)), "", "udp", netip.AddrPort{}); !errors.Is(err, ErrVanished) {
		t.Errorf("listen where nothing is: %v", err)
	}
	if pids, err := n.NamespaceProcesses(r.Namespace); err != nil || len(pids) > 0 {
		t.Errorf("processes in the resolver's compartment: %v, %v", pids, err)
	}
}

func TestDeviceIndex(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := sample()
	apply(t, n, &plan.Plan{}, p)
	r, host := p.Ports[plan.ResolverPortID(network)], p.Ports[plan.HostPortID(network)]
	index := func(v plan.VNIC) int {
		t.Helper()
		got, err := n.DeviceIndex(t.Context(), v.Namespace, v.Device)
		if err != nil {
			t.Fatal(err)
		}
		show := []string{"-o", "link", "show", v.Device}
		if v.Namespace != "" {
			show = append([]string{"-n", filepath.Base(v.Namespace)}, show...)
		}
		if out := h.Run(t, "ip", show...); !strings.HasPrefix(out, fmt.Sprintf("%d: ", got)) {
			t.Errorf("index %d of %s", got, out)
		}
		return got
	}
	index(host.VNIC)
	before := index(r.VNIC)
	h.Run(t, "ip", "link", "del", r.Device)
	if _, err := n.DeviceIndex(t.Context(), r.VNIC.Namespace, r.VNIC.Device); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a device that was deleted: %v", err)
	}
	if _, err := resync(t, n, p); err != nil {
		t.Fatal(err)
	}
	if after := index(r.VNIC); after == before {
		t.Errorf("the device that was made anew has index %d again", after)
	}

	if _, err := n.DeviceIndex(t.Context(), plan.NamespacePath(guid('C', 9)), "eth0"); !errors.Is(err, ErrVanished) {
		t.Errorf("in a compartment that is not there: %v", err)
	}
	if _, err := n.DeviceIndex(t.Context(), "", "a-name-too-long-for-a-device"); err == nil {
		t.Error("a name too long for a device has an index")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.DeviceIndex(ended, r.VNIC.Namespace, r.VNIC.Device); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

func TestPortHolder(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	h.Do(func() {
		tcp, err := net.Listen("tcp", "[::1]:8080")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tcp.Close() })
		udp, err := net.ListenPacket("udp", "127.0.0.1:8081")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { udp.Close() })
	})
	self := fmt.Sprintf("(process %d)", os.Getpid())
	for _, c := range []struct {
		protocol uint8
		port     uint16
		held     bool
	}{{6, 8080, true}, {17, 8081, true}, {17, 8080, false}, {6, 8081, false}, {6, 80, false}} {
		got, err := n.PortHolder(c.protocol, c.port)
		if err != nil || strings.HasSuffix(got, self) != c.held || !c.held && got != "" {
			t.Errorf("protocol %d port %d: held by %q, %v", c.protocol, c.port, got, err)
		}
	}
}

// grown is an error while events of a vNIC count as those of its birth.
func (r *registry) grown(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.links[name]; k != nil && k.settled && time.Since(k.ready) < growing+time.Millisecond {
		return errors.New("it was settled just now")
	}
	return nil
}

// TestNICGUIDs: a device is the same under another name if it has a MAC of its own, and no two have one GUID.
func TestNICGUIDs(t *testing.T) {
	t.Parallel()
	mac, twin := plan.MAC{2, 0, 0, 0, 0, 1}, plan.MAC{2, 0, 0, 0, 0, 2}
	ids := nicGUIDs([]link{
		{index: 1, name: "eth0", burntIn: mac}, {index: 2, name: "bond0"}, {index: 3, name: "p0", burntIn: twin}, {index: 4, name: "p1", burntIn: twin},
	})
	again := nicGUIDs([]link{{index: 9, name: "lan0", burntIn: mac}, {index: 8, name: "bond0"}})
	if ids[1] != again[9] || ids[2] != again[8] {
		t.Errorf("they are others by now: %v, %v", ids, again)
	}
	seen := map[hcn.GUID]bool{}
	for _, id := range ids {
		if parsed, err := hcn.ParseGUID(string(id)); err != nil || parsed != id || seen[id] {
			t.Errorf("%s: %v", id, err)
		}
		seen[id] = true
	}
}
