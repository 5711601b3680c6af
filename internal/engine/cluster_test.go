package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"go4.org/netipx"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/ipam"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// blocks is a cluster that leases blocks of four addresses, those of a list one after the other.
type blocks struct {
	mu   sync.Mutex
	free []string
	near []netip.Addr // what was asked for
}

func (b *blocks) LeaseBlock(_ context.Context, _ hcn.GUID, subnet netip.Prefix, around netip.Addr) (netip.Prefix, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.near = append(b.near, around)
	for i, text := range b.free {
		p := netip.MustParsePrefix(text)
		if subnet.Contains(p.Addr()) && (!around.IsValid() || p.Contains(around)) {
			b.free = slices.Delete(b.free, i, i+1)
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("all blocks are leased")
}

func (*blocks) DeleteNetwork(context.Context, hcn.GUID) error { return nil }
func (*blocks) Publish([]plan.Remote)                         {}

// inCluster is a daemon with a network of a cluster.
func inCluster(t *testing.T, b *blocks, fn func(e *env)) {
	t.Helper()
	run(t, func(e *env) {
		e.underlay()
		e.e.opt.Cluster = b
		doc := decode[hcn.HostComputeNetwork](e, overlayDoc("blue", 61, 5001, ""))
		doc.ID = "B0000000-0000-4000-8000-000000000001"
		e.ok(e.e.SetClusterNetworks(context.Background(), []ClusterNetwork{{Doc: doc, Provider: netip.MustParseAddr("192.0.2.1"), Router: plan.MAC{2, 1}}}))
		fn(e)
	})
}

// TestBlocksAreLeasedAsNeeded: a change that finds none, or a full one, is made again with another, by everything that makes
// endpoints; and what it was given is not worn by that.
func TestBlocksAreLeasedAsNeeded(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "10.61.0.16/30", "10.61.0.24/30", "fd00:61::100/120"}}
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		var eps []string
		for range 3 {
			eps = append(eps, epDoc(n, ""))
		}
		// Three endpoints and two more than a block has room for.
		c := must(e.makeCompartment(append(eps, eps[:2]...)...))(e)
		if len(c.Endpoints) != 5 || len(e.e.Endpoints(hcn.Filter{})) != 5 || len(b.near) != 3 {
			e.t.Errorf("made %d endpoints with %d leases", len(c.Endpoints), len(b.near))
		}
		e.w.netns["/run/netns/c1"] = 11
		s := foreign("c1")
		s.Network = "blue"
		s.Ranges = [][]api.AddressRange{{{Subnet: "10.61.0.0/24", First: "10.61.0.26", Last: "10.61.0.27"}}}
		a := must(e.attachForeign(s))(e)
		if !slices.ContainsFunc(a.Endpoint.Addresses, func(x string) bool { return strings.HasPrefix(x, "10.61.0.26/") }) || len(a.Endpoint.Addresses) != 2 {
			e.t.Errorf("in a range of the cluster's network: %v", a.Endpoint.Addresses)
		}
		s.Container, s.Netns = "c2", "/run/netns/c2"
		e.w.netns["/run/netns/c2"] = 12
		s.Ranges[0][0].First = "10.61.0.200"
		s.Ranges[0][0].Last = "10.61.0.210"
		if _, err := e.attachForeign(s); err == nil || !strings.Contains(err.Error(), "all blocks are leased") {
			e.t.Errorf("a range of which no block is to be had: %v", err)
		}
	})
}

func TestBeyondBlocks(t *testing.T) {
	n := &plan.Network{Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("10.0.0.4/30")}}
	for text, want := range map[string]string{
		"10.0.0.1-10.0.0.6": "", "10.0.0.1-10.0.0.9": "10.0.0.8", "10.0.1.0-10.0.1.9": "10.0.1.0", "10.0.0.7-10.0.0.7": "", "255.255.255.255-255.255.255.255": "255.255.255.255",
	} {
		got := beyondBlocks(n, []ipam.Range{netipx.MustParseIPRange(text)})
		if want == "" && got.IsValid() || want != "" && got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %q", text, got, want)
		}
	}
}
