package dns

import (
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	internalSuffix = "internal"
	hostName       = "host.internal"
	gatewayName    = "gateway.internal"

	// localTTL is short because containers come and go; negativeTTL shorter,
	// because what waits for a container asks again and again.
	localTTL    = 5
	negativeTTL = 1
	// maxAnswers is what surely fits into a message over TCP.
	maxAnswers = 1000
)

// kind says what is to be done with a question.
type kind uint8

const (
	kindForward kind = iota
	kindAnswer       // addrs or ptr
	kindNoData       // the name exists, but not with this type
	kindNXDomain
	kindRefuse
)

// verdict is the index's decision on a question.
type verdict struct {
	kind   kind
	addrs  []netip.Addr
	ptr    string
	soa    string // owner of the SOA of a negative answer
	serial uint32
	// network whose upstreams are to be asked, unless the asker has its own.
	network   hcn.GUID
	upstreams []netip.AddrPort
	reason    string // for the query log
}

// decide looks a question up. addrs is a buffer for addresses to use.
func (x *index) decide(network hcn.GUID, q *query, client netip.Addr, single bool, addrs []netip.Addr) verdict {
	x.mu.RLock()
	defer x.mu.RUnlock()
	z := x.zones[network]
	if z == nil || z.sw == nil {
		return verdict{kind: kindRefuse, reason: "network is gone"}
	}
	if !z.mayAsk(client) {
		return verdict{kind: kindRefuse, reason: "client is not on the network"}
	}
	if q.class != dnsmessage.ClassINET {
		return verdict{kind: kindRefuse, reason: "class is not IN"}
	}
	switch q.typ {
	case dnsmessage.TypeAXFR, typeIXFR, typeTKEY, dnsmessage.TypeOPT:
		return verdict{kind: kindRefuse, reason: "type is not served"}
	default:
	}
	v := x.local(z, q, client, addrs)
	if v.kind == kindForward {
		v = x.unknown(z, q, client, single)
	}
	v.serial = z.serial
	return v
}

// local answers what is ours; kindForward means that it is not.
func (x *index) local(z *zone, q *query, client netip.Addr, addrs []netip.Addr) verdict {
	name := q.folded
	switch name {
	case hostName, "host.docker.internal", "host.containers.internal":
		return addresses(q, z.sw.DNS.HostAddrs, "host")
	case gatewayName, "gateway.docker.internal":
		for _, s := range z.sw.Subnets {
			if s.Gateway.IsValid() {
				addrs = append(addrs, s.Gateway)
			}
		}
		return addresses(q, addrs, "gateway")
	}
	switch {
	case within(name, "localhost"):
		return addresses(q, append(addrs, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()), "localhost")
	case within(name, "invalid"), within(name, "onion"), within(name, "resolver.arpa"):
		return verdict{kind: kindNXDomain, soa: lastLabel(name), reason: "name is special"}
	case within(name, "arpa"):
		if v := x.reverse(z, q, client); v.kind != kindForward {
			return v
		}
	}
	ports := z.find(name)
	if ports == nil {
		for _, o := range x.others(z, client) {
			if ports = o.find(name); ports != nil {
				break
			}
		}
	}
	if ports == nil {
		return verdict{kind: kindForward}
	}
	for _, p := range ports {
		if len(addrs) >= maxAnswers {
			break
		}
		addrs = append(addrs, p.Addrs...)
	}
	return addresses(q, addrs, "endpoint")
}

// addresses is the verdict on a name that exists with these addresses. A
// question for any type gets one family only, as RFC 8482 allows.
func addresses(q *query, all []netip.Addr, reason string) verdict {
	if len(all) == 0 {
		return verdict{kind: kindNXDomain, soa: lastLabel(q.folded), reason: reason + " has no address"}
	}
	want4 := q.typ == dnsmessage.TypeA || q.typ == dnsmessage.TypeALL && all[0].Is4()
	want6 := q.typ == dnsmessage.TypeAAAA || q.typ == dnsmessage.TypeALL && !all[0].Is4()
	found := make([]netip.Addr, 0, 8)
	for _, a := range all {
		if a.Is4() && want4 || !a.Is4() && want6 {
			found = append(found, a)
		}
	}
	if len(found) == 0 {
		return verdict{kind: kindNoData, soa: q.folded, reason: reason}
	}
	return verdict{kind: kindAnswer, addrs: found, reason: reason}
}

