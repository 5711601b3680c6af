package engine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	near []*netipx.IPSet // what was asked for
	hang chan struct{}   // the cluster does not answer until it is closed
	doc  hcn.HostComputeNetwork
	rev  int64
	// meanwhile happens before who changes the network hears of it.
	meanwhile func()
	mine      []netip.Prefix
	told      func([]netip.Prefix)
	// claims is why a load balancer cannot be claimed; published are those that are.
	claims    error
	published []hcn.HostComputeLoadBalancer
	// asked are the questions to other hosts, says is their answer.
	asked []string
	says  api.Explanation
}

func (b *blocks) ClaimBalancer(_ context.Context, doc hcn.HostComputeLoadBalancer) (func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.claims != nil {
		return nil, b.claims
	}
	b.published = append(slices.Clone(b.published), doc)
	return func() {}, nil
}

func (b *blocks) PublishBalancers(all []hcn.HostComputeLoadBalancer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.published = all
}

func (b *blocks) LeaseBlock(ctx context.Context, _ hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet) (netip.Prefix, error) {
	if b.hang != nil {
		select {
		case <-b.hang:
		case <-ctx.Done():
			return netip.Prefix{}, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.near = append(b.near, wanted)
	for i, text := range b.free {
		p := netip.MustParsePrefix(text)
		if subnet.Contains(p.Addr()) && wanted.OverlapsPrefix(p) {
			b.free = slices.Delete(b.free, i, i+1)
			if b.told != nil { // the cluster tells of it at once
				b.mine = append(b.mine, p)
				b.told(b.mine)
			}
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all blocks are leased: %w", ErrNoBlock)
}

func (b *blocks) PickBlock(_ hcn.GUID, subnet netip.Prefix, wanted *netipx.IPSet, beside []netip.Prefix) (netip.Prefix, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, text := range b.free {
		p := netip.MustParsePrefix(text)
		if subnet.Contains(p.Addr()) && wanted.OverlapsPrefix(p) && !slices.Contains(beside, p) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("all blocks are leased: %w", ErrNoBlock)
}

func (b *blocks) ChangeNetwork(_ context.Context, _ hcn.GUID, change func(*hcn.HostComputeNetwork) (*hcn.HostComputeNetwork, error)) (hcn.HostComputeNetwork, int64, error) {
	doc, err := change(b.doc.Clone())
	if err != nil {
		return b.doc, 0, err
	}
	b.doc = *doc
	b.rev++
	mine, at := b.doc, b.rev
	if b.meanwhile != nil {
		b.meanwhile()
	}
	return mine, at, nil
}

func (b *blocks) ExplainThere(_ context.Context, _, endpoint hcn.GUID, q ExplainQuestion) (x api.Explanation, host string, err error) {
	b.asked = append(b.asked, fmt.Sprintf("%s part=%v %s→%s %s/%d IPv%d", endpoint, q.Part, q.Options.From, q.Options.To, q.Options.Protocol, q.Options.Port, q.Options.Family))
	return b.says, "beta", b.claims
}

func (*blocks) DeleteNetwork(context.Context, hcn.GUID) error { return nil }
func (*blocks) Publish([]plan.Remote)                         {}

// inCluster is a daemon with a network of a cluster.
func inCluster(t *testing.T, b *blocks, fn func(e *env), more ...hcn.Subnet) {
	t.Helper()
	run(t, func(e *env) {
		e.underlay()
		e.e.opt.Cluster = b
		doc := decode[hcn.HostComputeNetwork](e, overlayDoc("blue", 61, 5001, ""))
		doc.ID = "B0000000-0000-4000-8000-000000000001"
		doc.Ipams[0].Subnets = append(doc.Ipams[0].Subnets, more...)
		b.doc = doc
		if errs := e.e.SetClusterNetworks(context.Background(), []ClusterNetwork{{Doc: doc, Provider: netip.MustParseAddr("192.0.2.1"), Router: plan.MAC{2, 1}}}); len(errs) > 0 {
			e.t.Fatal(errs)
		}
		fn(e)
	})
}

// TestTunnelsMove: the document of a network names the address by which the cluster knows the host now, and nothing else of it changes.
func TestTunnelsMove(t *testing.T) {
	b := &blocks{}
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		row := func() *plan.Network {
			e.e.mu.RLock()
			defer e.e.mu.RUnlock()
			return e.e.st.networks[n]
		}
		before := row()
		set := func(provider string) {
			c := ClusterNetwork{Doc: b.doc, Provider: netip.MustParseAddr(provider), Router: plan.MAC{2, 1}}
			if errs := e.e.SetClusterNetworks(context.Background(), []ClusterNetwork{c}); len(errs) > 0 {
				e.t.Fatal(errs)
			}
		}
		if set("192.0.2.1"); row().Doc.Version != before.Doc.Version {
			e.t.Error("it has changed where nothing has")
		}
		set("192.0.2.9")
		after := row()
		got, err := hcn.NetworkSettingsOf[hcn.ProviderAddressPolicySetting](after.Doc.Policies)
		if err != nil || len(got) != 1 || got[0].ProviderAddress != "192.0.2.9" || len(after.Doc.Policies) != len(before.Doc.Policies) || after.Doc.Version == before.Doc.Version || after.Uplink != before.Uplink || after.GatewayMAC != before.GatewayMAC {
			e.t.Errorf("%+v, was %+v: %v", after, before, err)
		}
	})
}

// TestBlocksAreLeasedAsNeeded: a change that finds none, or a full one, is made again with another, by everything that makes
// endpoints; and what it was given is not worn by that.
func TestBlocksAreLeasedAsNeeded(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "10.61.0.16/30", "10.61.0.24/30", "fd00:61::100/120"}}
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		b.told = func(mine []netip.Prefix) {
			e.ok(e.e.SetClusterBlocks(func() map[hcn.GUID][]netip.Prefix { return map[hcn.GUID][]netip.Prefix{n: mine} }))
		}
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

// TestFullSubnet: where all blocks of the first subnet are others', the second serves. A rehearsal leases nothing, and says what would be.
func TestFullSubnet(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "10.62.0.16/30", "10.62.0.24/30", "fd00:61::100/120"}}
	second := hcn.Subnet{IpAddressPrefix: "10.62.0.0/24", Routes: []hcn.Route{{NextHop: "10.62.0.1", DestinationPrefix: "0.0.0.0/0"}}, Policies: []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: 5001})}}
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		before := e.everything()
		p, err := e.e.Plan(context.Background(), func(ctx context.Context) error {
			_, err := e.e.CreateEndpoint(ctx, "", n, decode[hcn.HostComputeEndpoint](e, epDoc(n, "")))
			return err
		})
		if text := toJSON(p); err != nil || len(b.near) != 0 {
			e.t.Errorf("rehearsed with %d leases: %s, %v", len(b.near), text, err)
		}
		if d := cmp.Diff(before, e.everything()); d != "" {
			e.t.Errorf("the rehearsal has changed something:\n%s", d)
		}
		var in []string
		for range 9 {
			ep := must(e.endpoint(epDoc(n, "")))(e)
			in = append(in, ep.IpConfigurations[0].IpAddress)
		}
		if first, rest := strings.Join(in[:4], " "), strings.Join(in[4:], " "); strings.Count(first, "10.61.0.") != 4 || strings.Count(rest, "10.62.0.") != 5 {
			e.t.Errorf("addresses %v", in)
		}
		for range 3 {
			must(e.endpoint(epDoc(n, "")))(e)
		}
		if _, err := e.endpoint(epDoc(n, "")); err == nil || !strings.Contains(err.Error(), "all blocks are leased") {
			e.t.Errorf("all are full: %v", err)
		}
	}, second)
}

