package nat

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"go4.org/netipx"
	"sigs.k8s.io/knftables"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// elemKey identifies an element: the set and the key as the kernel has it. An interval is two elements, the second of
// which (end) is the first key that is no longer in it; in a set of concatenations it is one, from key to last.
type elemKey struct {
	set, key string
	last     string
	end      bool
}

// elem is the rest of an element: the value of a map's, the texts for nft and for people, and whose it is.
type elem struct {
	val         string
	keyText     []string
	valText     []string
	kind, owner string
}

type elements map[elemKey]elem

// concat joins the parts of a key or value, each padded to a multiple of four bytes, as nft registers are.
func concat(parts ...[]byte) string {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return string(b)
}

// ifname is a whole interface name as a key: 16 bytes, zero padded.
func ifname(dev string) []byte {
	b := make([]byte, 16)
	copy(b, dev)
	return b
}

func port(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }

// addSwitch puts in the elements of one network.
func (es elements) addSwitch(s *plan.Switch) {
	if s == nil || s.HostDevice == "" {
		return
	}
	e := elem{kind: "network", owner: string(s.Network)}
	dev, name := ifname(s.HostDevice), `"`+s.HostDevice+`"`
	if s.Mode == plan.ModeNAT || s.Mode == plan.ModeOverlay || s.Mode == plan.ModeServices {
		e.keyText = []string{name}
		es[elemKey{set: setNATVNICs, key: string(dev)}] = e
	}
	e.keyText = []string{name, name}
	es[elemKey{set: setSameNetwork, key: concat(dev, dev)}] = e
	for _, sub := range s.Subnets {
		set := setPrefixes6
		if sub.Prefix.Addr().Is4() {
			set = setPrefixes4
		}
		e.keyText = []string{sub.Prefix.Masked().String()}
		es[elemKey{set: set, key: string(sub.Prefix.Masked().Addr().AsSlice())}] = e
		// The prefix that ends with the address space has no end element.
		if next := netipx.PrefixLastIP(sub.Prefix).Next(); next.IsValid() {
			es[elemKey{set: set, key: string(next.AsSlice()), end: true}] = e
		}
	}
}

// addPort puts in the elements of one port's forwards. An element that another port holds is an error: nothing decides
// between the two, so the first keeps it.
func (es elements) addPort(p *plan.Port) error {
	if p == nil {
		return nil
	}
	for _, f := range p.Forwards {
		if err := es.addForward(f, kindPort, string(p.ID)); err != nil {
			return err
		}
	}
	for i := range p.Outbound {
		es.addOutbound(&p.Outbound[i], p.ID)
	}
	es.addDetours(p)
	return nil
}

// addBalancer puts in the elements of a load balancer's ports.
func (es elements) addBalancer(b *plan.Balancer) error {
	if b == nil {
		return nil
	}
	for _, f := range b.Forwards {
		if err := es.addForward(f, kindBalancer, string(b.ID)); err != nil {
			return err
		}
	}
	return nil
}

// The kinds of those who have forwards.
const (
	kindPort     = "port"
	kindBalancer = "loadbalancer"
)

func (es elements) addForward(f plan.Forward, kind, owner string) error {
	k, e := forwardElement(f)
	e.kind, e.owner = kind, owner
	if have, ok := es[k]; ok && have.val != e.val {
		return fmt.Errorf("publish %s: published to %s already", Describe(f), have.holder())
	}
	es[k] = e
	if f.Hidden {
		h := elem{keyText: []string{f.To.Addr().String()}, kind: e.kind, owner: e.owner}
		es[elemKey{set: hiddenSet(f.Is4()), key: string(f.To.Addr().AsSlice())}] = h
	}
	if k.set == mapAll6 || k.set == mapLAN6 {
		es[elemKey{set: setLinkLocal, key: k.key}] = elem{keyText: e.keyText, kind: e.kind, owner: e.owner}
	}
	if k.set == mapLAN4 {
		es[elemKey{set: setLoopback4, key: k.key}] = elem{keyText: e.keyText, kind: e.kind, owner: e.owner}
	}
	return nil
}

// holder names whose an element is.
func (e elem) holder() string {
	if e.kind == kindBalancer {
		return "load balancer " + e.owner
	}
	return "port " + e.owner
}

