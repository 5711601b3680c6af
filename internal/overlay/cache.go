package overlay

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// cache is what etcd shows of the cluster, checked. It is fed by one goroutine, under the
// agent's lock: a snapshot, then events in the order of revisions.
//
// Some of the checks are between objects: an endpoint counts where its host and network are
// known and its addresses lie in blocks of its host. Values come in any order, so objects
// are kept as they were read, and whether one counts is worked out when somebody asks
// for it. What a change may have changed is marked dirty: of a block, host or network all
// endpoints that depend on it.
type cache struct {
	keys keys
	self hcn.GUID

	rev      int64  // of the newest change that is in here
	last     marked // the newest value that is
	recalled bool   // it is from a file, and not from etcd
	unsaved  bool   // of what a file keeps, something has changed
	schema   *item[schemaRecord]
	hosts    map[hcn.GUID]*item[Host]
	networks map[hcn.GUID]*item[Network]
	blocks   map[hcn.GUID]map[netip.Prefix]*item[block]
	// endpoints by network and ID. An ID that two hosts publish has both, the older first.
	endpoints map[hcn.GUID]map[hcn.GUID][]*item[Endpoint]
	count     map[kind]int
	// byHost are the endpoints of a network's host.
	byHost map[pair]map[hcn.GUID]struct{}
	// claims are the endpoints of a network that have an address, the oldest first.
	claims map[hcn.GUID]map[netip.Addr][]*item[Endpoint]

	balancers balancers

	// check is one of the underlay that is under way, checked what hosts have found in it.
	check   *item[checkRecord]
	checked map[hcn.GUID]*item[Checked]

	problems map[string]string // by key
	// unnamed are keys with problems beyond those that are named, by their hashes.
	unnamed map[uint64]struct{}

	dirty dirty
}

// item is a value with what etcd says about it.
type item[T any] struct {
	v       T
	created int64
	rev     int64
	lease   int64
}

// pair is a host on a network, place an endpoint or a load balancer on one.
type (
	pair  struct{ network, host hcn.GUID }
	place struct{ network, id hcn.GUID }
)

// dirty is what changed since it was taken.
type dirty struct {
	networks  map[hcn.GUID]struct{}
	hosts     map[hcn.GUID]struct{}
	endpoints map[place]struct{}
	balancers map[BalancerKey]struct{}
	blocks    bool
}

func newDirty() dirty {
	return dirty{networks: map[hcn.GUID]struct{}{}, hosts: map[hcn.GUID]struct{}{}, endpoints: map[place]struct{}{}, balancers: map[BalancerKey]struct{}{}}
}

func (d *dirty) empty() bool {
	return len(d.networks)+len(d.hosts)+len(d.endpoints)+len(d.balancers) == 0 && !d.blocks
}

func newCache(k keys, self hcn.GUID) *cache {
	return &cache{
		keys: k, self: self, hosts: map[hcn.GUID]*item[Host]{},
		networks: map[hcn.GUID]*item[Network]{}, blocks: map[hcn.GUID]map[netip.Prefix]*item[block]{},
		endpoints: map[hcn.GUID]map[hcn.GUID][]*item[Endpoint]{}, count: map[kind]int{}, byHost: map[pair]map[hcn.GUID]struct{}{},
		claims: map[hcn.GUID]map[netip.Addr][]*item[Endpoint]{}, checked: map[hcn.GUID]*item[Checked]{}, problems: map[string]string{}, unnamed: map[uint64]struct{}{}, dirty: newDirty(),
		balancers: newBalancers(),
	}
}

// entry is a key with its value; a nil value says that it is gone.
type entry struct {
	key     string
	value   []byte
	deleted bool
	created int64
	rev     int64
	lease   int64
}

const (
	// maxProblems bounds how many problems are named.
	maxProblems = 256
	// maxUnnamed bounds how many more are counted.
	maxUnnamed = 1 << 16
)

func (c *cache) problem(key string, err error) {
	switch _, named := c.problems[key]; {
	case named || len(c.problems) < maxProblems:
		c.problems[key] = err.Error()
	case len(c.unnamed) < maxUnnamed:
		c.unnamed[hashKey(key)] = struct{}{}
	}
}

// solved takes back what was wrong with a key.
func (c *cache) solved(key string) {
	delete(c.problems, key)
	if len(c.unnamed) > 0 {
		delete(c.unnamed, hashKey(key))
	}
}

func hashKey(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	return h.Sum64()
}

