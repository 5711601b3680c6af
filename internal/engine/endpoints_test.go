package engine

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// epDoc is an endpoint's document with further members.
func epDoc(net hcn.GUID, more string) string {
	if more != "" {
		more = "," + more
	}
	return fmt.Sprintf(`{"HostComputeNetwork":%q,%s%s}`, net, v2, more)
}

func mapping(s string) string { return `{"Type":"PortMapping","Settings":{` + s + `}}` }

func publish(mappings ...string) string {
	return `"Policies":[` + strings.Join(mappings, ",") + `]`
}

func addrs(ep hcn.HostComputeEndpoint) string {
	var out []string
	for _, c := range ep.IpConfigurations {
		out = append(out, fmt.Sprintf("%s/%d", c.IpAddress, c.PrefixLength))
	}
	return strings.Join(out, " ")
}

func TestEndpointGetsAddresses(t *testing.T) {
	for name, tc := range map[string]struct{ more, want string }{
		"none given: one of each family": {``, "10.7.0.2/24 fd00:7::2/64"},
		"one given":                      {`"IpConfigurations":[{"IpAddress":"10.7.0.9"}]`, "10.7.0.9/24"},
		"both, v6 first":                 {`"IpConfigurations":[{"IpAddress":"fd00:7::9"},{"IpAddress":"10.7.0.9"}]`, "10.7.0.9/24 fd00:7::9/64"},
		"host prefix":                    {`"IpConfigurations":[{"IpAddress":"10.7.0.9","PrefixLength":32}]`, "10.7.0.9/32"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				ep := must(e.endpoint(epDoc(n.ID, tc.more)))(e)
				if got := addrs(ep); got != tc.want {
					e.t.Errorf("addresses %s, want %s", got, tc.want)
				}
				if ep.State != hcn.EndpointCreated || ep.MacAddress == "" || len(ep.Routes) == 0 {
					e.t.Errorf("document lacks what a query must show: %s", toJSON(ep))
				}
			})
		})
	}
}

func TestCreateEndpointRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		more string
		code hcn.ErrorCode
	}{
		"address in use":         {`"IpConfigurations":[{"IpAddress":"10.7.0.50"}]`, hcn.ErrAddrInvalidOrReserved},
		"address in use, v6":     {`"IpConfigurations":[{"IpAddress":"fd00:7:0:0::50"}]`, hcn.ErrAddrInvalidOrReserved},
		"gateway":                {`"IpConfigurations":[{"IpAddress":"10.7.0.1"}]`, hcn.ErrAddrInvalidOrReserved},
		"network address":        {`"IpConfigurations":[{"IpAddress":"10.7.0.0"}]`, hcn.ErrAddrInvalidOrReserved},
		"broadcast address":      {`"IpConfigurations":[{"IpAddress":"10.7.0.255"}]`, hcn.ErrAddrInvalidOrReserved},
		"outside every subnet":   {`"IpConfigurations":[{"IpAddress":"10.8.0.5"}]`, hcn.ErrInvalidIP},
		"no address":             {`"IpConfigurations":[{"IpAddress":"ten"}]`, hcn.ErrInvalidIP},
		"subnet that is unknown": {`"IpConfigurations":[{"IpSubnetId":"DDDDDDDD-0000-4000-8000-000000000001"}]`, hcn.ErrSubnetNotFound},
		"MAC in use":             {`"MacAddress":"02-00-00-00-00-50"`, hcn.ErrInvalidEndpoint},
		"MAC of the gateway":     {`"MacAddress":"GATEWAY"`, hcn.ErrInvalidEndpoint},
		"ID in use":              {`"ID":"EEEEEEEE-0000-4000-8000-000000000001"`, hcn.ErrObjectAlreadyExists},
		"on another host":        {`"Flags":1,"IpConfigurations":[{"IpAddress":"10.7.0.9"}]`, hcn.ErrRequestUnsupported},
		"namespace unknown":      {`"HostComputeNamespace":"DDDDDDDD-0000-4000-8000-000000000001"`, hcn.ErrElementNotFound},
		"internal port 0":        {publish(mapping(`"Protocol":6,"ExternalPort":80`)), hcn.ErrInvalidInternalPort},
		"port in a family that it has not": {
			`"IpConfigurations":[{"IpAddress":"10.7.0.9"}],` + publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":80`), mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":81,"VIP":"::1"`)),
			hcn.ErrInvalidPolicy,
		},
		"hidden behind a strange address": {`"Policies":[{"Type":"OutBoundNAT","Settings":{"VirtualIP":"203.0.113.9"}}]`, hcn.ErrInvalidPolicy},
		"hidden behind loopback":          {`"Policies":[{"Type":"OutBoundNAT","Settings":{"VirtualIP":"127.0.0.1"}}]`, hcn.ErrInvalidPolicy},
		"MTU above the uplink's":          {`"Policies":[{"Type":"InterfaceParameters","Settings":{"Mtu":9000}}]`, hcn.ErrInvalidPolicy},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				must(e.endpoint(epDoc(n.ID, `"ID":"EEEEEEEE-0000-4000-8000-000000000001","MacAddress":"02-00-00-00-00-50","IpConfigurations":[{"IpAddress":"10.7.0.50"},{"IpAddress":"fd00:7::50"}]`)))(e)
				gw := e.e.st.networks[n.ID].GatewayMAC.String()
				_, err := e.endpoint(epDoc(n.ID, strings.ReplaceAll(tc.more, "GATEWAY", gw)))
				e.wantCode(err, tc.code)
				if got := e.e.Endpoints(hcn.Filter{}); len(got) != 1 {
					e.t.Fatalf("endpoints after a refused one: %v", got)
				}
			})
		})
	}
	run(t, func(e *env) {
		_, err := e.endpoint(epDoc("DDDDDDDD-0000-4000-8000-000000000001", ""))
		e.wantCode(err, hcn.ErrNetworkNotFound)
	})
}

func TestPoolIsExhaustedAndFreed(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(`{"Name":"small",` + v2 + `,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.7.0.0/29","Routes":[{"NextHop":"10.7.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}],
			"Policies":[{"Type":"Bulkhead.Exclusions","Settings":{"Ranges":["10.7.0.5-10.7.0.6"]}}]}`))(e)
		var eps []hcn.GUID
		var got []string
		for range 3 {
			ep := must(e.endpoint(epDoc(n.ID, "")))(e)
			eps, got = append(eps, ep.ID), append(got, addrs(ep))
		}
		if d := cmp.Diff([]string{"10.7.0.2/29", "10.7.0.3/29", "10.7.0.4/29"}, got); d != "" {
			e.t.Fatal(d)
		}
		_, err := e.endpoint(epDoc(n.ID, ""))
		e.wantCode(err, hcn.ErrAddrInvalidOrReserved)
		excluded := must(e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.7.0.5"}]`)))(e)
		e.ok(e.e.DeleteEndpoint(context.Background(), eps[1]))
		if ep := must(e.endpoint(epDoc(n.ID, "")))(e); addrs(ep) != "10.7.0.3/29" {
			e.t.Fatalf("got %s, want the one that is free again", addrs(ep))
		}
		e.ok(e.e.DeleteEndpoint(context.Background(), excluded.ID))
	})
}

// TestReleasedAddressRests: the next endpoint gets the next address, not the one
// whose owner just left.
func TestReleasedAddressRests(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.e.DeleteEndpoint(context.Background(), ep.ID))
		if next := must(e.endpoint(epDoc(n.ID, "")))(e); addrs(next) != "10.7.0.3/24 fd00:7::3/64" {
			e.t.Fatalf("got %s", addrs(next))
		}
	})
}

