package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Networks of a cluster are the same on all its hosts: made on one, they appear on each, with the same ID, and are deleted on all of them
// together. The rows here are copies of what the cluster has. What is the host's own is added to the document: the NIC, its address, the
// router's MAC.

// Cluster is the control plane of networks that span hosts.
type Cluster interface {
	// LeaseBlock makes a block of a subnet this host's that has one of the wanted addresses. ErrNoBlock says that all of those are leased.
	LeaseBlock(ctx context.Context, network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet) (netip.Prefix, error)
	// PickBlock is what LeaseBlock would give just now, beside those of a list.
	PickBlock(network hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet, beside []netip.Prefix) (netip.Prefix, error)
	// ChangeNetwork changes a network's document for all hosts, and gives it as they will read it, with its revision. change may be called
	// several times.
	ChangeNetwork(ctx context.Context, network hcn.GUID, change func(*hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error)) (hcn.HostComputeNetwork, int64, error)
	// DeleteNetwork deletes a network on all hosts.
	DeleteNetwork(ctx context.Context, network hcn.GUID) error
	// Publish says what this host has on the cluster's networks: all of it. It does not block.
	Publish(all []plan.Remote)
	// ClaimBalancer makes a load balancer known to all hosts before it is made or changed here, and keeps it so until release is called; then
	// what PublishBalancers has said counts. ErrTaken says that another one has something of it.
	ClaimBalancer(ctx context.Context, doc hcn.HostComputeLoadBalancer) (release func(), err error)
	// PublishBalancers says which load balancers this host has for the cluster's networks: all of them. It does not block.
	PublishBalancers(all []hcn.HostComputeLoadBalancer)
	// ExplainThere asks the host that has an endpoint, and says what that is called.
	ExplainThere(ctx context.Context, network, endpoint hcn.GUID, q ExplainQuestion) (x api.Explanation, host string, err error)
}

// ErrTaken is a Cluster's, when something belongs to another host.
var ErrTaken = errors.New("it is taken")

// ErrNoBlock is a Cluster's, when all blocks of a subnet are leased.
var ErrNoBlock = errors.New("no block is free")

// ClusterNetwork is a network as the cluster has it.
type ClusterNetwork struct {
	Doc hcn.HostComputeNetwork
	// Revision grows with each change of the document.
	Revision int64
	// Provider is this host's address for its tunnels, Router the MAC of its router.
	Provider netip.Addr
	Router   plan.MAC
	// Inner is its address inside WireGuard, for an encrypted one.
	Inner netip.Addr
}

// clusterSource names the cluster among those who tell of endpoints elsewhere.
const clusterSource = "cluster"

// clusterTimeout bounds what a client waits for the cluster.
const clusterTimeout = 15 * time.Second

// clusterMAC makes a MAC of an address: addresses are unique on all hosts, and so are these. For IPv4 it is the one that HNS's CNI plugins make.
func clusterMAC(a netip.Addr) plan.MAC {
	if a.Is4() {
		b := a.As4()
		return plan.MAC{0x0e, 0x2a, b[0], b[1], b[2], b[3]}
	}
	sum := sha256.Sum256([]byte("bulkhead cluster mac " + a.String()))
	m := plan.MAC(sum[:6])
	m[0] = m[0]&^0x03 | 0x02
	if m[0] == 0x0e {
		m[0] = 0x0a
	}
	return m
}

