package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// secure makes a switch outside that shuts its port when an endpoint is attached, at once or after a time.
func (e *env) secure(l *link, after time.Duration) {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	shut := func() { l.silence(router, router6, printer, laptop) }
	e.onStep = map[string]func(){"reach-attached": func() {
		if after == 0 {
			shut()
			return
		}
		time.AfterFunc(after, shut)
	}}
}

// TestAttachmentCutsOff: whatever door an attachment to a Transparent network comes by, it fails as a whole when the switch outside shuts
// the port, and says so; where it shuts later, the endpoint is detached then. Nobody attaches it again but a user.
func TestAttachmentCutsOff(t *testing.T) {
	type result struct {
		ep  hcn.GUID
		err error
	}
	doors := map[string]func(e *env, lan hcn.HostComputeNetwork) result{
		"namespace": func(e *env, lan hcn.HostComputeNetwork) result {
			ep, ns := must(e.endpoint(epDoc(lan.ID, "")))(e), must(e.namespace(`{`+v2+`}`))(e)
			return result{ep.ID, e.attach(ns.ID, ep.ID)}
		},
		"endpoint": func(e *env, lan hcn.HostComputeNetwork) result {
			ns := must(e.namespace(`{` + v2 + `}`))(e)
			doc := decode[hcn.HostComputeEndpoint](e, epDoc(lan.ID, ""))
			doc.HostComputeNamespace = ns.ID
			ep, err := e.e.CreateEndpoint(bg, "", lan.ID, doc)
			return result{ep.ID, err}
		},
		"compartment": func(e *env, lan hcn.HostComputeNetwork) result {
			c, err := e.e.CreateCompartment(bg, api.Compartment{Namespace: hcn.HostComputeNamespace{SchemaVersion: hcn.V2()}, Endpoints: []hcn.HostComputeEndpoint{decode[hcn.HostComputeEndpoint](e, epDoc(lan.ID, ""))}})
			if err != nil {
				return result{"", err}
			}
			return result{c.Endpoints[0].ID, nil}
		},
		"connect": func(e *env, _ hcn.HostComputeNetwork) result {
			c := e.started("c", []string{"run"})
			err := e.e.ConnectContainer(bg, "c", api.NetworkAttachment{Network: "lan"})
			if eps := must(e.e.Container(c))(e).Endpoints; len(eps) == 2 {
				return result{eps[1].ID, err}
			}
			return result{"", err}
		},
		"start": func(e *env, _ hcn.HostComputeNetwork) result {
			made := must(e.create("c", []string{"run"}, onNetwork("lan")))(e)
			err := e.e.StartContainer(bg, made.ID)
			return result{must(e.e.Container(made.ID))(e).Endpoints[0].ID, err}
		},
		"tentative start": func(e *env, _ hcn.HostComputeNetwork) result {
			made := must(e.create("c", []string{"run"}, onNetwork("lan")))(e)
			err := e.e.Tentatively(bg, time.Hour, func(ctx context.Context) error { return e.e.StartContainer(ctx, made.ID) })
			return result{must(e.e.Container(made.ID))(e).Endpoints[0].ID, err}
		},
	}
	for name, door := range doors {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				l := e.onLAN()
				lan := must(e.network(netDoc("lan", "Transparent", 9)))(e)
				e.secure(l, 0)
				begin := time.Now()
				got := door(e, lan)
				if took := time.Since(begin); took > 5*time.Second {
					e.t.Errorf("took %s", took)
				}
				if got.err == nil || !errors.Is(got.err, errCutOff) || !strings.Contains(got.err.Error(), router.String()) || !strings.Contains(got.err.Error(), "port security") {
					e.t.Errorf("attached with %v", got.err)
				}
				if a := asAPI(got.err); kindOf(a) != api.KindConflict {
					e.t.Errorf("it is of kind %s", kindOf(a))
				}
				for _, id := range e.e.Endpoints(filter(e, `{}`)) {
					if ep := must(e.e.Endpoint(id))(e); ep.HostComputeNetwork == lan.ID && !ep.HostComputeNamespace.IsZero() {
						e.t.Errorf("%s is attached", id)
					}
				}
				if strings.HasSuffix(name, "start") {
					c := must(e.e.Container("c"))(e)
					if c.State.Status != api.StatusFailed || !strings.Contains(c.State.Error, router.String()) {
						e.t.Errorf("the container is %+v", c.State)
					}
					if ep := c.Endpoints[0]; len(ep.Addresses)+len(ep.Gateways) > 0 || ep.Undone == "" {
						e.t.Errorf("it shows %+v", ep)
					}
					if !slices.ContainsFunc(e.e.Doctor(bg), func(c api.Check) bool { return strings.Contains(c.Detail, "is detached again: "+router.String()) }) {
						e.t.Error("the doctor does not say so")
					}
				}
			})
		})
		if strings.HasPrefix(name, "tentative") {
			continue
		}
		t.Run(name+", a moment later", func(t *testing.T) {
			run(t, func(e *env) {
				l := e.onLAN()
				lan := must(e.network(netDoc("lan", "Transparent", 9)))(e)
				e.secure(l, 3*time.Second)
				begin := time.Now()
				got := door(e, lan)
				e.ok(got.err)
				if took := time.Since(begin); took > DefaultProbe {
					e.t.Errorf("took %s", took)
				}
				if !e.attached(got.ep) {
					e.t.Fatal("it is not attached")
				}
				time.Sleep(8 * time.Second)
				if e.attached(got.ep) {
					e.t.Error("it is attached still")
				}
			})
		})
	}
}

