package lease

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

const liveGUID = hcn.GUID("11223344-5566-7788-99AA-BBCCDDEEFF00")

// lan is a client's host and a DHCP server's, with a switch between them.
type lan struct {
	t              *testing.T
	sw             *testhost.LAN
	client, server *testhost.Host
	dir            string
	dnsmasq        *testhost.Cmd
	mac            plan.MAC
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	t.Parallel()
	l := &lan{t: t, dir: t.TempDir(), sw: testhost.Switch(t)}
	l.client, l.server = testhost.New(t, testhost.WithName("client")), testhost.New(t, testhost.WithName("server"))
	l.sw.Plug(l.client, "eth0")
	l.sw.Plug(l.server, "eth0", "10.9.0.1/24", "fd09::1/64")
	l.mac = plan.MAC(l.client.MAC("eth0"))
	return l
}

// serve runs dnsmasq, in place of the one before.
func (l *lan) serve(args ...string) {
	l.t.Helper()
	l.silence()
	log := filepath.Join(l.dir, "log")
	args = append([]string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--user=root", "--pid-file=", "--log-dhcp",
		"--log-facility=" + log, "--dhcp-leasefile=" + l.leases(), "--no-ping", "--dhcp-authoritative",
	}, args...)
	l.dnsmasq = l.server.Command(context.Background(), "dnsmasq", args...)
	if err := l.dnsmasq.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.wait(func() error {
		if b, _ := os.ReadFile(log); !strings.Contains(string(b), "DHCP") {
			return fmt.Errorf("dnsmasq is not ready: %s", b)
		}
		return nil
	})
}

// silence ends the server; its leases stay in its file.
func (l *lan) silence() {
	if l.dnsmasq != nil {
		l.dnsmasq.Kill()
		_ = l.dnsmasq.Wait()
		l.dnsmasq = nil
	}
	_ = os.Remove(filepath.Join(l.dir, "log"))
}

func (l *lan) leases() string { return filepath.Join(l.dir, "leases") }

func (l *lan) leaseFile() string {
	b, _ := os.ReadFile(l.leases())
	return string(b)
}

func (l *lan) wait(cond func() error) {
	l.t.Helper()
	testhost.Eventually(l.t, 20*time.Second, func() error {
		err := cond()
		if err == nil {
			return nil
		}
		log, _ := os.ReadFile(filepath.Join(l.dir, "log"))
		return fmt.Errorf("%w\ndnsmasq: %s", err, log)
	})
}

func (l *lan) want() Want {
	return Want{
		Endpoint: liveGUID, Network: "lan", Name: "web", Device: "eth0", MAC: l.mac, Hostname: "web_1",
		LinkLocal: eui64(netip.MustParsePrefix("fe80::/64"), l.mac), IPv4: true,
	}
}

func (l *lan) newClient() *Client {
	c := New(Config{
		Log: slog.New(slog.NewTextHandler(l.t.Output(), nil)),
		Open: Sockets(func(_ string, fn func() error) (err error) {
			l.client.Do(func() { err = fn() })
			return err
		}),
	})
	l.t.Cleanup(c.Close)
	return c
}

func state(c *Client, src Source) State {
	for _, st := range c.States() {
		if st.Key.Source == src {
			return st
		}
	}
	return State{}
}

// bound waits for a lease of a source that good says is the one.
func (l *lan) bound(c *Client, src Source, good func(*Lease) bool) *Lease {
	l.t.Helper()
	var got *Lease
	l.wait(func() error {
		st := state(c, src)
		if got = st.Lease; st.Phase != Bound || got == nil || good != nil && !good(got) {
			return fmt.Errorf("state %+v, lease %+v", st, st.Lease)
		}
		return nil
	})
	return got
}

// wellFormed: what the client has sent has right checksums, and its stack told no server that an answer is for nobody.
func (l *lan) wellFormed(c *testhost.Capture) {
	l.t.Helper()
	seen := 0
	for _, line := range c.Lines() {
		if !strings.HasPrefix(line, macString(l.mac)) {
			continue
		}
		if strings.Contains(line, " icmp ") || strings.Contains(line, "bad-checksum") || strings.Contains(line, "truncated") {
			l.t.Errorf("sent: %s", line)
		}
		seen++
	}
	if seen == 0 {
		l.t.Error("the client sent nothing")
	}
}

func stored(c *Client) map[Source]Lease {
	m := map[Source]Lease{}
	for _, st := range c.States() {
		if st.Lease != nil {
			m[st.Key.Source] = *st.Lease
		}
	}
	return m
}

// giveBack ends the endpoint, and tells servers.
func (l *lan) giveBack(c *Client, w Want) {
	l.t.Helper()
	w.Stored = stored(c)
	c.Sync(l.t.Context(), nil)
	if err := c.GiveBack(l.t.Context(), w); err != nil {
		l.t.Error(err)
	}
}

