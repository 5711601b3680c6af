package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Found makes an empty prefix a cluster's, or finds the one that is there.
func Found(ctx context.Context, cli *clientv3.Client, prefix string) (cluster hcn.GUID, err error) {
	k := keys{prefix}
	rec := schemaRecord{Version: Schema, Cluster: hcn.NewGUID(), Since: time.Now().UTC().Truncate(time.Second)}
	res, err := cli.Txn(ctx).If(absent(k.schema())).Then(clientv3.OpPut(k.schema(), encode(rec))).Else(clientv3.OpGet(k.schema())).Commit()
	if err != nil {
		return "", fmt.Errorf("write %s: %w", k.schema(), Explain(err))
	}
	if res.Succeeded {
		return rec.Cluster, nil
	}
	return readCluster(k, res.Responses[0].GetResponseRange().Kvs)
}

// Find looks for the cluster below a prefix.
func Find(ctx context.Context, cli *clientv3.Client, prefix string) (cluster hcn.GUID, err error) {
	k := keys{prefix}
	res, err := cli.Get(ctx, k.schema())
	if err != nil {
		return "", fmt.Errorf("read %s: %w", k.schema(), Explain(err))
	}
	if len(res.Kvs) == 0 {
		return "", noCluster(k)
	}
	return readCluster(k, res.Kvs)
}

func readCluster(k keys, kvs []*mvccpb.KeyValue) (hcn.GUID, error) {
	if len(kvs) == 0 {
		return "", noCluster(k)
	}
	if err := checkSchema(k, kvs[0].Value); err != nil {
		return "", err
	}
	rec, err := decode[schemaRecord](kindSchema, kvs[0].Value)
	return rec.Cluster, err
}

// Taken is what a new network must not collide with.
type Taken struct {
	Networks []Network
	Hosts    []Host
	// VNI is a free one.
	VNI uint32
}

// CreateNetwork makes a network of the cluster. prepare completes it with what is taken, and is called again when another
// network was made meanwhile.
func (a *Agent) CreateNetwork(ctx context.Context, prepare func(Taken) (Network, error)) (Network, error) {
	for range 20 {
		n, rev, err := a.tryNetwork(ctx, prepare, false)
		if err != nil {
			return Network{}, err
		}
		if rev != 0 {
			return n, a.settle(ctx, rev)
		}
		if !sleep(ctx, jitter(20*time.Millisecond)) {
			return Network{}, ctx.Err()
		}
	}
	return Network{}, fmt.Errorf("make a network: others make networks without a pause: %w", ErrAway)
}

// PickNetwork is the network that CreateNetwork would make now. Nothing is written.
func (a *Agent) PickNetwork(ctx context.Context, prepare func(Taken) (Network, error)) (Network, error) {
	n, _, err := a.tryNetwork(ctx, prepare, true)
	return n, err
}

func (a *Agent) tryNetwork(ctx context.Context, prepare func(Taken) (Network, error), dry bool) (Network, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	res, err := a.cli.Txn(ctx).Then(
		clientv3.OpGet(a.keys.allocator()), clientv3.OpGet(a.keys.networks(), clientv3.WithPrefix(), clientv3.WithLimit(maxNetworks)),
		clientv3.OpGet(a.keys.hosts(), clientv3.WithPrefix(), clientv3.WithLimit(maxHosts)),
	).Commit()
	if err != nil {
		return Network{}, 0, a.away("read the cluster's networks", err)
	}
	var taken Taken
	var last allocator
	mod := int64(0)
	if kvs := res.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		mod = kvs[0].ModRevision
		if last, err = decode[allocator](kindAllocator, kvs[0].Value); err != nil {
			return Network{}, 0, fmt.Errorf("read %s: %w: remove that key", a.keys.allocator(), err)
		}
	}
	used := map[uint32]*Network{}
	for _, kv := range res.Responses[1].GetResponseRange().Kvs {
		if n, err := decode[Network](kindNetwork, kv.Value); err == nil && n.check() == nil {
			taken.Networks = append(taken.Networks, n)
			used[n.VNI] = &n
		}
	}
	if len(taken.Networks) >= maxNetworks {
		return Network{}, 0, fmt.Errorf("the cluster has %d networks, the most there can be: %w", maxNetworks, ErrExhausted)
	}
	for _, kv := range res.Responses[2].GetResponseRange().Kvs {
		if h, err := decode[Host](kindHost, kv.Value); err == nil && h.check() == nil {
			taken.Hosts = append(taken.Hosts, h)
		}
	}
	taken.VNI = nextVNI(last.VNI, func(v uint32) bool { return used[v] != nil })
	n, err := prepare(taken)
	if err != nil {
		return Network{}, 0, err
	}
	n.By = a.self.ID
	if err := a.checkNew(&n, taken, used); err != nil {
		return Network{}, 0, err
	}
	if n.VNI == taken.VNI {
		last.VNI = n.VNI
	}
	value := encode(&n)
	if most := maxValue[kindNetwork]; len(value) > most {
		return Network{}, 0, fmt.Errorf("network %q: its document has %d bytes, a network of the cluster may have %d: take policies out of it", n.Name, len(value), most)
	}
	if dry {
		return n, 0, nil
	}
	put, err := a.cli.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(a.keys.allocator()), "=", mod), absent(a.keys.network(n.ID)), present(a.keys.schema())).
		Then(clientv3.OpPut(a.keys.network(n.ID), value), clientv3.OpPut(a.keys.allocator(), encode(last))).Commit()
	if err != nil {
		return Network{}, 0, a.away("write network "+n.Name, err)
	}
	if !put.Succeeded {
		return Network{}, 0, nil
	}
	return n, put.Header.Revision, nil
}