// TestAttachmentIsFine: somebody who goes to sleep, a NIC that is set down, a network with one MAC on the wire, and a switch that shuts
// its port long after undo nothing.
func TestAttachmentIsFine(t *testing.T) {
	for name, tc := range map[string]struct {
		kind   string
		silent []netip.Addr
		down   bool
		after  time.Duration
	}{
		"one sleeps":      {kind: "Transparent", silent: []netip.Addr{router, printer}},
		"the NIC is down": {kind: "Transparent", silent: []netip.Addr{router, router6, printer, laptop}, down: true},
		"one MAC":         {kind: "L2Bridge", silent: []netip.Addr{router, router6, printer, laptop}},
		"long after":      {kind: "Transparent", silent: []netip.Addr{router, router6, printer, laptop}, after: watchFor + 5*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				l := e.onLAN()
				lan := must(e.network(netDoc("lan", tc.kind, 9)))(e)
				ep, ns := must(e.endpoint(epDoc(lan.ID, "")))(e), must(e.namespace(`{`+v2+`}`))(e)
				e.ok(e.attach(ns.ID, ep.ID))
				time.Sleep(tc.after)
				e.e.mu.RLock()
				watched := e.e.st.endpoints[ep.ID].Attach.Watch != nil
				e.e.mu.RUnlock()
				if want := tc.kind == "Transparent" && tc.after == 0; watched != want {
					e.t.Errorf("watched: %t, want %t", watched, want)
				}
				e.w.mu.Lock()
				e.w.facts.NICs = slices.Clone(e.w.facts.NICs)
				e.w.facts.NICs[0].Up = !tc.down
				e.w.mu.Unlock()
				l.silence(tc.silent...)
				time.Sleep(time.Minute)
				if !e.attached(ep.ID) {
					e.t.Error("it is detached")
				}
			})
		})
	}
}

