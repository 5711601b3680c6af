package cli

import (
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestDefaultRouteTie: who joins networks that could each have the default route is told that their order decides.
func TestDefaultRouteTie(t *testing.T) {
	d := newDaemon(t)
	web := d.Containers[0]
	join := func() string {
		t.Helper()
		_, errs, code := call(t, d.socket, "network", "connect", "back", web.Name)
		if code != 0 {
			t.Fatal(errs)
		}
		return errs
	}
	if said := join(); said != "" {
		t.Errorf("one network with a way out: %s", said)
	}
	web.Endpoints[1].Gateways = []string{"10.8.0.1"}
	if said := join(); !strings.Contains(said, "back and nat could each have the default route, with the same gw-priority (0)") {
		t.Errorf("two of them: %q", said)
	}
	for i := range d.Endpoints {
		if d.Endpoints[i].ID == web.Endpoints[1].ID {
			d.Endpoints[i].Policies = append(d.Endpoints[i].Policies, hcn.NewEndpointPolicy(hcn.GatewayPriority, hcn.GatewayPrioritySetting{Priority: 5}))
		}
	}
	if said := join(); said != "" {
		t.Errorf("a priority decides: %s", said)
	}
}

// TestRateLs lists the endpoints that have a rate, and no others.
func TestRateLs(t *testing.T) {
	d := newDaemon(t)
	d.Endpoints[0].Policies = append(d.Endpoints[0].Policies, hcn.RatePolicies(1_250_000, 0)...)
	d.Endpoints[1].Policies = append(d.Endpoints[1].Policies, hcn.NewEndpointPolicy(hcn.QOS, hcn.QosPolicySetting{}))
	out, errs, code := call(t, d.socket, "rate", "ls")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 2 || !strings.Contains(lines[1], "10Mbit/s") {
		t.Errorf("%s%s", out, errs)
	}
}
