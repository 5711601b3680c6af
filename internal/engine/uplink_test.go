package engine

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestOneMACUplink: a NIC that takes no other MAC carries the networks that need none, shows its address at once, and
// has a vNIC of the host's own beside it.
func TestOneMACUplink(t *testing.T) {
	run(t, func(e *env) {
		e.w.mu.Lock()
		e.w.facts.NICs = []plan.NIC{{
			Name: "wlan0", Index: 3, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1},
			Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}, OneMAC: "it is wireless",
		}}
		e.w.mu.Unlock()
		on := func(kind string) string {
			return strings.Replace(netDoc("lan-"+kind, kind, 8), `"Ipams"`, `"Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"wlan0"}}],"Ipams"`, 1)
		}
		if _, err := e.network(on("Transparent")); err == nil || !strings.Contains(err.Error(), "L2Bridge") {
			e.t.Errorf("a Transparent network on it: %v, want what to do instead", err)
		}
		if _, err := e.network(netDoc("auto", "Transparent", 8)); err == nil {
			e.t.Error("it was chosen for a Transparent network")
		}
		n := must(e.network(netDoc("auto", "L2Bridge", 8)))(e)
		shown, err := hcn.NetworkSettingsOf[hcn.ProviderAddressPolicySetting](n.Policies)
		if err != nil || len(shown) != 1 || shown[0].ProviderAddress != "10.9.0.1" {
			e.t.Errorf("the network shows %v, %v, want 10.9.0.1", shown, err)
		}
		ep := must(e.endpoint(epDoc(n.ID, "")))(e)
		ns := must(e.namespace(`{"Type":"HostDefault",` + v2 + `}`))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.e.mu.RLock()
		at := e.e.st.endpoints[ep.ID].Attach
		e.e.mu.RUnlock()
		if at == nil || !strings.HasPrefix(at.Interface, plan.LANVNICPrefix) {
			e.t.Errorf("the host's vNIC is %+v, want one that our rules leave alone", at)
		}
		e.ok(e.e.DeleteNetwork(context.Background(), n.ID))
		if _, err := e.network(on("L2Tunnel")); err != nil {
			e.t.Error(err)
		}
	})
}

