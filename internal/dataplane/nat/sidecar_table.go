package nat

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The table of a compartment, as nft shows it:
//
//	chain output     { type nat hook output priority -100; meta skuid 1337 return
//	                   oifname "eth0" meta nfproto ipv4 … tcp dport @s1 redirect to :15001 }
//	chain prerouting { type nat hook prerouting priority -100; iifname "eth0" … redirect to :15006 }
//
// What a compartment sends to itself leaves by lo and is nobody's: side-car and container speak to each other undisturbed.
var sideCarTable = &nftables.Table{Name: SideCarTable, Family: nftables.TableFamilyINet}

// text is what the table says, for the comparison with what another version of the program has written.
func (r *redirects) text() string {
	var b strings.Builder
	b.WriteString("1\n") // the form in which rules are written
	for _, p := range r.ports {
		for i := range p.Redirects {
			x := &p.Redirects[i]
			fmt.Fprintf(&b, "%s %v %d %v %v %v %v %v %v %v", p.VNIC.Device, x.Outgoing, x.To, x.Protocols, x.Local, x.Remote, x.LocalPorts, x.RemotePorts, x.ExceptRemote, x.ExceptPorts)
			if x.User != nil {
				b.WriteString(" " + x.User.String())
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (r *redirects) sum() string {
	sum := sha256.Sum256([]byte(r.text()))
	return hex.EncodeToString(sum[:12])
}

// tableState tells what is wrong with the table in the compartment behind fd, "" for nothing.
func tableState(fd int, r *redirects) (string, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: fd})
	if err != nil {
		return "", fmt.Errorf("open netfilter socket: %w", err)
	}
	defer c.Close()
	exists, seal, content, err := readSideCar(c)
	switch {
	case err != nil:
		return "", fmt.Errorf("list table inet %s: %w", SideCarTable, err)
	case exists && len(r.ports) == 0:
		return "left over", nil
	case len(r.ports) == 0:
		return "", nil
	case !exists:
		return "missing", nil
	case seal != r.sum()+"-"+content:
		return "changed", nil
	}
	return "", nil
}

// readSideCar reads the seal of the table and sums up all else in it.
func readSideCar(c *netlink.Conn) (exists bool, seal, content string, err error) {
	exists, static, err := checksum(c, SideCarTable)
	if err != nil || !exists {
		return exists, "", "", err
	}
	l := &listing{elements: elements{}}
	for i := range maxSideCarSets {
		before := len(l.elements)
		if err := l.readSet(c, SideCarTable, setName(i)); err != nil {
			return exists, "", "", err
		}
		if len(l.elements) == before { // a set that is used has elements
			break
		}
	}
	if err := l.readSet(c, SideCarTable, setSeal); err != nil {
		return exists, "", "", err
	}
	sum := sha256.New()
	sum.Write([]byte(static))
	for _, k := range l.elements.sorted() {
		fmt.Fprintf(sum, "%s %x %x %v\n", k.set, k.key, k.last, k.end)
	}
	return exists, l.seal, hex.EncodeToString(sum.Sum(nil)[:12]), nil
}

// maxSideCarSets is far above what the policies of a compartment's endpoints can need.
const maxSideCarSets = 1 << 16

func setName(i int) string { return fmt.Sprintf("s%d", i) }

// writeRedirects writes the whole table, or takes it away, in one transaction, then seals it.
func writeRedirects(fd int, r *redirects) error {
	c, err := nftables.New(nftables.WithNetNSFd(fd))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(sideCarTable) // else its deletion would fail where there is none
	c.DelTable(sideCarTable)
	if len(r.ports) == 0 {
		return c.Flush()
	}
	c.AddTable(sideCarTable)
	w := &redirectWriter{c: c}
	w.output = w.chain("output", nftables.ChainHookOutput)
	w.prerouting = w.chain("prerouting", nftables.ChainHookPrerouting)
	seal := &nftables.Set{Table: sideCarTable, Name: setSeal, KeyType: nftables.TypeInetService}
	w.fail(c.AddSet(seal, nil))
	w.users(r)
	for _, p := range r.ports {
		for i := range p.Redirects {
			w.redirect(p.VNIC.Device, &p.Redirects[i])
		}
	}
	if w.err != nil {
		return w.err
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write table inet %s: %w", SideCarTable, err)
	}
	return sealSideCar(fd, c, seal, r)
}

func sealSideCar(fd int, c *nftables.Conn, seal *nftables.Set, r *redirects) error {
	reader, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: fd})
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	defer reader.Close()
	_, _, content, err := readSideCar(reader)
	if err != nil {
		return fmt.Errorf("list table inet %s: %w", SideCarTable, err)
	}
	if err := c.SetAddElements(seal, []nftables.SetElement{{Key: port(1), Comment: r.sum() + "-" + content}}); err != nil {
		return fmt.Errorf("encode seal: %w", err)
	}
	return c.Flush()
}

// redirectWriter queues the rules of a table.
type redirectWriter struct {
	c                  *nftables.Conn
	output, prerouting *nftables.Chain
	sets               int
	err                error
}

func (w *redirectWriter) fail(err error) { w.err = errors.Join(w.err, err) }