// TestCutOffAndADeadDaemon: a daemon that is killed before it knows that the host can be reached finds out when it starts; a container
// whose policy starts it is not attached again and again.
func TestCutOffAndADeadDaemon(t *testing.T) {
	run(t, func(e *env) {
		l := e.onLAN()
		lan := must(e.network(netDoc("lan", "Transparent", 9)))(e)
		ep, ns := must(e.endpoint(epDoc(lan.ID, "")))(e), must(e.namespace(`{`+v2+`}`))(e)
		e.ok(e.attach(ns.ID, ep.ID))
		e.kill()
		l.silence(router, router6, printer, laptop)
		e.reach = l
		e.start()
		time.Sleep(8 * time.Second)
		if e.attached(ep.ID) {
			e.t.Error("it is attached after the daemon's death")
		}
		e.ok(e.attach(ns.ID, ep.ID)) // by a user; nobody is there to miss
		e.ok(e.modifyNamespace(ns.ID, "Remove", "Endpoint", string(ep.ID)))

		l.silence()
		time.Sleep(time.Minute)
		made := must(e.create("c", []string{"run"}, restart("always", 0), onNetwork("lan")))(e)
		e.cutAt("reach-attached", 1)
		done := make(chan struct{})
		go func() { defer close(done); _ = e.e.StartContainer(bg, made.ID) }()
		time.Sleep(time.Second)
		e.cutAt("", 0)
		e.kill()
		<-done
		l.silence(router, router6, printer, laptop)
		e.start()
		time.Sleep(time.Minute)
		c := must(e.e.Container(made.ID))(e)
		if c.State.Status != api.StatusFailed || e.attached(c.Endpoints[0].ID) {
			e.t.Errorf("the container is %+v, attached: %t", c.State, e.attached(c.Endpoints[0].ID))
		}
		l.silence()
		e.ok(e.e.StartContainer(bg, made.ID))
		time.Sleep(time.Minute)
		if !e.attached(c.Endpoints[0].ID) {
			e.t.Error("a user has started it: it is not attached")
		}
	})
}

// TestUplinkChecks: the doctor says when a network's NIC is gone, is lent to another device, or is not the one with its subnet; another
// name is nothing to say.
func TestUplinkChecks(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		doctor := func(has string, want bool) {
			e.t.Helper()
			if list := e.e.Doctor(bg); slices.ContainsFunc(list, func(c api.Check) bool { return strings.Contains(c.Name+": "+c.Detail, has) }) != want {
				e.t.Errorf("%q: want %t in %+v", has, want, list)
			}
		}
		nics := func(change func([]plan.NIC) []plan.NIC) {
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			e.w.facts.NICs = change(slices.Clone(e.w.facts.NICs))
		}
		must(e.network(netDoc("lan", "Transparent", 9)))(e)
		doctor("network lan", false)
		must(e.network(strings.Replace(netDoc("wrong", "Transparent", 8), `"Ipams"`, `"Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"eth1"}}],"Ipams"`, 1)))(e)
		doctor("network wrong: subnet 10.8.0.0/24 is that of eth2", true)
		nics(func(n []plan.NIC) []plan.NIC { n[0].Name = "lan0"; return n })
		doctor("network lan", false)
		e.settle()
		doctor("network lan", false)
		nics(func(n []plan.NIC) []plan.NIC { n[0].Master = "br0"; return n })
		doctor("network lan: its NIC lan0 was made a member of br0", true)
		nics(func(n []plan.NIC) []plan.NIC { return n[1:] })
		doctor("network lan: its NIC lan0 is gone", true)
	})
}

// TestDryRunUnderTheConnection: what changes nothing is not refused for the NIC that carries the connection.
func TestDryRunUnderTheConnection(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		doc := decode[hcn.HostComputeNetwork](e, netDoc("lan", "Transparent", 9))
		by := ByWay(bg, netip.MustParseAddr("10.9.0.1"))
		_, err := e.e.Plan(by, func(ctx context.Context) error { _, err := e.e.CreateNetwork(ctx, "", doc); return err })
		e.ok(err)
		_, err = e.e.CreateNetwork(by, "", doc)
		e.wantCode(err, hcn.ErrRequestUnsupported)
	})
}