// TestLiveIPv4: a lease is got with all that comes with it, named, kept over a restart, and given back.
func TestLiveIPv4(t *testing.T) {
	l := newLAN(t)
	l.serve("--dhcp-range=10.9.0.100,10.9.0.100,1h", "--dhcp-option=option:router,10.9.0.254", "--dhcp-option=option:dns-server,10.9.0.53",
		"--dhcp-option=option:mtu,1400", "--dhcp-option=option:domain-search,a.example,b.example", "--dhcp-option=option:classless-static-route,0.0.0.0/0,10.9.0.254,10.77.0.0/16,10.9.0.7")
	capture := l.server.Capture("eth0", "")
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	got := l.bound(c, DHCPv4, nil)
	want := &Lease{
		Addrs:  []Address{{Prefix: netip.MustParsePrefix("10.9.0.100/24")}},
		Routes: []plan.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.9.0.254")}, {Dst: netip.MustParsePrefix("10.77.0.0/16"), Via: netip.MustParseAddr("10.9.0.7")}},
		DNS:    []netip.Addr{netip.MustParseAddr("10.9.0.53")}, Search: []string{"a.example", "b.example"}, MTU: 1400,
	}
	if !got.alike(want) || got.Server != netip.MustParseAddr("10.9.0.1") || got.ServerMAC != plan.MAC(l.server.MAC("eth0")) {
		t.Errorf("lease %+v, want %+v", got, want)
	}
	if life := time.Until(got.Expires); life < 59*time.Minute || life > time.Hour || got.T1.After(got.T2) || got.T2.After(got.Expires) {
		t.Errorf("times of %+v", got)
	}
	file := l.leaseFile()
	for _, part := range []string{"10.9.0.100", " web-1 ", "ff:11:22:33:44:00:04:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00"} {
		if !strings.Contains(file, part) {
			t.Errorf("dnsmasq does not know %q: %q", part, file)
		}
	}

	saved := stored(c)
	c.Close()
	if !strings.Contains(l.leaseFile(), "10.9.0.100") {
		t.Error("the lease is given back by Close")
	}
	c = l.newClient()
	w := l.want()
	w.Stored = saved
	c.Sync(t.Context(), []Want{w})
	if st := state(c, DHCPv4); st.Lease == nil || st.Lease.Addrs[0].Prefix.String() != "10.9.0.100/24" {
		t.Errorf("the stored lease is not there at once: %+v", st)
	}
	l.bound(c, DHCPv4, func(n *Lease) bool { return n.Got.After(got.Got) })

	l.client.Addr("eth0", "10.9.0.100/24")
	l.giveBack(c, w)
	l.wait(func() error {
		if f := l.leaseFile(); strings.Contains(f, "10.9.0.100") {
			return fmt.Errorf("not released: %s", f)
		}
		return nil
	})
	if states := c.States(); len(states) != 0 {
		t.Errorf("states %+v", states)
	}
	l.wellFormed(capture)
}

// TestLiveRenew: the address is on the vNIC, and the server is asked for it again by unicast.
func TestLiveRenew(t *testing.T) {
	l := newLAN(t)
	l.serve("--dhcp-range=10.9.0.100,10.9.0.110,2m", "--dhcp-option-force=58,6", "--dhcp-option-force=59,60")
	capture := l.server.Capture("eth0", "")
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	first := l.bound(c, DHCPv4, nil)
	if wait := first.T1.Sub(first.Got); wait != 6*time.Second {
		t.Fatalf("T1 after %s", wait)
	}
	l.client.Addr("eth0", first.Addrs[0].Prefix.String())
	next := l.bound(c, DHCPv4, func(n *Lease) bool { return n.Got.After(first.Got) })
	if !next.alike(first) || !next.Expires.After(first.Expires) {
		t.Errorf("renewed %+v, before %+v", next, first)
	}
	unicast := fmt.Sprintf("%s > 10.9.0.1", first.Addrs[0].Prefix.Addr())
	if text := strings.Join(capture.Lines(), "\n"); !strings.Contains(text, unicast) {
		t.Errorf("no renewal %q in\n%s", unicast, text)
	}
	l.wellFormed(capture)
}

