package overlay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

var (
	faultTime = flag.Duration("fault-time", 12*time.Second, "how long TestFaults breaks things")
	faultSeed = flag.Uint64("fault-seed", 0, "of TestFaults; 0: a new one")
)

// faultHost is a host that makes endpoints from its blocks as an engine does: without asking anybody.
type faultHost struct {
	*testHost
	n       int
	boots   int
	alive   bool
	blocks  map[hcn.GUID][]netip.Prefix // as it keeps them on its disk
	eps     map[hcn.GUID]Endpoint
	counter int
}

// TestFaults breaks hosts, their ways to etcd and members of etcd at random, while hosts make and remove endpoints. At every moment no two
// endpoints that exist have one address of one network, and no host is told of two with one address. When all is whole again,
// every host knows exactly what the others have.
func TestFaults(t *testing.T) {
	seed := *faultSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-fault-seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	s := startEtcd(t, 3)
	s.found()
	var hosts []*faultHost
	for i := range 4 {
		hosts = append(hosts, &faultHost{testHost: s.host(i + 1), n: i + 1, alive: true, blocks: map[hcn.GUID][]netip.Prefix{}, eps: map[hcn.GUID]Endpoint{}})
	}
	for _, h := range hosts {
		h.connected()
	}
	nets := []Network{hosts[0].network("blue", "10.77.0.0/26"), hosts[1].network("red", "10.77.0.0/24", "fd77::/64")}
	for _, h := range hosts {
		eventually(t, "networks are everywhere", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.nets) == 2 })
	}
	down := map[int]bool{} // members of etcd that are dead or stand still
	for until := time.Now().Add(*faultTime); time.Now().Before(until); {
		h := hosts[r.IntN(len(hosts))]
		switch p := r.IntN(100); {
		case p < 55:
			h.step(t, r, nets)
		case p < 62:
			h.link.Cut()
		case p < 74:
			h.link.Heal()
		case p < 78: // the daemon or the host restarts
			h.restart(s, r.IntN(2) == 0)
		case p < 82:
			i := r.IntN(3)
			if !down[i] {
				s.members[i].kill()
				down[i] = true
			}
		case p < 90:
			for i := range 3 {
				if down[i] {
					s.members[i].start(t)
				}
			}
			clear(down)
		case p < 92:
			i := r.IntN(3)
			if !down[i] {
				s.members[i].signal(t, syscall.SIGSTOP)
				time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond) //nolint:forbidigo // it stands still for a time
				s.members[i].signal(t, syscall.SIGCONT)
			}
		default:
			time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond) //nolint:forbidigo // things happen
		}
		noDuplicates(t, hosts)
	}
	for i := range 3 {
		if down[i] {
			s.members[i].start(t)
		}
	}
	for _, h := range hosts {
		h.link.Heal()
	}
	testhost.Eventually(t, 60*time.Second, func() error { return converged(hosts) })
	noDuplicates(t, hosts)
	total := 0
	for _, h := range hosts {
		total += len(h.eps)
	}
	t.Logf("%d endpoints", total)
}

// step makes or removes an endpoint.
func (h *faultHost) step(t *testing.T, r *rand.Rand, nets []Network) {
	n := nets[r.IntN(len(nets))]
	if len(h.eps) > 0 && r.IntN(3) == 0 {
		for id := range h.eps {
			delete(h.eps, id)
			break
		}
		h.publish()
		return
	}
	var addrs []netip.Addr
	for _, subnet := range n.Prefixes() {
		a := h.free(n.ID, subnet)
		if !a.IsValid() {
			p, err := h.lease(t, n, subnet)
			if err != nil {
				return // etcd is away, or all blocks are somebody's
			}
			if !slices.Contains(h.blocks[n.ID], p) {
				h.blocks[n.ID] = append(h.blocks[n.ID], p)
			}
			a = h.free(n.ID, subnet)
		}
		if !a.IsValid() {
			return
		}
		addrs = append(addrs, a)
	}
	h.counter++
	id := guid(0xe0+h.n, h.boots<<20|h.counter)
	h.eps[id] = endpoint(n, id, fmt.Sprintf("c%d", h.counter), addrs...)
	h.publish()
}

func (h *faultHost) lease(t *testing.T, n Network, subnet netip.Prefix) (netip.Prefix, error) {
	t.Helper()
	h.link.mu.Lock()
	cut := h.link.cut
	h.link.mu.Unlock()
	if cut {
		return netip.Prefix{}, ErrAway // it would find out in some seconds
	}
	return h.LeaseBlock(t.Context(), n.ID, subnet, nil)
}

// free is an address of the host's blocks that none of its endpoints has.
func (h *faultHost) free(net hcn.GUID, subnet netip.Prefix) netip.Addr {
	for _, p := range h.blocks[net] {
		if !subnet.Overlaps(p) {
			continue
		}
		for a, i := p.Addr(), 0; p.Contains(a) && i < 20; a, i = a.Next(), i+1 {
			taken := false
			for _, e := range h.eps {
				taken = taken || (e.Network == net && slices.Contains(e.Addrs, a))
			}
			if !taken {
				return a
			}
		}
	}
	return netip.Addr{}
}

func (h *faultHost) publish() {
	var all []Endpoint
	for _, e := range h.eps {
		all = append(all, e)
	}
	h.Publish(all)
}

// restart ends the agent. With the host, its containers end too; its blocks are on its disk.
func (h *faultHost) restart(s *store, host bool) {
	h.stop()
	if host {
		h.boots++
		clear(h.eps)
	}
	h.start(s, fmt.Sprintf("boot %d", h.boots))
	h.publish()
}

// noDuplicates is what must hold always: what exists, and what each host is told.
func noDuplicates(t *testing.T, hosts []*faultHost) {
	t.Helper()
	type at struct {
		net hcn.GUID
		a   netip.Addr
	}
	exist := map[at]string{}
	for _, h := range hosts {
		for _, e := range h.eps {
			for _, a := range e.Addrs {
				k := at{e.Network, a}
				if o := exist[k]; o != "" {
					t.Fatalf("%s has an endpoint with %s of %s, and so has %s", h.name, a, e.Network, o)
				}
				exist[k] = h.name
			}
		}
		told := map[at]hcn.GUID{}
		h.mu.Lock()
		for _, e := range h.facts {
			for _, a := range e.Addrs {
				k := at{e.Network, a}
				if o := told[k]; o != "" {
					t.Fatalf("%s is told of %s and %s with %s", h.name, o, e.ID, a)
				}
				told[k] = e.ID
			}
		}
		h.mu.Unlock()
	}
}

// converged says what a host does not know, or knows that is not so.
func converged(hosts []*faultHost) error {
	for _, h := range hosts {
		h.mu.Lock()
		facts := len(h.facts)
		h.mu.Unlock()
		others := 0
		for _, o := range hosts {
			if o == h {
				continue
			}
			for id, e := range o.eps {
				others++
				f := h.fact(e.Network, id)
				if f == nil {
					return fmt.Errorf("%s does not know %s of %s: %s says %+v, %v", h.name, id, o.name, o.name, o.Status().Problem, o.Status().Problems)
				}
				if f.Host != o.id || !slices.Equal(f.Addrs, e.Addrs) {
					return fmt.Errorf("%s knows %s of %s as %+v", h.name, id, o.name, f)
				}
			}
		}
		if facts != others {
			return fmt.Errorf("%s knows %d endpoints, there are %d", h.name, facts, others)
		}
	}
	return nil
}
