package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// TestRehearsedRun: what a container's making and start would do is told, and nothing of it is done.
func TestRehearsedRun(t *testing.T) {
	run(t, func(e *env) {
		spec := api.ContainerSpec{Name: "web", Image: "img", Networks: []api.NetworkAttachment{{Network: "nat"}}}
		told := func(name, want string, change func(ctx context.Context) error) {
			before := e.everything()
			p, err := e.e.Plan(bg, change)
			e.ok(err)
			if text := toJSON(p); !strings.Contains(text, want) {
				t.Errorf("%s: %s, want %s", name, text, want)
			}
			e.settle()
			if d := cmp.Diff(before, e.everything()); d != "" {
				t.Errorf("%s has changed something:\n%s", name, d)
			}
		}
		told("create", `"objects":[]`, func(ctx context.Context) error { _, err := e.e.CreateContainer(ctx, spec); return err })
		told("run", `netns`, func(ctx context.Context) error { _, err := e.e.RunContainer(ctx, spec); return err })
		if _, err := e.e.Plan(bg, func(ctx context.Context) error {
			_, err := e.e.RunContainer(ctx, api.ContainerSpec{Name: "x", Image: "img", Networks: []api.NetworkAttachment{{Network: "none-such"}}})
			return err
		}); !api.IsKind(err, api.KindNotFound) {
			t.Errorf("on no network: %v", err)
		}
		made := must(e.e.CreateContainer(bg, spec))(e)
		told("start", `netns`, func(ctx context.Context) error { return e.e.StartContainer(ctx, made.ID) })
		spec.Name = "other"
		if made := must(e.e.RunContainer(bg, spec))(e); e.state(made.ID).Status != api.StatusRunning {
			t.Errorf("it is %s", e.state(made.ID).Status)
		}
		restart := func(ref string) func(context.Context) error {
			return func(ctx context.Context) error { return e.e.RestartContainer(ctx, ref, api.StopRequest{}) }
		}
		told("restart of one that runs", `"action":"remove"`, restart("other"))
		told("restart of one that runs", `"action":"add"`, restart("other"))
		told("restart of one that does not", `netns`, restart(made.ID))
	})
}