// nextVNI goes on from the last one: a VNI that a network had a moment ago may still be on its way to some host.
func nextVNI(last uint32, used func(uint32) bool) uint32 {
	v := last
	for range maxVNI - minVNI + 1 {
		if v++; v < minVNI || v > maxVNI {
			v = minVNI
		}
		if !used(v) {
			return v
		}
	}
	return 0
}

func (a *Agent) checkNew(n *Network, taken Taken, used map[uint32]*Network) error {
	if err := n.check(); err != nil {
		return fmt.Errorf("network %q: %w", n.Name, err)
	}
	if o := used[n.VNI]; o != nil {
		return fmt.Errorf("%w: VNI %d belongs to network %q (%s) of the cluster: choose another, or leave it out", ErrClash, n.VNI, o.Name, o.ID)
	}
	for i := range taken.Networks {
		switch o := &taken.Networks[i]; {
		case o.Name == n.Name:
			return fmt.Errorf("%w: the name %q belongs to network %s of the cluster: choose another name", ErrClash, n.Name, o.ID)
		case o.ID == n.ID:
			return fmt.Errorf("%w: the ID %s belongs to network %q of the cluster: leave the ID out", ErrClash, n.ID, o.Name)
		}
	}
	for _, p := range n.Prefixes() {
		for _, h := range taken.Hosts {
			for _, addr := range h.Addrs {
				if p.Contains(addr) {
					return fmt.Errorf("%w: subnet %s of network %q has the address %s of host %q in it, so the host could not be reached any more: choose another prefix",
						ErrClash, p, n.Name, addr, h.Name)
				}
			}
		}
	}
	return nil
}

