package plan_test

import (
	"errors"
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/plan/plantest"
)

// TestExplainHolds asks about ways between the ends of drawn plans. Whatever the answer, it
// has a reason, its last step says the same, and what is delivered passed every leg.
func TestExplainHolds(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		p := plantest.Plan(r)
		host := &plan.HostView{
			Addrs:    []netip.Prefix{netip.MustParsePrefix("203.0.113.5/24"), netip.MustParsePrefix("2001:db8:5::5/64")},
			Forwards: func(string, bool) bool { return rapid.Bool().Draw(r, "forwards") },
			Route: func(a netip.Addr) (plan.HostRoute, error) {
				if rapid.Bool().Draw(r, "no route") {
					return plan.HostRoute{}, errors.New("none")
				}
				return plan.HostRoute{Device: "eth0", Src: a, Broadcast: rapid.IntRange(0, 9).Draw(r, "broadcast") == 0}, nil
			},
		}
		if rapid.Bool().Draw(r, "chain") {
			host.Chains = []plan.ForeignChain{{
				Table: "inet x", Chain: "c", Hook: rapid.SampledFrom([]string{"input", "forward", "output"}).Draw(r, "hook"), V4: true, V6: true,
				DropPolicy: rapid.Bool().Draw(r, "policy"), Rules: rapid.IntRange(0, 1).Draw(r, "rules"),
			}}
		}
		q := plan.Inquiry{
			From: party(r, p, "from"), To: party(r, p, "to"), V6: rapid.Bool().Draw(r, "v6"),
			Protocol: rapid.SampledFrom([]uint8{1, 6, 17, 132}).Draw(r, "protocol"), Port: rapid.SampledFrom([]uint16{0, 53, 80, 8005}).Draw(r, "port"),
		}
		x := p.Explain(q, host)
		if x.Summary == "" || len(x.Steps) == 0 {
			t.Fatalf("%+v: %+v", q, x)
		}
		for i, s := range x.Steps {
			if last := i == len(x.Steps)-1; !s.Pass && (!last || x.Reachable) || last && s.Pass && !x.Reachable {
				t.Fatalf("%+v: reachable is %t after the steps %+v", q, x.Reachable, x.Steps)
			}
		}
		for _, l := range x.Legs {
			if x.Reachable && l.Trace.Verdict == plan.Dropped {
				t.Fatalf("%+v: reachable by %+v", q, l)
			}
		}
	})
}

func party(r *rapid.T, p *plan.Plan, label string) plan.Party {
	switch rapid.IntRange(0, 3).Draw(r, label) {
	case 0:
		return plan.Party{Kind: plan.PartyHost, Name: "host"}
	case 1:
		return plan.Party{Kind: plan.PartyOutside, Name: "outside"}
	}
	var ports []*plan.Port
	for _, id := range plantest.Endpoints() {
		if o := p.Ports[plan.EndpointPortID(id)]; o != nil {
			ports = append(ports, o)
		}
	}
	o := rapid.SampledFrom(ports).Draw(r, label+" port")
	return plan.Party{Kind: plan.PartyPorts, Name: o.Name, Ports: []*plan.Port{o}}
}
