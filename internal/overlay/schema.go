package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Schema is the version of the keys and values that this build reads and writes. Members
// may be added to values within a version, and are ignored by those who do not know them;
// whatever else changes makes a new version, and builds of different versions do not share
// a prefix: a host refuses one of another version before it writes anything.
const Schema = 1

// The bounds of what is read. What is larger was not written by us.
const (
	maxKey      = 512
	maxName     = 253
	maxAddrs    = 16
	maxHosts    = 8192
	maxNetworks = 4096
	// maxObjects bounds endpoints and blocks, each.
	maxObjects = 1 << 18
	// maxBalancers and maxServices bound load balancers and their services (ports at virtual addresses), maxServed the back ends of all
	// services: half of what a host's tables hold, so that its own have room.
	maxBalancers = 1 << 14
	maxServices  = 1 << 15
	maxServed    = 1 << 19
)

// MaxNames is how many names an endpoint may have.
const MaxNames = 64

// maxValue bounds the values, by the kind of key.
var maxValue = map[kind]int{
	kindSchema: 4 << 10, kindAllocator: 256, kindHost: 4 << 10, kindForgotten: 4 << 10, kindNetwork: 256 << 10,
	kindBlock: 4 << 10, kindEndpoint: 8 << 10, kindToken: 4 << 10,
	kindCheck: 8 << 10, kindChecked: 512 << 10, kindBalancer: 256 << 10,
	kindQuestion: 8 << 10, kindAnswer: 256 << 10,
}

// kind is what a key is about.
type kind uint8

const (
	kindForeign kind = iota
	kindSchema
	kindAllocator
	kindHost
	kindForgotten
	kindNetwork
	kindBlock
	kindEndpoint
	kindToken
	kindCheck
	kindChecked
	kindBalancer
	kindQuestion
	kindAnswer
)

// keys makes and reads the keys below a prefix.
type keys struct{ prefix string }

// DefaultPrefix is where the keys are in an etcd that is not told another.
const DefaultPrefix = "/bulkhead"

// CheckPrefix says what is wrong with a prefix.
func CheckPrefix(p string) error {
	switch {
	case len(p) < 2 || len(p) > 128 || p[0] != '/':
		return fmt.Errorf("the prefix %q must begin with a slash and have 2 to 128 characters, such as %s", p, DefaultPrefix)
	case strings.HasSuffix(p, "/"):
		return fmt.Errorf("the prefix %q must not end with a slash", p)
	}
	for i := range len(p) {
		if p[i] <= ' ' || p[i] > '~' {
			return fmt.Errorf("the prefix %q may only have printable ASCII characters and no blanks", p)
		}
	}
	return nil
}

func (k keys) all() string       { return k.prefix + "/" }
func (k keys) schema() string    { return k.prefix + "/schema" }
func (k keys) base() string      { return k.prefix + "/v1/" }
func (k keys) allocator() string { return k.base() + "allocator" }

func (k keys) hosts() string                 { return k.base() + "hosts/" }
func (k keys) host(id hcn.GUID) string       { return k.hosts() + id.Lower() }
func (k keys) forgottens() string            { return k.base() + "forgotten/" }
func (k keys) forgotten(id hcn.GUID) string  { return k.forgottens() + id.Lower() }
func (k keys) networks() string              { return k.base() + "networks/" }
func (k keys) network(id hcn.GUID) string    { return k.networks() + id.Lower() }
func (k keys) tokens() string                { return k.base() + "tokens/" }
func (k keys) token(id string) string        { return k.tokens() + id }
func (k keys) blocks() string                { return k.base() + "blocks/" }
func (k keys) blocksOf(net hcn.GUID) string  { return k.blocks() + net.Lower() + "/" }
func (k keys) endpoints() string             { return k.base() + "endpoints/" }
func (k keys) endpointsOf(n hcn.GUID) string { return k.endpoints() + n.Lower() + "/" }

func (k keys) balancers() string             { return k.base() + "loadbalancers/" }
func (k keys) balancersOf(n hcn.GUID) string { return k.balancers() + n.Lower() + "/" }

func (k keys) balancer(net, host, id hcn.GUID) string {
	return k.balancersOf(net) + host.Lower() + "/" + id.Lower()
}

// question and answer are named by whom they are for, by whom they are from, and an ID.
func (k keys) question(to, by, id hcn.GUID) string {
	return k.base() + "questions/" + to.Lower() + "/" + by.Lower() + "/" + id.Lower()
}