// TestLiveRefused: a restart finds the server's range changed, and the lease void.
func TestLiveRefused(t *testing.T) {
	l := newLAN(t)
	l.serve("--dhcp-range=10.9.0.100,10.9.0.110,1h")
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	l.bound(c, DHCPv4, nil)
	w := l.want()
	w.Stored = stored(c)
	c.Close()
	l.silence()
	_ = os.Remove(l.leases())
	l.serve("--dhcp-range=10.9.0.200,10.9.0.210,1h")
	c = l.newClient()
	c.Sync(t.Context(), []Want{w})
	l.wait(func() error {
		if st := state(c, DHCPv4); !strings.HasPrefix(st.Problem, "server 10.9.0.1 refused 10.9.0.1") || !strings.Contains(st.Problem, "(NAK)") || st.Lease != nil {
			return fmt.Errorf("state %+v", st)
		}
		return nil
	})
	got := l.bound(c, DHCPv4, nil)
	if a := got.Addrs[0].Prefix.Addr(); !a.Is4() || a.Less(netip.MustParseAddr("10.9.0.200")) {
		t.Errorf("address %s", a)
	}
}

// TestLiveUsed: an address that a host on the LAN has already is declined, and another one taken.
func TestLiveUsed(t *testing.T) {
	l := newLAN(t)
	squatter := testhost.New(t, testhost.WithName("squatter"))
	l.sw.Plug(squatter, "eth0", "10.9.0.100/24")
	l.serve("--dhcp-range=10.9.0.100,10.9.0.100,1h")
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	l.wait(func() error {
		want := "address 10.9.0.100, which server 10.9.0.1 gives, is used by " + macString(plan.MAC(squatter.MAC("eth0")))
		if st := state(c, DHCPv4); !strings.HasPrefix(st.Problem, want) || st.Lease != nil {
			return fmt.Errorf("state %+v, want %q", st, want)
		}
		log, _ := os.ReadFile(filepath.Join(l.dir, "log"))
		if !strings.Contains(string(log), "DHCPDECLINE(eth0) 10.9.0.100") {
			return fmt.Errorf("not declined")
		}
		return nil
	})
}

