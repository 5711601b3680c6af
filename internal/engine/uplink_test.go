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