// TestRehearsal holds two promises for every kind of change: asking changes nothing, and the
// change then writes to the kernel what was told, and no more.
func TestRehearsal(t *testing.T) {
	const (
		network   = "11111111-0000-4000-8000-000000000001"
		endpoint  = "22222222-0000-4000-8000-000000000001"
		namespace = "33333333-0000-4000-8000-000000000001"
	)
	run(t, func(e *env) {
		must(e.network(netDoc("back", "NAT", 8)))(e)
		created := must(e.e.CreateContainer(context.Background(), api.ContainerSpec{
			Name: "web", Image: "img", Networks: []api.NetworkAttachment{{Network: "nat"}},
		}))(e)
		e.ok(e.e.StartContainer(context.Background(), "web"))
		c := must(e.e.Container(created.ID))(e)
		acl := func(what hcn.RequestType) *hcn.ModifyEndpointSettingRequest {
			r, err := hcn.NewEndpointPolicyRequest(what, []hcn.EndpointPolicy{hcn.NewEndpointPolicy(hcn.ACL, hcn.AclPolicySetting{
				Action: hcn.ActionTypeAllow, Direction: hcn.DirectionTypeIn, Protocols: "6", LocalPorts: "80",
			})})
			e.ok(err)
			return r
		}
		port := []api.PublishedPort{{HostPort: 8080, ContainerPort: 80}}
		netdoc := decode[hcn.HostComputeNetwork](e, netDoc("lab", "NAT", 9))
		epdoc := decode[hcn.HostComputeEndpoint](e, `{`+v2+`,"HostComputeNetwork":"`+network+`"}`)
		nsdoc := decode[hcn.HostComputeNamespace](e, `{`+v2+`}`)
		attach := decode[hcn.ModifyNamespaceSettingRequest](e, `{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"`+endpoint+`"}}`)
		for _, tc := range []struct {
			name string
			do   func(ctx context.Context) error
			// quiet changes nothing in the kernel.
			quiet bool
		}{
			{name: "create network", do: func(ctx context.Context) error { _, err := e.e.CreateNetwork(ctx, network, netdoc); return err }},
			{name: "create endpoint", quiet: true, do: func(ctx context.Context) error {
				_, err := e.e.CreateEndpoint(ctx, endpoint, "", epdoc)
				return err
			}},
			{name: "create namespace", do: func(ctx context.Context) error { _, err := e.e.CreateNamespace(ctx, namespace, nsdoc); return err }},
			{name: "attach", do: func(ctx context.Context) error { return e.e.ModifyNamespace(ctx, namespace, &attach) }},
			{name: "allow", do: func(ctx context.Context) error { return e.e.ModifyEndpoint(ctx, endpoint, acl(hcn.RequestTypeAdd)) }},
			{name: "allow no more", do: func(ctx context.Context) error {
				return e.e.ModifyEndpoint(ctx, endpoint, acl(hcn.RequestTypeRemove))
			}},
			{name: "publish", do: func(ctx context.Context) error { _, err := e.e.PublishPorts(ctx, "web", port); return err }},
			{name: "unpublish", do: func(ctx context.Context) error { return e.e.UnpublishPorts(ctx, "web", port) }},
			{name: "disconnect", do: func(ctx context.Context) error { return e.e.DisconnectContainer(ctx, "web", "nat") }},
			{name: "delete endpoint", do: func(ctx context.Context) error { return e.e.DeleteEndpoint(ctx, endpoint) }},
			{name: "delete namespace", do: func(ctx context.Context) error { return e.e.DeleteNamespace(ctx, namespace) }},
			{name: "delete network", do: func(ctx context.Context) error { return e.e.DeleteNetwork(ctx, network) }},
		} {
			before := e.everything()
			told := e.rehearse(tc.name, tc.do)
			if again := e.rehearse(tc.name, tc.do); !slices.Equal(told, again) {
				e.t.Errorf("%s: told %q, and then %q", tc.name, told, again)
			}
			if d := cmp.Diff(before, e.everything()); d != "" {
				e.t.Errorf("%s: asking changed something (-before +after):\n%s", tc.name, d)
			}
			if tc.quiet != (len(told) == 0) {
				e.t.Errorf("%s: told %q", tc.name, told)
			}
			e.ok(tc.do(context.Background()))
			e.settle()
			if d := cmp.Diff(told, e.wrote()); d != "" {
				e.t.Errorf("%s (-told +written):\n%s", tc.name, d)
			}
		}
		// A further network: the IDs that it makes differ from one time to the next, the rest does not.
		connect := func(ctx context.Context) error {
			return e.e.ConnectContainer(ctx, c.ID, api.NetworkAttachment{Network: "back"})
		}
		told := e.rehearse("connect", connect)
		e.ok(connect(context.Background()))
		e.settle()
		if wrote := e.wrote(); len(told) != len(wrote) || len(told) == 0 {
			e.t.Errorf("connect: told %q, written %q", told, wrote)
		}
	})
}