// reverse answers for the prefixes of our networks.
func (x *index) reverse(z *zone, q *query, client netip.Addr) verdict {
	p, exact, ok := parseReverse(q.folded)
	if !ok {
		return verdict{kind: kindForward}
	}
	whole := exact && p.Bits() == p.Addr().BitLen()
	if whole && p.Addr().IsLoopback() {
		return pointer(q, "localhost", q.folded)
	}
	for _, o := range append([]*zone{z}, x.others(z, client)...) {
		own, ok := o.covers(p)
		switch {
		case !ok:
			continue
		case exact && !whole:
			return verdict{kind: kindNoData, soa: reverseName(own), reason: "reverse tree"}
		case whole:
			if name := o.nameOf(p.Addr()); name != "" {
				return pointer(q, name, reverseName(own))
			}
		}
		return verdict{kind: kindNXDomain, soa: reverseName(own), reason: "address is nobody's"}
	}
	if own, ok := x.anyCovers(p); ok {
		return verdict{kind: kindNXDomain, soa: reverseName(own), reason: "address is on another network"}
	}
	return verdict{kind: kindForward}
}

func pointer(q *query, name, soa string) verdict {
	if q.typ != dnsmessage.TypePTR && q.typ != dnsmessage.TypeALL {
		return verdict{kind: kindNoData, soa: soa, reason: "reverse"}
	}
	return verdict{kind: kindAnswer, ptr: name, reason: "reverse"}
}

// nameOf is the name of an address on the network, one that leads back to it.
func (z *zone) nameOf(a netip.Addr) string {
	if p := z.addrs[a]; p != nil {
		for _, name := range p.Names {
			if name = fold(name); checkName(name) != nil || strings.HasPrefix(name, "*.") {
				continue
			}
			full := name + "." + z.sw.DNS.Domain
			if z.sw.DNS.Domain != "" && checkName(full) == nil {
				return full
			}
			return name
		}
		return ""
	}
	if slices.Contains(z.sw.DNS.HostAddrs, a) {
		return hostName
	}
	for _, s := range z.sw.Subnets {
		if s.Gateway == a {
			return gatewayName
		}
	}
	return ""
}

// unknown decides on a name that none of the asker's networks has.
func (x *index) unknown(z *zone, q *query, client netip.Addr, single bool) verdict {
	zones := append([]*zone{z}, x.others(z, client)...)
	var own []netip.AddrPort
	if p := z.addrs[client]; p != nil {
		own = p.Upstreams
	}
	for _, o := range zones {
		if within(q.folded, o.sw.DNS.Domain) && len(own) == 0 && o.ownsDomain() {
			if q.folded == o.sw.DNS.Domain {
				return verdict{kind: kindNoData, soa: q.folded, reason: "the network's domain"}
			}
			return verdict{kind: kindNXDomain, soa: o.sw.DNS.Domain, reason: "no such endpoint"}
		}
	}
	if q.folded != "" && !strings.Contains(q.folded, ".") && !single && !aboutTLD(q.typ) {
		for _, o := range zones {
			if len(o.wild[q.folded]) > 0 {
				return verdict{kind: kindNoData, soa: q.folded, reason: "only names below it exist"}
			}
		}
		return verdict{kind: kindNXDomain, reason: "no such endpoint"}
	}
	if len(own) > 0 {
		return verdict{kind: kindForward, network: z.sw.Network, upstreams: own, reason: "not ours"}
	}
	for _, o := range zones {
		if o.forwards() {
			return verdict{kind: kindForward, network: o.sw.Network, reason: "not ours"}
		}
	}
	return verdict{kind: kindRefuse, reason: "network is closed"}
}

// aboutTLD is true for the types that a validating resolver asks of top-level
// domains.
func aboutTLD(t dnsmessage.Type) bool {
	return t == dnsmessage.TypeNS || t == dnsmessage.TypeSOA || t == typeDS || t == typeDNSKEY
}

// ownsDomain tells whether nobody else can know names in the network's domain.
func (z *zone) ownsDomain() bool {
	d := z.sw.DNS.Domain
	if d == "" || len(z.sw.DNS.Upstreams) > 0 {
		return false
	}
	if !strings.Contains(d, ".") || within(d, "home.arpa") {
		return true
	}
	switch lastLabel(d) {
	case internalSuffix, "local", "lan", "home", "corp", "test", "private", "localdomain", "alt":
		return true
	}
	return false
}

// forwards tells whether the network lets questions out.
func (z *zone) forwards() bool {
	return z.sw.Mode == plan.ModeNAT || z.sw.Mode == plan.ModeOverlay || len(z.sw.DNS.Upstreams) > 0
}

func lastLabel(name string) string { return name[strings.LastIndexByte(name, '.')+1:] }
