package overlay

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// balancer is one with a virtual address and TCP ports.
func balancer(n Network, id hcn.GUID, name, vip string, ports ...uint16) Balancer {
	doc := hcn.HostComputeLoadBalancer{
		ID: id, Name: name, HostComputeNetwork: n.ID, FrontendVIPs: []string{vip}, HostComputeEndpoints: []hcn.GUID{guid(0xe, 1)}, SchemaVersion: hcn.V2(),
	}
	for _, p := range ports {
		doc.PortMappings = append(doc.PortMappings, hcn.LoadBalancerPortMapping{Protocol: hcn.ProtocolTCP, InternalPort: 8080, ExternalPort: p})
	}
	return Balancer{ID: id, Network: n.ID, Doc: doc}
}

// balances waits until a host knows exactly these load balancers of others, by name and host.
func (h *testHost) balances(want ...string) {
	h.t.Helper()
	testhost.Eventually(h.t, 20*time.Second, func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		got := []string{}
		for _, b := range h.lbs {
			got = append(got, b.Doc.Name+"@"+h.hosts[b.Host].Name)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s knows the load balancers %v, want %v", h.name, got, want)
		}
		return nil
	})
}

func (h *testHost) claim(b Balancer) {
	h.t.Helper()
	release, err := h.ClaimBalancer(h.t.Context(), b)
	if err != nil {
		h.t.Fatal(err)
	}
	h.PublishBalancers([]Balancer{b})
	release()
}