// TestClusterNetworkChanges: policies and DNS are changed on all hosts, and followed where another host has changed them; the rest is
// refused with the reason, and nothing of the host's own goes.
func TestClusterNetworkChanges(t *testing.T) {
	b := &blocks{}
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		before := must(e.e.Network(n))(e)
		dns := decode[hcn.ModifyNetworkSettingRequest](e, `{"ResourceType":"DNS","RequestType":"Update","Settings":{"Domain":"blue.example","ServerList":["192.0.2.53"]}}`)
		e.ok(e.e.ModifyNetwork(bg, n, &dns))
		after := must(e.e.Network(n))(e)
		if after.Dns.Domain != "blue.example" || b.doc.Dns.Domain != "blue.example" || after.Version != before.Version+1 {
			e.t.Errorf("here %+v version %d, in the cluster %+v", after.Dns, after.Version, b.doc.Dns)
		}
		if d := cmp.Diff(before.Policies, after.Policies); d != "" {
			e.t.Errorf("its policies: %s", d)
		}
		// Once more by what the cluster tells: nothing changes. Then another host changes it.
		tell := func() {
			if errs := e.e.SetClusterNetworks(bg, []ClusterNetwork{{Doc: b.doc, Revision: b.rev, Provider: netip.MustParseAddr("192.0.2.1"), Router: plan.MAC{2, 1}}}); len(errs) > 0 {
				e.t.Error(errs)
			}
		}
		tell()
		if again := must(e.e.Network(n))(e); again.Version != after.Version {
			e.t.Errorf("version %d, was %d", again.Version, after.Version)
		}
		b.doc.Dns.Domain = "other.example"
		b.rev++
		tell()
		if now := must(e.e.Network(n))(e); now.Dns.Domain != "other.example" || now.Version != after.Version+1 {
			e.t.Errorf("another host's change: %+v, version %d", now.Dns, now.Version)
		}
		// One that another host makes at the same time, and that is told before the call returns, is the later one and stays.
		b.meanwhile = func() {
			b.doc = *b.doc.Clone()
			b.doc.Dns.Domain = "later.example"
			b.rev++
			tell()
		}
		e.ok(e.e.ModifyNetwork(bg, n, &dns))
		b.meanwhile = nil
		tell()
		if now := must(e.e.Network(n))(e); now.Dns.Domain != "later.example" || b.doc.Dns.Domain != "later.example" {
			e.t.Errorf("a later change of another host: here %+v, in the cluster %+v", now.Dns, b.doc.Dns)
		}
		for text, want := range map[string]string{
			`{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"VxlanPort","Settings":{"Port":4790}}]}}`:                                  "the tunnels of all hosts",
			`{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"Bulkhead.Encryption","Settings":{"EncryptionMethodType":"WireGuard"}}]}}`: "stays as it was when it was made",
			`{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.1"}}]}}`:          "is each host's own",
			`{"ResourceType":"Subnet","RequestType":"Add","Settings":{"Subnets":[{"IpAddressPrefix":"10.63.0.0/24"}]}}`:                                              "its policies and DNS can be changed, and not its Subnet",
		} {
			r := decode[hcn.ModifyNetworkSettingRequest](e, text)
			if err := e.e.ModifyNetwork(bg, n, &r); err == nil || !strings.Contains(err.Error(), want) {
				e.t.Errorf("%s: %v, want %q", text, err, want)
			}
		}
	})
}