// SetClusterNetworks makes the networks of the cluster exactly these. It gives what is wrong with those that this host cannot have, or not
// be rid of; the others are as wanted.
func (e *Engine) SetClusterNetworks(ctx context.Context, all []ClusterNetwork) map[hcn.GUID]error {
	want := map[hcn.GUID]*ClusterNetwork{}
	for i := range all {
		want[all[i].Doc.ID] = &all[i]
	}
	e.mu.RLock()
	var gone []hcn.GUID
	for id, n := range e.st.networks {
		if n.Cluster && want[id] == nil {
			gone = append(gone, id)
		}
	}
	e.mu.RUnlock()
	errs := map[hcn.GUID]error{}
	for _, id := range gone {
		rev, err := e.commit(func(t *txn) error { t.dropNetwork(id); return nil })
		if err == nil {
			err = e.applied(ctx, rev)
		}
		if err != nil {
			errs[id] = fmt.Errorf("remove network %s, which the cluster has no more: %w", id, err)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		if err := e.adoptNetwork(ctx, want[id]); err != nil {
			errs[id] = fmt.Errorf("network %q of the cluster: %w", want[id].Doc.Name, err)
		}
	}
	return errs
}

// RehearseClusterNetwork rehearses that a network of the cluster comes to this host.
func (e *Engine) RehearseClusterNetwork(ctx context.Context, c ClusterNetwork) error {
	return e.adoptNetwork(ctx, &c)
}

// RehearseClusterLeave rehearses that they all go from it.
func (e *Engine) RehearseClusterLeave(ctx context.Context) error {
	_, err := e.commitOr(ctx, func(t *txn) error {
		for id, n := range maps.Clone(t.st.networks) {
			if n.Cluster {
				t.dropNetwork(id)
			}
		}
		return nil
	})
	return err
}

// adoptNetwork makes a network of the cluster on this host.
func (e *Engine) adoptNetwork(ctx context.Context, c *ClusterNetwork) error {
	id := c.Doc.ID
	e.mu.RLock()
	has := e.st.networks[id]
	e.mu.RUnlock()
	if has != nil {
		if !has.Cluster {
			return hcn.Errorf(hcn.ErrNetworkAlreadyExists, "a network of this host has its ID %s: delete that one", id)
		}
		err := e.followNetwork(ctx, &c.Doc, c.Revision)
		if movedDoc(has, c) != nil {
			err = errors.Join(err, e.moveTunnels(ctx, c))
		}
		return err
	}
	doc := c.Doc.Clone()
	doc.Policies = append(doc.Policies,
		hcn.NewNetworkPolicy(hcn.NetworkProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: c.Provider.String()}),
		hcn.NewNetworkPolicy(hcn.DrMacAddress, hcn.DrMacAddressPolicySetting{Address: hcn.MACFrom(c.Router)}))
	if err := e.refreshFacts(ctx); err != nil {
		return err
	}
	rev, err := e.commitOr(ctx, func(t *txn) error {
		t.adopting = true
		row, err := t.newNetwork(id, *doc, 0)
		if err != nil {
			return err
		}
		mine := *row
		if plan.Encrypted(doc) {
			mine.Inner = c.Inner
		}
		mine.Cluster, mine.Shared, mine.SharedAt = true, formOf(&c.Doc), c.Revision
		t.putNetwork(id, &mine)
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.applied(ctx, rev, objectsOf(doc)...); err != nil {
		return fmt.Errorf("make its switch: %w", err)
	}
	return nil
}

// movedDoc is a network's document with the address from which tunnels come now, another one on the same NIC; nil: it names that.
func movedDoc(n *plan.Network, c *ClusterNetwork) *hcn.HostComputeNetwork {
	now := hcn.NewNetworkPolicy(hcn.NetworkProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: c.Provider.String()})
	i := slices.IndexFunc(n.Doc.Policies, func(p hcn.NetworkPolicy) bool { return p.Type == hcn.NetworkProviderAddress })
	if i < 0 || string(n.Doc.Policies[i].Settings) == string(now.Settings) {
		return nil
	}
	doc := n.Doc.Clone()
	doc.Policies[i] = now
	doc.Version++
	return doc
}

// moveTunnels has the row say so. The plan follows what the NIC has by itself.
func (e *Engine) moveTunnels(ctx context.Context, c *ClusterNetwork) error {
	id := c.Doc.ID
	rev, err := e.commit(func(t *txn) error {
		old := t.st.networks[id]
		if old == nil {
			return nil
		}
		doc := movedDoc(old, c)
		if doc == nil {
			return nil
		}
		row := *old
		row.Doc = *doc
		t.putNetwork(id, &row)
		t.tell(queued{ev: api.Event{Kind: "network", Action: "modify", ID: string(id), Name: doc.Name}, on: networkObjects(id)})
		return nil
	})
	if err == nil {
		err = e.applied(ctx, rev, objectsOf(&c.Doc)...)
	}
	if err != nil {
		return fmt.Errorf("have its tunnels come from %s: %w", c.Provider, err)
	}
	return nil
}

// formOf tells forms of a document apart.
func formOf(doc *hcn.HostComputeNetwork) string {
	b, err := json.Marshal(doc)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// followNetwork changes a network on this host as the cluster has changed it.
func (e *Engine) followNetwork(ctx context.Context, shared *hcn.HostComputeNetwork, at int64) error {
	rev, err := e.commit(func(t *txn) error { return t.follow(shared, at) })
	if err != nil {
		return fmt.Errorf("change it as the cluster has: %w", err)
	}
	return e.applied(ctx, rev, objectsOf(shared)...)
}

// follow takes over what the cluster's document says of policies and names, unless a later one is here already: who changes it hears of
// his own change and of others' by different ways. What is the host's own stays.
func (t *txn) follow(shared *hcn.HostComputeNetwork, at int64) error {
	old, form := t.st.networks[shared.ID], formOf(shared)
	if old == nil || at < old.SharedAt {
		return nil
	}
	if old.Shared == form {
		row := *old
		row.SharedAt = at
		t.noteShared(&row)
		return nil
	}
	doc := old.Doc.Clone()
	doc.Policies = slices.DeleteFunc(doc.Policies, func(p hcn.NetworkPolicy) bool { return !plan.HostsOwn(p.Type) })
	doc.Policies = append(slices.Clone(shared.Policies), doc.Policies...)
	doc.Dns = shared.Clone().Dns
	doc.Defaults(hcn.NewGUID)
	if err := doc.Validate(); err != nil {
		return err
	}
	if err := errors.Join(t.checkOverlay(doc, old, old.Uplink), t.checkSetsStay(old, doc)); err != nil {
		return err
	}
	next := *old
	next.Doc, next.Shared, next.SharedAt = *doc, form, at
	next.Doc.Version++
	t.putNetwork(shared.ID, &next)
	t.tell(queued{ev: api.Event{Kind: "network", Action: "modify", ID: string(shared.ID), Name: doc.Name}, on: networkObjects(shared.ID)})
	return nil
}

// noteShared enters a row that says the same as before, as of a later revision: nothing of it is stored.
func (t *txn) noteShared(row *plan.Network) {
	id := row.Doc.ID
	old := t.st.networks[id]
	t.st.setNetwork(id, row)
	t.undo = append(t.undo, func() { t.st.setNetwork(id, old) })
}

// modifyClusterNetwork changes a network on all hosts. What this host would refuse is not asked of the others.
func (e *Engine) modifyClusterNetwork(ctx context.Context, old *plan.Network, r *hcn.ModifyNetworkSettingRequest) error {
	if r.ResourceType != hcn.NetworkResourceTypePolicy && r.ResourceType != hcn.NetworkResourceTypeDNS {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q is the cluster's: its policies and DNS can be changed, and not its %s, of which other hosts have parts in use: make another network", old.Doc.Name, r.ResourceType)
	}
	if e.opt.Cluster == nil {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q is a cluster's, and this daemon is in none", old.Doc.Name)
	}
	change := func(shared *hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error) {
		return r.Apply(shared, hcn.NewGUID)
	}
	try := rehearsing(ctx)
	if try == nil {
		try = &rehearsal{}
	}
	err := e.rehearse(try, func(t *txn) error {
		shared := old.Doc.Clone()
		shared.Policies = slices.DeleteFunc(shared.Policies, func(p hcn.NetworkPolicy) bool { return plan.HostsOwn(p.Type) })
		doc, err := change(shared)
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(doc.Policies, func(p hcn.NetworkPolicy) bool { return plan.HostsOwn(p.Type) }); i >= 0 {
			return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q is the cluster's, and %s is each host's own: leave it out", old.Doc.Name, doc.Policies[i].Type)
		}
		if was, is := plan.VXLANPort(&old.Doc), plan.VXLANPort(doc); was != is {
			return hcn.Errorf(hcn.ErrRequestUnsupported, "VxlanPort: the tunnels of all hosts on network %q go by port %d: make another network", old.Doc.Name, was)
		}
		return t.follow(doc, math.MaxInt64)
	})
	if !errors.Is(err, errRehearsed) || rehearsing(ctx) != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	shared, at, err := e.opt.Cluster.ChangeNetwork(ctx, old.Doc.ID, change)
	if err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "change network %q on all hosts: %w", old.Doc.Name, err)
	}
	return e.followNetwork(ctx, &shared, at)
}