// TestBalancers: a load balancer is known on every host until it is deleted, or its host's lease ends. What it has nobody else gets
// meanwhile; who had it before a partition, and has lost it, is told.
func TestBalancers(t *testing.T) {
	t.Parallel()
	s := startEtcd(t, 1)
	s.found()
	a, b, c := s.host(1), s.host(2), s.host(3)
	a.connected()
	b.connected()
	c.connected()
	n := a.network("blue", "10.9.0.0/16")
	web := balancer(n, guid(0xb, 1), "web", "10.96.0.10", 80, 443)
	a.claim(web)
	b.balances("web@h1")
	c.balances("web@h1")
	a.balances()

	for want, clash := range map[string]Balancer{
		"TCP 10.96.0.10:443":             balancer(n, guid(0xb, 2), "other", "10.96.0.10", 443),
		`the name "web"`:                 balancer(n, guid(0xb, 3), "web", "10.96.0.11", 80),
		"the ID " + string(guid(0xb, 1)): balancer(n, guid(0xb, 1), "third", "10.96.0.12", 80),
	} {
		if _, err := b.ClaimBalancer(t.Context(), clash); !errors.Is(err, ErrClash) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"h1"`) {
			t.Errorf("%s: %v", want, err)
		}
	}
	b.claim(balancer(n, guid(0xb, 4), "", "10.96.0.10", 8443)) // another port
	c.balances("@h2", "web@h1")

	// It changes, gives up a port, and is deleted.
	web.Doc.PortMappings = web.Doc.PortMappings[:1]
	web.Doc.HostComputeEndpoints = append(web.Doc.HostComputeEndpoints, guid(0xe, 2))
	a.claim(web)
	testhost.Eventually(t, 20*time.Second, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if got := c.lbs[BalancerKey{n.ID, a.id, web.ID}]; got == nil || len(got.Doc.PortMappings) != 1 || len(got.Doc.HostComputeEndpoints) != 2 {
			return fmt.Errorf("h3 knows %+v", got)
		}
		return nil
	})
	c.claim(balancer(n, guid(0xb, 5), "secure", "10.96.0.10", 443))
	b.balances("secure@h3", "web@h1")

	// Of two who want one service at once, one gets it.
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, h := range []*testHost{b, c} {
		wg.Go(func() {
			h.Agent.mu.Lock()
			all := slices.Collect(maps.Values(h.own.want))
			h.Agent.mu.Unlock()
			race := balancer(n, guid(0xb, 10+i), "race", "10.96.0.20", 80)
			release, err := h.ClaimBalancer(t.Context(), race)
			if errs[i] = err; err == nil {
				h.PublishBalancers(append(all, race))
				release()
			}
		})
	}
	wg.Wait()
	if (errs[0] == nil) == (errs[1] == nil) || !errors.Is(errors.Join(errs...), ErrClash) {
		t.Errorf("both asked for one service: %v", errs)
	}
	a.PublishBalancers(nil)
	testhost.Eventually(t, 20*time.Second, func() error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.lbs[BalancerKey{n.ID, a.id, web.ID}] != nil {
			return errors.New("web is still known")
		}
		return nil
	})
}

// TestBalancersPartition: what a host that is cut off had goes with its lease, and may be another's then. Back, the host is told, and
// has it again when that one goes.
func TestBalancersPartition(t *testing.T) {
	t.Parallel()
	s := startEtcd(t, 1)
	s.found()
	a, b := s.host(1), s.host(2)
	a.connected()
	b.connected()
	n := a.network("blue", "10.9.0.0/16")
	a.claim(balancer(n, guid(0xb, 1), "web", "10.96.0.10", 80))
	b.balances("web@h1")
	a.link.Cut()
	b.balances()
	if _, err := a.ClaimBalancer(t.Context(), balancer(n, guid(0xb, 3), "late", "10.96.0.30", 80)); !errors.Is(err, ErrAway) {
		t.Errorf("a claim without etcd: %v", err)
	}
	b.claim(balancer(n, guid(0xb, 2), "web", "10.96.0.10", 80))
	a.link.Heal()
	a.connected()
	a.balances("web@h2")
	testhost.Eventually(t, 20*time.Second, func() error {
		if why := a.Status().Problems[a.keys.balancer(n.ID, a.id, guid(0xb, 1))]; !strings.Contains(why, `belongs to load balancer "web"`) {
			return fmt.Errorf("the host is told %q", why)
		}
		return nil
	})
	b.PublishBalancers(nil)
	b.balances("web@h1")

	// A restart in time changes nothing, and what somebody removes is written again.
	cli := s.dial()
	key := a.keys.balancer(n.ID, a.id, guid(0xb, 1))
	res, err := cli.Delete(t.Context(), key)
	if err != nil || res.Deleted != 1 {
		t.Fatal(res, err)
	}
	testhost.Eventually(t, 20*time.Second, func() error {
		if res, err := cli.Get(t.Context(), key); err != nil || len(res.Kvs) != 1 || res.Kvs[0].Lease == 0 {
			return fmt.Errorf("the key: %v, %w", res, err)
		}
		return nil
	})
	b.balances("web@h1")

	// What is no load balancer of ours is left out, and named.
	for value, why := range map[string]string{
		`{"id":"` + string(guid(0xb, 7)) + `"}`:                              "the value is of",
		encode(balancer(n, guid(0xb, 7), "thief", "10.9.3.1", 80)):           "lies in the subnet",
		encode(balancer(n, guid(0xb, 7), "web", "10.96.0.77", 80)):           `the name "web" is that of`,
		encode(balancer(n, guid(0xb, 7), "many", "224.0.0.1", 80)):           "FrontendVIPs",
		encode(balancer(Network{ID: b.id}, guid(0xb, 7), "x", "1.2.3.4", 1)): "is of network",
	} {
		key := b.keys.balancer(n.ID, b.id, guid(0xb, 7))
		if _, err := cli.Put(t.Context(), a.keys.balancer(n.ID, a.id, guid(0xb, 8)), value); err != nil { // a's agent removes it
			t.Fatal(err)
		}
		c := newCache(b.keys, guid(0xa, 9))
		hosts := Host{ID: b.id, Name: "h2", Addrs: b.Self().Addrs}
		c.put(entry{key: c.keys.host(b.id), value: []byte(encode(&hosts)), rev: 1, created: 1})
		c.put(entry{key: c.keys.network(n.ID), value: []byte(encode(&n)), rev: 2, created: 2})
		c.put(entry{key: c.keys.balancer(n.ID, b.id, guid(0xb, 1)), value: []byte(encode(balancer(n, guid(0xb, 1), "web", "10.96.0.10", 80))), rev: 3, created: 3})
		c.put(entry{key: key, value: []byte(value), rev: 4, created: 4})
		got := c.problems[key]
		if it := c.balancers.all[BalancerKey{n.ID, b.id, guid(0xb, 7)}]; it != nil {
			if err := c.balancerCounts(it); err != nil {
				got = err.Error()
			}
		}
		if !strings.Contains(got, why) {
			t.Errorf("%.80s: %q, want %q", value, got, why)
		}
	}
	b.balances("web@h1")
}