// DeleteNetwork removes a network everywhere. While other hosts have endpoints on it, it takes force.
func (a *Agent) DeleteNetwork(ctx context.Context, id hcn.GUID, force bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	a.mu.Lock()
	it := a.cache.networks[id]
	var by []string
	for at, of := range a.cache.byHost {
		if at.network == id && at.host != a.self.ID && len(of) > 0 {
			by = append(by, fmt.Sprintf("%d of host %s", len(of), a.hostName(at.host)))
		}
	}
	a.mu.Unlock()
	if it == nil {
		return fmt.Errorf("network %s of the cluster: %w", id, ErrNotFound)
	}
	if len(by) > 0 && !force {
		slices.Sort(by)
		return fmt.Errorf("network %q has endpoints on other hosts (%s): %w: remove their containers first, or delete it with --force",
			it.v.Name, strings.Join(by[:min(len(by), 5)], ", "), ErrInUse)
	}
	res, err := a.cli.Txn(ctx).Then(
		clientv3.OpDelete(a.keys.network(id)), clientv3.OpDelete(a.keys.endpointsOf(id), clientv3.WithPrefix()),
		clientv3.OpDelete(a.keys.blocksOf(id), clientv3.WithPrefix()), clientv3.OpDelete(a.keys.balancersOf(id), clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return a.away("delete network "+it.v.Name, err)
	}
	return a.settle(ctx, res.Header.Revision)
}

// LeaseBlock makes a block of a subnet this host's that has one of the wanted addresses; nil: any that is free.
func (a *Agent) LeaseBlock(ctx context.Context, network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet) (netip.Prefix, error) {
	for range 50 {
		p, mine, err := a.pickBlock(network, subnet, wanted)
		if err != nil || mine {
			return p, err
		}
		rev, err := a.tryBlock(ctx, network, p)
		if err != nil {
			return netip.Prefix{}, err
		}
		if rev != 0 {
			a.mu.Lock()
			a.fresh[ownBlock{network, p}] = rev
			a.mu.Unlock()
			return p, a.settle(ctx, rev)
		}
		if !sleep(ctx, jitter(20*time.Millisecond)) { // the watch says whose it is
			return netip.Prefix{}, ctx.Err()
		}
	}
	return netip.Prefix{}, fmt.Errorf("lease a block of %s: others take them without a pause: %w", subnet, ErrAway)
}

// PickBlock is what LeaseBlock would give just now, beside those of a list. Nothing is written.
func (a *Agent) PickBlock(network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet, beside []netip.Prefix) (netip.Prefix, error) {
	p, _, err := a.pickBlock(network, subnet, wanted, beside...)
	return p, err
}

// settle gives the watch time to see what was written. It is written in any case, so that a watch which is slow is no error.
func (a *Agent) settle(ctx context.Context, rev int64) error {
	if err := a.waitFor(ctx, rev); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

func (a *Agent) tryBlock(ctx context.Context, network hcn.GUID, p netip.Prefix) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	key := a.keys.block(network, p)
	res, err := a.cli.Txn(ctx).If(absent(key), present(a.keys.network(network)), present(a.keys.host(a.self.ID)), absent(a.keys.forgotten(a.self.ID))).
		Then(clientv3.OpPut(key, encode(block{Host: a.self.ID, Name: a.self.Name}))).Commit()
	if err != nil {
		return 0, a.away("lease block "+p.String(), err)
	}
	if !res.Succeeded {
		return 0, nil
	}
	return res.Header.Revision, nil
}

// pickBlock chooses a block, and tells whether it is this host's already. Hosts begin at places of their own, so that those who
// come together do not all want the same.
func (a *Agent) pickBlock(network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet, beside ...netip.Prefix) (p netip.Prefix, mine bool, err error) {
	bits := BlockBits(subnet)
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.cache.networks[network]
	switch {
	case n == nil && !a.synced:
		return p, false, fmt.Errorf("lease a block of %s: nothing is known of the cluster yet: %w", subnet, ErrAway)
	case n == nil:
		return p, false, fmt.Errorf("network %s of the cluster: %w", network, ErrNotFound)
	case !slices.Contains(n.v.Prefixes(), subnet):
		return p, false, fmt.Errorf("network %q has no subnet %s: %w", n.v.Name, subnet, ErrNotFound)
	}
	ranges, err := within(subnet, wanted)
	if err != nil {
		return p, false, err
	}
	of := a.cache.blocks[network]
	if wanted != nil {
		for p, it := range of {
			if it.v.Host == a.self.ID && wanted.OverlapsPrefix(p) {
				return p, true, nil
			}
		}
		for k := range a.fresh {
			if k.network == network && wanted.OverlapsPrefix(k.prefix) && a.isFresh(network, k.prefix) {
				return k.prefix, true, nil
			}
		}
	}
	count := new(big.Int).Lsh(big.NewInt(1), uint(bits-subnet.Bits()))
	h := fnv.New64a()
	h.Write([]byte(string(a.self.ID) + string(network) + subnet.String()))
	start := new(big.Int).SetUint64(h.Sum64())
	next := nthBlock(subnet, bits, start.Mod(start, count).Uint64()).Addr()
	for range len(of) + len(a.fresh) + len(beside) + len(a.left) + 1 { // each is another one, until all were tried
		p, err = from(ranges, next).Prefix(bits)
		if err != nil {
			return p, false, err
		}
		if of[p] == nil && !a.isFresh(network, p) && !slices.Contains(beside, p) && !a.isLeft(ownBlock{network, p}) {
			return p, false, nil
		}
		next = netipx.PrefixLastIP(p).Next()
	}
	if only := ranges[0]; len(ranges) == 1 && only.From() == only.To() {
		return p, false, fmt.Errorf("%w: %s is in block %s of network %q, which is host %s's: choose an address of another block", ErrClash, only.From(), p, n.v.Name, a.holder(of[p]))
	}
	which := "has no free block: all " + count.String() + " belong"
	if wanted != nil {
		which = "has no free block with an address that would do: they belong"
	}
	return p, false, fmt.Errorf("subnet %s of network %q %s to hosts: `bulkhead cluster ls` shows hosts that are gone and still have some, "+
		"`bulkhead cluster forget HOST` frees those: %w", subnet, n.v.Name, which, ErrExhausted)
}

// within are the wanted addresses of a subnet; nil: all.
func within(subnet netip.Prefix, wanted *netipx.IPSet) ([]netipx.IPRange, error) {
	if wanted == nil {
		return []netipx.IPRange{netipx.RangeOfPrefix(subnet)}, nil
	}
	var all, b netipx.IPSetBuilder
	all.AddPrefix(subnet)
	whole, err := all.IPSet()
	if err != nil {
		return nil, err
	}
	b.AddSet(wanted)
	b.Intersect(whole)
	set, err := b.IPSet()
	if err != nil {
		return nil, err
	}
	if len(set.Ranges()) == 0 {
		return nil, fmt.Errorf("none of the addresses that are wanted is in subnet %s", subnet)
	}
	return set.Ranges(), nil
}

// from is the first address of ranges from one on, going round.
func from(ranges []netipx.IPRange, a netip.Addr) netip.Addr {
	for _, r := range ranges {
		if r.Contains(a) {
			return a
		}
		if a.IsValid() && a.Less(r.From()) {
			return r.From()
		}
	}
	return ranges[0].From()
}

// holder names the host that a block belongs to.
func (a *Agent) holder(it *item[block]) string {
	if it == nil {
		return "nobody"
	}
	return a.hostName(it.v.Host)
}

// isFresh tells that this host has leased a block which the watch has not seen yet. Locked: a.mu.
func (a *Agent) isFresh(network hcn.GUID, p netip.Prefix) bool {
	return a.fresh[ownBlock{network, p}] > a.cache.rev
}

// nthBlock counts the blocks of a subnet. Subnets have at most 2^64 blocks.
func nthBlock(subnet netip.Prefix, bits int, n uint64) netip.Prefix {
	if subnet.Addr().Is4() {
		a := subnet.Addr().As4()
		v := binary.BigEndian.Uint32(a[:]) + uint32(n<<(32-bits))
		binary.BigEndian.PutUint32(a[:], v)
		return netip.PrefixFrom(netip.AddrFrom4(a), bits)
	}
	a := subnet.Addr().As16()
	v := new(big.Int).SetBytes(a[:])
	v.Add(v, new(big.Int).Lsh(new(big.Int).SetUint64(n), uint(128-bits)))
	v.FillBytes(a[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), bits)
}

// Forget removes a host that will not come back, with its blocks, and keeps it out. One that is alive takes force.
func (a *Agent) Forget(ctx context.Context, id hcn.GUID, force bool) error {
	return a.forget(ctx, id, force, false)
}

// forget needs no trace of the host below the prefix where there is one elsewhere.
func (a *Agent) forget(ctx context.Context, id hcn.GUID, force, known bool) error {
	ctx, cancel := context.WithTimeout(ctx, 3*opTimeout)
	defer cancel()
	a.mu.Lock()
	it, name := a.cache.hosts[id], a.cache.nameByBlocks(id)
	blocks, _ := a.keysOf(id)
	if it != nil {
		name = it.v.Name
	}
	a.mu.Unlock()
	alive := fmt.Errorf("host %q (%s) is alive: %w: `bulkhead cluster leave` there, or forget it with --force; then its containers lose their addresses to others", name, id, ErrInUse)
	switch {
	case id == a.self.ID:
		return fmt.Errorf("%s is this host: `bulkhead cluster leave` takes it out", id)
	case it == nil && len(blocks) == 0 && !known:
		return fmt.Errorf("host %s: %w: see `bulkhead cluster ls`", id, ErrNotFound)
	case it != nil && !force:
		return alive
	}
	f := forgotten{Name: name, By: a.self.Name, At: time.Now().UTC().Truncate(time.Second)}
	var guards []clientv3.Cmp
	if !force { // it may have come back just now
		guards = append(guards, absent(a.keys.host(id)))
	}
	res, err := a.cli.Txn(ctx).If(guards...).Then(clientv3.OpPut(a.keys.forgotten(id), encode(f)), clientv3.OpDelete(a.keys.host(id))).Commit()
	if err != nil {
		return a.away("forget host "+string(id), err)
	}
	if !res.Succeeded {
		return alive
	}
	if err := a.settle(ctx, res.Header.Revision); err != nil { // it leases nothing any more: what it has is known then
		return err
	}
	a.mu.Lock()
	blocks, eps := a.keysOf(id)
	a.mu.Unlock()
	return a.deleteAll(ctx, append(eps, blocks...))
}

// made is a key as it was created: whoever creates it again is somebody else.
type made struct {
	key string
	rev int64
}

// keysOf are the keys of a host's blocks, and of what it publishes. Locked: a.mu.
func (a *Agent) keysOf(id hcn.GUID) (blocks, eps []made) {
	for net, of := range a.cache.blocks {
		for p, it := range of {
			if it.v.Host == id {
				blocks = append(blocks, made{a.keys.block(net, p), it.created})
			}
		}
	}
	for k, it := range a.cache.balancers.all {
		if k.Host == id {
			eps = append(eps, made{a.keys.balancer(k.Network, k.Host, k.ID), it.created})
		}
	}
	for at, of := range a.cache.byHost {
		if at.host != id {
			continue
		}
		for ep := range of {
			for _, it := range a.cache.endpoints[at.network][ep] {
				if it.v.Host == id {
					eps = append(eps, made{a.keys.endpoint(at.network, id, ep), it.created})
				}
			}
		}
	}
	return blocks, eps
}

// deleteAll removes those of the keys that are still what they were.
func (a *Agent) deleteAll(ctx context.Context, keys []made) error {
	for part := range slices.Chunk(keys, batch) {
		ops := make([]clientv3.Op, len(part))
		for i, k := range part {
			ops[i] = clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(k.key), "=", k.rev)}, []clientv3.Op{clientv3.OpDelete(k.key)}, nil)
		}
		if _, err := a.cli.Txn(ctx).Then(ops...).Commit(); err != nil {
			return a.away("remove keys of a host", err)
		}
	}
	return nil
}

