package lease

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// What of an answer is kept at most.
const (
	maxRoutes   = 32
	maxGateways = 4
	maxDNS      = 8
	maxSearch   = 6
)

const (
	// leastLease is the shortest that is taken: below it there is no time to ask twice.
	leastLease = 10 * time.Second
	forever    = 0xffffffff // RFC 2131, section 3.3

	leastMTU4 = 576
	leastMTU6 = 1280
	mostMTU   = 65535

	defaultMetric6 = 1024 // IP6_RT_PRIO_USER; that of IPv4 is 0
)

// answer reads a message that is for this client and its question, and of one of the kinds; else nil.
func (m *v4) answer(p packet, kinds ...dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	if !answers(p.payload, m.xid) {
		return nil
	}
	d, err := dhcpv4.FromBytes(p.payload)
	if err != nil {
		m.damaged = p.src
	}
	if err != nil || !bytes.Equal(d.ClientHWAddr, m.s.want.MAC[:]) || !slices.Contains(kinds, d.MessageType()) {
		return nil
	}
	// RFC 6842: a server repeats whom it answers.
	if id := d.GetOneOption(dhcpv4.OptionClientIdentifier); id != nil && !bytes.Equal(id, m.s.id.clientID()) {
		return nil
	}
	return d
}

// answers looks at what every message has at a fixed place, so that those for others are cheap.
func answers(payload []byte, xid uint32) bool {
	return len(payload) >= 240 && binary.BigEndian.Uint32(payload[4:]) == xid && payload[0] == byte(dhcpv4.OpcodeBootReply)
}

func (m *v4) check(d *dhcpv4.DHCPv4, p packet) (*Lease, error) {
	l, err := lease4(d, time.Now())
	if err != nil {
		return nil, err
	}
	if err := m.admit(l.Addrs[0].Prefix.Addr()); err != nil {
		return nil, err
	}
	l.ServerMAC = p.mac
	return l, nil
}

// lease4 makes a lease of an OFFER or ACK. What is optional and makes no sense is left out; the rest is an error.
func lease4(d *dhcpv4.DHCPv4, now time.Time) (*Lease, error) {
	l := &Lease{Server: serverOf(d), Got: now}
	if !usable4(l.Server) {
		return nil, fmt.Errorf("its server identifier is %s", addrText(l.Server))
	}
	a := addr4(d.YourIPAddr)
	if !usable4(a) {
		return nil, fmt.Errorf("address %s is none for a host", addrText(a))
	}
	bits, err := prefixLen(d, a)
	if err != nil {
		return nil, err
	}
	prefix := netip.PrefixFrom(a, bits)
	if first, last := ends4(prefix); bits < 31 && (a == first || a == last) {
		return nil, fmt.Errorf("address %s is the subnet's own or its broadcast address", prefix)
	}
	if a == l.Server {
		return nil, fmt.Errorf("address %s is the server's own", a)
	}
	if err := l.times4(d); err != nil {
		return nil, err
	}
	l.Addrs = []Address{{Prefix: prefix, Preferred: l.Expires, Valid: l.Expires}}
	l.routes4(d, prefix)
	for _, ip := range d.DNS() {
		if r := addr4(ip); usable4(r) && len(l.DNS) < maxDNS && !slices.Contains(l.DNS, r) {
			l.DNS = append(l.DNS, r)
		}
	}
	l.Search = domains(labels(d.GetOneOption(dhcpv4.OptionDNSDomainSearchList)))
	if len(l.Search) == 0 {
		l.Search = domains([]string{d.DomainName()})
	}
	if mtu, err := dhcpv4.GetUint16(dhcpv4.OptionInterfaceMTU, d.Options); err == nil && mtu >= leastMTU4 {
		l.MTU = int(mtu)
	}
	return l, nil
}

// prefixLen is the mask, or that of the address's class (RFC 950) where the server has none.
func prefixLen(d *dhcpv4.DHCPv4, a netip.Addr) (int, error) {
	raw := d.GetOneOption(dhcpv4.OptionSubnetMask)
	if raw == nil {
		switch first := a.As4()[0]; {
		case first < 128:
			return 8, nil
		case first < 192:
			return 16, nil
		}
		return 24, nil
	}
	if len(raw) != 4 {
		return 0, fmt.Errorf("its subnet mask has %d bytes", len(raw))
	}
	ones, bits := net.IPMask(raw).Size()
	if bits == 0 || ones < 8 {
		return 0, fmt.Errorf("its subnet mask is %s", net.IP(raw))
	}
	return ones, nil
}

// times4 sets when the lease ends and is renewed. Times that contradict each other are replaced by the usual ones.
func (l *Lease) times4(d *dhcpv4.DHCPv4) error {
	secs, ok := seconds(d, dhcpv4.OptionIPAddressLeaseTime)
	if !ok {
		return fmt.Errorf("it has no lease time")
	}
	if secs == forever {
		return nil
	}
	life := time.Duration(secs) * time.Second
	if life < leastLease {
		return fmt.Errorf("its lease time is %s, less than %s", life, leastLease)
	}
	l.schedule(life, optional(d, dhcpv4.OptionRenewTimeValue), optional(d, dhcpv4.OptionRebindingTimeValue), 0.875)
	return nil
}

// schedule sets the times of a lease of some life. t1 and t2 are the server's wishes, 0 if it has none; late is where
// T2 usually is.
func (l *Lease) schedule(life, t1, t2 time.Duration, late float64) {
	if t2 <= 0 || t2 >= life {
		t2 = time.Duration(float64(life) * late)
	}
	if t1 <= 0 || t1 >= t2 {
		t1 = min(life/2, t2*4/5)
	}
	t1 = max(t1, min(leastRenewal, life/2))
	l.T1, l.T2, l.Expires = l.Got.Add(t1), l.Got.Add(max(t1, t2)), l.Got.Add(life)
}