func (k keys) answer(to, by, id hcn.GUID) string {
	return k.base() + "answers/" + to.Lower() + "/" + by.Lower() + "/" + id.Lower()
}

func (k keys) check() string                { return k.base() + "check" }
func (k keys) checked(host hcn.GUID) string { return k.base() + "checked/" + host.Lower() }

func (k keys) block(net hcn.GUID, p netip.Prefix) string {
	return fmt.Sprintf("%s%s_%d", k.blocksOf(net), p.Addr(), p.Bits())
}

func (k keys) endpointsBy(net, host hcn.GUID) string {
	return k.endpointsOf(net) + host.Lower() + "/"
}

func (k keys) endpoint(net, host, id hcn.GUID) string { return k.endpointsBy(net, host) + id.Lower() }

// parsed is a key taken apart.
type parsed struct {
	kind    kind
	id      hcn.GUID // of the host, network, endpoint or load balancer
	network hcn.GUID // of a block, an endpoint or a load balancer
	host    hcn.GUID // of an endpoint or a load balancer; for whom a question or an answer is
	other   hcn.GUID // by whom that is
	prefix  netip.Prefix
}

var errForeign = errors.New("no key of ours")

// parse reads a key. What it gives back for a key makes that key again, and no other.
func (k keys) parse(key string) (parsed, error) {
	rest, ok := strings.CutPrefix(key, k.base())
	if key == k.schema() {
		return parsed{kind: kindSchema}, nil
	}
	if !ok || len(key) > maxKey {
		return parsed{}, errForeign
	}
	if rest == "allocator" {
		return parsed{kind: kindAllocator}, nil
	}
	if rest == "check" {
		return parsed{kind: kindCheck}, nil
	}
	parts := strings.Split(rest, "/")
	ids := make([]hcn.GUID, len(parts))
	for i, p := range parts[1:] {
		if parts[0] == "tokens" || (parts[0] == "blocks" && i == 1) {
			continue
		}
		id, err := hcn.ParseGUID(p)
		if err != nil || id.Lower() != p || id.IsZero() {
			return parsed{}, errForeign
		}
		ids[i+1] = id
	}
	switch {
	case parts[0] == "tokens" && len(parts) == 2:
		return parsed{kind: kindToken}, nil
	case parts[0] == "hosts" && len(parts) == 2:
		return parsed{kind: kindHost, id: ids[1]}, nil
	case parts[0] == "checked" && len(parts) == 2:
		return parsed{kind: kindChecked, id: ids[1]}, nil
	case parts[0] == "forgotten" && len(parts) == 2:
		return parsed{kind: kindForgotten, id: ids[1]}, nil
	case parts[0] == "networks" && len(parts) == 2:
		return parsed{kind: kindNetwork, id: ids[1]}, nil
	case parts[0] == "blocks" && len(parts) == 3:
		p, err := netip.ParsePrefix(strings.Replace(parts[2], "_", "/", 1))
		if err != nil || p.Masked() != p || k.block(ids[1], p) != key {
			return parsed{}, errForeign
		}
		return parsed{kind: kindBlock, network: ids[1], prefix: p}, nil
	case parts[0] == "endpoints" && len(parts) == 4:
		return parsed{kind: kindEndpoint, network: ids[1], host: ids[2], id: ids[3]}, nil
	case parts[0] == "questions" && len(parts) == 4:
		return parsed{kind: kindQuestion, host: ids[1], other: ids[2], id: ids[3]}, nil
	case parts[0] == "answers" && len(parts) == 4:
		return parsed{kind: kindAnswer, host: ids[1], other: ids[2], id: ids[3]}, nil
	case parts[0] == "loadbalancers" && len(parts) == 4:
		return parsed{kind: kindBalancer, network: ids[1], host: ids[2], id: ids[3]}, nil
	}
	return parsed{}, errForeign
}

// schemaRecord is the value at PREFIX/schema: written once, by the first host.
type schemaRecord struct {
	Version int       `json:"version"`
	Cluster hcn.GUID  `json:"cluster"`
	Since   time.Time `json:"since"`
}

func (s *schemaRecord) check() error { return checkID("cluster", s.Cluster) }