// put takes one entry in. What cannot be read takes away what was there under its key.
func (c *cache) put(e entry) {
	c.rev = max(c.rev, e.rev)
	c.solved(e.key)
	p, err := c.keys.parse(e.key)
	c.mark(e, p.kind)
	c.unsaved = c.unsaved || kept[p.kind]
	if err != nil {
		if !e.deleted {
			c.problem(e.key, err)
		}
		return
	}
	switch p.kind {
	case kindSchema:
		c.schema = readItem(c, p.kind, e, (*schemaRecord).check)
	case kindAllocator:
		readItem[allocator](c, p.kind, e, nil) // who makes a network reads it: here, only what is wrong with it counts
	case kindHost:
		it := readItem(c, p.kind, e, func(h *Host) error { return matches(h.ID, p.id, h.check) })
		putIn(c, p.kind, c.hosts, p.id, it, maxHosts, e.key)
		c.dirty.hosts[p.id] = struct{}{}
		c.touchHost(p.id)
	case kindForgotten:
		readItem(c, p.kind, e, (*forgotten).check) // as well
	case kindNetwork:
		it := readItem(c, p.kind, e, func(n *Network) error { return matches(n.ID, p.id, n.check) })
		c.touchVNI(p.id, it)
		putIn(c, p.kind, c.networks, p.id, it, maxNetworks, e.key)
		c.touchNetwork(p.id)
	case kindBlock:
		it := readItem(c, p.kind, e, (*block).check)
		if it == nil && c.blocks[p.network] == nil {
			return
		}
		of := inner(c.blocks, p.network)
		c.touchBlock(p.network, of[p.prefix])
		putIn(c, p.kind, of, p.prefix, it, maxObjects, e.key)
		c.touchBlock(p.network, it)
		if len(of) == 0 {
			delete(c.blocks, p.network)
		}
	case kindCheck:
		c.check = readItem(c, p.kind, e, (*checkRecord).check)
	case kindChecked:
		putIn(c, p.kind, c.checked, p.id, readItem(c, p.kind, e, (*Checked).check), MaxChecked, e.key)
	case kindForeign, kindToken, kindQuestion, kindAnswer: // nothing that is kept
	case kindEndpoint:
		it := readItem(c, p.kind, e, func(ep *Endpoint) error { return matches(ep.ID, p.id, ep.check) })
		if it != nil {
			it.v.Network, it.v.Host = p.network, p.host
		}
		c.putEndpoint(p, it, e.key)
	case kindBalancer:
		it := readItem(c, p.kind, e, func(b *Balancer) error { return b.check(p) })
		if it != nil {
			it.v.Network, it.v.Host = p.network, p.host
		}
		c.putBalancer(BalancerKey{p.network, p.host, p.id}, it, e.key)
	}
}

func matches(have, want hcn.GUID, check func() error) error {
	if have != want {
		return fmt.Errorf("the value is of %.40q", string(have))
	}
	return check()
}

// readItem gives nil for what is gone or cannot be read.
func readItem[T any](c *cache, k kind, e entry, check func(*T) error) *item[T] {
	if e.deleted {
		return nil
	}
	v, err := decode[T](k, e.value)
	if err == nil && check != nil {
		err = check(&v)
	}
	if err != nil {
		c.problem(e.key, err)
		return nil
	}
	return &item[T]{v: v, created: e.created, rev: e.rev, lease: e.lease}
}

// putIn sets or removes, within a bound.
func putIn[K comparable, T any](c *cache, k kind, m map[K]*item[T], id K, it *item[T], most int, key string) {
	_, had := m[id]
	switch {
	case it == nil && had:
		delete(m, id)
		c.count[k]--
	case it == nil:
	case !had && c.count[k] >= most:
		c.problem(key, fmt.Errorf("more than %d such keys: left out", most))
	case !had:
		c.count[k]++
		m[id] = it
	default:
		m[id] = it
	}
}

func inner[A, B comparable, T any](m map[A]map[B]T, a A) map[B]T {
	if m[a] == nil {
		m[a] = map[B]T{}
	}
	return m[a]
}

func (c *cache) putEndpoint(p parsed, it *item[Endpoint], key string) {
	c.dirty.endpoints[place{p.network, p.id}] = struct{}{}
	old := c.endpoints[p.network][p.id]
	for i, o := range old {
		if o.v.Host != p.host {
			continue
		}
		old = slices.Delete(slices.Clone(old), i, i+1)
		c.unclaim(o)
		c.count[kindEndpoint]--
		break
	}
	if it != nil && c.count[kindEndpoint] >= maxObjects {
		c.problem(key, fmt.Errorf("more than %d endpoints: left out", maxObjects))
		it = nil
	}
	if it != nil {
		c.count[kindEndpoint]++
		old = append(slices.Clone(old), it)
		slices.SortFunc(old, older)
		c.claim(it)
	}
	at := pair{p.network, p.host}
	if len(old) == 0 {
		if of := c.endpoints[p.network]; of != nil {
			if delete(of, p.id); len(of) == 0 {
				delete(c.endpoints, p.network)
			}
		}
	} else {
		inner(c.endpoints, p.network)[p.id] = old
	}
	if it != nil {
		inner(c.byHost, at)[p.id] = struct{}{}
	} else if of := c.byHost[at]; of != nil {
		if delete(of, p.id); len(of) == 0 {
			delete(c.byHost, at)
		}
	}
}

