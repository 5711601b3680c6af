package bench

import (
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// fleet makes and removes endpoints through the API.
type fleet struct {
	d       *daemon
	network hcn.GUID
	mu      sync.Mutex
	made    map[int]member
}

// member is an endpoint with a namespace of its own.
type member struct {
	endpoint  hcn.HostComputeEndpoint
	namespace hcn.GUID
}

// newFleet makes a NAT network of both families that has room for all.
func newFleet(d *daemon) *fleet {
	d.b.Helper()
	f := &fleet{d: d, made: map[int]member{}}
	subnet := func(prefix, gateway, all string) hcn.Subnet {
		return hcn.Subnet{IpAddressPrefix: prefix, Routes: []hcn.Route{{NextHop: gateway, DestinationPrefix: all}}}
	}
	var made hcn.HostComputeNetwork
	d.call(http.MethodPost, "/hcn/v2/networks", hcn.HostComputeNetwork{
		Name: "bench", Type: hcn.NAT, SchemaVersion: hcn.V2(),
		Ipams: []hcn.Ipam{{Subnets: []hcn.Subnet{
			subnet("10.250.0.0/16", "10.250.0.1", "0.0.0.0/0"), subnet("fd00:250::/64", "fd00:250::1", "::/0"),
		}}},
	}, &made)
	f.network = made.ID
	return f
}

// attach makes endpoint number i, from nothing to a working interface with a published port, and returns how long the
// caller waited for it.
func (f *fleet) attach(i int) time.Duration {
	f.d.b.Helper()
	start := time.Now()
	var made api.Compartment
	f.d.call(http.MethodPost, "/v1/compartments", api.Compartment{Endpoints: []hcn.HostComputeEndpoint{{
		HostComputeNetwork: f.network, Policies: published(i),
	}}}, &made)
	took := time.Since(start)
	f.note(i, member{endpoint: made.Endpoints[0], namespace: made.Namespace.ID})
	return took
}

func (f *fleet) detach(i int) time.Duration {
	f.d.b.Helper()
	start := time.Now()
	f.d.call(http.MethodDelete, "/v1/compartments/"+string(f.made[i].namespace), nil, nil)
	took := time.Since(start)
	delete(f.made, i)
	return took
}

func published(i int) []hcn.EndpointPolicy {
	return []hcn.EndpointPolicy{hcn.PortMappingPolicySetting{
		Protocol: hcn.ProtocolTCP, InternalPort: containerPort, ExternalPort: uint16(firstPort + i),
	}.Policy()}
}

// attachHCN and detachHCN do the same as a client of HCN does, object by object.
func (f *fleet) attachHCN(i int) time.Duration {
	f.d.b.Helper()
	start := time.Now()
	var ns hcn.HostComputeNamespace
	f.d.call(http.MethodPost, "/hcn/v2/namespaces", hcn.HostComputeNamespace{SchemaVersion: hcn.V2()}, &ns)
	var ep hcn.HostComputeEndpoint
	f.d.call(http.MethodPost, "/hcn/v2/endpoints?network="+string(f.network), hcn.HostComputeEndpoint{
		SchemaVersion: hcn.V2(), HostComputeNamespace: ns.ID,
		Policies: published(i),
	}, &ep)
	took := time.Since(start)
	f.note(i, member{endpoint: ep, namespace: ns.ID})
	return took
}

func (f *fleet) note(i int, m member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made[i] = m
}

func (f *fleet) detachHCN(i int) time.Duration {
	f.d.b.Helper()
	m := f.made[i]
	start := time.Now()
	f.d.call(http.MethodDelete, "/hcn/v2/endpoints/"+string(m.endpoint.ID), nil, nil)
	f.d.call(http.MethodDelete, "/hcn/v2/namespaces/"+string(m.namespace), nil, nil)
	took := time.Since(start)
	delete(f.made, i)
	return took
}

// ask is a call that changes nothing: what the way to the daemon and back costs.
func (f *fleet) ask() time.Duration {
	f.d.b.Helper()
	start := time.Now()
	var doc hcn.HostComputeNetwork
	f.d.call(http.MethodGet, "/hcn/v2/networks/"+string(f.network), nil, &doc)
	return time.Since(start)
}

// fill makes the endpoints from one number up to another, eight at a time.
func (f *fleet) fill(from, to int) {
	f.d.b.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				f.attach(i)
			}
		})
	}
	for i := from; i < to; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

// compartment gives the namespace of endpoint i.
func (f *fleet) compartment(i int) *testhost.Host {
	f.d.b.Helper()
	return f.d.host.Namespace("/run/netns/hns-" + strings.ToLower(string(f.made[i].namespace)))
}

// addr is the IPv4 address of endpoint i.
func (f *fleet) addr(i int) netip.Addr {
	f.d.b.Helper()
	for _, c := range f.made[i].endpoint.IpConfigurations {
		if a, err := netip.ParseAddr(c.IpAddress); err == nil && a.Is4() {
			return a
		}
	}
	f.d.b.Fatalf("endpoint %d has no IPv4 address: %+v", i, f.made[i].endpoint)
	return netip.Addr{}
}

// verify sees that what is measured works: the gateway answers, and the published port leads into the compartment.
func (f *fleet) verify(i int) {
	f.d.b.Helper()
	ns := f.compartment(i)
	defer ns.Close()
	if err := ns.Ping(netip.MustParseAddr("10.250.0.1")); err != nil {
		f.d.b.Fatalf("endpoint %d: ping the gateway: %v", i, err)
	}
	answered(f.d.b, f.d.host, ns, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(firstPort+i)), containerPort)
}

// answered serves in one place and asks from another, once.
func answered(b *testing.B, from, in *testhost.Host, at netip.AddrPort, port uint16) {
	b.Helper()
	stop := serve(b, in, "rr", netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	defer stop()
	ask(b, from, "rr", at, 10*time.Millisecond)
}