// TestRehearsalRefuses: what a change is refused for, asking is refused for, in the same words.
func TestRehearsalRefuses(t *testing.T) {
	run(t, func(e *env) {
		must(e.network(netDoc("back", "NAT", 8)))(e)
		must(e.e.CreateContainer(context.Background(), api.ContainerSpec{
			Name: "web", Image: "img", Networks: []api.NetworkAttachment{{Network: "nat"}},
		}))(e)
		e.w.mu.Lock()
		e.w.host[hostPort{6, netip.MustParseAddr("127.0.0.1"), 81}] = "somebody"
		e.w.mu.Unlock()
		for name, do := range map[string]func(ctx context.Context) error{
			"name taken": func(ctx context.Context) error {
				_, err := e.e.CreateNetwork(ctx, "", decode[hcn.HostComputeNetwork](e, netDoc("back", "NAT", 9)))
				return err
			},
			"subnet taken": func(ctx context.Context) error {
				_, err := e.e.CreateNetwork(ctx, "", decode[hcn.HostComputeNetwork](e, netDoc("other", "NAT", 8)))
				return err
			},
			"no network": func(ctx context.Context) error {
				return e.e.DeleteNetwork(ctx, "99999999-0000-4000-8000-000000000001")
			},
			"no container": func(ctx context.Context) error { return e.e.DisconnectContainer(ctx, "nobody", "nat") },
			"port taken": func(ctx context.Context) error {
				_, err := e.e.PublishPorts(ctx, "web", []api.PublishedPort{{HostPort: 81, ContainerPort: 81}})
				return err
			},
			"connected already": func(ctx context.Context) error {
				return e.e.ConnectContainer(ctx, "web", api.NetworkAttachment{Network: "nat"})
			},
		} {
			before := e.everything()
			_, asked := e.e.Plan(context.Background(), do)
			done := do(context.Background())
			if asked == nil || done == nil || asked.Error() != done.Error() {
				e.t.Errorf("%s: asking says %v, doing %v", name, asked, done)
			}
			if d := cmp.Diff(before, e.everything()); d != "" {
				e.t.Errorf("%s changed something (-before +after):\n%s", name, d)
			}
		}
		e.w.mu.Lock()
		clear(e.w.host)
		e.w.mu.Unlock()
	})
}

// TestRehearsalOfWhatTheKernelRefuses: an applier that sees it coming is listened to.
func TestRehearsalOfWhatTheKernelRefuses(t *testing.T) {
	run(t, func(e *env) {
		e.w.mu.Lock()
		e.w.fail = func(layer int, k *object) error {
			if k == nil && layer == 1 {
				return errors.New("a link of that name is somebody's")
			}
			return nil
		}
		e.w.mu.Unlock()
		_, err := e.e.Plan(context.Background(), func(ctx context.Context) error {
			_, err := e.e.CreateNetwork(ctx, "", decode[hcn.HostComputeNetwork](e, netDoc("lab", "NAT", 9)))
			return err
		})
		e.wantCode(err, hcn.ErrUnspecified)
		e.w.mu.Lock()
		e.w.fail = nil
		e.w.mu.Unlock()
	})
}

// everything is what a change would leave traces in.
func (e *env) everything() string {
	e.t.Helper()
	e.settle()
	var b strings.Builder
	b.WriteString(e.w.text())
	e.e.mu.RLock()
	defer e.e.mu.RUnlock()
	st := e.e.st
	fmt.Fprintln(&b, "revision", st.rev, "sequence", st.seq, "events", e.e.LastEvent(), st.settings)
	for _, db := range []interface{ Revision() (uint64, error) }{e.db, e.passing} {
		rev, err := db.Revision()
		e.ok(err)
		fmt.Fprintln(&b, "stored", rev)
	}
	for _, keys := range [][]hcn.GUID{slices.Sorted(maps.Keys(st.networks)), slices.Sorted(maps.Keys(st.endpoints)), slices.Sorted(maps.Keys(st.namespaces))} {
		fmt.Fprintln(&b, keys)
	}
	fmt.Fprintln(&b, st.addrs, st.ports, st.lastAddr)
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	fmt.Fprintln(&b, e.w.held)
	e.w.writes = nil
	return b.String()
}

// rehearse gives what would be written, in the form of the world's log.
func (e *env) rehearse(name string, do func(ctx context.Context) error) []string {
	e.t.Helper()
	p, err := e.e.Plan(context.Background(), do)
	if err != nil {
		e.t.Fatalf("ask about %s: %v", name, err)
	}
	var out []string
	for _, o := range p.Objects {
		for _, c := range o.Changes {
			out = append(out, o.Object+" "+c.Text)
		}
	}
	slices.Sort(out)
	return out
}

// wrote is what was written to the kernel since the last look.
func (e *env) wrote() []string {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	out := slices.Clone(e.w.writes)
	slices.Sort(out)
	e.w.writes = nil
	return out
}