func (e elem) error(err error) error {
	return &plan.ObjectError{Kind: e.kind, ID: e.owner, Err: err}
}

func hiddenSet(v4 bool) string {
	if v4 {
		return setHidden4
	}
	return setHidden6
}

func forwardElement(f plan.Forward) (elemKey, elem) {
	names := map[plan.Scope][2]string{
		plan.ScopeAddress: {mapAddress4, mapAddress6},
		plan.ScopeAll:     {mapAll4, mapAll6},
		plan.ScopeLAN:     {mapLAN4, mapLAN6},
	}
	set := names[f.Scope][1]
	if f.Is4() {
		set = names[f.Scope][0]
	}
	proto := []byte{f.Protocol}
	k := elemKey{set: set, key: concat(proto, port(f.Port))}
	text := []string{protoName(f.Protocol), fmt.Sprint(f.Port)}
	if f.Scope == plan.ScopeAddress {
		k.key = concat(f.Bind.AsSlice(), proto, port(f.Port))
		text = append([]string{f.Bind.String()}, text...)
	}
	return k, elem{
		val:     concat(f.To.Addr().AsSlice(), port(f.To.Port())),
		keyText: text,
		valText: []string{f.To.Addr().String(), fmt.Sprint(f.To.Port())},
	}
}

func protoName(p uint8) string {
	switch p {
	case 6:
		return "tcp"
	case 17:
		return "udp"
	}
	return fmt.Sprint(p)
}

// Describe writes a forward the way error messages do: "tcp 127.0.0.1:8080".
func Describe(f plan.Forward) string {
	return protoName(f.Protocol) + " " + netip.AddrPortFrom(bindAddr(f), f.Port).String()
}

// bindAddr is the address a forward is bound to: the wildcard with the wider scopes.
func bindAddr(f plan.Forward) netip.Addr {
	switch {
	case f.Scope == plan.ScopeAddress:
		return f.Bind
	case f.Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// planElements is all that the plan wants in the sets, and the errors of ports that cannot have theirs.
func planElements(p *plan.Plan) (elements, []error) {
	es := elements{}
	for _, s := range p.Switches {
		es.addSwitch(s)
	}
	ids := make([]plan.PortID, 0, len(p.Ports))
	for id, port := range p.Ports {
		if len(port.Forwards)+len(port.Outbound)+len(port.Detours) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var errs []error
	for _, id := range ids {
		if err := es.addPort(p.Ports[id]); err != nil {
			errs = append(errs, portError(id, err))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(p.Balancers)) {
		if err := es.addBalancer(p.Balancers[id]); err != nil {
			errs = append(errs, elem{kind: kindBalancer, owner: string(id)}.error(err))
		}
	}
	return es, errs
}

func portError(id plan.PortID, err error) error {
	return elem{kind: kindPort, owner: string(id)}.error(err)
}

// without lists what is in es and not, or not with the same value, in other.
func (es elements) without(other elements) elements {
	diff := elements{}
	for k, e := range es {
		if o, ok := other[k]; !ok || o.val != e.val {
			diff[k] = e
		}
	}
	return diff
}

// addText adds the elements to a transaction that is read by nft.
func (es elements) addText(tx *knftables.Transaction) {
	for _, k := range es.sorted() {
		e := es[k]
		if k.end {
			continue // part of the prefix
		}
		if e.val != "" {
			tx.Add(&knftables.Element{Map: k.set, Key: e.keyText, Value: e.valText})
		} else {
			tx.Add(&knftables.Element{Set: k.set, Key: e.keyText})
		}
	}
}

func (es elements) sorted() []elemKey {
	keys := make([]elemKey, 0, len(es))
	for k := range es {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		if a.set != b.set {
			return a.set < b.set
		}
		if a.key != b.key {
			return a.key < b.key
		}
		if a.last != b.last {
			return a.last < b.last
		}
		// Where one prefix ends and the next begins, the kernel wants the end first: it takes two beginnings in a row
		// for prefixes that overlap.
		return a.end && !b.end
	})
	return keys
}

// describe names an element in a drift report.
func describeElement(k elemKey, e elem) string {
	key := strings.Join(e.keyText, " . ")
	if key == "" {
		key = fmt.Sprintf("0x%x", k.key)
	}
	return "element " + k.set + " { " + key + " }"
}
