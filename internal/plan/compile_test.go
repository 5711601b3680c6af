package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/hcn"
)

var renew = flag.Bool("update", false, "rewrite the golden files")

// scene is a test's input: documents as clients send them, with the choices that
// the service would make (addresses) already in them.
type scene struct {
	UplinkMTU int
	// Segments of the kernel and of the uplink.
	Segments, UplinkSegments Segments
	Networks                 []hcn.HostComputeNetwork
	Namespaces               []hcn.HostComputeNamespace
	Endpoints                []hcn.HostComputeEndpoint
	// Sysctls of all namespaces.
	Sysctls map[string]string
}

// intent makes the rows that the store would hold.
func (s *scene) intent(t *testing.T) (*Intent, *Facts) {
	t.Helper()
	in := &Intent{Networks: map[hcn.GUID]*Network{}, Endpoints: map[hcn.GUID]*Endpoint{}, Namespaces: map[hcn.GUID]*NamespaceRow{}}
	noID := func() hcn.GUID { return "" }
	for i, doc := range s.Networks {
		doc.Defaults(noID)
		if err := doc.Validate(); err != nil {
			t.Fatalf("network %s: %v", doc.Name, err)
		}
		in.Networks[doc.ID] = &Network{Doc: doc, Switch: uint32(i + 1), GatewayMAC: MAC{0x00, 0x15, 0x5d, 0, 0, byte(i + 1)}}
	}
	for _, doc := range s.Namespaces {
		in.Namespaces[doc.ID] = &NamespaceRow{Doc: doc, Sysctls: s.Sysctls}
	}
	count := map[hcn.GUID]int{}
	for _, doc := range s.Endpoints {
		n := in.Networks[doc.HostComputeNetwork]
		doc.Defaults(&n.Doc)
		at := doc.HostComputeNamespace
		doc.HostComputeNamespace = ""
		if err := doc.ValidateFor(&n.Doc); err != nil {
			t.Fatalf("endpoint %s: %v", doc.Name, err)
		}
		mac, err := doc.MacAddress.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := doc.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		row := &Endpoint{Doc: doc, MAC: MAC(mac), Addrs: addrs}
		if at != "" {
			row.Attach = &Attachment{Namespace: at, Interface: fmt.Sprintf("eth%d", count[at]), Index: count[at]}
			count[at]++
		}
		in.Endpoints[doc.ID] = row
	}
	return in, &Facts{UplinkMTU: s.UplinkMTU, Segments: s.Segments, UplinkSegments: s.UplinkSegments}
}

// TestGolden compiles documents and compares the plan, as text, with a file.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no inputs: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s := scene{UplinkMTU: 1500}
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			got := Compile(s.intent(t)).Text()
			golden := strings.TrimSuffix(file, ".json") + ".txt"
			if *renew {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("plan (-want +got, -update renews):\n%s", d)
			}
		})
	}
}

// world draws changes as the engine makes them.
type world struct {
	in    *Intent
	facts *Facts
	dirty Dirty
}

func (w *world) putEndpoint(id hcn.GUID, e *Endpoint) {
	w.dirty.Endpoints[id] = struct{}{}
	if e == nil {
		delete(w.in.Endpoints, id)
		return
	}
	w.in.Endpoints[id] = e
}

func guid(kind string, n int) hcn.GUID {
	return hcn.GUID(fmt.Sprintf("%s%s%s%s-0000-4000-8000-%012d", kind, kind, kind, kind, n))
}