// Host is a member of the cluster, as it publishes itself.
type Host struct {
	ID   hcn.GUID `json:"id"`
	Name string   `json:"name"`
	// Addrs are where tunnels to the host end (provider addresses), at most one of each family.
	Addrs []netip.Addr `json:"addrs"`
	// RouterMAC is the MAC of the host's distributed router (DrMacAddress), zero without.
	RouterMAC MAC `json:"routerMac"`
	// Version of the program and of the schema that it speaks.
	Version string `json:"version"`
	Schema  int    `json:"schema"`
	// Boot is the run of the host, Session that of the agent.
	Boot    string `json:"boot,omitempty"`
	Session string `json:"session,omitempty"`
	// Join is the port on which a host with a member of our own etcd lets others join; 0 on those that have none.
	Join uint16 `json:"join,omitempty"`
	// Keys of WireGuard: one, or two while they are changed.
	Keys []HostKey `json:"keys,omitempty"`
}

// MAC is an Ethernet address, as text in the values.
type MAC plan.MAC

func (m MAC) String() string { return plan.MAC(m).String() }

// MarshalText writes it in the form of Linux tools.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads that form.
func (m *MAC) UnmarshalText(b []byte) error {
	p, err := net.ParseMAC(string(b))
	if err != nil || len(p) != len(m) {
		return fmt.Errorf("%.40q is no MAC address", b)
	}
	copy(m[:], p)
	return nil
}

// Network is a network of the cluster.
type Network struct {
	ID   hcn.GUID `json:"id"`
	Name string   `json:"name"`
	VNI  uint32   `json:"vni"`
	// Doc is the document that each host makes the network of. It has what is the same on
	// all hosts; what is a host's own (ProviderAddress, DrMacAddress, NetAdapterName) is not in it.
	Doc hcn.HostComputeNetwork `json:"doc"`
	// By is the host that made it.
	By hcn.GUID `json:"by,omitempty"`
	// Revision is that of the key, for who takes changes in: it grows with each.
	Revision int64 `json:"-"`
}

// Endpoint is what a host publishes of one of its endpoints.
type Endpoint struct {
	ID      hcn.GUID `json:"id"`
	Network hcn.GUID `json:"-"` // by the key
	Host    hcn.GUID `json:"-"` // by the key; not set in what is published
	Name    string   `json:"name,omitempty"`
	// Names that the resolver answers, in lower case.
	Names []string     `json:"names,omitempty"`
	MAC   MAC          `json:"mac"`
	Addrs []netip.Addr `json:"addrs"`
}

// block is the value of a block's key. It names the host for people, who may ask when the host's own key is gone.
type block struct {
	Host hcn.GUID `json:"host"`
	Name string   `json:"name,omitempty"`
}

func (b *block) check() error {
	return errors.Join(checkID("host", b.Host), checkText("name", b.Name, 0))
}

// forgotten is the value that keeps a removed host out.
type forgotten struct {
	Name string    `json:"name"`
	By   string    `json:"by"`
	At   time.Time `json:"at"`
}

func (f *forgotten) check() error {
	return errors.Join(checkText("name", f.Name, 0), checkText("by", f.By, 0))
}

// Allocation: networks are made one at a time, by a compare-and-swap of this value.
type allocator struct {
	// VNI given out last.
	VNI uint32 `json:"vni"`
}

// The VNIs that may be given out: Windows wants at least 4096, and 0xffffff is no VNI of ours.
const (
	minVNI = 4096
	maxVNI = 16777214
)

func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // our own types, which encode always
		panic(err)
	}
	return string(b)
}

func decode[T any](k kind, value []byte) (T, error) {
	var v T
	if len(value) > maxValue[k] {
		return v, fmt.Errorf("value of %d bytes, at most %d are read", len(value), maxValue[k])
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return v, fmt.Errorf("value: %w", err)
	}
	return v, nil
}

func checkText(what, s string, least int) error {
	if len(s) < least || len(s) > maxName {
		return fmt.Errorf("%s has %d characters, must have %d to %d", what, len(s), least, maxName)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\ufffd' || (r >= 0x80 && r < 0xa0) {
			return fmt.Errorf("%s has a control character", what)
		}
	}
	return nil
}

// checkID wants an ID in the form that the keys are compared with.
func checkID(what string, id hcn.GUID) error {
	if p, err := hcn.ParseGUID(string(id)); err != nil || p != id || id.IsZero() {
		return fmt.Errorf("%s: %.40q is no ID", what, string(id))
	}
	return nil
}