// PrepareClusterNetwork completes a document for a network that all hosts will have: prefixes that nobody uses, the VNI, defaults.
func (e *Engine) PrepareClusterNetwork(in hcn.HostComputeNetwork, taken []netip.Prefix, vni uint32) (hcn.HostComputeNetwork, error) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	t := &txn{e: e, st: e.st, facts: &e.facts, dry: true}
	doc := in.Clone()
	if doc.Type != hcn.Overlay {
		return *doc, hcn.Errorf(hcn.ErrInvalidNetworkType, "a network of the cluster is of type Overlay, and not %s", doc.Type)
	}
	doc.ID = hcn.ChooseID("", doc.ID, hcn.NewGUID)
	if other, ok := e.st.netNames[doc.Name]; ok {
		return *doc, hcn.Errorf(hcn.ErrNetworkAlreadyExists, "the name %q belongs to network %s: choose another name", doc.Name, other)
	}
	if len(doc.AllSubnets()) == 0 {
		used := append(t.usedPrefixes(doc), taken...)
		v4, err := freeFor(e.opt.Pools4, used)
		if err != nil {
			return *doc, hcn.Errorf(hcn.ErrInvalidSubnet, "Ipams: no free IPv4 prefix in %v: name a subnet: %w", e.opt.Pools4, err)
		}
		v6 := ipam.ULA("cluster network "+string(doc.ID), 1)
		doc.Ipams = []hcn.Ipam{{Subnets: []hcn.Subnet{subnet(v4), subnet(v6)}}}
	}
	for i := range doc.Ipams {
		for j := range doc.Ipams[i].Subnets {
			s := &doc.Ipams[i].Subnets[j]
			if s.VSID() == 0 {
				s.Policies = append(s.Policies, hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: vni}))
			}
		}
	}
	doc.Defaults(hcn.NewGUID)
	if err := doc.Validate(); err != nil {
		return *doc, err
	}
	return *doc, t.checkSubnets(doc, nil)
}