// Leave takes this host out: what it published, its blocks and its key. Run must have ended.
func (a *Agent) Leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	a.mu.Lock()
	blocks, eps := a.keysOf(a.self.ID)
	lease := a.lease
	a.mu.Unlock()
	if mine, err := a.leaveKey(ctx, lease); err != nil { // first: without it, nothing is leased any more
		return err
	} else if !mine {
		a.log.Warn("another host lives under this one's ID: what etcd has of it is left to that one", "host", a.self.ID)
		return nil
	}
	if err := a.deleteAll(ctx, append(eps, blocks...)); err != nil {
		return err
	}
	if lease != 0 {
		if _, err := a.cli.Revoke(ctx, lease); err != nil {
			a.log.Debug("revoke the host's lease", "error", err) // it ends by itself
		}
	}
	return nil
}

// leaveKey removes the host's key, and tells whether it was this host's: a copy of this host may have taken its place.
func (a *Agent) leaveKey(ctx context.Context, lease clientv3.LeaseID) (mine bool, err error) {
	key := a.keys.host(a.self.ID)
	for range 3 {
		res, err := a.cli.Get(ctx, key)
		if err != nil {
			return false, a.away("read the host's key", err)
		}
		if len(res.Kvs) == 0 {
			return true, nil // its lease ended
		}
		kv := res.Kvs[0]
		if h, err := decode[Host](kindHost, kv.Value); clientv3.LeaseID(kv.Lease) != lease && (err != nil || h.Boot != a.self.Boot) {
			return false, nil
		}
		put, err := a.cli.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).Then(clientv3.OpDelete(key)).Commit()
		if err != nil {
			return false, a.away("remove the host's key", err)
		}
		if put.Succeeded {
			return true, nil
		}
	}
	return false, fmt.Errorf("remove the host's key: somebody changes it without a pause: %w", ErrAway)
}

// away says that etcd could not be asked.
func (a *Agent) away(what string, err error) error {
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrAway, Explain(err))
}