func (w *redirectWriter) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	return w.c.AddChain(&nftables.Chain{Name: name, Table: sideCarTable, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATDest})
}

// users leaves alone what the side-cars send.
func (w *redirectWriter) users(r *redirects) {
	seen := map[plan.User]bool{}
	for _, p := range r.ports {
		for i := range p.Redirects {
			u := p.Redirects[i].User
			if u == nil || seen[*u] {
				continue
			}
			seen[*u] = true
			key := expr.MetaKeySKUID
			if u.Group {
				key = expr.MetaKeySKGID
			}
			w.rule(w.output, &expr.Meta{Key: key, Register: 1}, equal(binary.NativeEndian.AppendUint32(nil, u.ID)), &expr.Verdict{Kind: expr.VerdictReturn})
		}
	}
}

func (w *redirectWriter) rule(chain *nftables.Chain, exprs ...expr.Any) {
	w.c.AddRule(&nftables.Rule{Table: sideCarTable, Chain: chain, Exprs: exprs})
}

func equal(data []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }

// redirect writes the rules of one redirect: for each protocol, and for each family where addresses count.
func (w *redirectWriter) redirect(device string, r *plan.Redirect) {
	chain, iface := w.prerouting, expr.MetaKeyIIFNAME
	if r.Outgoing {
		chain, iface = w.output, expr.MetaKeyOIFNAME
	}
	ports := w.ports(r)
	families := []netip.Addr{{}}
	if len(r.Local)+len(r.Remote)+len(r.ExceptRemote) > 0 {
		families = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, family := range families {
		if family.IsValid() && !r.Serves(family.Is4()) {
			continue
		}
		addrs := w.addresses(r, family)
		for _, proto := range r.Protocols {
			rule := []expr.Any{
				&expr.Meta{Key: iface, Register: 1}, equal(ifname(device)),
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{proto}),
			}
			rule = append(append(rule, addrs...), ports...)
			rule = append(rule, &expr.Immediate{Register: 1, Data: port(r.To)}, &expr.Redir{RegisterProtoMin: 1, Flags: unix.NF_NAT_RANGE_PROTO_SPECIFIED})
			w.rule(chain, rule...)
		}
	}
}

// side says where a field of the local or the remote side is: in what goes out, the source is local.
func side(r *plan.Redirect, local bool) (source bool) { return r.Outgoing == local }

func (w *redirectWriter) ports(r *plan.Redirect) []expr.Any {
	var out []expr.Any
	field := func(source bool, list []plan.PortRange, except bool) {
		if len(list) == 0 {
			return
		}
		offset := uint32(2)
		if source {
			offset = 0
		}
		var es []nftables.SetElement
		for _, p := range list {
			es = append(es, nftables.SetElement{Key: port(p.First)})
			if p.Last < 65535 {
				es = append(es, nftables.SetElement{Key: port(p.Last + 1), IntervalEnd: true})
			}
		}
		out = append(out, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}, w.lookup(nftables.TypeInetService, es, except))
	}
	field(side(r, true), r.LocalPorts, false)
	field(side(r, false), r.RemotePorts, false)
	field(false, r.ExceptPorts, true) // the port that a flow is for
	return out
}

func (w *redirectWriter) addresses(r *plan.Redirect, family netip.Addr) []expr.Any {
	if !family.IsValid() {
		return nil
	}
	v4 := family.Is4()
	number, kind, src, size := byte(unix.NFPROTO_IPV6), nftables.TypeIP6Addr, uint32(8), uint32(16)
	if v4 {
		number, kind, src, size = unix.NFPROTO_IPV4, nftables.TypeIPAddr, 12, 4
	}
	out := []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{number})}
	field := func(source bool, list []netip.Prefix, except bool) {
		es := rangesOf(list, v4)
		if len(es) == 0 {
			return
		}
		offset := src
		if !source {
			offset += size
		}
		out = append(out, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, w.lookup(kind, es, except))
	}
	field(side(r, true), r.Local, false)
	field(side(r, false), r.Remote, false)
	field(side(r, false), r.ExceptRemote, true)
	return out
}

// rangesOf are a family's addresses of a list, as elements of a set of intervals.
func rangesOf(list []netip.Prefix, v4 bool) []nftables.SetElement {
	var b netipx.IPSetBuilder
	for _, p := range list {
		if p.Addr().Is4() == v4 {
			b.AddPrefix(p)
		}
	}
	ips, err := b.IPSet()
	if err != nil {
		return nil // prefixes of a plan are valid
	}
	var es []nftables.SetElement
	for _, r := range ips.Ranges() {
		es = append(es, nftables.SetElement{Key: r.From().AsSlice()})
		if next := r.To().Next(); next.IsValid() {
			es = append(es, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	return es
}

// lookup makes a set and asks it.
func (w *redirectWriter) lookup(kind nftables.SetDatatype, es []nftables.SetElement, except bool) expr.Any {
	s := &nftables.Set{Table: sideCarTable, Name: setName(w.sets), KeyType: kind, Interval: true}
	w.sets++
	w.fail(w.c.AddSet(s, nil))
	for start := 0; start < len(es); start += elementsPerMessage {
		w.fail(w.c.SetAddElements(s, es[start:min(start+elementsPerMessage, len(es))]))
	}
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID, Invert: except}
}
