package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// fakeDaemon holds what it is told, refuses addresses that are another's as the daemon does, and keeps a record.
type fakeDaemon struct {
	mu        sync.Mutex
	addresses []api.Address
	balancers map[hcn.GUID]*hcn.HostComputeLoadBalancer
	calls     []string // of changes
	reads     int
	broken    error
}

func (d *fakeDaemon) did(format string, args ...any) {
	d.calls = append(d.calls, fmt.Sprintf(format, args...))
}

func (d *fakeDaemon) Networks(context.Context) ([]hcn.HostComputeNetwork, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	return []hcn.HostComputeNetwork{{ID: "N", Name: "pods", Type: hcn.NAT, Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{{IpAddressPrefix: "10.1.0.0/16"}}}}}}, d.broken
}

func (d *fakeDaemon) Addresses(context.Context) ([]api.Address, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	return slices.Clone(d.addresses), d.broken
}

func (d *fakeDaemon) CreateEndpoint(_ context.Context, doc *hcn.HostComputeEndpoint) (*hcn.HostComputeEndpoint, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	what := "far"
	if doc.Flags&hcn.RemoteEndpoint == 0 {
		what = "source"
		doc.IpConfigurations = []hcn.IpConfig{{IpAddress: "10.1.0.99"}}
	}
	d.did("%s %s", what, doc.IpConfigurations[0].IpAddress)
	d.addresses = append(d.addresses, api.Address{Address: doc.IpConfigurations[0].IpAddress, NetworkID: "N", Kind: "endpoint", State: "reserved", Endpoint: doc.ID, Owner: doc.Owner})
	return doc, nil
}

func (d *fakeDaemon) DeleteEndpoint(_ context.Context, id hcn.GUID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, a := range d.addresses {
		if a.Endpoint == id {
			d.did("no more %s", a.Address)
			d.addresses = slices.Delete(d.addresses, i, i+1)
			return nil
		}
	}
	return hcn.Errorf(hcn.ErrEndpointNotFound, "no such endpoint")
}

