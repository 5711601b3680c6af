package lease

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// Options of a router advertisement (RFC 4861, 4191, 8106).
const (
	optPrefix  = 3
	optMTU     = 5
	optRoute   = 24
	optRDNSS   = 25
	optDNSSL   = 31
	maxOptions = 64
)

// advert is a router advertisement. Lifetimes are as on the wire, in seconds: forever is infinite.
type advert struct {
	managed, other bool
	lifetime       uint32 // as default router, 0: it is none
	preference     int    // -1, 0, 1
	mtu            int
	prefixes       []advertPrefix
	routes         []advertRoute
	dns            []advertDNS
	search         []advertSearch
}

type advertPrefix struct {
	prefix           netip.Prefix
	onLink, address  bool
	valid, preferred uint32
}

type advertRoute struct {
	dst        netip.Prefix
	lifetime   uint32
	preference int
}

type advertDNS struct {
	addr     netip.Addr
	lifetime uint32
}

type advertSearch struct {
	domain   string
	lifetime uint32
}

// parseAdvert reads an advertisement, whose checksum and sender were looked at. Options that make no sense are left out;
// false: it is damaged.
func parseAdvert(b []byte) (a advert, ok bool) {
	if len(b) < 16 || b[0] != routerAdvert {
		return a, false
	}
	a.managed, a.other = b[5]&0x80 != 0, b[5]&0x40 != 0
	a.lifetime, a.preference = uint32(binary.BigEndian.Uint16(b[6:])), preference(b[5])
	b = b[16:]
	for n := 0; len(b) > 0; n++ {
		if len(b) < 8 || b[1] == 0 || int(b[1])*8 > len(b) || n == maxOptions {
			return a, false
		}
		a.option(b[:int(b[1])*8])
		b = b[int(b[1])*8:]
	}
	return a, true
}

// preference of RFC 4191; the reserved value is medium.
func preference(flags byte) int {
	switch flags >> 3 & 3 {
	case 1:
		return 1
	case 3:
		return -1
	}
	return 0
}

func (a *advert) option(o []byte) {
	switch o[0] {
	case optPrefix:
		a.prefixOption(o)
	case optMTU:
		if mtu := binary.BigEndian.Uint32(o[4:]); mtu >= leastMTU6 && mtu <= mostMTU {
			a.mtu = int(mtu)
		}
	case optRoute:
		a.routeOption(o)
	case optRDNSS:
		for b := o[8:]; len(b) >= 16; b = b[16:] {
			if r := netip.AddrFrom16([16]byte(b)); usable6(r) && len(a.dns) < maxDNS {
				a.dns = append(a.dns, advertDNS{r, binary.BigEndian.Uint32(o[4:])})
			}
		}
	case optDNSSL:
		for _, d := range domains(labels(o[8:])) {
			if len(a.search) < maxSearch {
				a.search = append(a.search, advertSearch{d, binary.BigEndian.Uint32(o[4:])})
			}
		}
	}
}

func (a *advert) prefixOption(o []byte) {
	if len(o) != 32 || o[2] > 128 || len(a.prefixes) == maxPrefixes {
		return
	}
	p := advertPrefix{
		prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte(o[16:])), int(o[2])).Masked(),
		onLink: o[3]&0x80 != 0, address: o[3]&0x40 != 0,
		valid: binary.BigEndian.Uint32(o[4:]), preferred: binary.BigEndian.Uint32(o[8:]),
	}
	if !usable6(p.prefix.Addr()) || p.prefix.Bits() < 3 || p.preferred > p.valid {
		return
	}
	// Addresses are made of the 64 bits of a MAC (RFC 4291): other lengths are for the link only.
	p.address = p.address && p.prefix.Bits() == 64
	a.prefixes = append(a.prefixes, p)
}

func (a *advert) routeOption(o []byte) {
	bits := int(o[2])
	if bits > 128 || (bits+63)/64*8 > len(o)-8 || len(a.routes) == maxRoutes || o[3]>>3&3 == 2 {
		return
	}
	var b [16]byte
	copy(b[:], o[8:])
	dst := netip.PrefixFrom(netip.AddrFrom16(b), bits).Masked()
	if bits > 0 && !usable6(dst.Addr()) {
		return
	}
	a.routes = append(a.routes, advertRoute{dst, binary.BigEndian.Uint32(o[4:]), preference(o[3])})
}

// in turns a lifetime into its end; zero is never.
func in(now time.Time, seconds uint32) time.Time {
	if seconds == forever {
		return time.Time{}
	}
	return now.Add(time.Duration(seconds) * time.Second)
}