func (w *world) change(t *rapid.T) {
	net, ep, ns := guid("AA", rapid.IntRange(1, 3).Draw(t, "network")), guid("BB", rapid.IntRange(1, 5).Draw(t, "endpoint")), guid("CC", rapid.IntRange(1, 3).Draw(t, "namespace"))
	switch rapid.SampledFrom([]string{"network", "no network", "endpoint", "no endpoint", "namespace", "vanish", "no namespace", "mtu", "remote", "no remote"}).Draw(t, "change") {
	case "network":
		w.in.Networks[net] = drawNetwork(t, net)
		w.dirty.Networks[net] = struct{}{}
	case "no network":
		for id, e := range w.in.Endpoints {
			if e.Doc.HostComputeNetwork == net {
				w.putEndpoint(id, nil)
			}
		}
		delete(w.in.Networks, net)
		w.dirty.Networks[net] = struct{}{}
	case "endpoint":
		if w.in.Networks[net] == nil {
			return
		}
		var at *Attachment
		if row := w.in.Namespaces[ns]; row != nil && !row.Vanished && rapid.Bool().Draw(t, "attached") {
			at = &Attachment{Namespace: ns, Interface: "eth0", Index: rapid.IntRange(0, 2).Draw(t, "index")}
		}
		w.putEndpoint(ep, drawEndpoint(t, ep, net, at))
	case "no endpoint":
		w.putEndpoint(ep, nil)
	case "namespace":
		if w.in.Namespaces[ns] == nil {
			w.in.Namespaces[ns] = &NamespaceRow{Doc: hcn.HostComputeNamespace{ID: ns}}
			w.dirty.Namespaces[ns] = struct{}{}
		}
	case "vanish", "no namespace":
		for id, e := range w.in.Endpoints {
			if e.Attach != nil && e.Attach.Namespace == ns {
				row := *e
				row.Attach = nil
				w.putEndpoint(id, &row)
			}
		}
		w.dirty.Namespaces[ns] = struct{}{}
		if old := w.in.Namespaces[ns]; old != nil && rapid.Bool().Draw(t, "vanished") {
			row := *old
			row.Vanished = true
			w.in.Namespaces[ns] = &row
			return
		}
		delete(w.in.Namespaces, ns)
	case "remote":
		w.in.Remotes[ep], w.dirty.Remotes[ep] = drawRemote(t, ep, net), struct{}{}
	case "no remote":
		delete(w.in.Remotes, ep)
		w.dirty.Remotes[ep] = struct{}{}
	case "mtu":
		w.facts.UplinkMTU = rapid.SampledFrom([]int{1280, 1500, 9000}).Draw(t, "mtu")
		for id := range w.in.Networks {
			w.dirty.Networks[id] = struct{}{}
		}
	}
}

func drawNetwork(t *rapid.T, id hcn.GUID) *Network {
	types := []hcn.NetworkType{hcn.NAT, hcn.Internal, hcn.Private, hcn.Overlay}
	subnets := [][]string{{"10.1.0.0/24"}, {"fd00:1::/64"}, {"10.1.0.0/24", "fd00:1::/64"}}
	doc := hcn.HostComputeNetwork{ID: id, Name: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "name"), Type: rapid.SampledFrom(types).Draw(t, "type"), Ipams: []hcn.Ipam{{}}}
	for _, s := range rapid.SampledFrom(subnets).Draw(t, "subnets") {
		p := netip.MustParsePrefix(s)
		dst := "0.0.0.0/0"
		if p.Addr().Is6() {
			dst = "::/0"
		}
		doc.Ipams[0].Subnets = append(doc.Ipams[0].Subnets, hcn.Subnet{IpAddressPrefix: s, Routes: []hcn.Route{{NextHop: p.Addr().Next().String(), DestinationPrefix: dst}}})
	}
	doc.Policies = drawNetworkPolicies(t)
	uplink := ""
	if doc.Type == hcn.Overlay {
		uplink = rapid.SampledFrom([]string{"nic1", "nic2", "gone"}).Draw(t, "nic")
		drawOverlay(t, &doc)
	}
	return &Network{Doc: doc, Uplink: uplink, Switch: uint32(rapid.IntRange(1, 4).Draw(t, "switch")), GatewayMAC: MAC{2, 0, 0, 0, 0, byte(rapid.IntRange(1, 3).Draw(t, "mac"))}}
}

func drawOverlay(t *rapid.T, doc *hcn.HostComputeNetwork) {
	for _, s := range doc.AllSubnets() {
		s.Policies = []hcn.SubnetPolicy{hcn.NewSubnetPolicy(hcn.VSID, hcn.VsidPolicySetting{IsolationId: rapid.SampledFrom([]uint32{5001, 5002}).Draw(t, "vni")})}
	}
	if rapid.Bool().Draw(t, "host route") {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.HostRoute, hcn.EmptySetting{}))
	}
	if rapid.Bool().Draw(t, "port") {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.VxlanPort, hcn.VxlanPortPolicySetting{Port: 8472}))
	}
	if rapid.Bool().Draw(t, "route") {
		doc.Policies = append(doc.Policies, hcn.NewNetworkPolicy(hcn.RemoteSubnetRoute, hcn.RemoteSubnetRoutePolicySetting{
			DestinationPrefix: "10.5.0.0/24", IsolationId: 5003, ProviderAddress: "192.0.2.3", DistributedRouterMacAddress: "0E-2A-00-00-00-03",
		}))
	}
}

