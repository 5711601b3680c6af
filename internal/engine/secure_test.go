package engine

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestEncryptedNetworks: a network of the cluster that is encrypted is at this host's address inside WireGuard, stays encrypted, and has
// no way out while its keys cannot be used.
func TestEncryptedNetworks(t *testing.T) {
	run(t, func(e *env) {
		e.underlay()
		id, inner := hcn.GUID("B0000000-0000-4000-8000-000000000002"), netip.MustParseAddr("fd12:3456:789a::1")
		doc := decode[hcn.HostComputeNetwork](e, overlayDoc("secret", 64, 5010, `{"Type":"Bulkhead.Encryption","Settings":{"EncryptionMethodType":"WireGuard"}}`))
		doc.ID = id
		tell := func(doc hcn.HostComputeNetwork, rev int64) error {
			return e.e.SetClusterNetworks(bg, []ClusterNetwork{{Doc: doc, Revision: rev, Provider: netip.MustParseAddr("192.0.2.1"), Router: plan.MAC{2, 1}, Inner: inner}})[id]
		}
		e.ok(tell(doc, 1))
		compiled := func() *plan.Plan {
			e.e.mu.RLock()
			defer e.e.mu.RUnlock()
			return plan.Compile(e.e.st.intent(), &e.e.facts)
		}
		p := compiled()
		o := p.Switches[id].Overlay
		if !o.Encrypted || o.Provider != inner || o.Unready || o.Tunnel != plan.SealedPortID(4789) || p.Ports[o.Tunnel].Below != plan.NamespacePath(plan.SecureNamespace) || p.Secure == nil || p.Secure.Told {
			e.t.Errorf("before keys are told: %+v, %+v, %+v", o, p.Ports[o.Tunnel], p.Secure)
		}
		key := plan.SecureDevice{Generation: 1, Device: "bhw1", Port: 2393}
		e.e.SetClusterKeys(&plan.Secure{Devices: []plan.SecureDevice{key}})
		if p = compiled(); !p.Secure.Told || len(p.Secure.Devices) != 1 || p.Switches[id].Overlay.Unready || p.Secure.MTU != o.MTU {
			e.t.Errorf("with a key: %+v", p.Secure)
		}
		e.settle()
		e.e.SetClusterKeys(&plan.Secure{Devices: []plan.SecureDevice{key}, Problem: "it does not start"})
		e.settle()
		if p = compiled(); !p.Switches[id].Overlay.Unready {
			e.t.Error("what cannot be encrypted has a way out")
		}
		clear := *doc.Clone()
		clear.Policies = nil
		if err := tell(clear, 2); err == nil || !strings.Contains(err.Error(), "stays as it was when it was made") {
			e.t.Errorf("another host made it clear: %v", err)
		}
		if p = compiled(); !p.Switches[id].Overlay.Encrypted {
			e.t.Error("it is no more encrypted")
		}
		e.e.SetClusterKeys(nil)
		if errs := e.e.SetClusterNetworks(bg, nil); len(errs) > 0 {
			e.t.Error(errs)
		}
		if p = compiled(); p.Secure != nil || p.Namespaces[plan.SecureNamespace] != nil || p.Ports[plan.SealedPortID(4789)] != nil {
			e.t.Errorf("left: %+v", p.Secure)
		}
	})
}