func TestEndpointMadeAgainKeepsItsMAC(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		first := must(e.endpoint(epDoc(n.ID, "")))(e)
		must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.e.DeleteEndpoint(context.Background(), first.ID))
		again := must(e.endpoint(epDoc(n.ID, `"ID":"`+string(first.ID)+`"`)))(e)
		if again.ID != first.ID || again.MacAddress != first.MacAddress {
			e.t.Fatalf("made again: %s %s, before: %s %s", again.ID, again.MacAddress, first.ID, first.MacAddress)
		}
		// From its whole document, as clients do.
		e.ok(e.e.DeleteEndpoint(context.Background(), again.ID))
		copied := must(e.endpoint(toJSON(again)))(e)
		if d := cmp.Diff(addrs(again), addrs(copied)); d != "" || copied.ID != again.ID {
			e.t.Fatal(d)
		}
	})
}

func TestEndpointQueries(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		m := must(e.network(netDoc("b", "Internal", 8)))(e)
		first := must(e.endpoint(epDoc(n.ID, `"Name":"web"`)))(e)
		second := must(e.endpoint(epDoc(m.ID, `"Name":"web"`)))(e)
		for query, want := range map[string][]hcn.GUID{
			`{"Name":"web"}`: {first.ID, second.ID},
			`{"VirtualNetwork":"` + string(m.ID) + `"}`:              {second.ID},
			`{"HostComputeNetwork":"` + n.ID.Lower() + `"}`:          {first.ID},
			`{"IpAddress":"10.8.0.2"}`:                               {second.ID},
			`{"MacAddress":"` + string(first.MacAddress) + `"}`:      {first.ID},
			`{"Name":"web","VirtualNetwork":"` + m.ID.Lower() + `"}`: {second.ID},
			`{"Name":"other"}`:                                       {},
			`{"Type":"NAT"}`:                                         {},
		} {
			if d := cmp.Diff(want, e.e.Endpoints(filter(e, query))); d != "" {
				e.t.Errorf("%s: %s", query, d)
			}
		}
	})
}

func TestPortConflicts(t *testing.T) {
	const tcp = `"Protocol":6,"InternalPort":80,"ExternalPort":8080`
	for name, tc := range map[string]struct {
		first, second string
		clash         bool
	}{
		"all and all":                 {tcp, tcp, true},
		"all and one address":         {tcp, tcp + `,"VIP":"192.0.2.1"`, true},
		"one address and all":         {tcp + `,"VIP":"192.0.2.1"`, tcp, true},
		"loopback and all":            {tcp + `,"VIP":"127.0.0.1"`, tcp, true},
		"same loopback":               {tcp + `,"VIP":"::1"`, tcp + `,"VIP":"::1"`, true},
		"LAN and one address":         {tcp + `,"Scope":"lan"`, tcp + `,"VIP":"192.0.2.1"`, true},
		"LAN and LAN":                 {tcp + `,"Scope":"lan"`, tcp + `,"Scope":"lan"`, true},
		"IPv6 only and all":           {tcp + `,"Flags":2`, tcp, true},
		"two addresses":               {tcp + `,"VIP":"192.0.2.1"`, tcp + `,"VIP":"192.0.2.2"`, false},
		"two families of loopback":    {tcp + `,"VIP":"127.0.0.1"`, tcp + `,"VIP":"::1"`, false},
		"IPv6 only and IPv4 loopback": {tcp + `,"Flags":2`, tcp + `,"VIP":"127.0.0.1"`, false},
		"two protocols":               {tcp, `"Protocol":17,"InternalPort":80,"ExternalPort":8080`, false},
		"two ports":                   {tcp, `"Protocol":6,"InternalPort":80,"ExternalPort":8081`, false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				m := must(e.network(netDoc("b", "NAT", 8)))(e)
				first := must(e.endpoint(epDoc(n.ID, `"Name":"web",`+publish(mapping(tc.first)))))(e)
				_, err := e.endpoint(epDoc(m.ID, publish(mapping(tc.second))))
				if !tc.clash {
					e.ok(err)
					return
				}
				e.wantCode(err, hcn.ErrPortAlreadyExists)
				if !strings.Contains(err.Error(), `"web"`) {
					e.t.Errorf("%v does not say who has the port", err)
				}
				e.ok(e.e.DeleteEndpoint(context.Background(), first.ID))
				must(e.endpoint(epDoc(m.ID, publish(mapping(tc.second)))))(e)
			})
		})
	}
}

