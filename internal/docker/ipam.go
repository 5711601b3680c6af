package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// Addresses are the daemon's to give: a pool of Docker's is a subnet of one of its networks, or one that is to be. What Docker asks for
// and has not used yet is remembered for a while; once it is used the daemon has it, in a network or an endpoint.

// inHand is how long a pool or an address that was given is kept from others before it is used.
const inHand = 2 * time.Minute

type pools struct {
	mu    sync.Mutex
	given map[netip.Prefix]time.Time // pools, and addresses as prefixes of one
	next  map[netip.Prefix]netip.Addr
}

func newPools() *pools {
	return &pools{given: map[netip.Prefix]time.Time{}, next: map[netip.Prefix]netip.Addr{}}
}

// inUse lists what was given lately. Locked: mu.
func (p *pools) inUse() (out []netip.Prefix) {
	for k, since := range p.given {
		if time.Since(since) > inHand {
			delete(p.given, k)
			continue
		}
		out = append(out, k)
	}
	return out
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (p *pools) release(what netip.Prefix) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.given, what)
}

func (p *pools) used(subnets []*hcn.Subnet) {
	for _, s := range subnets {
		if prefix, err := netip.ParsePrefix(s.IpAddressPrefix); err == nil {
			p.release(prefix)
		}
	}
}

func (p *pools) taken(addrs []string) {
	for _, text := range addrs {
		if a, err := netip.ParseAddr(text); err == nil {
			p.release(single(a))
		}
	}
}

// where pools are looked for that Docker leaves open.
var (
	pool4 = netip.MustParsePrefix("10.144.0.0/12")
	pool6 = netip.MustParsePrefix("fdb0::/16")
)

// requestPool gives a pool: the subnet of a network that is to be shared, the one asked for, or one that nobody uses.
func (d *Driver) requestPool(ctx context.Context, in *poolCall) (any, error) {
	if err := checkOptions(in.Options, optNetwork); err != nil {
		return nil, err
	}
	if in.SubPool != "" {
		return nil, errors.New("--ip-range is not supported: exclude addresses with the policy Bulkhead.Exclusions, in the option " + optPolicies + " of the network")
	}
	if name := in.Options[optNetwork]; name != "" {
		shared, err := d.named(ctx, name)
		if err != nil {
			return nil, err
		}
		if shared != nil {
			return sharedPool(shared, in)
		}
	}
	if in.Pool != "" {
		p, err := netip.ParsePrefix(in.Pool)
		if err != nil || p.Addr().Is6() != in.V6 {
			return nil, fmt.Errorf("pool %.80q is no prefix of its family", in.Pool)
		}
		return poolAnswer(p.Masked()), nil
	}
	busy, err := d.prefixes(ctx)
	if err != nil {
		return nil, err
	}
	d.pools.mu.Lock()
	defer d.pools.mu.Unlock()
	busy = append(busy, d.pools.inUse()...)
	free := netip.PrefixFrom(pool4.Addr(), 24)
	if in.V6 {
		free = netip.PrefixFrom(pool6.Addr(), 64)
	}
	for range 4096 {
		if !overlapsAny(free, busy) {
			d.pools.given[free] = time.Now()
			return poolAnswer(free), nil
		}
		free = following(free)
	}
	return nil, errors.New("no pool is free: name one with --subnet")
}

func overlapsAny(p netip.Prefix, others []netip.Prefix) bool {
	for _, o := range others {
		if o.Overlaps(p) {
			return true
		}
	}
	return false
}

// following is the next prefix of the same length.
func following(p netip.Prefix) netip.Prefix {
	b := p.Addr().AsSlice()
	for i := p.Bits()/8 - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			break
		}
	}
	a, _ := netip.AddrFromSlice(b) // as long as it was
	return netip.PrefixFrom(a, p.Bits())
}

func poolAnswer(p netip.Prefix) map[string]any {
	return map[string]any{"PoolID": poolPrefix + p.String(), "Pool": p.String(), "Data": map[string]string{}}
}

// sharedPool is a subnet of a network that is there. Docker has to name it: a pool that it is given it compares with what the host
// has, finds the network's own, and asks for another one for ever.
func sharedPool(n *hcn.HostComputeNetwork, in *poolCall) (any, error) {
	var flags []string
	for _, s := range n.AllSubnets() {
		if in.Pool != "" && in.Pool == s.IpAddressPrefix {
			return map[string]any{"PoolID": poolPrefix + in.Pool, "Pool": in.Pool, "Data": map[string]string{}}, nil
		}
		flags = append(flags, "--subnet "+s.IpAddressPrefix)
	}
	return nil, fmt.Errorf("network %q is shared with its subnets: create Docker's with %s, and --ipv6 if one is of IPv6", n.Name, strings.Join(flags, " "))
}