// TestLiveProbe: whoever has an address is found, of both families and in the right VLAN; what nobody has is announced.
func TestLiveProbe(t *testing.T) {
	l := newLAN(t)
	squatter := testhost.New(t, testhost.WithName("squatter"))
	l.sw.Plug(squatter, "eth0", "10.9.0.100/24", "fd09::100/64")
	capture := l.server.Capture("eth0", "")
	c := l.newClient()
	nic := Want{Network: "lan", Name: "eth0", Device: "eth0", MAC: l.mac}
	mac := plan.MAC(squatter.MAC("eth0"))
	var free []netip.Addr
	for i := range 2 * maxClaims { // more than one socket filter holds
		free = append(free, netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", 110+i)))
	}
	for _, a := range []string{"10.9.0.100", "fd09::100"} {
		addr := netip.MustParseAddr(a)
		used, err := c.Probe(t.Context(), nic, append(slices.Clone(free), addr), 600*time.Millisecond)
		if err != nil || len(used) != 1 || used[addr] != mac {
			t.Errorf("%s: used by %v (%v), want %s", a, used, err, mac)
		}
		tagged := nic
		tagged.VLAN = 100
		if used, err := c.Probe(t.Context(), tagged, []netip.Addr{addr}, 300*time.Millisecond); err != nil || len(used) != 0 {
			t.Errorf("%s in VLAN 100: used by %v (%v)", a, used, err)
		}
	}
	begun := time.Now()
	if used, err := c.Probe(t.Context(), nic, free[:1], 300*time.Millisecond); err != nil || len(used) != 0 {
		t.Errorf("%s: used by %v (%v)", free[0], used, err)
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("an answer was awaited for %s", took)
	}
	own := l.want()
	own.VLAN = 100 // its port gives frames their tag
	for _, a := range []string{"10.9.0.100", "fd09::100"} {
		if err := c.Announce(t.Context(), own, []netip.Addr{netip.MustParseAddr(a)}); err != nil {
			t.Error(err)
		}
	}
	arp, na := macString(l.mac)+" > ff:ff:ff:ff:ff:ff arp who-has 10.9.0.100 tell 10.9.0.100", macString(l.mac)+" > 33:33:00:00:00:01 ip6 fd09::100 > ff02::1 "
	l.wait(func() error {
		text := strings.Join(capture.Lines(), "\n")
		if !strings.Contains(text, arp) || !strings.Contains(text, na) {
			return fmt.Errorf("no announcement in\n%s", text)
		}
		return nil
	})
	l.wellFormed(capture)
}

// TestLiveSilent: nobody answers, and people are told; then somebody does.
func TestLiveSilent(t *testing.T) {
	l := newLAN(t)
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	l.wait(func() error {
		if st := state(c, DHCPv4); st.Phase != Asking || !strings.HasPrefix(st.Problem, "no answer from any DHCP server on lan since ") {
			return fmt.Errorf("state %+v", st)
		}
		return nil
	})
	l.serve("--dhcp-range=10.9.0.100,10.9.0.110,1h")
	l.bound(c, DHCPv4, nil)
}

// TestLiveIPv6: a router's advertisement gives prefix and route, its M flag leads to DHCPv6.
func TestLiveIPv6(t *testing.T) {
	l := newLAN(t)
	l.client.Sysctl("net.ipv6.conf.eth0.accept_ra", "0")
	l.serve("--enable-ra", "--dhcp-range=fd09::100,fd09::100,64,1h", "--dhcp-option=option6:dns-server,[fd09::53]", "--dhcp-option=option6:domain-search,six.example")
	c := l.newClient()
	w := l.want()
	w.IPv4, w.IPv6 = false, true
	c.Sync(t.Context(), []Want{w})
	got := l.bound(c, DHCPv6, nil)
	if got.Addrs[0].Prefix != netip.MustParsePrefix("fd09::100/128") || len(got.DNS) != 1 || got.DNS[0] != netip.MustParseAddr("fd09::53") || fmt.Sprint(got.Search) != "[six.example]" {
		t.Errorf("lease %+v", got)
	}
	adv := l.bound(c, Router, nil)
	if len(adv.Gateways()) != 1 || !adv.Gateways()[0].IsLinkLocalUnicast() || len(adv.Addrs) != 0 || len(adv.Routes) != 2 || adv.Routes[0].Dst != netip.MustParsePrefix("fd09::/64") {
		t.Errorf("advertised %+v", adv)
	}
	if file := l.leaseFile(); !strings.Contains(file, "fd09::100") || !strings.Contains(file, "web-1") || !strings.Contains(file, "00:04:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00") {
		t.Errorf("leases %q", file)
	}

	w.Stored = stored(c)
	c.Close()
	capture := l.server.Capture("eth0", "")
	c = l.newClient()
	c.Sync(t.Context(), []Want{w})
	if st := state(c, DHCPv6); st.Lease == nil {
		t.Errorf("the stored lease is not there at once: %+v", st)
	}
	capture.Wait("udp 546 > 547")
	l.wellFormed(capture)
	l.bound(c, DHCPv6, nil)
	l.wait(func() error {
		log, _ := os.ReadFile(filepath.Join(l.dir, "log"))
		if !strings.Contains(string(log), "DHCPCONFIRM(eth0) 00:04:11") {
			return fmt.Errorf("not confirmed")
		}
		return nil
	})
	l.giveBack(c, w)
	l.wait(func() error {
		if file := l.leaseFile(); strings.Contains(file, "fd09::100") {
			return fmt.Errorf("not released: %s", file)
		}
		return nil
	})
}

// TestLiveAutoconfiguration: a router's prefix makes an address, and the O flag leads to resolvers of DHCPv6.
func TestLiveAutoconfiguration(t *testing.T) {
	l := newLAN(t)
	l.client.Sysctl("net.ipv6.conf.eth0.accept_ra", "0")
	l.serve("--enable-ra", "--dhcp-range=fd09::,ra-stateless,64,1h", "--ra-param=eth0,mtu:1400,10", "--dhcp-option=option6:dns-server,[fd09::53]")
	c := l.newClient()
	w := l.want()
	w.IPv4, w.IPv6 = false, true
	c.Sync(t.Context(), []Want{w})
	got := l.bound(c, Router, nil)
	want := netip.PrefixFrom(eui64(netip.MustParsePrefix("fd09::/64"), l.mac), 64)
	if len(got.Addrs) != 1 || got.Addrs[0].Prefix != want || got.MTU != 1400 || len(got.Gateways()) != 1 {
		t.Errorf("lease %+v, want %s", got, want)
	}
	if info := l.bound(c, DHCPv6, nil); len(info.Addrs) != 0 || fmt.Sprint(info.DNS) != "[fd09::53]" {
		t.Errorf("informed %+v", info)
	}
}

// TestLiveShared: a host that takes a leased address gives itself away with its first question.
func TestLiveShared(t *testing.T) {
	l := newLAN(t)
	squatter := testhost.New(t, testhost.WithName("squatter"))
	l.sw.Plug(squatter, "eth0")
	l.serve("--dhcp-range=10.9.0.100,10.9.0.100,1h")
	c := l.newClient()
	c.Sync(t.Context(), []Want{l.want()})
	l.bound(c, DHCPv4, nil)
	squatter.Addr("eth0", "10.9.0.100/24")
	l.wait(func() error {
		_ = squatter.Ping(netip.MustParseAddr("10.9.0.1"))
		want := "address 10.9.0.100 is used by " + macString(plan.MAC(squatter.MAC("eth0"))) + " as well"
		if st := state(c, DHCPv4); !strings.HasPrefix(st.Problem, want) || st.Lease == nil {
			return fmt.Errorf("state %+v, want %q", st, want)
		}
		return nil
	})
}
