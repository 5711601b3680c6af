package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter is classic BPF on the socket: the kernel drops what nobody wants before it
// is copied. Offsets are those of untagged Ethernet; the kernel keeps the tag of a
// tagged frame apart, so its headers are where they always are.

// proto says what a protocol is in each family; -1: not there at all.
type proto struct {
	v4, v6 int
	arp    bool
}

// anyProto matches whatever the header says.
const anyProto = 256

func protoOf(name string) (proto, bool) {
	switch name {
	case "":
		return proto{anyProto, anyProto, true}, true
	case "ip", "ip4":
		return proto{anyProto, -1, false}, true
	case "ip6":
		return proto{-1, anyProto, false}, true
	case "arp":
		return proto{-1, -1, true}, true
	case "icmp":
		return proto{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, false}, true
	case "tcp":
		return proto{unix.IPPROTO_TCP, unix.IPPROTO_TCP, false}, true
	case "udp":
		return proto{unix.IPPROTO_UDP, unix.IPPROTO_UDP, false}, true
	case "sctp":
		return proto{unix.IPPROTO_SCTP, unix.IPPROTO_SCTP, false}, true
	}
	return proto{}, false
}

// Protocols are the names that a filter knows. Icmp is ICMP and ICMPv6.
func Protocols() []string { return []string{"arp", "icmp", "ip", "ip6", "sctp", "tcp", "udp"} }

// String is the filter in the syntax of pcap-filter, near enough to read.
func (f Filter) String() string {
	var parts []string
	switch f.Protocol {
	case "":
	case "icmp":
		parts = append(parts, "(icmp or icmp6)")
	default:
		parts = append(parts, f.Protocol)
	}
	for _, group := range f.Hosts {
		var any []string
		for _, p := range group {
			if p.IsSingleIP() {
				any = append(any, "host "+p.Addr().String())
			} else {
				any = append(any, "net "+p.String())
			}
		}
		parts = append(parts, "("+strings.Join(any, " or ")+")")
	}
	if f.Port != 0 {
		parts = append(parts, "port "+strconv.Itoa(int(f.Port)))
	}
	return strings.Join(parts, " and ")
}

// asm assembles jumps to places by name. Classic BPF has short conditional jumps and
// long unconditional ones, all forward, so each test is a short jump over a long one.
type asm struct {
	code   []bpf.Instruction
	jumps  map[int]string
	places map[string]int
	names  int
}

func (a *asm) add(ins ...bpf.Instruction) { a.code = append(a.code, ins...) }

func (a *asm) place(name string) { a.places[name] = len(a.code) }

func (a *asm) fresh(name string) string {
	a.names++
	return name + strconv.Itoa(a.names)
}

func (a *asm) jump(to string) {
	a.jumps[len(a.code)] = to
	a.add(bpf.Jump{})
}

// when goes to a place if the accumulator compares so.
func (a *asm) when(cond bpf.JumpTest, val uint32, to string) {
	a.add(bpf.JumpIf{Cond: cond, Val: val, SkipFalse: 1})
	a.jump(to)
}

func (a *asm) assemble() ([]bpf.RawInstruction, error) {
	for at, to := range a.jumps {
		a.code[at] = bpf.Jump{Skip: uint32(a.places[to] - at - 1)}
	}
	raw, err := bpf.Assemble(a.code)
	if err != nil {
		return nil, fmt.Errorf("make the filter: %w", err)
	}
	if len(raw) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("make the filter: %d instructions are more than the kernel takes; name fewer hosts", len(raw))
	}
	return raw, nil
}

// family is where the fields of a family are.
type family struct {
	name           string
	etherType      uint32
	proto          uint32 // offset of the protocol; 0: none
	src, dst, size uint32
}

func families() []family {
	return []family{
		{"v4", unix.ETH_P_IP, 23, 26, 30, 4},
		{"v6", unix.ETH_P_IPV6, 20, 22, 38, 16},
		{"arp", unix.ETH_P_ARP, 0, 28, 38, 4},
	}
}

