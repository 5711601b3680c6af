package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

func networkPolicies(request string, policies ...string) string {
	return fmt.Sprintf(`{"ResourceType":"Policy","RequestType":%q,"Settings":{"Policies":[%s]}}`, request, strings.Join(policies, ","))
}

func setOf(id, values string) string {
	return `{"Type":"SetPolicy","Settings":{"Id":"` + id + `","PolicyType":"IPSET","Values":"` + values + `"}}`
}

func aclOf(s string) string { return `{"Type":"ACL","Settings":{` + s + `}}` }

// switchHas is what the switch was told of an endpoint's port.
func (e *env) switchHas(ep hcn.GUID) string {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	_, rules, _ := strings.Cut(e.w.kernel[1][portObject(ep)], " in ")
	return rules
}

func (e *env) wantRules(ep hcn.GUID, want string) {
	e.t.Helper()
	if got := e.switchHas(ep); got != want {
		e.t.Errorf("the switch has\n%s\nwant\n%s", got, want)
	}
}

// TestRules: what a request leaves of an endpoint's rules is at its port when the
// request is answered, and sets go and come only as rules let them.
func TestRules(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		web := mapping(`"Protocol":6,"InternalPort":80,"ExternalPort":8080`)
		ep := must(e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.7.0.9"}],`+publish(web))))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.wantRules(ep.ID, "all out all isolated false")

		peers := aclOf(`"Id":"p","Action":"Allow","Direction":"In","RemoteAddresses":"peers"`)
		e.wantCode(e.policies(ep.ID, "Add", `[`+peers+`]`), hcn.ErrInvalidPolicy)
		e.ok(e.modifyNetwork(n.ID, networkPolicies("Add", setOf("peers", "10.7.0.20"))))
		e.ok(e.policies(ep.ID, "Add", `[`+peers+`]`))
		e.wantRules(ep.ID, `Allow In any from set "peers" (ACL "p"), else block out all isolated false`)

		e.wantCode(e.modifyNetwork(n.ID, networkPolicies("Remove", setOf("peers", ""))), hcn.ErrEntityHasReferences)
		e.wantCode(e.modifyNetwork(n.ID, networkPolicies("Reset", `{"Type":"SetPolicy"}`)), hcn.ErrEntityHasReferences)
		e.ok(e.modifyNetwork(n.ID, networkPolicies("Update", setOf("peers", "10.7.0.21"))))
		e.restart()
		e.wantRules(ep.ID, `Allow In any from set "peers" (ACL "p"), else block out all isolated false`)

		// One request replaces the whole set of rules, and leaves other policies.
		out := aclOf(`"Action":"Block","Direction":"Out","Protocols":"17"`)
		e.ok(e.policies(ep.ID, "Update", `[`+out+`]`))
		e.wantRules(ep.ID, `all out Block Out UDP (ACL), else block isolated false`)
		if got := must(e.e.Endpoint(ep.ID))(e); len(got.Policies) != 2 {
			e.t.Errorf("policies after an update: %s", toJSON(got.Policies))
		}
		e.ok(e.modifyNetwork(n.ID, networkPolicies("Remove", setOf("peers", ""))))
		e.ok(e.modifyNetwork(n.ID, networkPolicies("Add", `{"Type":"NetworkACL","Settings":{"Action":"Allow","Direction":"Out"}}`)))
		e.wantRules(ep.ID, `all out Allow Out any (NetworkACL), Block Out UDP (ACL), else block isolated false`)
		e.ok(e.policies(ep.ID, "Reset", `[{"Type":"ACL"}]`))
		e.ok(e.modifyNetwork(n.ID, networkPolicies("Reset", `{"Type":"NetworkACL"}`)))
		e.wantRules(ep.ID, "all out all isolated false")
	})
}

// TestRulesThatFail: when the switch refuses, the rules before the request hold.
func TestRulesThatFail(t *testing.T) {
	run(t, func(e *env) {
		n := must(e.network(netDoc("a", "NAT", 7)))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.7.0.9"}],"Policies":[`+aclOf(`"Action":"Allow","Direction":"In"`)+`]`)))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		before := e.switchHas(ep.ID)
		e.w.mu.Lock()
		refused := false
		e.w.fail = func(_ int, k *object) error {
			if k == nil || *k != portObject(ep.ID) || refused {
				return nil
			}
			refused = true
			return errors.New("no room")
		}
		e.w.mu.Unlock()
		e.wantCode(e.policies(ep.ID, "Update", `[`+aclOf(`"Action":"Block","Direction":"In"`)+`]`), hcn.ErrUnspecified)
		e.settle()
		if !refused {
			e.t.Error("the switch was not asked")
		}
		e.wantRules(ep.ID, before)
	})
}

func TestTurnedDefaultIsLogged(t *testing.T) {
	var b strings.Builder
	e := &Engine{log: slog.New(slog.NewTextHandler(&b, nil))}
	e.warnTurned("endpoint", "EP", "web", nil)
	if b.Len() > 0 {
		t.Errorf("said %q of nothing", b.String())
	}
	e.warnTurned("endpoint", "EP", "web", []hcn.DirectionType{hcn.DirectionTypeIn, hcn.DirectionTypeOut})
	if got := b.String(); !strings.Contains(got, "blocked from now on") || !strings.Contains(got, "direction=In,Out") || !strings.Contains(got, "endpoint=EP") {
		t.Errorf("said %q", got)
	}
}