// freeFor finds a prefix that is large enough for some hundred hosts, or a smaller one.
func freeFor(pools, used []netip.Prefix) (p netip.Prefix, err error) {
	for _, bits := range []int{20, 22, 24} {
		if p, err = ipam.FreePrefix(pools, bits, used); err == nil {
			return p, nil
		}
	}
	return p, err
}

// SetClusterBlocks keeps which blocks are this host's. They are asked for inside the transaction: one that is leased meanwhile is not
// taken back. A block that went away under endpoints is reported: their addresses may be others' by now.
func (e *Engine) SetClusterBlocks(now func() map[hcn.GUID][]netip.Prefix) error {
	var lost []string
	_, err := e.commit(func(t *txn) error {
		lost = nil
		blocks := now()
		for id, n := range t.st.networks {
			if !n.Cluster || slices.Equal(n.Blocks, blocks[id]) {
				continue
			}
			row := *n
			row.Blocks = slices.Clone(blocks[id])
			t.putNetwork(id, &row)
			for _, ep := range t.st.byNetwork[id] {
				for _, a := range ep.Addrs {
					if checkBlock(&row, a.Addr()) != nil && ep.Doc.Flags&hcn.RemoteEndpoint == 0 {
						lost = append(lost, fmt.Sprintf("%s of endpoint %q", a.Addr(), ep.Doc.Name))
					}
				}
			}
		}
		return nil
	})
	if len(lost) > 0 {
		e.log.Warn("addresses are no more this host's: they may be another host's by now; make these endpoints anew", "addresses", strings.Join(lost, ", "))
	}
	return err
}