// program compiles the filter. What it takes is cut to snaplen.
func (f Filter) program(snaplen uint32) ([]bpf.RawInstruction, error) {
	a := &asm{jumps: map[int]string{}, places: map[string]int{}}
	pr, ok := protoOf(f.Protocol)
	if !ok {
		return nil, fmt.Errorf("protocol %q is none of %s", f.Protocol, strings.Join(Protocols(), ", "))
	}
	if f.Protocol == "" && len(f.Hosts) == 0 && f.Port == 0 {
		a.add(bpf.RetConstant{Val: snaplen})
		return a.assemble()
	}
	a.add(bpf.LoadAbsolute{Off: 12, Size: 2})
	for _, fam := range families() {
		a.when(bpf.JumpEqual, fam.etherType, fam.name)
	}
	a.jump("drop")
	for _, fam := range families() {
		a.place(fam.name)
		f.family(a, fam, pr)
	}
	a.place("accept")
	a.add(bpf.RetConstant{Val: snaplen})
	a.place("drop")
	a.add(bpf.RetConstant{Val: 0})
	return a.assemble()
}

func (f Filter) family(a *asm, fam family, pr proto) {
	want := map[string]int{"v4": pr.v4, "v6": pr.v6, "arp": anyProto}[fam.name]
	if want < 0 || fam.name == "arp" && (!pr.arp || f.Port != 0) {
		a.jump("drop")
		return
	}
	if want != anyProto {
		a.add(bpf.LoadAbsolute{Off: fam.proto, Size: 1})
		a.when(bpf.JumpNotEqual, uint32(want), "drop")
	}
	for _, group := range f.Hosts {
		f.hosts(a, fam, group)
	}
	if f.Port == 0 {
		a.jump("accept")
		return
	}
	f.port(a, fam)
}

func (f Filter) hosts(a *asm, fam family, group []netip.Prefix) {
	found := a.fresh("found")
	for _, p := range group {
		if p.Addr().Is4() != (fam.size == 4) {
			continue
		}
		for _, off := range []uint32{fam.src, fam.dst} {
			other := a.fresh("other")
			f.words(a, off, p, other)
			a.jump(found)
			a.place(other)
		}
	}
	a.jump("drop")
	a.place(found)
}

// words compares an address with a prefix, four bytes at a time.
func (Filter) words(a *asm, off uint32, p netip.Prefix, other string) {
	b := p.Masked().Addr().AsSlice()
	for i := 0; i*8 < p.Bits(); i += 4 {
		mask := ^uint32(0)
		if left := p.Bits() - i*8; left < 32 {
			mask = ^(^uint32(0) >> left)
		}
		a.add(bpf.LoadAbsolute{Off: off + uint32(i), Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask})
		a.when(bpf.JumpNotEqual, binary.BigEndian.Uint32(b[i:]), other)
	}
}

func (f Filter) port(a *asm, fam family) {
	hasPorts := a.fresh("ports")
	a.add(bpf.LoadAbsolute{Off: fam.proto, Size: 1})
	for _, p := range []uint32{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP} {
		a.when(bpf.JumpEqual, p, hasPorts)
	}
	a.jump("drop")
	a.place(hasPorts)
	if fam.name == "v4" {
		a.add(bpf.LoadAbsolute{Off: 20, Size: 2})
		a.when(bpf.JumpBitsSet, 0x1fff, "drop") // no first fragment
		a.add(bpf.LoadMemShift{Off: 14})
	} else {
		a.add(bpf.LoadConstant{Dst: bpf.RegX, Val: 40})
	}
	for _, off := range []uint32{14, 16} {
		a.add(bpf.LoadIndirect{Off: off, Size: 2})
		a.when(bpf.JumpEqual, uint32(f.Port), "accept")
	}
	a.jump("drop")
}