func drawRemote(t *rapid.T, id, net hcn.GUID) *Remote {
	r := &Remote{Endpoint: id, Network: net, MAC: MAC{2, 0, 0, 0, 9, 1}, Host: "other", Provider: netip.MustParseAddr(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2"}).Draw(t, "provider"))}
	for _, a := range rapid.SampledFrom([][]string{{"10.1.0.9"}, {"10.1.0.9", "fd00:1::9"}, {"10.9.0.9"}}).Draw(t, "addresses") {
		r.Addrs = append(r.Addrs, netip.MustParseAddr(a))
	}
	return r
}

func drawEndpoint(t *rapid.T, id, net hcn.GUID, at *Attachment) *Endpoint {
	e := &Endpoint{MAC: MAC{2, 0, 0, 0, 1, byte(rapid.IntRange(1, 3).Draw(t, "mac"))}, Attach: at}
	e.Doc.ID, e.Doc.HostComputeNetwork, e.Doc.Name = id, net, rapid.SampledFrom([]string{"", "web"}).Draw(t, "name")
	if rapid.Bool().Draw(t, "v4") {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix("10.1.0.5/24"))
		e.Doc.Routes = append(e.Doc.Routes, hcn.Route{NextHop: "10.1.0.1", DestinationPrefix: "0.0.0.0/0"})
	}
	if rapid.Bool().Draw(t, "v6") {
		e.Addrs = append(e.Addrs, netip.MustParsePrefix("fd00:1::5/64"))
	}
	if rapid.Bool().Draw(t, "published") {
		e.Doc.Policies = append(e.Doc.Policies, hcn.PortMappingPolicySetting{Protocol: 6, InternalPort: 80, ExternalPort: 8080}.Policy())
	}
	drawRules(t, e)
	if at == nil && rapid.IntRange(0, 2).Draw(t, "elsewhere") == 0 {
		e.Doc.Flags |= hcn.RemoteEndpoint
		e.Doc.Policies = []hcn.EndpointPolicy{hcn.NewEndpointPolicy(hcn.ProviderAddress, hcn.ProviderAddressPolicySetting{ProviderAddress: "192.0.2.4"})}
	}
	return e
}

// drawNetworkPolicies draws sets that hold one of the endpoints' addresses or do not, so
// that a change of a set changes what rules of endpoints mean.
func drawNetworkPolicies(t *rapid.T) []hcn.NetworkPolicy {
	var out []hcn.NetworkPolicy
	for _, id := range []string{"a", "b"} {
		if rapid.Bool().Draw(t, "set") {
			values := rapid.SampledFrom([]string{"", "10.1.0.5", "10.1.0.0/28,fd00:1::5", "10.2.0.0/16"}).Draw(t, "values")
			out = append(out, hcn.NewNetworkPolicy(hcn.SetPolicy, hcn.SetPolicySetting{Id: id, PolicyType: hcn.SetPolicyTypeIpSet, Values: values}))
		}
	}
	if rapid.Bool().Draw(t, "nested") {
		out = append(out, hcn.NewNetworkPolicy(hcn.SetPolicy, hcn.SetPolicySetting{Id: "n", PolicyType: hcn.SetPolicyTypeNestedIpSet, Values: "a,b"}))
	}
	if rapid.Bool().Draw(t, "network rule") {
		out = append(out, hcn.NewNetworkPolicy(hcn.NetworkACL, drawACL(t)))
	}
	return out
}

func drawACL(t *rapid.T) hcn.AclPolicySetting {
	addrs := rapid.SampledFrom([]string{"", "a", "b", "n", "10.2.0.0/16"})
	return hcn.AclPolicySetting{
		Action: rapid.SampledFrom([]hcn.ActionType{hcn.ActionTypeAllow, hcn.ActionTypeBlock}).Draw(t, "action"), Direction: rapid.SampledFrom([]hcn.DirectionType{hcn.DirectionTypeIn, hcn.DirectionTypeOut}).Draw(t, "direction"),
		LocalAddresses: addrs.Draw(t, "local"), RemoteAddresses: addrs.Draw(t, "remote"),
		RuleType: rapid.SampledFrom([]hcn.RuleType{"", hcn.RuleTypeHost}).Draw(t, "rule type"),
	}
}

func drawRules(t *rapid.T, e *Endpoint) {
	for range rapid.IntRange(0, 3).Draw(t, "rules") {
		e.Doc.Policies = append(e.Doc.Policies, hcn.NewEndpointPolicy(hcn.ACL, drawACL(t)))
	}
	if rapid.Bool().Draw(t, "tier") {
		a := drawACL(t)
		e.Doc.Policies = append(e.Doc.Policies, hcn.NewEndpointPolicy(hcn.TierAcl, hcn.TierAclPolicySetting{
			Name: "t", Direction: a.Direction, TierAclRules: []hcn.TierAclRule{{TierAclRuleAction: a.Action, RemoteAddresses: a.RemoteAddresses}},
		}))
	}
	if rapid.Bool().Draw(t, "isolated") {
		e.Doc.Flags = hcn.DisableInterComputeCommunication
	}
}

// TestRecompileIsCompile holds the cheap way against the whole one over random
// changes, and the delta against what really differs.
func TestRecompileIsCompile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{
			in:    &Intent{Networks: map[hcn.GUID]*Network{}, Endpoints: map[hcn.GUID]*Endpoint{}, Namespaces: map[hcn.GUID]*NamespaceRow{}, Remotes: map[hcn.GUID]*Remote{}},
			facts: &Facts{UplinkMTU: 1500, NICs: []NIC{{Name: "nic1", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}, {Name: "nic2", MTU: 9000}}},
		}
		p := New()
		for range rapid.IntRange(1, 20).Draw(t, "passes") {
			w.dirty = NoDirt()
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				w.change(t)
			}
			before := snapshot(p)
			d := p.Recompile(w.in, w.facts, w.dirty)
			whole := Compile(w.in, w.facts)
			if !reflect.DeepEqual(p, whole) {
				t.Fatalf("incremental plan differs (-whole +incremental):\n%s", cmp.Diff(whole.Text(), p.Text()))
			}
			checkDelta(t, before, p, d)
		}
	})
}