func seconds(d *dhcpv4.DHCPv4, code dhcpv4.OptionCode) (uint32, bool) {
	raw := d.GetOneOption(code)
	if len(raw) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(raw), true
}

func optional(d *dhcpv4.DHCPv4, code dhcpv4.OptionCode) time.Duration {
	s, _ := seconds(d, code)
	return time.Duration(s) * time.Second
}

// routes4 takes the classless routes, which replace the routers if there are any (RFC 3442), or the routers. A next hop
// must be on the link: in the subnet, or anything if the address is all of the subnet.
func (l *Lease) routes4(d *dhcpv4.DHCPv4, on netip.Prefix) {
	onLink := func(via netip.Addr) bool {
		return usable4(via) && via != on.Addr() && (on.Contains(via) || on.IsSingleIP())
	}
	for _, r := range d.ClasslessStaticRoute() {
		ones, _ := r.Dest.Mask.Size()
		dst := netip.PrefixFrom(addr4(r.Dest.IP), ones).Masked()
		via := addr4(r.Router)
		if !dst.IsValid() || ones > 0 && !usable4(dst.Addr()) || len(l.Routes) == maxRoutes {
			continue
		}
		switch {
		case via.IsUnspecified() && ones > 0:
			l.addRoute(plan.Route{Dst: dst})
		case onLink(via):
			l.addRoute(plan.Route{Dst: dst, Via: via, OnLink: !on.Contains(via)})
		}
	}
	if len(l.Routes) > 0 {
		return
	}
	for _, ip := range d.Router() {
		if via := addr4(ip); onLink(via) && len(l.Routes) < maxGateways {
			l.addRoute(plan.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Via: via, OnLink: !on.Contains(via)})
		}
	}
}

// addRoute gives a further route to the same destination a worse metric than the kernel's default for the first.
func (l *Lease) addRoute(r plan.Route) {
	same := 0
	for _, o := range l.Routes {
		if o.Dst == r.Dst && o.Via == r.Via {
			return
		}
		if o.Dst == r.Dst {
			same++
		}
	}
	if same > 0 {
		r.Metric = same
		if r.Dst.Addr().Is6() {
			r.Metric += defaultMetric6
		}
	}
	l.Routes = append(l.Routes, r)
}

// usable4 says whether a host can have the address: not this network, loopback, link-local, multicast, reserved.
func usable4(a netip.Addr) bool {
	return a.Is4() && a.As4()[0] != 0 && a.As4()[0] < 224 && !a.IsLoopback() && !a.IsLinkLocalUnicast()
}

func serverOf(d *dhcpv4.DHCPv4) netip.Addr { return addr4(d.ServerIdentifier()) }

func addr4(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); !a.Is4() {
		return netip.Addr{}
	}
	return a
}

// ends4 are the first and the last address of a subnet.
func ends4(p netip.Prefix) (first, last netip.Addr) {
	first = p.Masked().Addr()
	b := first.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])|uint32(uint64(1)<<(32-p.Bits())-1))
	return first, netip.AddrFrom4(b)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "missing"
	}
	return a.String()
}

// who names a server that may not say who it is.
func who(server netip.Addr, p packet) netip.Addr {
	if server.IsValid() {
		return server
	}
	return p.src
}

// reason is what a server says about a refusal: printable, and not much of it.
func reason(d *dhcpv4.DHCPv4) string {
	if text := printable(d.Message()); text != "" {
		return ": " + text
	}
	return ""
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), 120)])
	return strings.TrimSpace(s)
}

// labels reads a list of names in the encoding of DNS, with its compression (RFC 1035, 3397), up to what is damaged. The
// library's own reader needs seconds for a few kilobytes of pointers to one long name; here a pointer must lead back,
// a name ends after 255 bytes, and a list when there are enough.
func labels(b []byte) (names []string) {
	for at := 0; at < len(b) && len(names) < maxSearch; {
		name, next, ok := oneName(b, at)
		if !ok {
			return names
		}
		if name != "" { // what pads an option
			names = append(names, name)
		}
		at = next
	}
	return names
}

// oneName reads the name at a place, and says where the next one is.
func oneName(b []byte, at int) (name string, next int, ok bool) {
	var parts []string
	for size := 0; size <= 255 && at < len(b); {
		n := int(b[at])
		switch {
		case n == 0:
			return strings.Join(parts, "."), max(next, at+1), true
		case n >= 0xc0 && at+1 < len(b):
			to := n&0x3f<<8 | int(b[at+1])
			if to >= at {
				return "", 0, false
			}
			next = max(next, at+2) // the first pointer's end: others lie before it
			at = to
			size++
		case n < 64 && at+1+n <= len(b):
			parts = append(parts, string(b[at+1:at+1+n]))
			at += 1 + n
			size += 1 + n
		default:
			return "", 0, false
		}
	}
	return "", 0, false
}

// domains are the names of a search list that are names.
func domains(names []string) (out []string) {
	for _, n := range names {
		n = strings.ToLower(strings.TrimSuffix(n, "."))
		if n != "" && len(n) <= 253 && len(out) < maxSearch && !slices.Contains(out, n) && isDomain(n) {
			out = append(out, n)
		}
	}
	return out
}

func isDomain(n string) bool {
	for label := range strings.SplitSeq(n, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