func TestBeyondBlocks(t *testing.T) {
	n := &plan.Network{Blocks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30"), netip.MustParsePrefix("10.0.0.4/30")}}
	excluded := []hcn.AddrRange{{From: netip.MustParseAddr("10.0.1.2"), To: netip.MustParseAddr("10.0.1.7")}}
	for text, want := range map[string]string{
		"10.0.0.1-10.0.0.6": "[]", "10.0.0.1-10.0.0.9": "[10.0.0.8-10.0.0.9]", "10.0.1.0-10.0.1.9": "[10.0.1.0-10.0.1.1 10.0.1.9-10.0.1.9]",
		"10.0.1.3-10.0.1.8": "[]", "255.255.255.255-255.255.255.255": "[255.255.255.255-255.255.255.255]",
	} {
		got, err := beyondBlocks(n, []ipam.Range{netipx.MustParseIPRange(text)}, excluded, []netip.Addr{netip.MustParseAddr("10.0.1.8")})
		if err != nil || fmt.Sprint(got.Ranges()) != want {
			t.Errorf("%s: %v, %v, want %s", text, got.Ranges(), err, want)
		}
	}
}

// TestBlocksOfUse: a block of which every address is excluded, reserved or the host's is not leased, and one that has one left is.
func TestBlocksOfUse(t *testing.T) {
	b := &blocks{}
	for i := range 64 {
		b.free = append(b.free, fmt.Sprintf("10.61.0.%d/30", 4*i))
	}
	b.free = append(b.free, "fd00:61::100/120")
	inCluster(t, b, func(e *env) {
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		exclude := func(what string) {
			r := decode[hcn.ModifyNetworkSettingRequest](e, `{"ResourceType":"Policy","RequestType":"Update","Settings":{"Policies":[{"Type":"Bulkhead.Exclusions","Settings":{`+what+`}}]}}`)
			e.ok(e.e.ModifyNetwork(bg, n, &r))
		}
		exclude(`"Ranges":["10.61.0.2-10.61.0.254"]`) // .0 and .255 are the network's, .1 its gateway's
		if _, err := e.endpoint(epDoc(n, "")); err == nil || !strings.Contains(err.Error(), "no free address") || len(b.near) != 0 {
			e.t.Errorf("all of it is excluded: %v, with %d leases", err, len(b.near))
		}
		exclude(`"Ranges":["10.61.0.2-10.61.0.8","10.61.0.10-10.61.0.254"]`)
		ep := must(e.endpoint(epDoc(n, "")))(e)
		if got := addrs(ep); !strings.Contains(got, "10.61.0.9") || len(b.near) != 2 || !slices.Contains(b.free, "10.61.0.4/30") {
			e.t.Errorf("addresses %s with %d leases", got, len(b.near))
		}
		if _, err := e.endpoint(epDoc(n, "")); err == nil || len(b.near) != 2 {
			e.t.Errorf("the only address is taken: %v, with %d leases", err, len(b.near))
		}
	})
}

// TestClusterThatHangs: while the cluster does not answer, nobody waits longer than for it alone, however many wait, and who gives up
// goes at once. What it answers in the end serves those who are still there, with no more blocks than they need.
func TestClusterThatHangs(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "10.61.0.16/30", "10.61.0.24/30", "10.61.0.32/30", "fd00:61::100/120"}}
	inCluster(t, b, func(e *env) {
		b.hang = make(chan struct{}) // of the bubble whose time it takes
		n := hcn.GUID("B0000000-0000-4000-8000-000000000001")
		doc := decode[hcn.HostComputeEndpoint](e, epDoc(n, ""))
		many := func(ctx context.Context) (failed int, took time.Duration) {
			begin := time.Now()
			errs := make([]error, 6)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() { _, errs[i] = e.e.CreateEndpoint(ctx, "", n, doc) })
			}
			wg.Wait()
			for _, err := range errs {
				if err != nil {
					failed++
				}
			}
			return failed, time.Since(begin)
		}
		if failed, took := many(bg); failed != 6 || took > clusterTimeout+time.Second {
			e.t.Errorf("%d failed, after %s", failed, took)
		}
		ctx, cancel := context.WithTimeout(bg, time.Second)
		defer cancel()
		if failed, took := many(ctx); failed != 6 || took > 2*time.Second {
			e.t.Errorf("who gives up: %d failed, after %s", failed, took)
		}
		time.Sleep(time.Minute) // what they asked for is given up too
		time.AfterFunc(5*time.Second, func() { close(b.hang) })
		if failed, took := many(bg); failed != 0 || took > 6*time.Second || len(b.near) != 3 {
			e.t.Errorf("%d failed, after %s, with %d leases, want 3", failed, took, len(b.near))
		}
	})
}