func snapshot(p *Plan) *Plan {
	c := New()
	c.Host = p.Host
	maps.Copy(c.Namespaces, p.Namespaces)
	maps.Copy(c.Switches, p.Switches)
	maps.Copy(c.Ports, p.Ports)
	maps.Copy(c.Remotes, p.Remotes)
	return c
}

func checkDelta(t *rapid.T, before, after *Plan, d *Delta) {
	if d.Host != (before.Host != after.Host) {
		t.Fatalf("delta says host settings changed: %v", d.Host)
	}
	checkChanges(t, "namespaces", before.Namespaces, after.Namespaces, d.Namespaces)
	checkChanges(t, "switches", before.Switches, after.Switches, d.Switches)
	checkChanges(t, "ports", before.Ports, after.Ports, d.Ports)
	checkChanges(t, "remotes", before.Remotes, after.Remotes, d.Remotes)
}

func checkChanges[K comparable, T any](t *rapid.T, what string, before, after map[K]*T, d map[K]Change[T]) {
	for k, c := range d {
		if c.Old != before[k] || c.New != after[k] || reflect.DeepEqual(c.Old, c.New) {
			t.Fatalf("%s: delta of %v is %+v", what, k, c)
		}
	}
	for k := range after {
		if _, ok := d[k]; !ok && before[k] != after[k] {
			t.Fatalf("%s: %v changed and is in no delta", what, k)
		}
	}
	for k := range before {
		if _, ok := d[k]; !ok && after[k] == nil {
			t.Fatalf("%s: %v went and is in no delta", what, k)
		}
	}
}

func TestDeviceNamesFit(t *testing.T) {
	for _, prefix := range []string{HostVNICPrefix, PortPrefix, ResolverPrefix, TunnelPrefix} {
		if n := DeviceName(prefix, EndpointPortID(guid("BB", 1))); len(n) > 15 {
			t.Errorf("%s has %d bytes, an interface may have 15", n, len(n))
		}
	}
	long := Alias("port", string(guid("BB", 1)), strings.Repeat("é", 200))
	if len(long) > 255 {
		t.Errorf("alias has %d bytes", len(long))
	}
}