// prefixes lists what networks and the host use.
func (d *Driver) prefixes(ctx context.Context) (out []netip.Prefix, err error) {
	all, err := d.Daemon.Networks(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		for _, s := range all[i].AllSubnets() {
			if p, err := netip.ParsePrefix(s.IpAddressPrefix); err == nil {
				out = append(out, p)
			}
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// poolPrefix begins the IDs of pools, which are their prefixes.
const poolPrefix = "bulkhead/"

func readPool(id string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(strings.TrimPrefix(id, poolPrefix))
	if err != nil || !strings.HasPrefix(id, poolPrefix) {
		return p, fmt.Errorf("PoolID: %.80q is none of ours", id)
	}
	return p, nil
}

func (d *Driver) releasePool(_ context.Context, in *poolCall) (any, error) {
	p, err := readPool(in.PoolID)
	if err == nil {
		d.pools.release(p)
	}
	return nil, err
}

// requestAddress gives an address of a pool. The network's gateway is the first, unless somebody names another.
func (d *Driver) requestAddress(ctx context.Context, in *poolCall) (any, error) {
	p, err := readPool(in.PoolID)
	if err != nil {
		return nil, err
	}
	answer := func(a netip.Addr) (any, error) {
		return map[string]any{"Address": netip.PrefixFrom(a, p.Bits()).String(), "Data": map[string]string{}}, nil
	}
	n, err := d.ofPool(ctx, p)
	if err != nil {
		return nil, err
	}
	if in.Address != "" {
		a, err := netip.ParseAddr(in.Address)
		if err != nil || !p.Contains(a) {
			return nil, fmt.Errorf("%.80q is no address of %s", in.Address, p)
		}
		return answer(a) // whether somebody has it is seen when the endpoint is made
	}
	if in.Options[optRequest] == gatewayAsk {
		if gw := gatewayOf(n, p); gw.IsValid() {
			return answer(gw)
		}
		return answer(p.Addr().Next())
	}
	a, err := d.freeAddress(ctx, n, p)
	if err != nil {
		return nil, err
	}
	return answer(a)
}

// ofPool finds the network that has a pool for a subnet, nil if there is none yet.
func (d *Driver) ofPool(ctx context.Context, p netip.Prefix) (*hcn.HostComputeNetwork, error) {
	all, err := d.Daemon.Networks(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		for _, s := range all[i].AllSubnets() {
			if s.IpAddressPrefix == p.String() {
				return &all[i], nil
			}
		}
	}
	return nil, nil //nolint:nilnil // it comes
}

func gatewayOf(n *hcn.HostComputeNetwork, p netip.Prefix) netip.Addr {
	if n == nil {
		return netip.Addr{}
	}
	for _, s := range n.AllSubnets() {
		if gw, ok := s.Gateway(); ok && s.IpAddressPrefix == p.String() {
			return gw
		}
	}
	return netip.Addr{}
}

// freeAddress picks one that no endpoint has. They go round, so that one that was just released rests for a while.
func (d *Driver) freeAddress(ctx context.Context, n *hcn.HostComputeNetwork, p netip.Prefix) (netip.Addr, error) {
	used := map[netip.Addr]bool{p.Addr(): true, gatewayOf(n, p): true}
	if n == nil {
		used[p.Addr().Next()] = true
	} else if err := d.noteUsed(ctx, n.ID, used); err != nil {
		return netip.Addr{}, err
	}
	d.pools.mu.Lock()
	defer d.pools.mu.Unlock()
	for _, q := range d.pools.inUse() {
		if q.IsSingleIP() {
			used[q.Addr()] = true
		}
	}
	a := d.pools.next[p]
	for range len(used) + 2 {
		if a.IsValid() {
			a = a.Next()
		}
		if !p.Contains(a) || a.Is4() && p.Bits() < 31 && !p.Contains(a.Next()) { // beyond, or IPv4's broadcast address
			a = p.Addr().Next()
		}
		if !used[a] {
			d.pools.next[p], d.pools.given[single(a)] = a, time.Now()
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no address of %s is free", p)
}

func (d *Driver) noteUsed(ctx context.Context, network hcn.GUID, used map[netip.Addr]bool) error {
	all, err := d.Daemon.Addresses(ctx)
	if err != nil {
		return err
	}
	for _, a := range all {
		if addr, err := netip.ParseAddr(a.Address); err == nil && a.NetworkID == network {
			used[addr] = true
		}
	}
	return nil
}

func (d *Driver) releaseAddress(_ context.Context, in *poolCall) (any, error) {
	a, err := netip.ParseAddr(in.Address)
	if err != nil {
		return nil, fmt.Errorf("%.80q is no address", in.Address)
	}
	d.pools.release(single(a))
	return nil, nil //nolint:nilnil // the endpoint that had it is gone
}
