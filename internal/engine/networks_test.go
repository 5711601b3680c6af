package engine

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

const v2 = `"SchemaVersion":{"Major":2,"Minor":0}`

// netDoc is a network with one subnet of each family.
func netDoc(name, kind string, n int) string {
	return fmt.Sprintf(`{"Name":%q,"Type":%q,%s,"Ipams":[{"Subnets":[
		{"IpAddressPrefix":"10.%d.0.0/24","Routes":[{"NextHop":"10.%d.0.1","DestinationPrefix":"0.0.0.0/0"}]},
		{"IpAddressPrefix":"fd00:%d::/64","Routes":[{"NextHop":"fd00:%d::1","DestinationPrefix":"::/0"}]}]}]}`, name, kind, v2, n, n, n, n)
}

func filter(e *env, s string) hcn.Filter {
	e.t.Helper()
	f, err := hcn.ParseFilter(s)
	if err != nil {
		e.t.Fatal(err)
	}
	return f
}

func TestDefaultNetwork(t *testing.T) {
	run(t, func(e *env) {
		ids := e.e.Networks(filter(e, `{"Name":"nat"}`))
		if len(ids) != 1 {
			e.t.Fatalf("networks named nat: %v", ids)
		}
		n := must(e.e.Network(ids[0]))(e)
		var got []string
		for _, s := range n.AllSubnets() {
			gw, _ := s.Gateway()
			got = append(got, s.IpAddressPrefix+" "+gw.String())
		}
		if len(got) != 2 || got[0] != "10.246.0.0/24 10.246.0.1" || netip.MustParsePrefix(n.AllSubnets()[1].IpAddressPrefix).Addr().Is4() {
			e.t.Fatalf("subnets %v: want one free private prefix of each family", got)
		}
		if n.Type != hcn.NAT || n.State != hcn.NetworkCreated || len(n.MacPool.Ranges) != 1 || n.AllSubnets()[0].ID.IsZero() {
			e.t.Fatalf("document lacks what a query must show: %s", toJSON(n))
		}
		e.ok(e.e.DeleteNetwork(context.Background(), ids[0]))
		e.restart()
		if left := e.e.Networks(hcn.Filter{}); len(left) != 0 {
			e.t.Fatalf("the deleted default network came back: %v", left)
		}
	})
}

func TestDefaultNetworkAvoidsTheHost(t *testing.T) {
	for name, tc := range map[string]struct{ route, want string }{
		"its own pool used":    {"10.246.0.0/24", "10.246.1.0/24"},
		"VPN over all of 10/8": {"10.0.0.0/8", "172.31.128.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				e.ok(e.e.DeleteNetwork(context.Background(), e.e.Networks(hcn.Filter{})[0]))
				e.w.mu.Lock()
				e.w.facts.Routes = []netip.Prefix{netip.MustParsePrefix(tc.route)}
				e.w.mu.Unlock()
				n := must(e.network(`{"Name":"n",` + v2 + `}`))(e)
				if got := n.AllSubnets()[0].IpAddressPrefix; got != tc.want {
					e.t.Fatalf("subnet %s, want %s", got, tc.want)
				}
			})
		})
	}
}

// TestNoRoomForTheDefaultNetwork: the daemon serves all the same.
func TestNoRoomForTheDefaultNetwork(t *testing.T) {
	run(t, func(e *env) {
		e.ok(e.e.DeleteNetwork(context.Background(), e.e.Networks(hcn.Filter{})[0]))
		_, err := e.e.commit(func(t *txn) error { t.putSetting(settingDefaultMade, ""); return nil })
		e.ok(err)
		e.w.mu.Lock()
		for _, p := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"} {
			e.w.facts.Routes = append(e.w.facts.Routes, netip.MustParsePrefix(p))
		}
		e.w.mu.Unlock()
		e.restart()
		_, err = e.network(`{"Name":"n",` + v2 + `}`)
		e.wantCode(err, hcn.ErrInvalidSubnet)
	})
}

func TestCreateNetworkRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		doc  string
		code hcn.ErrorCode
	}{
		"name of another":            {netDoc("first", "NAT", 8), hcn.ErrNetworkAlreadyExists},
		"ID of another":              {`{"ID":"aaaaaaaa-0000-4000-8000-000000000001","Name":"x",` + v2 + `}`, hcn.ErrNetworkAlreadyExists},
		"subnet of another":          {netDoc("x", "NAT", 7), hcn.ErrInvalidSubnet},
		"subnet around another's":    {`{"Name":"x",` + v2 + `,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.7.0.0/16","Routes":[{"NextHop":"10.7.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}]}`, hcn.ErrInvalidSubnet},
		"subnet of a host route":     {netDoc("x", "Internal", 66), hcn.ErrInvalidSubnet},
		"subnet of a host address":   {netDoc("x", "NAT", 67), hcn.ErrInvalidSubnet},
		"subnet of the resolver":     {netDoc("x", "NAT", 68), hcn.ErrInvalidSubnet},
		"no default route":           {`{"Name":"x",` + v2 + `,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.9.0.0/24"}]}]}`, hcn.ErrInvalidSubnet},
		"type that is not there yet": {`{"Name":"x","Type":"ICS",` + v2 + `}`, hcn.ErrInvalidNetworkType},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				e.w.mu.Lock()
				e.w.facts.Routes = []netip.Prefix{netip.MustParsePrefix("10.66.0.0/16"), netip.MustParsePrefix("0.0.0.0/0")}
				e.w.facts.HostAddrs = []netip.Prefix{netip.MustParsePrefix("10.67.0.9/24")}
				e.w.facts.Resolvers = []netip.Addr{netip.MustParseAddr("10.68.0.53"), netip.MustParseAddr("127.0.0.53")}
				e.w.mu.Unlock()
				must(e.e.CreateNetwork(context.Background(), "AAAAAAAA-0000-4000-8000-000000000001", decode[hcn.HostComputeNetwork](e, netDoc("first", "NAT", 7))))(e)
				before := len(e.e.Networks(hcn.Filter{}))
				_, err := e.network(tc.doc)
				e.wantCode(err, tc.code)
				if n := len(e.e.Networks(hcn.Filter{})); n != before {
					e.t.Fatalf("%d networks after a refused one, %d before", n, before)
				}
			})
		})
	}
}

// TestPrivateMayOverlap: a closed network meets nobody.
func TestPrivateMayOverlap(t *testing.T) {
	run(t, func(e *env) {
		must(e.network(netDoc("a", "NAT", 7)))(e)
		must(e.network(netDoc("b", "Private", 7)))(e)
		must(e.network(netDoc("c", "Private", 7)))(e)
	})
}

func TestNetworkIDRule(t *testing.T) {
	run(t, func(e *env) {
		const own, beside = "BBBBBBBB-0000-4000-8000-000000000001", "BBBBBBBB-0000-4000-8000-000000000002"
		doc := decode[hcn.HostComputeNetwork](e, netDoc("a", "NAT", 7))
		doc.ID = own
		if n := must(e.e.CreateNetwork(context.Background(), beside, doc))(e); n.ID != beside {
			e.t.Fatalf("ID %s, want the one beside the document", n.ID)
		}
		e.ok(e.e.DeleteNetwork(context.Background(), beside))
		n := must(e.e.CreateNetwork(context.Background(), "00000000-0000-0000-0000-000000000000", doc))(e)
		if n.ID != own {
			e.t.Fatalf("ID %s, want the document's", n.ID)
		}
		e.ok(e.e.DeleteNetwork(context.Background(), own))
		again := must(e.e.CreateNetwork(context.Background(), "", n))(e)
		if again.ID != own || again.MacPool.Ranges[0] != n.MacPool.Ranges[0] {
			e.t.Fatalf("made again from its own document: %s", toJSON(again))
		}
	})
}

func TestNetworkQueries(t *testing.T) {
	run(t, func(e *env) {
		a := must(e.network(netDoc("a", "NAT", 7)))(e)
		b := must(e.network(netDoc("b", "Private", 8)))(e)
		for query, want := range map[string]hcn.GUID{
			`{"Name":"a"}`:                  a.ID,
			`{"Type":"Private"}`:            b.ID,
			`{"Name":"b","Type":6}`:         b.ID,
			`{"ID":"` + a.ID.Lower() + `"}`: a.ID,
		} {
			if got := e.e.Networks(filter(e, query)); len(got) != 1 || got[0] != want {
				e.t.Errorf("%s: %v, want %s", query, got, want)
			}
		}
		for _, query := range []string{`{"Name":"c"}`, `{"MacAddress":"x"}`} {
			if got := e.e.Networks(filter(e, query)); got == nil || len(got) != 0 {
				e.t.Errorf("%s: %#v, want an empty list", query, got)
			}
		}
		if got := e.e.Networks(hcn.Filter{}); len(got) != 3 || got[1] != a.ID {
			e.t.Errorf("all: %v, want three, oldest first", got)
		}
		_, err := e.e.Network("DDDDDDDD-0000-4000-8000-000000000001")
		e.wantCode(err, hcn.ErrNetworkNotFound)
		e.wantCode(e.e.DeleteNetwork(context.Background(), "DDDDDDDD-0000-4000-8000-000000000001"), hcn.ErrNetworkNotFound)
	})
}

func (e *env) modifyNetwork(id hcn.GUID, doc string) error {
	r := decode[hcn.ModifyNetworkSettingRequest](e, doc)
	return e.e.ModifyNetwork(context.Background(), id, &r)
}