func (d *fakeDaemon) EnumerateLoadBalancers(context.Context, hcn.HostComputeQuery) (ids []hcn.GUID, _ error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	for id, doc := range d.balancers {
		if doc.Owner == owner {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func (d *fakeDaemon) LoadBalancer(_ context.Context, id hcn.GUID) (*hcn.HostComputeLoadBalancer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	if doc := d.balancers[id]; doc != nil {
		return doc.Clone(), nil
	}
	return nil, hcn.Errorf(hcn.ErrElementNotFound, "no such load balancer")
}

// free refuses a service that is another's.
func (d *fakeDaemon) free(doc *hcn.HostComputeLoadBalancer) error {
	for id, other := range d.balancers {
		for _, vip := range doc.FrontendVIPs {
			if id != doc.ID && slices.Contains(other.FrontendVIPs, vip) && other.PortMappings[0].External() == doc.PortMappings[0].External() {
				return hcn.Errorf(hcn.ErrPortAlreadyExists, "%s is %s's", vip, other.Name)
			}
		}
	}
	return doc.Validate()
}

func (d *fakeDaemon) CreateLoadBalancer(_ context.Context, doc *hcn.HostComputeLoadBalancer) (*hcn.HostComputeLoadBalancer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.free(doc); err != nil {
		return nil, err
	}
	d.did("create %s", doc.Name)
	d.balancers[doc.ID] = doc.Clone()
	return doc, d.broken
}

func (d *fakeDaemon) ModifyLoadBalancer(_ context.Context, id hcn.GUID, doc *hcn.HostComputeLoadBalancer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.free(doc); err != nil {
		return err
	}
	d.did("modify %s", doc.Name)
	d.balancers[id] = doc.Clone()
	return d.broken
}

func (d *fakeDaemon) DeleteLoadBalancer(_ context.Context, id hcn.GUID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.balancers[id] == nil {
		return hcn.Errorf(hcn.ErrElementNotFound, "no such load balancer")
	}
	d.did("delete %s", d.balancers[id].Name)
	delete(d.balancers, id)
	return d.broken
}

func lb(name, vip string, ends ...string) balancer {
	b := balancer{name: name, protocol: hcn.ProtocolTCP, port: 80, target: 8080, vips: addrs([]string{vip})}
	b.backends = addrs(ends)
	return b
}

func TestSync(t *testing.T) {
	d := &fakeDaemon{balancers: map[hcn.GUID]*hcn.HostComputeLoadBalancer{
		"OTHERS": {ID: "OTHERS", Name: "others", FrontendVIPs: []string{"10.96.0.99"}, PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 80}}},
		"STALE":  {ID: "STALE", Name: "stale", Owner: owner, FrontendVIPs: []string{"10.96.0.1"}, PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 80}}},
	}, addresses: []api.Address{{Address: "10.1.0.1", NetworkID: "N", Endpoint: "E1"}, {Address: "10.1.0.2", NetworkID: "N", Endpoint: "E2"}, {Address: "10.1.0.1", NetworkID: "M", Endpoint: "E9"}}}
	h := newHost(d, "pods", func(string) {})
	step := func(what string, list []balancer, want ...string) {
		t.Helper()
		d.calls = nil
		if err := h.sync(t.Context(), list); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if len(list) == 0 {
			slices.Sort(d.calls) // by ID
		}
		if d := cmp.Diff(want, d.calls); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	ends := func(name string) (out []hcn.GUID) {
		for _, doc := range d.balancers {
			if doc.Name == name {
				out = doc.HostComputeEndpoints
			}
		}
		return out
	}
	list := []balancer{lb("a", "10.96.0.1", "10.1.0.1", "10.1.0.7", "192.0.2.7")}
	step("what was left, and a machine outside", list, "far 192.0.2.7", "source 10.1.0.99", "delete stale", "create a")
	for _, doc := range d.balancers {
		if doc.Name == "a" && doc.SourceVIP != "10.1.0.99" {
			t.Errorf("the back end outside sees %q", doc.SourceVIP)
		}
	}
	if got := ends("a"); len(got) != 2 || !slices.Contains(got, "E1") || h.missing != 1 {
		t.Errorf("back ends %v, %d missing", got, h.missing)
	}
	h.missing = 0
	reads := d.reads
	step("nothing changes", list)
	if d.reads != reads {
		t.Errorf("%d questions when nothing changes", d.reads-reads)
	}

	// The daemon's word: what others did is mended, and one that is there again is what it was.
	for id, doc := range d.balancers {
		if doc.Name == "a" {
			doc.HostComputeEndpoints = nil
			h.told(api.Event{Kind: "loadbalancer", Action: "modify", ID: string(id)})
		}
	}
	step("changed by others", list, "modify a")
	d.addresses = append(d.addresses, api.Address{Address: "10.1.0.7", NetworkID: "N", Endpoint: "E7"})
	h.told(api.Event{Kind: "endpoint", Action: "create"})
	step("a pod comes", list, "modify a")
	// The daemon takes an endpoint that is deleted out of its load balancers: that is nothing to write.
	d.addresses = slices.DeleteFunc(d.addresses, func(a api.Address) bool { return a.Address == "10.1.0.7" })
	for _, doc := range d.balancers {
		doc.HostComputeEndpoints = slices.DeleteFunc(doc.HostComputeEndpoints, func(id hcn.GUID) bool { return id == "E7" })
	}
	h.told(api.Event{Kind: "endpoint", Action: "delete"})
	step("a pod goes", list)

	// Somebody deletes the source: it is made again.
	d.addresses = slices.DeleteFunc(d.addresses, func(a api.Address) bool { return a.Address == "10.1.0.99" })
	h.told(api.Event{Kind: "endpoint", Action: "delete"})
	step("the source goes", list, "source 10.1.0.99")

	// Two change their addresses for each other's.
	two := []balancer{lb("a", "10.96.0.1", "10.1.0.1"), lb("b", "10.96.0.2", "10.1.0.2")}
	step("another one", two, "modify a", "create b", "no more 10.1.0.99", "no more 192.0.2.7")
	for _, doc := range d.balancers {
		if doc.SourceVIP != "" {
			t.Errorf("all back ends of %s are here, and see %s", doc.Name, doc.SourceVIP)
		}
	}
	two[0].vips, two[1].vips = two[1].vips, two[0].vips
	d.calls = nil
	if err := h.sync(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(d.calls, ", "); strings.Count(got, "delete") == 0 || strings.Count(got, "create") != strings.Count(got, "delete") {
		t.Error(got)
	}
	for name, vip := range map[string]string{"a": "10.96.0.2", "b": "10.96.0.1"} {
		for _, doc := range d.balancers {
			if doc.Name == name && doc.FrontendVIPs[0] != vip {
				t.Errorf("%s is at %v", name, doc.FrontendVIPs)
			}
		}
	}

	// A failure is all that is told of, and what is there is looked at again.
	d.broken = errors.New("the daemon is away")
	if err := h.sync(t.Context(), append(two, lb("c", "10.96.0.3"))); err == nil || !strings.Contains(err.Error(), "c: the daemon is away") {
		t.Errorf("got %v", err)
	}
	d.broken = nil
	step("it has come through all the same", append(two, lb("c", "10.96.0.3")))
	step("none at all", nil, "delete a", "delete b", "delete c")
	if d.balancers["OTHERS"] == nil {
		t.Error("another's load balancer is gone")
	}
}

// TestFamilies: a load balancer at the node's addresses of a family that the network does not have would lead nowhere.
func TestFamilies(t *testing.T) {
	d := &fakeDaemon{balancers: map[hcn.GUID]*hcn.HostComputeLoadBalancer{}}
	h := newHost(d, "pods", func(string) {})
	four, six := lb("a", "10.96.0.1"), lb("b", "10.96.0.1")
	four.vips, six.vips, six.v6 = nil, nil, true
	six.backends = []netip.Addr{}
	if err := h.sync(t.Context(), []balancer{four, six}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"create a"}, d.calls); d != "" {
		t.Error(d)
	}
	if err := newHost(d, "other", func(string) {}).sync(t.Context(), nil); err == nil || !strings.Contains(err.Error(), `no network "other"`) {
		t.Errorf("no network: %v", err)
	}
}
