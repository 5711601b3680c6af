// Package ipam makes the choices that are made once and kept: addresses, MACs,
// prefixes, small numbers. Every function is pure: a pool and what is taken go
// in, a pick comes out. What is taken is what stored objects hold, so nothing
// can leak: a deleted row is a free address.
package ipam

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"
)

// ErrExhausted is returned when a pool holds nothing free.
var ErrExhausted = errors.New("pool is exhausted")

// Range is an inclusive range of addresses of one family.
type Range = netipx.IPRange

// Pool is where a subnet's addresses come from.
type Pool struct {
	// Ranges to pick from, in order.
	Ranges []Range
	// Reserved addresses are never picked: network, broadcast, gateway,
	// exclusions.
	Reserved func(netip.Addr) bool
}

// maxProbe bounds a search through a pool, so that a /64 full of exclusions
// ends. It is above what one host can hold.
const maxProbe = 1 << 20

// Addr picks the first free address after the address `after`, wrapping round
// once; an invalid `after` starts at the first. Going on from the last pick
// keeps an address that was just released out of use for as long as possible,
// so that neighbours' caches and old connections do not meet its next owner.
func (p Pool) Addr(taken func(netip.Addr) bool, after netip.Addr) (netip.Addr, error) {
	free := func(a netip.Addr) bool {
		return (p.Reserved == nil || !p.Reserved(a)) && !taken(a)
	}
	start := -1
	if after.IsValid() {
		for i, r := range p.Ranges {
			if r.Contains(after) {
				start = i
				break
			}
		}
	}
	probes := 0
	scan := func(from, to netip.Addr) (netip.Addr, bool) {
		for a := from; a.IsValid() && !to.Less(a) && probes < maxProbe; a = a.Next() {
			probes++
			if free(a) {
				return a, true
			}
		}
		return netip.Addr{}, false
	}
	if start >= 0 {
		r := p.Ranges[start]
		if next := after.Next(); next.IsValid() && !r.To().Less(next) {
			if a, ok := scan(next, r.To()); ok {
				return a, nil
			}
		}
		for _, r := range p.Ranges[start+1:] {
			if a, ok := scan(r.From(), r.To()); ok {
				return a, nil
			}
		}
	}
	for i, r := range p.Ranges {
		to := r.To()
		if i == start {
			to = after
		}
		if a, ok := scan(r.From(), to); ok {
			return a, nil
		}
		if i == start {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("pick an address: %w", ErrExhausted)
}

// FreePrefix picks the first prefix of `bits` length in the pools that overlaps
// none of those in use.
func FreePrefix(pools []netip.Prefix, bits int, used []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		p := netip.PrefixFrom(pool.Masked().Addr(), bits)
		for n := 0; pool.Contains(p.Addr()) && n < maxProbe; n++ {
			if clash, ok := overlap(p, used); !ok {
				return p, nil
			} else if clash.Bits() < bits {
				// The clash covers more than this candidate: go on behind it.
				last := netipx.PrefixLastIP(clash)
				p = netip.PrefixFrom(last.Next(), bits)
			} else {
				p = netip.PrefixFrom(netipx.PrefixLastIP(p).Next(), bits)
			}
			if !p.Addr().IsValid() {
				break
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("pick a free /%d: %w", bits, ErrExhausted)
}

func overlap(p netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) {
	for _, u := range used {
		if u.Bits() > 0 && p.Overlaps(u) {
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// Clash returns the prefix in use that overlaps p, and whether there is one.
// Default routes do not count.
func Clash(p netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) { return overlap(p, used) }

// ULA is a stable unique local prefix (RFC 4193) for a machine and a number: 40
// bits from the machine's identity, 16 from the number.
func ULA(machine string, number uint16) netip.Prefix {
	sum := sha256.Sum256([]byte("bulkhead ula " + machine))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[:5])
	binary.BigEndian.PutUint16(a[6:8], number)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// MACRange is an inclusive range of Ethernet addresses.
type MACRange struct{ From, To [6]byte }

func macNumber(m [6]byte) uint64 {
	var b [8]byte
	copy(b[2:], m[:])
	return binary.BigEndian.Uint64(b[:])
}

func numberMAC(n uint64) (m [6]byte) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	copy(m[:], b[2:])
	return m
}

// MAC derives an address from an identity: the same identity gets the same
// address again as long as it is free, so an endpoint that is made again under
// its ID keeps its MAC. A clash moves on to the next free one.
func MAC(ranges []MACRange, identity string, taken func([6]byte) bool) ([6]byte, error) {
	var total uint64
	for _, r := range ranges {
		total += macNumber(r.To) - macNumber(r.From) + 1
	}
	if total == 0 {
		return [6]byte{}, fmt.Errorf("pick a MAC address: %w", ErrExhausted)
	}
	sum := sha256.Sum256([]byte("bulkhead mac " + identity))
	start := binary.BigEndian.Uint64(sum[:8]) % total
	for i := uint64(0); i < total && i < maxProbe; i++ {
		n := (start + i) % total
		for _, r := range ranges {
			size := macNumber(r.To) - macNumber(r.From) + 1
			if n >= size {
				n -= size
				continue
			}
			if m := numberMAC(macNumber(r.From) + n); !taken(m) {
				return m, nil
			}
			break
		}
	}
	return [6]byte{}, fmt.Errorf("pick a MAC address: %w", ErrExhausted)
}

// MACPool is the pool of a network that named none: 4,096 addresses in the block
// that Windows uses, 00-15-5D-xx-y0-00 to 00-15-5D-xx-yF-FF (HCN MacPool).
func MACPool(identity string) MACRange {
	sum := sha256.Sum256([]byte("bulkhead macpool " + identity))
	x, y := sum[0], sum[1]&0xf0
	return MACRange{
		From: [6]byte{0x00, 0x15, 0x5d, x, y, 0x00},
		To:   [6]byte{0x00, 0x15, 0x5d, x, y | 0x0f, 0xff},
	}
}

// Number picks the smallest free number from 1.
func Number(taken func(uint32) bool) uint32 {
	n := uint32(1)
	for taken(n) {
		n++
	}
	return n
}