// TestPortOnNoAddress: another port would not help, and the code says so.
func TestPortOnNoAddress(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		for _, m := range []string{`"Protocol":6,"InternalPort":80,"ExternalPort":8080`, `"Protocol":6,"InternalPort":80`} {
			_, err := e.endpoint(epDoc(n.ID, publish(mapping(m+`,"VIP":"203.0.113.9"`))))
			e.wantCode(err, hcn.ErrAddrInvalidOrReserved)
		}
	})
}

func TestPortHeldByTheHost(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		e.w.takeHostPort(6, "0.0.0.0", 8080)
		_, err := e.endpoint(epDoc(n.ID, publish(mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8081`), mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`))))
		e.wantCode(err, hcn.ErrPortAlreadyExists)
		if !strings.Contains(err.Error(), "nginx") {
			e.t.Errorf("%v does not name the process", err)
		}
		if len(e.w.held) != 0 {
			e.t.Errorf("a refused endpoint holds %v", e.w.held)
		}
	})
}

func TestHostPickedPorts(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		e.w.takeHostPort(6, "::1", 50000)
		ep := must(e.endpoint(epDoc(n.ID, publish(
			mapping(`"Protocol":6,"InternalPort":80,"VIP":"127.0.0.1"`), mapping(`"Protocol":6,"InternalPort":80,"VIP":"::1"`), mapping(`"Protocol":17,"InternalPort":80`)))))(e)
		mappings, err := ep.PortMappings()
		e.ok(err)
		if mappings[0].ExternalPort != 50001 || mappings[1].ExternalPort != 50001 {
			e.t.Errorf("both loopback addresses must share a port that is free on both: %+v", mappings)
		}
		if mappings[2].ExternalPort == 0 {
			e.t.Errorf("the picked port is not reported: %+v", mappings)
		}
	})
}

// TestChangedMappingsKeepTheirPorts: what is published before and after a change
// is never free in between, nor after.
func TestChangedMappingsKeepTheirPorts(t *testing.T) {
	const port = `"Protocol":6,"ExternalPort":8080`
	for name, change := range map[string]string{
		"to another container port": port + `,"InternalPort":81`,
		"from all to LAN":           port + `,"InternalPort":80,"Scope":"lan"`,
		"narrower":                  port + `,"InternalPort":80,"VIP":"127.0.0.1"`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				n := must(e.network(netDoc("a", "NAT", 7)))(e)
				ns := must(e.namespace(`{` + v2 + `}`))(e)
				ep := must(e.endpoint(epDoc(n.ID, publish(mapping(port+`,"InternalPort":80`)))))(e)
				e.ok(e.attach(ns.ID, ep.ID))
				e.ok(e.policies(ep.ID, "Update", `[`+mapping(change)+`]`))
				e.checkOwners()
				// One that the data path refuses is taken back, with its ports.
				e.failing(2, false)
				e.wantCode(e.policies(ep.ID, "Update", `[`+mapping(`"Protocol":6,"ExternalPort":9090,"InternalPort":90`)+`]`), hcn.ErrUnspecified)
				e.failing(-1, false)
				if got := must(e.e.Endpoint(ep.ID))(e); strings.Contains(toJSON(got.Policies), "9090") {
					e.t.Errorf("a refused change stayed: %s", toJSON(got.Policies))
				}
			})
		})
	}
}