// TestNamedUplink: a NIC is meant by its GUID, name, index, address, or as the members of a bond; what fits none is named.
func TestNamedUplink(t *testing.T) {
	run(t, func(e *env) {
		const id = hcn.GUID("11111111-AAAA-5000-8000-000000000001")
		e.w.mu.Lock()
		e.w.facts.NICs = []plan.NIC{
			{Name: "eth0", Index: 2, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.7.0.1/24")}},
			{Name: "eth1", Index: 3, GUID: id, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 2}, Addrs: []netip.Prefix{netip.MustParsePrefix("fd00:9::1/64")}},
			{Name: "eth2", Index: 4, MTU: 1500, Up: true, Master: "bond0", Unfit: "it is a member of bond0, which takes its frames (bond0 can be the uplink)"},
			{Name: "eth3", Index: 5, MTU: 1500, Up: true, Master: "bond0", Unfit: "it is a member of bond0, which takes its frames (bond0 can be the uplink)"},
			{Name: "eth4", Index: 6, MTU: 1500, Up: true, Master: "br0", Unfit: "it is a member of br0, which takes its frames"},
			{Name: "bond0", Index: 7, Team: true, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 7}},
			{Name: "br0", Index: 8, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 8}, OneMAC: "it is a bridge device"},
		}
		e.w.mu.Unlock()
		for settings, want := range map[string]string{
			`InterfaceConstraint {"InterfaceGuid":"11111111-aaaa-5000-8000-000000000001"}`:                                            "eth1",
			`InterfaceConstraint {"InterfaceGuid":"11111111-aaaa-5000-8000-000000000001","InterfaceAlias":"eth1","InterfaceIndex":3}`: "eth1",
			`InterfaceConstraint {"InterfaceAlias":"eth1"}`:                                                                           "eth1",
			`InterfaceConstraint {"InterfaceIndex":3}`:                                                                                "eth1",
			`ProviderAddress {"ProviderAddress":"fd00:9::1"}`:                                                                         "eth1",
			`NetAdapterName {"NetworkAdapterName":"bond0"}`:                                                                           "bond0",
			`NetAdapterName {"NetworkAdapterName":"eth3,eth2"}`:                                                                       "bond0",
			`NetAdapterName {"NetworkAdapterName":"eth2"}`:                                                                            "!bond0 can be the uplink",
			`NetAdapterName {"NetworkAdapterName":"eth1,eth2"}`:                                                                       "!no bond or team",
			`NetAdapterName {"NetworkAdapterName":"eth2,"}`:                                                                           "!no NIC of this host",
			`NetAdapterName {"NetworkAdapterName":"eth0,eth1"}`:                                                                       "!no bond or team",
			`NetAdapterName {"NetworkAdapterName":"eth4"}`:                                                                            "!member of br0",
			`InterfaceConstraint {"InterfaceGuid":"11111111-aaaa-5000-8000-000000000001","InterfaceAlias":"eth0"}`:                    "!no NIC of this host has the GUID 11111111-AAAA-5000-8000-000000000001 and the name eth0",
			`InterfaceConstraint {"InterfaceGuid":"22222222-aaaa-5000-8000-000000000001"}`:                                            "!bulkhead nic ls",
			`InterfaceConstraint {"InterfaceLuid":7}`:                                                                                 "!InterfaceGuid, InterfaceAlias or InterfaceIndex",
			`InterfaceConstraint {}`:                                                                                                  "!names no NIC",
			`ProviderAddress {"ProviderAddress":"10.7.0.2"}`:                                                                          "!no NIC of this host has the address",
		} {
			kind, value, _ := strings.Cut(settings, " ")
			n, err := e.network(strings.Replace(netDoc("named", "Transparent", 8), `"Ipams"`, `"Policies":[{"Type":"`+kind+`","Settings":`+value+`}],"Ipams"`, 1))
			if why, refused := strings.CutPrefix(want, "!"); refused {
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("%s: %v, want %q", settings, err, why)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", settings, err)
				continue
			}
			shown, err := hcn.NetworkSettingsOf[hcn.NetAdapterNamePolicySetting](n.Policies)
			if err != nil || len(shown) != 1 || e.uplinkOf(n.ID) != want {
				t.Errorf("%s: %s, %v (%v), want %s", settings, e.uplinkOf(n.ID), shown, err, want)
			}
			e.ok(e.e.DeleteNetwork(bg, n.ID))
		}
	})
}

func (e *env) uplinkOf(id hcn.GUID) string {
	e.e.mu.RLock()
	defer e.e.mu.RUnlock()
	return e.e.st.networks[id].Uplink
}

// TestLayerConstraint: the switch that a network names is that of a NIC, which it gets as its uplink.
func TestLayerConstraint(t *testing.T) {
	run(t, func(e *env) {
		e.w.mu.Lock()
		for i, name := range []string{"eth0", "eth1"} {
			e.w.facts.NICs = append(e.w.facts.NICs, plan.NIC{
				Name: name, Index: 3 + i, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, byte(i)},
				Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(2 + i), 1}), 24)},
			})
		}
		e.w.mu.Unlock()
		on := func(name, kind string, layer hcn.GUID) (hcn.HostComputeNetwork, error) {
			return e.network(strings.Replace(netDoc(name, kind, len(name)), `"Ipams"`,
				`"Policies":[{"Type":"LayerConstraint","Settings":{"LayerId":"`+string(layer)+`"}}],"Ipams"`, 1))
		}
		first := must(e.network(strings.Replace(netDoc("a", "Transparent", 1), `"Ipams"`,
			`"Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"eth1"}}],"Ipams"`, 1)))(e)
		second := must(on("bb", "L2Bridge", first.SwitchGUID()))(e)
		if nic := e.uplinkOf(second.ID); nic != "eth1" || second.SwitchGUID() != first.SwitchGUID() {
			e.t.Errorf("it is on %q, want eth1 as the first one", nic)
		}
		if _, err := on("ccc", "Transparent", hcn.NewGUID()); hcn.CodeOf(err) != hcn.ErrLayerNotFound {
			e.t.Errorf("a switch that is not there: %v", err)
		}
		nat := must(e.network(netDoc("dddd", "NAT", 4)))(e)
		if _, err := on("eeeee", "Transparent", nat.SwitchGUID()); hcn.CodeOf(err) != hcn.ErrLayerNotFound || !strings.Contains(err.Error(), "dddd") {
			e.t.Errorf("the switch of a NAT network: %v", err)
		}
	})
}

