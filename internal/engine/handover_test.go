package engine

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

func handedOver(netns string) api.AttachmentSpec {
	return api.AttachmentSpec{
		Owner: "docker", Container: "ep1", Runtime: "docker", Handover: true, Netns: netns,
		NetworkAttachment: api.NetworkAttachment{Network: "a"},
	}
}

// TestRuntimeMovesTheInterface: it is reserved, parked, found in the namespace that the runtime has made since, named late, and ends with it.
func TestRuntimeMovesTheInterface(t *testing.T) {
	withNetns(t, func(e *env) {
		id := api.AttachmentKey{Container: "ep1"}.ID("docker")
		_, err := e.attachForeign(handedOver("/run/docker/netns/x"))
		e.wantKind(err, api.KindNotFound) // it would come again behind its end
		reserved := must(e.attachForeign(handedOver("")))(e)
		if reserved.Namespace != "" || len(reserved.Endpoint.Addresses) != 2 {
			e.t.Fatalf("reserved %s", toJSON(reserved))
		}
		parked := must(e.attachForeign(handedOver("/run/docker/netns/x")))(e)
		if want := plan.DeviceName(plan.ParkedPrefix, plan.EndpointPortID(id)); parked.Endpoint.Interface != want || parked.Namespace == "" ||
			!cmp.Equal(parked.Endpoint.Addresses, reserved.Endpoint.Addresses) {
			e.t.Fatalf("parked %s", toJSON(parked))
		}
		_, err = e.e.CheckAttachment(id)
		e.wantKind(err, api.KindConflict)
		e.restart()
		if again := must(e.attachForeign(handedOver("/run/docker/netns/x")))(e); !cmp.Equal(again.Endpoint, parked.Endpoint) {
			e.t.Errorf("after a restart: %s", cmp.Diff(parked.Endpoint, again.Endpoint))
		}
		e.w.mu.Lock()
		e.w.netns["/run/docker/netns/x"] = 21
		e.w.mu.Unlock()
		e.e.Wake("a link went")
		deadline := time.Now().Add(10 * time.Second)
		for must(e.e.Attachment(id))(e).Endpoint.Interface != "eth0" {
			if time.Now().After(deadline) {
				e.t.Fatalf("not taken over: %s", toJSON(must(e.e.Attachment(id))(e)))
			}
			time.Sleep(time.Millisecond)
		}
		must(e.e.CheckAttachment(id))(e)

		s := handedOver("/run/docker/netns/x")
		s.Name, s.Aliases = "web", []string{"shop"}
		named := must(e.attachForeign(s))(e)
		doc := must(e.e.Endpoint(id))(e)
		if named.Name != "web" || doc.Name != "web" || named.Endpoint.Interface != "eth0" {
			e.t.Errorf("named %s", toJSON(named))
		}
		if got, err := hcn.SettingsOf[hcn.AliasesSetting](doc.Policies); err != nil || len(got) != 1 || got[0].Names[0] != "shop" {
			e.t.Errorf("aliases %v, %v", got, err)
		}
		left := must(e.attachForeign(handedOver("")))(e)
		if left.Namespace != "" || !cmp.Equal(left.Endpoint.Addresses, reserved.Endpoint.Addresses) {
			e.t.Errorf("left %s", toJSON(left))
		}
		e.ok(e.e.Detach(context.Background(), id))
		if n := len(e.e.Endpoints(hcn.Filter{})); n != 0 {
			e.t.Errorf("%d endpoints are left", n)
		}
	})
}
