package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// An endpoint on a network of a cluster has its address from a block that is this host's alone. The row keeps the blocks, so that a host makes
// endpoints while the cluster cannot be asked. A transaction that finds none left fails with needBlock; commit leases one, outside
// of every lock, and runs the transaction again. Only blocks that have an address to give are leased.

// mostLeases bounds the blocks that one change leases. Each gives at least an address, unless others take all of it meanwhile.
const mostLeases = 256

// needBlock is why a transaction fails that finds no free address in the blocks of this host.
type needBlock struct {
	network hcn.GUID
	name    string
	subnet  netip.Prefix
	// wanted are the addresses of which one would do: without those of this host's blocks, and those that nobody is given.
	wanted *netipx.IPSet
	// had are the blocks that it looked in.
	had []netip.Prefix
	// elsewhere says that another subnet of the network will do as well.
	elsewhere bool
}

// subnetKey is a subnet of a network.
type subnetKey struct {
	network hcn.GUID
	subnet  netip.Prefix
}

func (n *needBlock) key() subnetKey { return subnetKey{n.network, n.subnet} }

func (n *needBlock) Error() string {
	if r := n.wanted.Ranges(); len(r) == 1 && r[0].From() == r[0].To() {
		return fmt.Sprintf("network %q: this host has not leased the block of %s that %s is in", n.name, n.subnet, r[0].From())
	}
	return fmt.Sprintf("network %q: this host's blocks of %s have no free address", n.name, n.subnet)
}

// asking is a block that the cluster is asked for. One at a time is, of a subnet: the others wait for that, and look again.
type asking struct {
	wanted *netipx.IPSet
	done   chan struct{} // closed when err is set
	err    error
}

// leaseBlock gets what a transaction needs, and keeps it. nil: look again. No lock is held while the cluster is asked, and who gives up
// takes the block from nobody else who waits for it.
func (e *Engine) leaseBlock(ctx context.Context, need *needBlock) error {
	if e.opt.Cluster == nil {
		return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w, and there is no cluster to lease one of", need)
	}
	e.mu.Lock()
	a := e.asking[need.key()]
	if a == nil {
		if n := e.st.networks[need.network]; n == nil || !slices.Equal(n.Blocks, need.had) {
			e.mu.Unlock()
			return nil // one came meanwhile
		}
		a = &asking{wanted: need.wanted, done: make(chan struct{})}
		e.asking[need.key()] = a
		go e.ask(a, need)
	}
	e.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w, and the cluster has not given another yet: %w: see `bulkhead cluster status`", need, ctx.Err())
	}
	if a.wanted.Equal(need.wanted) {
		return a.err
	}
	return nil // it was asked for something else
}

func (e *Engine) ask(a *asking, need *needBlock) {
	ctx, cancel := context.WithTimeout(e.ctrs.runCtx(), clusterTimeout)
	defer cancel()
	err := e.askFor(ctx, need)
	e.mu.Lock()
	defer e.mu.Unlock()
	a.err = err
	delete(e.asking, need.key())
	close(a.done)
}

// askFor leases a block. One that the transaction has looked in would not help it: then there is no more to be had. One that came
// meanwhile, as the cluster tells of it, does.
func (e *Engine) askFor(ctx context.Context, need *needBlock) error {
	block, err := e.opt.Cluster.LeaseBlock(ctx, need.network, need.subnet, need.wanted)
	if err != nil {
		return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w: %w", need, err)
	}
	if slices.Contains(need.had, block) {
		return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w, and the cluster gives no other than %s", need, block)
	}
	_, err = e.commitOnce(func(t *txn) error {
		n := t.st.networks[need.network]
		if n == nil {
			return noNetwork(need.network)
		}
		if slices.Contains(n.Blocks, block) {
			return nil
		}
		row := *n
		row.Blocks = append(slices.Clone(n.Blocks), block)
		t.putNetwork(need.network, &row)
		return nil
	})
	return err
}

