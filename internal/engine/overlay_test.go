package engine

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// overlayDoc is an overlay network with a subnet of each family.
func overlayDoc(name string, prefix, vni int, policies string) string {
	vsid := fmt.Sprintf(`"Policies":[{"Type":"VSID","Settings":{"IsolationId":%d}}],"Routes"`, vni)
	doc := strings.ReplaceAll(netDoc(name, "Overlay", prefix), `"Routes"`, vsid)
	return strings.Replace(doc, `"Ipams"`, `"Policies":[`+policies+`],"Ipams"`, 1)
}

const hostRoute = `{"Type":"HostRoute","Settings":{}}`

func (e *env) underlay() {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.facts.NICs = []plan.NIC{
		{Name: "bare0", Index: 2, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 2}},
		{Name: "eth7", Index: 3, MTU: 9000, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
		{Name: "small0", Index: 4, MTU: 1300, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 3}, Addrs: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}},
	}
}

func TestOverlayNetworks(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		n := must(e.network(overlayDoc("blue", 61, 5001, "")))(e)
		pa, _ := hcn.NetworkSettingsOf[hcn.ProviderAddressPolicySetting](n.Policies)
		router, _ := hcn.NetworkSettingsOf[hcn.DrMacAddressPolicySetting](n.Policies)
		if len(pa) != 1 || pa[0].ProviderAddress != "192.0.2.1" || len(router) != 1 || router[0].Address == "" {
			e.t.Errorf("the network shows %+v and %+v, want 192.0.2.1 and a MAC", pa, router)
		}
		for name, tc := range map[string]struct {
			doc  string
			code hcn.ErrorCode
			word string
		}{
			"virtual network of another":   {overlayDoc("a", 62, 5001, ""), hcn.ErrInvalidSubnet, "5001"},
			"around its underlay":          {strings.ReplaceAll(overlayDoc("a", 62, 5002, ""), "10.62.0", "192.0.2"), hcn.ErrInvalidSubnet, "eth7"},
			"NIC without an address":       {overlayDoc("a", 62, 5002, `{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"bare0"}}`), hcn.ErrAdapterNotFound, "bare0"},
			"address of nobody":            {overlayDoc("a", 62, 5002, `{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.9"}}`), hcn.ErrAdapterNotFound, "192.0.2.9"},
			"the host's, on one of ours":   {overlayDoc("a", 246, 5002, hostRoute), hcn.ErrInvalidSubnet, "nat"},
			"without a virtual network":    {netDoc("a", "Overlay", 62), hcn.ErrInvalidSubnet, "VSID"},
			"on a VLAN":                    {strings.ReplaceAll(overlayDoc("a", 62, 5002, ""), `{"Type":"VSID","Settings":{"IsolationId":5002}}`, `{"Type":"VSID","Settings":{"IsolationId":5002}},{"Type":"VLAN","Settings":{"IsolationId":5}}`), hcn.ErrRequestUnsupported, "VLAN"},
			"IPv6 in too small a NIC":      {overlayDoc("a", 62, 5002, `{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"small0"}}`), hcn.ErrInvalidPolicy, "ip link set small0 mtu 1330"},
			"encrypted, and nobody's keys": {overlayDoc("a", 62, 5002, `{"Type":"Bulkhead.Encryption","Settings":{"EncryptionMethodType":"WireGuard"}}`), hcn.ErrRequestUnsupported, "from a cluster only"},
			"second one that hosts reach":  {overlayDoc("a", 61, 5002, hostRoute+`,`+hostRoute), hcn.ErrPolicyAlreadyExists, "HostRoute"},
		} {
			if _, err := e.network(tc.doc); hcn.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.word) {
				e.t.Errorf("%s: %v, want %s and %q", name, err, tc.code.Name(), tc.word)
			}
		}
		// Without IPv6 there it will do, and the doctor tells of a NIC that becomes too small.
		v6 := `,
		{"IpAddressPrefix":"fd00:63::/64","Policies":[{"Type":"VSID","Settings":{"IsolationId":5009}}],"Routes":[{"NextHop":"fd00:63::1","DestinationPrefix":"::/0"}]}`
		small := overlayDoc("small", 63, 5009, `{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"small0"}}`)
		if !strings.Contains(small, v6) {
			e.t.Fatalf("no subnet %s in %s", v6, small)
		}
		must(e.network(strings.Replace(small, v6, "", 1)))(e)
		warned := func() bool {
			return slices.ContainsFunc(e.e.Doctor(bg), func(c api.Check) bool { return c.Status == "warn" && c.Next == "ip link set eth7 mtu 1330" })
		}
		if warned() {
			e.t.Error("eth7 is large enough, and the doctor says it is not")
		}
		e.w.mu.Lock()
		e.w.facts.NICs = slices.Clone(e.w.facts.NICs)
		e.w.facts.NICs[1].MTU = 1300
		e.w.mu.Unlock()
		e.settle()
		if !warned() {
			e.t.Errorf("the doctor does not tell that eth7 is too small: %s", toJSON(e.e.Doctor(bg)))
		}
		e.w.mu.Lock()
		e.w.facts.NICs = slices.Clone(e.w.facts.NICs)
		e.w.facts.NICs[1].MTU = 9000
		e.w.mu.Unlock()
		e.settle()
		// Tenants may have the same prefixes, as long as the host reaches one of them at most.
		must(e.network(overlayDoc("red", 61, 5003, "")))(e)
		must(e.network(overlayDoc("host", 61, 5004, hostRoute)))(e)
		if _, err := e.network(overlayDoc("host2", 61, 5005, hostRoute)); hcn.CodeOf(err) != hcn.ErrInvalidSubnet {
			e.t.Errorf("the host reaches the same prefix twice: %v", err)
		}
	})
}