func older(a, b *item[Endpoint]) int {
	return cmp.Or(cmp.Compare(a.created, b.created), strings.Compare(string(a.v.Host), string(b.v.Host)), strings.Compare(string(a.v.ID), string(b.v.ID)))
}

func (c *cache) claim(it *item[Endpoint]) {
	of := inner(c.claims, it.v.Network)
	for _, a := range it.v.Addrs {
		list := append(slices.Clone(of[a]), it)
		slices.SortFunc(list, older)
		of[a] = list
		c.touchClaims(it.v.Network, list)
	}
}

func (c *cache) unclaim(it *item[Endpoint]) {
	of := c.claims[it.v.Network]
	for _, a := range it.v.Addrs {
		list := slices.DeleteFunc(slices.Clone(of[a]), func(o *item[Endpoint]) bool { return o == it })
		if len(list) == 0 {
			delete(of, a)
			continue
		}
		of[a] = list
		c.touchClaims(it.v.Network, list)
	}
	if len(of) == 0 {
		delete(c.claims, it.v.Network)
	}
}

func (c *cache) touchClaims(net hcn.GUID, list []*item[Endpoint]) {
	if len(list) < 2 {
		return
	}
	for _, it := range list {
		c.dirty.endpoints[place{net, it.v.ID}] = struct{}{}
	}
}

func (c *cache) touchHost(id hcn.GUID) {
	for at, of := range c.byHost {
		if at.host == id {
			c.touchAll(at.network, of)
		}
	}
	for k := range c.balancers.all {
		if k.Host == id {
			c.touchBalancer(k)
		}
	}
}

func (c *cache) touchNetwork(id hcn.GUID) {
	c.dirty.networks[id] = struct{}{}
	for ep := range c.endpoints[id] {
		c.dirty.endpoints[place{id, ep}] = struct{}{}
	}
	for k := range c.balancers.all {
		if k.Network == id {
			c.touchBalancer(k)
		}
	}
}

// touchVNI marks networks whose right to a VNI or a name may change with another one.
func (c *cache) touchVNI(id hcn.GUID, it *item[Network]) {
	old := c.networks[id]
	for other, o := range c.networks {
		if other != id && ((it != nil && (o.v.VNI == it.v.VNI || o.v.Name == it.v.Name)) || (old != nil && (o.v.VNI == old.v.VNI || o.v.Name == old.v.Name))) {
			c.touchNetwork(other)
		}
	}
}

func (c *cache) touchBlock(net hcn.GUID, it *item[block]) {
	if it == nil {
		return
	}
	if it.v.Host == c.self {
		c.dirty.blocks = true
	}
	c.touchAll(net, c.byHost[pair{net, it.v.Host}])
}

func (c *cache) touchAll(net hcn.GUID, eps map[hcn.GUID]struct{}) {
	for ep := range eps {
		c.dirty.endpoints[place{net, ep}] = struct{}{}
	}
}

// network gives a network that counts: the oldest with its VNI and name.
func (c *cache) network(id hcn.GUID) (*item[Network], error) {
	it := c.networks[id]
	if it == nil {
		return nil, nil
	}
	for other, o := range c.networks {
		if other == id || (o.created > it.created || (o.created == it.created && other > id)) {
			continue
		}
		if o.v.VNI == it.v.VNI {
			return nil, fmt.Errorf("VNI %d is that of network %q (%s), which is older", it.v.VNI, o.v.Name, other)
		}
		if o.v.Name == it.v.Name {
			return nil, fmt.Errorf("the name %q is that of network %s, which is older", it.v.Name, other)
		}
	}
	return it, nil
}

// endpoint gives what counts of an endpoint's ID: nil where nothing does.
func (c *cache) endpoint(net, id hcn.GUID) (*item[Endpoint], error) {
	list := c.endpoints[net][id]
	if len(list) == 0 {
		return nil, nil
	}
	var errs error
	for _, it := range list {
		err := c.counts(it)
		if err == nil {
			return it, nil
		}
		if errs == nil {
			errs = err
		}
	}
	return nil, errs
}

func (c *cache) counts(it *item[Endpoint]) error {
	if c.hosts[it.v.Host] == nil {
		return fmt.Errorf("its host %s is not there", it.v.Host)
	}
	if n := c.networks[it.v.Network]; n == nil {
		return fmt.Errorf("its network %s is not there", it.v.Network)
	}
	for _, a := range it.v.Addrs {
		if !c.owns(it.v.Network, it.v.Host, a) {
			return fmt.Errorf("its address %s is in no block of its host %s", a, it.v.Host)
		}
		// Who does not own the block has no claim, however old: that of this host that is the oldest counts.
		for _, first := range c.claims[it.v.Network][a] {
			if first == it {
				break
			}
			if first.v.Host == it.v.Host {
				return fmt.Errorf("its address %s is that of endpoint %s", a, first.v.ID)
			}
		}
	}
	return nil
}