// TestSharedBalancers: a load balancer of a network of the cluster is claimed before it is made, and published with its network; what
// another host has is refused by name. Those of other hosts balance here, but for services that this host has itself.
func TestSharedBalancers(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "fd00:61::100/120"}}
	inCluster(t, b, func(e *env) {
		ctx, n := context.Background(), hcn.GUID("B0000000-0000-4000-8000-000000000001")
		lb := func(name, vip, port string) hcn.HostComputeLoadBalancer {
			return decode[hcn.HostComputeLoadBalancer](e, fmt.Sprintf(`{"Name":%q,"HostComputeNetwork":%q,"FrontendVIPs":[%q],"PortMappings":[{"Protocol":6,"InternalPort":8080,"ExternalPort":%s}],"SchemaVersion":{"Major":2}}`, name, n, vip, port))
		}
		published := func() (names []string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, doc := range b.published {
				if doc.HostComputeNetwork != n {
					e.t.Errorf("it is published as of network %s", doc.HostComputeNetwork)
				}
				names = append(names, doc.Name)
			}
			slices.Sort(names)
			return names
		}
		services := func() (all []string) {
			for _, bal := range e.e.view.plan().Balancers {
				for i := range bal.Services {
					all = append(all, bal.Name+"@"+bal.Host+" "+bal.Services[i].String()+" "+fmt.Sprint(bal.Services[i].Backends))
				}
			}
			slices.Sort(all)
			return all
		}
		web := must(e.e.CreateLoadBalancer(ctx, "", lb("web", "10.96.0.10", "80")))(e)
		if d := cmp.Diff([]string{"web"}, published()); d != "" {
			e.t.Error(d)
		}

		// Refused by the cluster, or because it is away: with a name it is not made, without one it is this host's alone.
		b.claims = fmt.Errorf("host beta has it: %w", ErrTaken)
		_, err := e.e.CreateLoadBalancer(ctx, "", lb("late", "10.96.0.11", "80"))
		if hcn.CodeOf(err) != hcn.ErrPortAlreadyExists || !strings.Contains(err.Error(), "host beta has it") {
			e.t.Errorf("one that another host has: %v", err)
		}
		b.claims = context.DeadlineExceeded
		if _, err := e.e.CreateLoadBalancer(ctx, "", lb("late", "10.96.0.11", "80")); err == nil {
			e.t.Error("it is made without the cluster")
		}
		if err := e.e.ModifyLoadBalancer(ctx, web.ID, lb("web", "10.96.0.10", "8080")); err == nil {
			e.t.Error("it is changed without the cluster")
		}
		own := must(e.e.CreateLoadBalancer(ctx, "", lb("", "10.96.0.12", "80")))(e)
		// One that says that it is this host's alone asks nobody, and nobody is told.
		hostOnly := lb("web", "10.96.0.13", "80")
		hostOnly.AdditionalParams = []byte(hcn.HostOnlyParams)
		hostOnly = must(e.e.CreateLoadBalancer(ctx, "", hostOnly))(e)
		b.claims = nil
		e.e.publishBalancers()
		if d := cmp.Diff([]string{"", "web"}, published()); d != "" {
			e.t.Error(d)
		}
		e.ok(e.e.DeleteLoadBalancer(ctx, hostOnly.ID))

		// Of another host: a back end there, which is known; and one service that is this host's.
		e.e.ChangeClusterEndpoints([]plan.Remote{{Endpoint: "E0000000-0000-4000-8000-000000000001", Network: n, Addrs: []netip.Addr{netip.MustParseAddr("10.61.0.77")}, MAC: plan.MAC{2, 7}, Provider: netip.MustParseAddr("192.0.2.7"), Host: "beta"}}, nil)
		theirs := lb("api", "10.96.0.20", "80")
		theirs.ID, theirs.HostComputeEndpoints = "A0000000-0000-4000-8000-000000000001", []hcn.GUID{"E0000000-0000-4000-8000-000000000001"}
		theirs.FrontendVIPs = append(theirs.FrontendVIPs, "10.96.0.12")
		e.e.ChangeClusterBalancers([]plan.LoadBalancer{{Doc: theirs, Network: n, Host: "beta"}}, nil)
		e.settle()
		want := []string{"@ TCP 10.96.0.12:80 []", "api@beta TCP 10.96.0.20:80 [10.61.0.77:8080]", "web@ TCP 10.96.0.10:80 []"}
		if d := cmp.Diff(want, services()); d != "" {
			e.t.Error(d)
		}
		if _, err := e.e.CreateLoadBalancer(ctx, "", lb("mine", "10.96.0.20", "80")); hcn.CodeOf(err) != hcn.ErrPortAlreadyExists || !strings.Contains(err.Error(), `host "beta"`) {
			e.t.Errorf("a service of another host: %v", err)
		}
		if err := e.e.DeleteLoadBalancer(ctx, theirs.ID); !strings.Contains(fmt.Sprint(err), `is host "beta"'s`) {
			e.t.Errorf("delete another host's: %v", err)
		}
		if len(e.e.LoadBalancers(hcn.Filter{})) != 2 {
			e.t.Error("another host's is listed as this one's")
		}
		// What this host gives up is the other's again; what that one has no more is nobody's.
		e.ok(e.e.DeleteLoadBalancer(ctx, own.ID))
		e.settle()
		want = []string{"api@beta TCP 10.96.0.12:80 [10.61.0.77:8080]", "api@beta TCP 10.96.0.20:80 [10.61.0.77:8080]", "web@ TCP 10.96.0.10:80 []"}
		if d := cmp.Diff(want, services()); d != "" {
			e.t.Error(d)
		}
		e.e.ChangeClusterEndpoints(nil, []hcn.GUID{"E0000000-0000-4000-8000-000000000001"})
		e.settle()
		if got := services(); !slices.Contains(got, "api@beta TCP 10.96.0.20:80 []") {
			e.t.Errorf("with its back end gone: %v", got)
		}
		e.e.ChangeClusterBalancers(nil, []hcn.GUID{theirs.ID})
		e.settle()
		if d := cmp.Diff(want[2:], services()); d != "" {
			e.t.Error(d)
		}
		e.ok(e.e.DeleteLoadBalancer(ctx, web.ID))
		e.settle()
		if got := published(); len(got) != 0 {
			e.t.Errorf("%v are published", got)
		}
	})
}