func TestModifyEndpoint(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		web := mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.policies(ep.ID, "Add", `[`+web+`]`))
		e.ok(e.policies(ep.ID, "Add", `[`+web+`]`)) // byte-equal: a no-op
		e.wantCode(e.policies(ep.ID, "Remove", `[`+mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":1`)+`]`), hcn.ErrPolicyNotFound)
		e.wantCode(e.policies(ep.ID, "Add", `[{"Type":"Nonsense","Settings":{}}]`), hcn.ErrInvalidPolicyType)
		e.wantCode(e.policies(ep.ID, "Add", `[{"Type":"Bulkhead.InterfaceName","Settings":{"Name":"lan0"}}]`), hcn.ErrRequestUnsupported)
		if got := must(e.e.Endpoint(ep.ID))(e); len(got.Policies) != 1 {
			e.t.Fatalf("policies %s", toJSON(got.Policies))
		}
		if got := e.e.Published(); len(got) != 2 || !got[0].Active || got[0].Expose != "all" {
			e.t.Fatalf("report of published ports: %s", toJSON(got))
		}
		e.ok(e.policies(ep.ID, "Refresh", `[]`))
		e.ok(e.policies(ep.ID, "Remove", `[`+web+`]`))
		other := must(e.endpoint(epDoc(n.ID, publish(web))))(e) // free at once
		e.ok(e.e.DeleteEndpoint(context.Background(), other.ID))
		e.wantCode(e.policies("DDDDDDDD-0000-4000-8000-000000000001", "Add", `[`+web+`]`), hcn.ErrEndpointNotFound)
	})
}

func TestOutBoundNAT(t *testing.T) {
	run(t, func(e *env) {
		e.w.facts.HostAddrs = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}
		e.e.Wake("addresses")
		e.settle()
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"Policies":[{"Type":"OutBoundNAT","Settings":{"VirtualIP":"192.0.2.1","Exceptions":["10.0.0.0/8"]}}]`)))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.wantCode(e.policies(ep.ID, "Update", `[{"Type":"OutBoundNAT","Settings":{"VirtualIP":"203.0.113.9"}}]`), hcn.ErrInvalidPolicy)
		port := plan.Compile(e.e.st.intent(), &e.e.facts).Ports[plan.EndpointPortID(ep.ID)]
		if port == nil || len(port.Outbound) != 1 || port.Outbound[0].As != netip.MustParseAddr("192.0.2.1") {
			e.t.Fatalf("port %+v", port)
		}
		// The host loses the address: what is there stays, and can be changed for the better.
		e.w.facts.HostAddrs = nil
		e.e.Wake("addresses")
		e.settle()
		e.ok(e.policies(ep.ID, "Add", `[`+mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)+`]`))
		e.ok(e.policies(ep.ID, "Reset", `[{"Type":"OutBoundNAT"}]`))
	})
}

func TestAddressReport(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		must(e.endpoint(epDoc(n.ID, `"Name":"idle","Owner":"me","IpConfigurations":[{"IpAddress":"10.7.0.9"}]`)))(e)
		web := must(e.endpoint(epDoc(n.ID, `"Name":"web","IpConfigurations":[{"IpAddress":"fd00:7::9"}]`)))(e)
		e.ok(e.attach(ns.ID, web.ID))
		var got []string
		for _, a := range e.e.Addresses() {
			if a.Network == "a" {
				got = append(got, strings.Join([]string{a.Address, a.Kind, a.Name, a.State, a.Owner}, " "))
			}
		}
		want := []string{"10.7.0.1 gateway  attached ", "10.7.0.9 endpoint idle reserved me", "fd00:7::1 gateway  attached ", "fd00:7::9 endpoint web attached "}
		if d := cmp.Diff(want, got); d != "" {
			e.t.Error(d)
		}
	})
}

func TestEndpointStats(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		if s := must(e.e.EndpointStats(ep.ID))(e); !cmp.Equal(s, api.NetworkStats{Endpoint: ep.ID}) {
			e.t.Errorf("unattached: %+v, want zeros", s)
		}
		_, err := e.e.EndpointStats("DDDDDDDD-0000-4000-8000-000000000001")
		e.wantCode(err, hcn.ErrEndpointNotFound)
	})
}