func TestRemoteEndpoints(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		n := must(e.network(overlayDoc("blue", 61, 5001, "")))(e)
		remote := func(ip, mac string) string {
			return fmt.Sprintf(`{"HostComputeNetwork":%q,%s,"Flags":1,"MacAddress":%q,"IpConfigurations":[{"IpAddress":%q}],"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.2"}}]}`, n.ID, v2, mac, ip)
		}
		r := must(e.endpoint(remote("10.61.0.2", "02-11-00-00-00-02")))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		if err := e.attach(ns.ID, r.ID); hcn.CodeOf(err) != hcn.ErrInvalidRemoteEndpointOperation {
			e.t.Errorf("attach a remote endpoint: %v", err)
		}
		host := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		// A control plane has 10.61.0.3: nobody here is given it.
		e.e.ReplaceRemotes("test", n.ID, []plan.Remote{{Endpoint: "F", Network: n.ID, MAC: plan.MAC{2, 1}, Addrs: []netip.Addr{netip.MustParseAddr("10.61.0.3")}, Provider: netip.MustParseAddr("192.0.2.3")}})
		local := must(e.endpoint(epDoc(n.ID, "")))(e)
		if a := local.IpConfigurations[0].IpAddress; a != "10.61.0.4" {
			e.t.Errorf("an address was picked that is elsewhere: %s", a)
		}
		if err := e.attach(host.ID, local.ID); hcn.CodeOf(err) != hcn.ErrRequestUnsupported {
			e.t.Errorf("attach to the host: %v", err)
		}
		e.e.mu.RLock()
		p := plan.Compile(e.e.st.intent(), &e.e.facts)
		e.e.mu.RUnlock()
		if len(p.Remotes) != 2 || p.Remotes[r.ID].VNIs[0] != 5001 || p.Remotes["F"] == nil {
			e.t.Errorf("the plan has the remotes %+v", p.Remotes)
		}
		e.e.ChangeRemotes("other", nil, []hcn.GUID{"F"}) // not its to take away
		e.e.ReplaceRemotes("test", n.ID, nil)
		must(e.endpoint(fmt.Sprintf(`{"HostComputeNetwork":%q,%s,"IpConfigurations":[{"IpAddress":"10.61.0.3"}]}`, n.ID, v2)))(e)
		// What moves here is no more elsewhere, whoever is late to say so.
		must(e.endpoint(fmt.Sprintf(`{"HostComputeNetwork":%q,%s,"IpConfigurations":[{"IpAddress":"10.61.0.2"}]}`, n.ID, v2)))(e)
		if _, err := e.e.Endpoint(r.ID); hcn.CodeOf(err) != hcn.ErrEndpointNotFound {
			e.t.Errorf("the remote endpoint of the address is still there: %v", err)
		}
		change := &hcn.ModifyNetworkSettingRequest{ResourceType: hcn.NetworkResourceTypePolicy, RequestType: hcn.RequestTypeAdd, Settings: []byte(`{"Policies":[{"Type":"VxlanPort","Settings":{"Port":8472}}]}`)}
		if err := e.e.ModifyNetwork(context.Background(), n.ID, change); hcn.CodeOf(err) != hcn.ErrEntityHasReferences {
			e.t.Errorf("another port under the endpoints: %v", err)
		}
	})
}

// TestMACsOutside: clients give every machine outside of an overlay the MAC of the host, and one of their own endpoints as well: it is never
// on the switch. What is there has a MAC of its own.
func TestMACsOutside(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		n := must(e.network(overlayDoc("blue", 61, 5001, hostRoute)))(e)
		const mac = `,"MacAddress":"02-00-00-00-EE-01"`
		far := func(ip, mac string) string {
			return epDoc(n.ID, `"Flags":1,"IpConfigurations":[{"IpAddress":"`+ip+`"}],"Policies":[{"Type":"ProviderAddress","Settings":{"ProviderAddress":"192.0.2.1"}}]`+mac)
		}
		first := must(e.endpoint(far("10.96.0.1", mac)))(e)
		must(e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.61.0.9"}]`+mac)))(e)
		must(e.endpoint(far("10.96.0.2", mac)))(e)
		if err := e.e.DeleteEndpoint(bg, first.ID); err != nil {
			e.t.Fatal(err)
		}
		for name, doc := range map[string]string{
			"here":      epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.61.0.10"}]`+mac),
			"elsewhere": far("10.61.0.11", mac),
		} {
			if _, err := e.endpoint(doc); hcn.CodeOf(err) != hcn.ErrInvalidEndpoint || !strings.Contains(err.Error(), "MacAddress") {
				e.t.Errorf("a MAC twice, %s: %v", name, err)
			}
		}
	})
}
