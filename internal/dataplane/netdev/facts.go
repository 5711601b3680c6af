package netdev

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha1" //nolint:gosec // see nicGUIDs
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Facts says what the host looks like without us: its uplink, addresses, routes and resolvers.
func (n *Netdev) Facts(ctx context.Context) (plan.Facts, error) {
	f := plan.Facts{UplinkMTU: 1500}
	if err := ctx.Err(); err != nil {
		return f, err
	}
	boot, err := bootID()
	if err != nil {
		return f, err
	}
	f.BootID = boot
	links, err := n.host.listLinks()
	if err != nil {
		return f, fmt.Errorf("list links: %w", err)
	}
	f.Segments = ability(links)
	byIndex := make(map[int]link, len(links))
	for _, l := range links {
		byIndex[l.index] = l
	}
	addrs, err := n.host.listAddresses()
	if err != nil {
		return f, fmt.Errorf("list addresses: %w", err)
	}
	f.NICs = n.nics(links, byIndex, addrs)
	for _, a := range addrs {
		if l := byIndex[a.index]; !l.ours() && l.flags&unix.IFF_LOOPBACK == 0 && !a.prefix.Addr().IsLinkLocalUnicast() {
			f.HostAddrs = append(f.HostAddrs, a.prefix)
		}
	}
	routes, err := n.host.listRoutes()
	if err != nil {
		return f, fmt.Errorf("list routes: %w", err)
	}
	routeFacts(&f, routes, byIndex)
	err = n.home.do(func() (err error) {
		f.Resolvers, err = readResolvers(n.opts.ResolvConf, n.opts.SystemdResolvConf)
		return err
	})
	return f, err
}

// nics are the links that the host had without us.
func (n *Netdev) nics(links []link, byIndex map[int]link, addrs []address) []plan.NIC {
	var out []plan.NIC
	ids := nicGUIDs(links)
	for _, l := range links {
		if l.ours() || l.flags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		nic := plan.NIC{
			Name: l.name, Index: l.index, GUID: ids[l.index], Master: byIndex[l.master].name, Team: l.kind == "bond" || l.kind == "team", MAC: l.mac, MTU: l.mtu, Segments: l.segments,
			Up: l.up(), NoCarrier: l.flags&unix.IFF_LOWER_UP == 0, Unfit: unfit(l, byIndex[l.master]), OneMAC: n.oneMAC(l),
		}
		for _, a := range addrs {
			if a.index == l.index && (a.prefix.Addr().Is4() || !a.prefix.Addr().IsLinkLocalUnicast()) {
				nic.Addrs = append(nic.Addrs, a.prefix)
			}
		}
		out = append(out, nic)
	}
	return out
}

// nicGUIDs names links for good: by the MAC that a device was made with, so that it may get another name, and where there is none,
// or two have the same, by the name (UUIDs of version 5, RFC 9562).
func nicGUIDs(links []link) map[int]hcn.GUID {
	same := map[plan.MAC]int{}
	for _, l := range links {
		same[l.burntIn]++
	}
	out := map[int]hcn.GUID{}
	for _, l := range links {
		of := "bulkhead nic " + l.name
		if l.burntIn != (plan.MAC{}) && same[l.burntIn] == 1 {
			of = "bulkhead nic " + l.burntIn.String()
		}
		sum := sha1.Sum([]byte(of)) //nolint:gosec // a name and no secret
		sum[6], sum[8] = sum[6]&0x0f|0x50, sum[8]&0x3f|0x80
		out[l.index] = hcn.GUID(strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])))
	}
	return out
}

// unfit says why a link cannot be the uplink of a switch, or nothing.
func unfit(l, master link) string {
	switch {
	case l.hwType != unix.ARPHRD_ETHER:
		return "it is no Ethernet device"
	case l.master != 0:
		text := "it is a member of " + cmp.Or(master.name, "another device") + ", which takes its frames"
		if master.kind == "bond" || master.kind == "team" {
			text += " (" + master.name + " can be the uplink)"
		}
		return text
	case slices.Contains([]string{"ipvlan", "ipvtap", "vxlan", "ifb"}, l.kind):
		return "it is a " + l.kind + " device, which gets no frames for containers from the wire"
	}
	return ""
}

// oneMAC says why a link cannot carry frames of other MACs than its own, or nothing.
func (n *Netdev) oneMAC(l link) string {
	switch {
	case slices.Contains([]string{"bridge", "macvlan", "macvtap"}, l.kind):
		return "it is a " + l.kind + " device, which gets no frames for other MACs from the wire"
	case n.wireless(l.name):
		return "it is wireless, and an access point takes no frames from other MACs"
	}
	return ""
}

func (n *Netdev) wireless(name string) bool {
	found := false
	// Without sysfs nobody can tell.
	_ = n.home.do(func() error {
		for _, mark := range []string{"wireless", "phy80211"} {
			_, err := os.Stat("/sys/class/net/" + name + "/" + mark)
			found = found || err == nil
		}
		return nil
	})
	return found
}

// routeFacts picks the uplink (the default route of the lowest metric in the main table, IPv4 before IPv6) and the
// destinations that a network must not collide with.
func routeFacts(f *plan.Facts, routes []route, links map[int]link) {
	var uplink [2]*route // of IPv4 and IPv6
	for _, r := range routes {
		l := links[r.oif]
		if l.ours() {
			continue
		}
		a := r.dst.Addr()
		if r.kind == unix.RTN_BROADCAST || r.kind == unix.RTN_ANYCAST || r.kind == unix.RTN_MULTICAST {
			continue // parts of a prefix that is listed anyway
		}
		if r.dst.Bits() == 0 {
			i := 0
			if a.Is6() {
				i = 1
			}
			usable := r.kind == unix.RTN_UNICAST && r.table == unix.RT_TABLE_MAIN
			if usable && (uplink[i] == nil || r.metric < uplink[i].metric) {
				uplink[i] = &r
			}
			continue
		}
		if a.IsMulticast() || a.IsLinkLocalUnicast() && a.Is6() || l.flags&unix.IFF_LOOPBACK != 0 && a.IsLoopback() {
			continue
		}
		if !slices.Contains(f.Routes, r.dst) {
			f.Routes = append(f.Routes, r.dst)
		}
	}
	for _, r := range uplink {
		if r != nil {
			f.Uplink = links[r.oif].name
			f.UplinkMTU = links[r.oif].mtu
			f.UplinkSegments = links[r.oif].segments
			return
		}
	}
}

// readResolvers reads resolv.conf, and what lies behind it when it only names the stub of systemd-resolved: containers
// cannot reach that.
func readResolvers(file, behindStub string) ([]netip.Addr, error) {
	all, err := nameservers(file)
	if err != nil {
		return nil, err
	}
	stub := func(a netip.Addr) bool {
		return a == netip.AddrFrom4([4]byte{127, 0, 0, 53}) || a == netip.AddrFrom4([4]byte{127, 0, 0, 54})
	}
	if !slices.ContainsFunc(all, stub) {
		return all, nil
	}
	upstream, err := nameservers(behindStub)
	if err != nil || len(upstream) == 0 {
		return all, err
	}
	return upstream, nil
}

// nameservers reads the name servers of a resolv.conf; a file that is missing has none.
func nameservers(file string) ([]netip.Addr, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the host's resolvers: %w", err)
	}
	var all []netip.Addr
	for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !slices.Contains(all, a.Unmap()) {
			all = append(all, a.Unmap())
		}
	}
	return all, nil
}