// ChangeClusterEndpoints takes what the cluster tells of endpoints on other hosts.
func (e *Engine) ChangeClusterEndpoints(set []plan.Remote, gone []hcn.GUID) {
	e.ChangeRemotes(clusterSource, set, gone)
}

// SetClusterKeys takes what the cluster tells of keys, for encrypted networks: of all hosts, and what keeps this one from using its own.
func (e *Engine) SetClusterKeys(s *plan.Secure) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.st.secure
	if reflect.DeepEqual(old, s) {
		return
	}
	e.st.secure = s
	dirty := emptyDirty()
	dirty.Secure = true
	if (old != nil && old.Problem != "") != (s != nil && s.Problem != "") {
		for id, n := range e.st.networks {
			if plan.Encrypted(&n.Doc) {
				dirty.Networks[id] = struct{}{}
			}
		}
	}
	e.pending.add(dirty, e.st.rev, nil)
	e.kick()
}

// ClusterUsers names the local endpoints on networks of the cluster, sorted.
func (e *Engine) ClusterUsers() (out []string) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	for _, ep := range e.st.endpoints {
		if n := e.st.networks[ep.Doc.HostComputeNetwork]; n != nil && n.Cluster {
			out = append(out, ep.Doc.Name)
		}
	}
	slices.Sort(out)
	return out
}

// publishCluster tells the cluster what this host has, if a pass has changed that: what is attached, and so can be reached.
func (e *Engine) publishCluster(d *plan.Delta, always bool) {
	if e.opt.Cluster == nil {
		return
	}
	e.mu.RLock()
	networks := map[hcn.GUID]bool{}
	for id, n := range e.st.networks {
		if n.Cluster {
			networks[id] = true
		}
	}
	e.mu.RUnlock()
	concerns := always
	for _, c := range d.Ports {
		for _, p := range []*plan.Port{c.Old, c.New} {
			concerns = concerns || (p != nil && p.Kind == plan.PortContainer && networks[p.Network])
		}
	}
	for _, c := range d.Balancers {
		for _, b := range []*plan.Balancer{c.Old, c.New} {
			concerns = concerns || (b != nil && b.Source != nil && networks[b.Network] && !sameSource(c))
		}
	}
	if always || len(d.Balancers)+len(d.Switches) > 0 {
		e.publishBalancers()
	}
	if !concerns && len(d.Switches) == 0 {
		return
	}
	var all []plan.Remote
	for _, p := range e.plan.Ports {
		if p.Kind == plan.PortContainer && networks[p.Network] {
			all = append(all, plan.Remote{Endpoint: p.Endpoint, Network: p.Network, Names: p.Names, Addrs: p.Addrs, MAC: p.MAC})
		}
	}
	for id := range networks { // answers to what has such a source come here
		told := map[hcn.GUID]bool{}
		for _, s := range e.plan.Sources(id) {
			if !told[s.Endpoint] {
				told[s.Endpoint] = true
				all = append(all, plan.Remote{Endpoint: s.Endpoint, Network: id, Addrs: s.Addrs, MAC: s.MAC})
			}
		}
	}
	e.opt.Cluster.Publish(all)
}

// sameSource tells that a load balancer has the source that it had.
func sameSource(c plan.Change[plan.Balancer]) bool {
	return c.Old != nil && c.New != nil && reflect.DeepEqual(c.Old.Source, c.New.Source)
}

// deleteClusterNetwork deletes a network on all hosts, and waits until it is gone here.
func (e *Engine) deleteClusterNetwork(ctx context.Context, n *plan.Network) error {
	if e.opt.Cluster == nil {
		return hcn.Errorf(hcn.ErrRequestUnsupported, "network %q is a cluster's, and this daemon is in none", n.Doc.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	if err := e.opt.Cluster.DeleteNetwork(ctx, n.Doc.ID); err != nil {
		return hcn.Errorf(hcn.ErrUnspecified, "delete network %q on all hosts: %w", n.Doc.Name, err)
	}
	rev, err := e.commit(func(t *txn) error { t.dropNetwork(n.Doc.ID); return nil })
	if err != nil {
		return err
	}
	return e.applied(ctx, rev)
}