// TestNewNIC: a network on a NIC that came a moment ago has it at once, and so has the list, whenever the loop looks again.
func TestNewNIC(t *testing.T) {
	run(t, func(e *env) {
		e.w.mu.Lock()
		e.w.facts.NICs = []plan.NIC{{
			Name: "bond0", Index: 7, Team: true, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 7}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.9/24")},
		}}
		e.w.mu.Unlock()
		must(e.network(netDoc("lan", "Transparent", 8)))(e)
		if text := e.w.text(); !strings.Contains(text, "bond0") {
			e.t.Errorf("the switch has no NIC:\n%s", text)
		}
		e.w.mu.Lock()
		e.w.facts.NICs = append(e.w.facts.NICs, plan.NIC{Name: "eth9", Index: 9, Up: true})
		e.w.mu.Unlock()
		if all := toJSON(e.e.NICs(bg)); !strings.Contains(all, `"lan"`) || !strings.Contains(all, "eth9") {
			e.t.Errorf("NICs: %s", all)
		}
	})
}

// TestRenamedUplink: a network goes on with its NIC under another name, which its document shows: at once, after a restart of the daemon,
// and where the NIC has a MAC of its own after one of the host. Another NIC is never taken for it.
func TestRenamedUplink(t *testing.T) {
	run(t, func(e *env) {
		const id = hcn.GUID("11111111-AAAA-5000-8000-000000000001")
		nics := func(all ...plan.NIC) {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			for i := range all {
				all[i].MTU, all[i].Up = 1500, true
			}
			e.w.facts.NICs = all
		}
		addrs := []netip.Prefix{netip.MustParsePrefix("10.8.0.9/24")}
		veth := func(name string, index int) plan.NIC {
			return plan.NIC{Name: name, Index: index, GUID: hcn.DerivedGUID("name of a NIC", name), MAC: plan.MAC{2, 0, 0, 0, 0xee, 7}, Addrs: addrs}
		}
		card := func(name string, index int) plan.NIC {
			return plan.NIC{Name: name, Index: index, GUID: id, MAC: plan.MAC{2, 0, 0, 0, 0xee, 9}}
		}
		is := func(n hcn.HostComputeNetwork, want string) {
			t.Helper()
			e.settle()
			doc := must(e.e.Network(n.ID))(e)
			shown, err := hcn.NetworkSettingsOf[hcn.NetAdapterNamePolicySetting](doc.Policies)
			if got := e.uplinkOf(n.ID); got != want || err != nil || len(shown) != 1 || shown[0].NetworkAdapterName != want {
				t.Errorf("network %s is on %q and shows %v (%v), want %s", n.Name, got, shown, err, want)
			}
			e.w.mu.Lock()
			there := e.w.facts.NIC(want) != nil
			e.w.mu.Unlock()
			if text := e.w.text(); strings.Contains(text, ": "+want+" ") != there {
				t.Errorf("the switch is on %s: want %t in\n%s", want, there, text)
			}
		}
		nics(veth("eth0", 5), card("ens1", 6))
		a := must(e.network(netDoc("lan", "Transparent", 8)))(e)
		b := must(e.network(strings.Replace(netDoc("card", "L2Bridge", 9), `"Ipams"`, `"Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"ens1"}}],"Ipams"`, 1)))(e)
		nics(veth("lan0", 5), card("ens1", 6))
		is(a, "lan0")
		e.stop()
		nics(veth("lan1", 5), card("lan2", 6))
		e.start()
		is(a, "lan1")
		is(b, "lan2")
		e.check()
		nics(veth("new", 15), card("ens3", 16)) // of another index: it may be any
		is(a, "lan1")
		is(b, "ens3")
		nics(veth("lan1", 15), card("ens3", 16))
		is(a, "lan1")
		e.kill()
		e.w.reboot()
		nics(veth("eth0", 15), card("ens4", 5)) // the index is another's by now
		e.start()
		is(a, "lan1")
		is(b, "ens4")
	})
}