// TestExplainElsewhere: the host of the other end is asked for its part, before or after that of this one, and for all where nothing is
// here; its word counts. One that does not answer is named.
func TestExplainElsewhere(t *testing.T) {
	b := &blocks{free: []string{"10.61.0.8/30", "fd00:61::100/120"}}
	inCluster(t, b, func(e *env) {
		ctx, n := context.Background(), hcn.GUID("B0000000-0000-4000-8000-000000000001")
		e.e.opt.Explain.Host = func(context.Context) (plan.HostView, error) {
			return plan.HostView{Route: func(netip.Addr) (plan.HostRoute, error) { return plan.HostRoute{}, fmt.Errorf("no route") }}, nil
		}
		ep := must(e.makeCompartment(epDoc(n, "")))(e).Endpoints[0]
		own := string(ep.ID)
		remote := func(last byte, names ...string) plan.Remote {
			return plan.Remote{
				Endpoint: hcn.GUID(fmt.Sprintf("E0000000-0000-4000-8000-0000000000%02d", last)), Network: n, Names: names, MAC: plan.MAC{2, last},
				Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 61, 0, last})}, Provider: netip.MustParseAddr("192.0.2.7"), Host: "beta",
			}
		}
		e.e.ChangeClusterEndpoints([]plan.Remote{remote(77, "db", "db.alias"), remote(78, "web")}, nil)
		e.settle()
		answer := func(reachable bool) {
			b.says = api.Explanation{Paths: []api.ExplainPath{{
				Family: 4, Reachable: reachable, Summary: "so it is", Next: "bulkhead acl rm db no", Confirmed: 1, Steps: []api.ExplainStep{{Layer: "rules in", At: "db", Pass: reachable, Text: "a rule"}},
			}}}
			b.asked = nil
		}
		explain := func(from, to string) api.ExplainPath {
			e.t.Helper()
			x, err := e.e.Explain(ctx, api.ExplainOptions{From: from, To: to, Protocol: "tcp", Port: 80})
			if err != nil || len(x.Paths) != 1 {
				e.t.Fatalf("%s to %s: %+v, %v", from, to, x, err)
			}
			return x.Paths[0]
		}
		addr := ep.IpConfigurations[0].IpAddress
		answer(false)
		p := explain(own, "DB.alias")
		last := p.Steps[len(p.Steps)-1]
		if p.Reachable || p.Host != "beta" || p.Next != "bulkhead acl rm db no" || last.Host != "beta" || last.At != "db" || p.Steps[0].Host != "" || p.Destination != "10.61.0.77" {
			e.t.Errorf("to another host: %+v", p)
		}
		if d := cmp.Diff([]string{"E0000000-0000-4000-8000-000000000077 part=true " + addr + "→E0000000-0000-4000-8000-000000000077 tcp/80 IPv4"}, b.asked); d != "" {
			e.t.Error(d)
		}
		answer(true)
		if p := explain(own, "10.61.0.77"); !p.Reachable || p.Summary != "so it is, on host beta" {
			e.t.Errorf("to an address on another host: %+v", p)
		}
		answer(true)
		if p := explain("db", own); !p.Reachable || p.Steps[0].Host != "beta" || p.Steps[len(p.Steps)-1].Host != "" || p.Source != "10.61.0.77" {
			e.t.Errorf("from another host: %+v", p)
		}
		if d := cmp.Diff([]string{"E0000000-0000-4000-8000-000000000077 part=true E0000000-0000-4000-8000-000000000077→" + addr + " tcp/80 IPv4"}, b.asked); d != "" {
			e.t.Error(d)
		}
		answer(false)
		if p := explain("db", own); p.Reachable || len(p.Steps) != 1 || p.Host != "beta" {
			e.t.Errorf("what is stopped on another host: %+v", p)
		}
		answer(true)
		if p := explain("db", "web"); p.Steps[0].Host != "beta" {
			e.t.Errorf("elsewhere altogether: %+v", p)
		}
		if d := cmp.Diff([]string{"E0000000-0000-4000-8000-000000000077 part=false E0000000-0000-4000-8000-000000000077→E0000000-0000-4000-8000-000000000078 tcp/80 IPv0"}, b.asked); d != "" {
			e.t.Error(d)
		}
		b.claims = context.DeadlineExceeded
		if p := explain(own, "db"); !p.Reachable || !strings.Contains(p.Unasked, "host beta could not be asked") || !slices.Contains(p.Doubts, p.Unasked) || !strings.Contains(p.Summary, "in a tunnel") {
			e.t.Errorf("a host that does not answer: %+v", p)
		}
		if _, err := e.e.Explain(ctx, api.ExplainOptions{From: "db", To: "web"}); !api.IsKind(err, api.KindUnavailable) {
			e.t.Errorf("one that should explain it all: %v", err)
		}
		if _, err := e.e.Explain(ctx, api.ExplainOptions{From: own, To: "nobody"}); !api.IsKind(err, api.KindNotFound) {
			e.t.Errorf("nobody: %v", err)
		}

		// What is asked here: an address is another host's, whoever has it here.
		b.asked = nil
		x, err := e.e.ExplainFor(ctx, ExplainQuestion{Part: true, Options: api.ExplainOptions{From: "10.61.0.77", To: own, Protocol: "tcp", Port: 80, Family: 4}})
		if err != nil || len(x.Paths) != 1 || !x.Paths[0].Reachable || len(b.asked) != 0 {
			e.t.Errorf("asked by another host: %+v, %v; it asks %v", x, err, b.asked)
		}
	})
}