func TestModifyNetwork(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ep := must(e.endpoint(`{"HostComputeNetwork":"` + string(n.ID) + `","MacAddress":"02-00-00-00-00-01",` + v2 + `}`))(e)
		e.wantCode(e.modifyNetwork("DDDDDDDD-0000-4000-8000-000000000001", `{"ResourceType":"DNS","RequestType":"Update","Settings":{}}`), hcn.ErrNetworkNotFound)
		e.ok(e.modifyNetwork(n.ID, `{"ResourceType":"DNS","RequestType":"Update","Settings":{"Domain":"example.org"}}`))
		if got := must(e.e.Network(n.ID))(e); got.Dns.Domain != "example.org" || got.Version == n.Version {
			e.t.Fatalf("after a change: %s", toJSON(got))
		}
		more := `{"Subnets":[{"IpAddressPrefix":"10.70.0.0/24","Routes":[{"NextHop":"10.70.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}`
		e.ok(e.modifyNetwork(n.ID, `{"ResourceType":"Subnet","RequestType":"Add","Settings":`+more+`}`))
		changed := must(e.e.Network(n.ID))(e)
		first := changed.AllSubnets()[0]
		err := e.modifyNetwork(n.ID, `{"ResourceType":"Subnet","RequestType":"Remove","Settings":{"Subnets":[{"ID":"`+string(first.ID)+`"}]}}`)
		e.wantCode(err, hcn.ErrEntityHasReferences)
		err = e.modifyNetwork(n.ID, `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"SourceMacAddress","Settings":{"SourceMacAddress":"02-00-00-00-00-01"}}]}}`)
		e.wantCode(err, hcn.ErrInvalidPolicy)
		e.ok(e.modifyNetwork(n.ID, `{"ResourceType":"Policy","RequestType":"Add","Settings":{"Policies":[{"Type":"SourceMacAddress","Settings":{"SourceMacAddress":"02-00-00-00-00-02"}}]}}`))
		e.ok(e.modifyNetwork(n.ID, `{"ResourceType":"Policy","RequestType":"Refresh"}`))

		// A route that came later does not forbid to change what it overlaps, but
		// to add more of it.
		e.w.mu.Lock()
		e.w.facts.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		e.w.mu.Unlock()
		e.settle()
		e.ok(e.modifyNetwork(n.ID, `{"ResourceType":"DNS","RequestType":"Update","Settings":{"Domain":"example.net"}}`))
		more = `{"Subnets":[{"IpAddressPrefix":"10.71.0.0/24","Routes":[{"NextHop":"10.71.0.1","DestinationPrefix":"0.0.0.0/0"}]}]}`
		e.wantCode(e.modifyNetwork(n.ID, `{"ResourceType":"Subnet","RequestType":"Add","Settings":`+more+`}`), hcn.ErrInvalidSubnet)
		e.ok(e.e.DeleteEndpoint(context.Background(), ep.ID))
	})
}

func TestDeleteNetworkTakesEndpoints(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(`{"HostComputeNetwork":"` + string(n.ID) + `",` + v2 + `,"Policies":[{"Type":"PortMapping","Settings":{"Protocol":6,"InternalPort":80,"ExternalPort":8080}}]}`))(e)
		idle := must(e.endpoint(`{"HostComputeNetwork":"` + string(n.ID) + `",` + v2 + `}`))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.ok(e.e.DeleteNetwork(context.Background(), n.ID))
		for _, id := range []hcn.GUID{ep.ID, idle.ID} {
			_, err := e.e.Endpoint(id)
			e.wantCode(err, hcn.ErrEndpointNotFound)
		}
		if got := must(e.e.Namespace(ns.ID))(e); len(got.Resources) != 0 {
			e.t.Fatalf("namespace holds %v", got.Resources)
		}
	})
}

// TestFailedNetworkLeavesNothing: each applier fails in its turn.
func TestFailedNetworkLeavesNothing(t *testing.T) {
	for i := range 5 {
		t.Run(stepName(i), func(t *testing.T) {
			run(t, func(e *env) {
				before := e.w.text()
				for _, whole := range []bool{true, false} {
					e.failing(i, whole)
					_, err := e.network(netDoc("a", "NAT", 7))
					if err == nil && (whole || i != 2 && i != 4) { // a network alone has no forwards and no names
						e.t.Fatalf("applier %d failed and the network was made", i)
					}
					e.failing(-1, false)
					e.settle()
					if err != nil && len(e.e.Networks(filter(e, `{"Name":"a"}`))) != 0 {
						e.t.Fatal("a failed network stayed")
					}
					for _, id := range e.e.Networks(filter(e, `{"Name":"a"}`)) {
						e.ok(e.e.DeleteNetwork(context.Background(), id))
					}
				}
				e.settle()
				if got := e.w.text(); got != before {
					e.t.Fatalf("kernel before:\n%s\nafter:\n%s", before, got)
				}
			})
		})
	}
}

// failing makes an applier fail for what is not the resolver's compartment, as a
// whole or object by object; -1 ends it.
func (e *env) failing(applier int, whole bool) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	e.w.fail = nil
	if applier < 0 {
		return
	}
	e.w.fail = func(i int, k *object) error {
		if i == applier && (k == nil) == whole {
			return errors.New("no buffer space available")
		}
		return nil
	}
}