// owns tells whether an address is in a block of a host. Blocks of a subnet are of one size, but one that a subnet no longer
// has may be of another.
func (c *cache) owns(net, host hcn.GUID, a netip.Addr) bool {
	n := c.networks[net]
	if n == nil {
		return false
	}
	of := c.blocks[net]
	for _, s := range n.v.Prefixes() {
		if !s.Contains(a) {
			continue
		}
		p, err := a.Prefix(BlockBits(s))
		if err != nil {
			return false
		}
		it := of[p]
		return it != nil && it.v.Host == host
	}
	return false
}

// ownBlocks are the blocks of this host, by network, sorted.
func (c *cache) ownBlocks() map[hcn.GUID][]netip.Prefix {
	out := map[hcn.GUID][]netip.Prefix{}
	for net, of := range c.blocks {
		for p, it := range of {
			if it.v.Host == c.self {
				out[net] = append(out[net], p)
			}
		}
		if list := out[net]; list != nil {
			slices.SortFunc(list, plan.ComparePrefixes)
		}
	}
	return out
}

// nameByBlocks is the name of a host that its blocks tell.
func (c *cache) nameByBlocks(id hcn.GUID) string {
	for _, of := range c.blocks {
		for _, it := range of {
			if it.v.Host == id && it.v.Name != "" {
				return it.v.Name
			}
		}
	}
	return ""
}

// reset replaces everything by a snapshot, and marks what that changed. What was recalled counts for nothing: it may be damaged, or of
// an etcd that was put back to what it was once. Keys that keep says stay.
func (c *cache) reset(entries []entry, rev int64, keep func(key string) bool) {
	seen := make(map[string]struct{}, len(entries))
	for _, e := range entries {
		seen[e.key] = struct{}{}
	}
	clear(c.unnamed) // what is still wrong with a key is found again
	for _, key := range c.known() {
		if _, ok := seen[key]; !ok && !keep(key) {
			c.put(entry{key: key, deleted: true})
		}
	}
	c.last = marked{}
	for _, e := range entries {
		if p, err := c.keys.parse(e.key); err == nil {
			c.mark(e, p.kind)
		}
		if c.recalled || c.revOf(e.key) != e.rev {
			c.put(e)
		}
	}
	c.rev, c.recalled = rev, false
}

// known lists the keys of all that is in here, problems too.
func (c *cache) known() (out []string) {
	for key := range c.problems {
		out = append(out, key)
	}
	if c.schema != nil {
		out = append(out, c.keys.schema())
	}
	if c.check != nil {
		out = append(out, c.keys.check())
	}
	for id := range c.checked {
		out = append(out, c.keys.checked(id))
	}
	for id := range c.hosts {
		out = append(out, c.keys.host(id))
	}
	for id := range c.networks {
		out = append(out, c.keys.network(id))
	}
	for net, of := range c.blocks {
		for p := range of {
			out = append(out, c.keys.block(net, p))
		}
	}
	for k := range c.balancers.all {
		out = append(out, c.keys.balancer(k.Network, k.Host, k.ID))
	}
	for net, of := range c.endpoints {
		for id, list := range of {
			for _, it := range list {
				out = append(out, c.keys.endpoint(net, it.v.Host, id))
			}
		}
	}
	return out
}

// revOf is the revision that a key has in here, 0 if it is not.
func (c *cache) revOf(key string) int64 {
	p, err := c.keys.parse(key)
	if err != nil {
		return 0
	}
	switch p.kind {
	case kindHost:
		return revision(c.hosts[p.id])
	case kindNetwork:
		return revision(c.networks[p.id])
	case kindBlock:
		return revision(c.blocks[p.network][p.prefix])
	case kindBalancer:
		return revision(c.balancers.all[BalancerKey{p.network, p.host, p.id}])
	case kindEndpoint:
		for _, it := range c.endpoints[p.network][p.id] {
			if it.v.Host == p.host {
				return it.rev
			}
		}
	default: // few, and cheap to read again
	}
	return 0
}

func revision[T any](it *item[T]) int64 {
	if it == nil {
		return 0
	}
	return it.rev
}

func (c *cache) take() dirty {
	d := c.dirty
	c.dirty = newDirty()
	return d
}

func (c *cache) sortedHosts() []*item[Host] {
	return slices.SortedFunc(maps.Values(c.hosts), func(a, b *item[Host]) int {
		return cmp.Or(strings.Compare(a.v.Name, b.v.Name), strings.Compare(string(a.v.ID), string(b.v.ID)))
	})
}