// commit runs fn as a transaction, with what it needs of the cluster. fn may run several times, and its last run counts.
func (e *Engine) commit(fn func(*txn) error) (uint64, error) {
	return e.commitFor(context.Background(), fn)
}

// commitFor is commit for a caller who may give up.
func (e *Engine) commitFor(ctx context.Context, fn func(*txn) error) (rev uint64, err error) {
	err = e.leasing(ctx, func(full map[subnetKey]bool) (err error) {
		rev, err = e.commitOnce(func(t *txn) error { t.full = full; return fn(t) })
		return err
	})
	return rev, err
}

// leasing runs a transaction again with the blocks that it lacked, one after the other. It is told of which subnets none is to be had.
func (e *Engine) leasing(ctx context.Context, try func(full map[subnetKey]bool) error) error {
	full := map[subnetKey]bool{}
	err := try(full)
	need, lacks := errors.AsType[*needBlock](err)
	if !lacks {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	for range mostLeases {
		if err := e.leaseBlock(ctx, need); errors.Is(err, ErrNoBlock) && need.elsewhere {
			full[need.key()] = true
		} else if err != nil {
			return err
		}
		err = try(full)
		if need, lacks = errors.AsType[*needBlock](err); !lacks {
			return err
		}
	}
	return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w, after %d blocks more: make fewer endpoints at a time, or make them when fewer others are made", need, mostLeases)
}

// pretendBlock gives a rehearsal the block that would be leased, or has it look elsewhere as leasing would.
func (t *txn) pretendBlock(need *needBlock) error {
	n := t.st.networks[need.network]
	if t.e.opt.Cluster == nil || n == nil {
		return need
	}
	block, err := t.e.opt.Cluster.PickBlock(need.network, need.subnet, need.wanted, n.Blocks)
	if errors.Is(err, ErrNoBlock) && need.elsewhere {
		t.full[need.key()] = true
		return nil
	}
	if err != nil {
		return hcn.Errorf(hcn.ErrAddrInvalidOrReserved, "%w: %w", need, err)
	}
	row := *n
	row.Blocks = append(slices.Clone(n.Blocks), block)
	t.putNetwork(need.network, &row)
	return nil
}

// inBlocks are the parts of ranges that are this host's.
func inBlocks(n *plan.Network, ranges []ipam.Range) (out []ipam.Range) {
	for _, b := range n.Blocks {
		block := netipx.RangeOfPrefix(b)
		for _, r := range ranges {
			if r.Overlaps(block) {
				out = append(out, netipx.IPRangeFrom(later(r.From(), block.From()), earlier(r.To(), block.To())))
			}
		}
	}
	return out
}

// beyondBlocks are the addresses of ranges that are in no block of this host, and that an endpoint may be given.
func beyondBlocks(n *plan.Network, ranges []ipam.Range, excluded []hcn.AddrRange, reserved []netip.Addr) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	for _, r := range ranges {
		b.AddRange(r)
	}
	for _, p := range n.Blocks {
		b.RemovePrefix(p)
	}
	for _, x := range excluded {
		b.RemoveRange(netipx.IPRangeFrom(x.From, x.To))
	}
	for _, a := range reserved {
		b.Remove(a)
	}
	return b.IPSet()
}

func later(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func earlier(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return a
	}
	return b
}

// checkBlock refuses an address that was asked for and is not this host's to give, for now.
func checkBlock(n *plan.Network, a netip.Addr) error {
	if !n.Cluster || slices.ContainsFunc(n.Blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
		return nil
	}
	s := n.Doc.SubnetOf(a)
	if s == nil {
		return nil // refused where the document is checked
	}
	p, err := s.Prefix()
	if err != nil {
		return err
	}
	var b netipx.IPSetBuilder
	b.Add(a)
	only, err := b.IPSet()
	if err != nil {
		return err
	}
	return &needBlock{network: n.Doc.ID, name: n.Doc.Name, subnet: p.Masked(), wanted: only, had: n.Blocks}
}