func checkUnicast(a netip.Addr) error {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() ||
		(a.Is4() && a.As4() == [4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("%s is no unicast address", a)
	}
	return nil
}

func checkMAC(m MAC) error {
	if m == (MAC{}) || m[0]&1 != 0 {
		return fmt.Errorf("%s is no unicast MAC", m)
	}
	return nil
}

func (h *Host) check() error {
	if err := checkText("name", h.Name, 1); err != nil {
		return err
	}
	if len(h.Version) > 64 || len(h.Boot) > 64 || len(h.Session) > 64 {
		return errors.New("version, boot or session is too long")
	}
	if err := errors.Join(checkText("version", h.Version, 0), checkText("boot", h.Boot, 0), checkText("session", h.Session, 0)); err != nil {
		return err
	}
	if len(h.Addrs) == 0 || len(h.Addrs) > 2 {
		return fmt.Errorf("%d addresses, must be one or two", len(h.Addrs))
	}
	for i, a := range h.Addrs {
		if err := checkUnicast(a); err != nil {
			return fmt.Errorf("addrs: %w", err)
		}
		if i > 0 && a.Is4() == h.Addrs[0].Is4() {
			return errors.New("two addresses of one family")
		}
	}
	if h.RouterMAC != (MAC{}) {
		if err := checkMAC(h.RouterMAC); err != nil {
			return fmt.Errorf("routerMac: %w", err)
		}
	}
	return checkKeys(h.Keys)
}

// Addr is where tunnels of a family to the host end, invalid where it has no address of that family.
func (h *Host) Addr(v4 bool) netip.Addr {
	for _, a := range h.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return netip.Addr{}
}

func (n *Network) check() error {
	if err := checkText("name", n.Name, 1); err != nil {
		return err
	}
	if n.By != "" {
		if err := checkID("by", n.By); err != nil {
			return err
		}
	}
	if n.VNI < minVNI || n.VNI > maxVNI {
		return fmt.Errorf("VNI %d, must be %d to %d", n.VNI, minVNI, maxVNI)
	}
	if n.Doc.Type != hcn.Overlay {
		return fmt.Errorf("type %s, must be Overlay", n.Doc.Type)
	}
	if n.Doc.ID != n.ID || n.Doc.Name != n.Name {
		return errors.New("the document has another ID or name")
	}
	subnets := n.Doc.AllSubnets()
	if len(subnets) == 0 || len(subnets) > 16 {
		return fmt.Errorf("%d subnets, must be 1 to 16", len(subnets))
	}
	for i, s := range subnets {
		p, err := s.Prefix()
		if err != nil {
			return fmt.Errorf("subnet %d: %w", i, err)
		}
		if p.Masked() != p {
			return fmt.Errorf("subnet %s has bits below its mask", p)
		}
		for _, o := range subnets[:i] {
			if q, err := o.Prefix(); err == nil && q.Overlaps(p) {
				return fmt.Errorf("subnets %s and %s overlap", q, p)
			}
		}
	}
	for _, p := range n.Doc.Policies {
		if plan.HostsOwn(p.Type) {
			return fmt.Errorf("policy %s is a host's own", p.Type)
		}
	}
	return nil
}

// Prefixes of the network's subnets.
func (n *Network) Prefixes() (out []netip.Prefix) {
	for _, s := range n.Doc.AllSubnets() {
		if p, err := s.Prefix(); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out
}

func (e *Endpoint) check() error {
	if err := checkText("name", e.Name, 0); err != nil {
		return err
	}
	if len(e.Names) > MaxNames || len(e.Addrs) == 0 || len(e.Addrs) > maxAddrs {
		return fmt.Errorf("%d names and %d addresses, must be at most %d and 1 to %d", len(e.Names), len(e.Addrs), MaxNames, maxAddrs)
	}
	for _, n := range e.Names {
		if err := checkText("a name", n, 1); err != nil {
			return err
		}
		if strings.ToLower(n) != n || strings.ContainsAny(n, "/ ") {
			return fmt.Errorf("the name %q is not in lower case or has blanks", n)
		}
	}
	for i, a := range e.Addrs {
		if err := checkUnicast(a); err != nil {
			return fmt.Errorf("addrs: %w", err)
		}
		if slices.Contains(e.Addrs[:i], a) {
			return fmt.Errorf("addrs: %s twice", a)
		}
	}
	return checkMAC(e.MAC)
}

// BlockBits is how large the blocks of a subnet are: a thousand hosts should find one in a large
// prefix, sixteen addresses be in the smallest, and no host hold more than it is likely to need.
func BlockBits(subnet netip.Prefix) int {
	if subnet.Addr().Is4() {
		return max(min(max(subnet.Bits()+10, 24), 28), subnet.Bits())
	}
	return max(min(max(subnet.Bits()+16, 112), 124), subnet.Bits())
}
