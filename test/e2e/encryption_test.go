package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// marker is what containers send each other. On the LAN it must not be seen.
const marker = "this-is-nobody-elses-business"

// encryptedNetwork: containers of an encrypted network reach each other, and nobody between them can read it: not when the process that
// encrypts is killed, not while keys are changed.
func encryptedNetwork(t *testing.T, a, b, c *node) {
	t.Helper()
	captures := []*testhost.Capture{a.Capture("eth0", ""), b.Capture("eth0", "")}
	a.refused("is this host's alone", "network", "create", "-d", "overlay", "--encrypted", "--vsid", "5009", "--subnet", "10.61.0.0/16", "secret")
	id := a.do("network", "create", "-d", "overlay", "--encrypted", "--multicast", "secret")
	b.until("the network is there", func() error {
		_, err := b.try("network", "inspect", id)
		return err
	})
	b.do("run", "-d", "--name", "server", "--network", "secret", "box", "sh", "-c", "while :; do echo "+marker+"; sleep 0.05; done | nc -l -p 7; sleep 1000")
	a.do("run", "-d", "--name", "client", "--network", "secret", "box", "sleep", "1000")
	a.until("the server answers", func() error {
		_, err := a.try("exec", "client", "nslookup", "server")
		return err
	})
	if mtu := a.do("exec", "client", "cat", "/sys/class/net/eth0/mtu"); mtu != "1370" { // WireGuard takes 60 bytes, VXLAN over IPv6 70
		t.Errorf("the container's MTU is %s", mtu)
	}
	// One connection goes on through all of it.
	a.do("exec", "client", "sh", "-c", "sleep 1000 | nc server 7 >/stream 2>/ended &")
	lines := func() int {
		t.Helper()
		var n int
		_, _ = fmt.Sscan(a.do("exec", "client", "sh", "-c", "grep -c "+marker+" /stream || true"), &n)
		return n
	}
	goesOn := func(what string) {
		t.Helper()
		was := lines()
		a.until(what+": the connection goes on", func() error {
			if n := lines(); n < was+5 {
				return fmt.Errorf("%d lines, were %d", n, was)
			}
			return nil
		})
	}
	goesOn("at first")
	there, _ := endpointOf(t, b, "server")
	for _, want := range []struct{ text, in string }{
		{"WireGuard", a.do("doctor")}, {"inside WireGuard", a.do("explain", "client", there.String(), "tcp/7")}, {"generation 1", a.do("cluster", "status")}, {"ENCRYPTED WITH", a.do("cluster", "status")},
	} {
		if !strings.Contains(want.in, want.text) {
			t.Errorf("no %q in: %s", want.text, want.in)
		}
	}
	forged(t, a, b, c, id)
	broadcast(t, a, b)

	// Without a daemon nothing ends. With WireGuard's process killed as well, nothing passes until there is a daemon again.
	b.stop(syscall.SIGKILL)
	goesOn("without a daemon")
	b.Run(t, "pkill", "-KILL", "-f", "bulkhead [w]ireguard") // in the host's own PID namespace
	a.until("nothing passes", func() error {
		was := lines()
		time.Sleep(300 * time.Millisecond) //nolint:forbidigo // six lines would have come
		if n := lines(); n != was {
			return fmt.Errorf("%d lines, were %d", n, was)
		}
		return nil
	})
	freeze(a, b, c) // the next daemon knows the others' keys from the last
	b.start()
	goesOn("with a new process")
	thaw(a, b, c)
	b.Run(t, "ip", "netns", "del", "hns-wireguard") // the process is in it still
	goesOn("with another compartment")
	if g := a.do("cluster", "rotate-keys"); g != "2" {
		t.Errorf("generation %s", g)
	}
	goesOn("while keys change")
	for _, n := range []*node{a, b, c} {
		n.sees("all have new keys, and no old ones", func(c api.Cluster) bool {
			for _, h := range c.Hosts {
				if len(h.Keys) != 1 || h.Keys[0] != 2 {
					return false
				}
			}
			return true
		})
	}
	goesOn("with new keys")

	a.do("rm", "-f", "client")
	b.do("rm", "-f", "server")
	a.until("the network is removed", func() error { _, err := a.try("network", "rm", "secret"); return err })
	for _, n := range []*node{a, b, c} {
		n.until("nothing is left of it", func() error {
			if out := n.Run(t, "sh", "-c", "pgrep -f 'bulkhead [w]ireguard'; ls /run/wireguard /run/netns/hns-wireguard 2>/dev/null; ip -o link | grep ' bhv' || true"); out != "" {
				return errors.New(out)
			}
			return nil
		})
	}
	a.do("network", "create", "-d", "overlay", "--encrypted", "left") // for reset to find
	for i, c := range captures {
		wrapped, clear := 0, 0
		for _, f := range c.Stop() {
			text := testhost.Describe(f.Data)
			if strings.Contains(text, "> 2392") || strings.Contains(text, "> 2393") {
				wrapped++
			}
			if bytes.Contains(f.Data, []byte(marker)) || f.Outgoing && strings.Contains(text, "> 4789") {
				clear++
			}
		}
		if wrapped == 0 || clear > 0 {
			t.Errorf("node %d: %d frames of WireGuard, and %d of tunnels that anybody can read", i+1, wrapped, clear)
		}
	}
}

// broadcast: what goes to all on the network gets to the other host, too, and inside WireGuard.
func broadcast(t *testing.T, a, b *node) {
	t.Helper()
	var c []api.Container
	if err := json.Unmarshal([]byte(a.do("inspect", "client")), &c); err != nil {
		t.Fatal(err)
	}
	seen := b.Capture(b.deviceOf("server"), "")
	from, mac := endpointOf(t, a, "client")
	frame := testhost.Frame(testhost.Ethernet{Src: mac, Dst: testhost.Broadcast()}, testhost.IPv4{Src: from, Dst: netip.MustParseAddr("255.255.255.255")},
		testhost.UDP{SrcPort: 9, DstPort: 9}, testhost.Text("to all: "+marker))
	a.Namespace("/run/netns/hns-"+c[0].Namespace.Lower()).SendFrame("eth0", frame)
	b.until("the broadcast comes", func() error {
		for _, f := range seen.Frames() {
			if bytes.Equal(f.Data, frame) {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// endpointOf is where an endpoint is.
func endpointOf(t *testing.T, n *node, name string) (addr netip.Addr, mac testhost.MAC) {
	t.Helper()
	var eps []hcn.HostComputeEndpoint
	if err := json.Unmarshal([]byte(n.do("endpoint", "ls", "-o", "json")), &eps); err != nil {
		t.Fatal(err)
	}
	for _, ep := range eps {
		if ep.Name == name {
			return netip.MustParseAddr(ep.IpConfigurations[0].IpAddress), testhost.ParseMAC(strings.ReplaceAll(string(ep.MacAddress), "-", ":"))
		}
	}
	t.Fatalf("no endpoint %s", name)
	return addr, mac
}

// forged: what somebody on the LAN sends in the name of another host, in clear text, is dropped and counted.
func forged(t *testing.T, a, b, c *node, id string) {
	t.Helper()
	from, fromMAC := endpointOf(t, a, "client")
	to, toMAC := endpointOf(t, b, "server")
	var vni uint32
	status, err := a.cluster()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range status.Networks {
		if n.Name == "secret" {
			vni = n.VNI
		}
	}
	out := testhost.Ethernet{Src: c.MAC("eth0"), Dst: b.MAC("eth0")}
	vxlan := testhost.Raw{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	inside := testhost.Frame(testhost.Ethernet{Src: fromMAC, Dst: toMAC}, testhost.IPv4{Src: from, Dst: to}, testhost.UDP{SrcPort: 9, DstPort: 9}, testhost.Text("forged"))
	udp := testhost.UDP{SrcPort: 50000, DstPort: 4789}
	seen := b.Capture(b.deviceOf("server"), "")
	for n, outer := range []testhost.Layer{
		testhost.IPv4{Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2")},
		testhost.IPv6{Src: netip.MustParseAddr("2001:db8::1"), Dst: netip.MustParseAddr("2001:db8::2")},
		testhost.IPv6{Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("2001:db8::2")},
	} {
		c.SendFrame("eth0", testhost.Frame(out, outer, udp, vxlan, testhost.Raw(inside)))
		b.until("it is counted", func() error {
			text, err := b.try("drops")
			if got := strings.Count(text, "clear-text"); err == nil && got != n+1 {
				err = fmt.Errorf("%d drops: %s", got, text)
			}
			return err
		})
	}
	for _, f := range seen.Stop() {
		if bytes.Contains(f.Data, []byte("forged")) {
			t.Error("a forged packet reached the container")
		}
	}
}

// deviceOf is the switch side of an endpoint's port.
func (n *node) deviceOf(name string) string {
	n.t.Helper()
	out := n.Run(n.t, "sh", "-c", "ip -o link | grep 'alias bulkhead port [-0-9A-F]* "+name+"$' | sed 's/^[0-9]*: \\([^@]*\\)@.*/\\1/'")
	return strings.TrimSpace(out)
}

// TestEncryptedByIPv6: hosts that reach each other by IPv6 alone encrypt as well, in both families inside.
func TestEncryptedByIPv6(t *testing.T) {
	t.Parallel()
	testhost.RequireRoot(t)
	lan := testhost.Switch(t)
	a, b := newNode(t, lan, 1), newNode(t, lan, 2)
	captures := []*testhost.Capture{a.Capture("eth0", ""), b.Capture("eth0", "")}
	token := a.do("cluster", "init", "--address", "2001:db8::1")
	b.do("join", "--address", "2001:db8::2", token)
	id := a.do("network", "create", "-d", "overlay", "--encrypted", "secret")
	b.until("the network is there", func() error { _, err := b.try("network", "inspect", id); return err })
	for _, n := range []*node{a, b} {
		n.do("image", "import", "--cmd", "sh", made.image, "box")
	}
	b.do("run", "-d", "--name", "server", "--network", "secret", "box", "httpd", "-f", "-h", "/www")
	a.do("run", "-d", "--name", "client", "--network", "secret", "box", "sleep", "1000")
	var server []hcn.HostComputeEndpoint
	if err := json.Unmarshal([]byte(b.do("endpoint", "ls", "-o", "json")), &server); err != nil || len(server) != 1 || len(server[0].IpConfigurations) != 2 {
		t.Fatalf("the server's endpoint: %+v, %v", server, err)
	}
	for _, c := range server[0].IpConfigurations {
		at := netip.AddrPortFrom(netip.MustParseAddr(c.IpAddress), 80)
		a.until("it answers at "+at.String(), func() error {
			_, err := a.try("exec", "client", "timeout", "5", "wget", "-qO-", "http://"+at.String()+"/?"+marker)
			return err
		})
	}
	b.Run(t, "sh", "-c", "ip address add 2001:db8::22/64 dev eth0 nodad && ip address del 2001:db8::2/64 dev eth0")
	a.sees("its new address", func(c api.Cluster) bool {
		return slices.ContainsFunc(c.Hosts, func(h api.ClusterHost) bool { return h.Name == "node2" && slices.Contains(h.Addresses, "2001:db8::22") })
	})
	at := netip.AddrPortFrom(netip.MustParseAddr(server[0].IpConfigurations[0].IpAddress), 80)
	a.until("the server is reached where it is now", func() error {
		_, err := a.try("exec", "client", "timeout", "5", "wget", "-qO-", "http://"+at.String()+"/?"+marker)
		return err
	})
	if mtu := a.do("exec", "client", "cat", "/sys/class/net/eth0/mtu"); mtu != "1350" { // WireGuard takes 80 bytes, VXLAN over IPv6 70
		t.Errorf("the container's MTU is %s", mtu)
	}
	for i, c := range captures {
		wrapped := 0
		for _, f := range c.Stop() {
			text := testhost.Describe(f.Data)
			if strings.Contains(text, "> 2392") || strings.Contains(text, "> 2393") {
				wrapped++
				if !strings.Contains(text, "2001:db8::") {
					t.Errorf("node %d sends by IPv4: %s", i+1, text)
				}
			}
			if bytes.Contains(f.Data, []byte(marker)) || strings.Contains(text, "> 4789") {
				t.Errorf("node %d: anybody can read %s", i+1, text)
			}
		}
		if wrapped == 0 {
			t.Errorf("node %d: no frame of WireGuard", i+1)
		}
	}
	for _, n := range []*node{b, a} {
		n.stop(syscall.SIGTERM)
		n.Run(t, made.binary, "reset", "--yes")
	}
}
