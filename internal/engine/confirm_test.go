package engine

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// link is a LAN with a router and others, some of whom do not answer.
type link struct {
	mu              sync.Mutex
	routers, others []netip.Addr
	silent          []netip.Addr
	asked           int
}

func (l *link) Neighbours(context.Context, string) (routers, others []netip.Addr, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.routers, l.others, nil
}

func (l *link) Ask(ctx context.Context, _ string, who []netip.Addr, within time.Duration) ([]netip.Addr, error) {
	l.mu.Lock()
	l.asked++
	out := slices.DeleteFunc(slices.Clone(who), func(a netip.Addr) bool { return slices.Contains(l.silent, a) })
	l.mu.Unlock()
	if len(out) < len(who) {
		select {
		case <-time.After(within):
		case <-ctx.Done():
		}
	}
	return out, nil
}

func (l *link) silence(who ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = who
}

var (
	router  = netip.MustParseAddr("10.9.0.2")
	router6 = netip.MustParseAddr("fd00:9::2")
	printer = netip.MustParseAddr("10.9.0.9")
	laptop  = netip.MustParseAddr("10.9.0.10")
)

// onLAN gives the daemon a NIC, and somebody behind it.
func (e *env) onLAN() *link {
	e.w.mu.Lock()
	e.w.facts.NICs = []plan.NIC{
		{Name: "eth1", Index: 3, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 1}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}},
		{Name: "eth2", Index: 4, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0xee, 2}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.1/24")}},
	}
	e.w.mu.Unlock()
	l := &link{routers: []netip.Addr{router, router6}, others: []netip.Addr{printer, laptop}}
	e.e.opt.Reach = l
	return l
}

func (e *env) tentative(name string, within time.Duration) (api.Tentative, error) {
	return e.e.CreateNetworkFor(context.Background(), decode[hcn.HostComputeNetwork](e, netDoc(name, "Transparent", 9)), within)
}

func (e *env) named(name string) int {
	return len(e.e.Networks(filter(e, `{"Name":"`+name+`"}`)))
}

// TestConfirm: a network that is confirmed stays, over a restart too, and one that is not goes
// when its time is over, and no sooner.
func TestConfirm(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		made := must(e.tentative("lan", time.Minute))(e)
		if until := time.Until(made.ConfirmBy); until < 59*time.Second || until > time.Minute {
			e.t.Errorf("confirm within %s, want a minute", until)
		}
		if list := e.e.Unconfirmed(); len(list) != 1 || list[0].Name != "lan" || list[0].NIC != "eth1" {
			e.t.Errorf("waiting: %+v", list)
		}
		_, err := e.e.CreateNetworkFor(context.Background(), decode[hcn.HostComputeNetwork](e, netDoc("second", "Transparent", 8)), time.Minute)
		e.wantKind(err, api.KindConflict)
		time.Sleep(50 * time.Second)
		e.ok(e.e.Confirm(context.Background(), "lan"))
		e.wantKind(e.e.Confirm(context.Background(), "lan"), api.KindConflict)
		e.settle()
		e.restart()
		if e.named("lan") != 1 {
			e.t.Fatal("a network that was confirmed is gone")
		}
		e.ok(e.e.DeleteNetwork(context.Background(), made.Network.ID))
		e.onLAN()
		must(e.tentative("lan", time.Minute))(e)
		time.Sleep(58 * time.Second)
		if e.named("lan") != 1 {
			e.t.Error("the network was undone before its time")
		}
		time.Sleep(4 * time.Second)
		if e.named("lan") != 0 || len(e.e.Unconfirmed()) != 0 {
			e.t.Error("a network that nobody confirmed is still there")
		}
		e.wantKind(e.e.Confirm(context.Background(), "lan"), api.KindNotFound)
	})
}

// TestConfirmRefuses what has no effect.
func TestConfirmRefuses(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		for _, d := range []time.Duration{0, -time.Second, time.Millisecond, 25 * time.Hour} {
			_, err := e.tentative("lan", d)
			e.wantKind(err, api.KindInvalid)
		}
		_, err := e.e.CreateNetworkFor(context.Background(), decode[hcn.HostComputeNetwork](e, netDoc("x", "NAT", 8)), time.Minute)
		e.wantKind(err, api.KindInvalid)
		e.wantKind(e.e.Confirm(context.Background(), "nat"), api.KindConflict)
	})
}

// TestUnconfirmedAfterACrash: a daemon that is killed, at whatever step, or stopped, undoes the
// network when it starts, long before its time is over.
func TestUnconfirmedAfterACrash(t *testing.T) {
	for _, step := range []string{"", "apply", "apply-devices", "apply-switch", "apply-up", "reach"} {
		t.Run(step, func(t *testing.T) {
			run(t, func(e *env) {
				e.onLAN()
				if step != "" {
					e.cutAt(step, 1)
				}
				done := make(chan struct{})
				go func() {
					defer close(done)
					_, _ = e.tentative("lan", time.Hour) // a killed daemon answers nobody
				}()
				time.Sleep(2 * time.Minute)
				e.cutAt("", 0)
				e.kill()
				<-done
				e.start()
				if e.named("lan") != 0 {
					e.t.Error("the network is there after the restart")
				}
			})
		})
	}
}

// TestReachIsLost: a network that takes those away who answered before is undone, at once or
// while it waits to be confirmed; one after which others fall asleep is not.
func TestReachIsLost(t *testing.T) {
	for name, tc := range map[string]struct {
		routers, others, silent []netip.Addr
		lost                    bool
	}{
		"all answer":              {[]netip.Addr{router, router6}, []netip.Addr{printer}, nil, false},
		"the router is gone":      {[]netip.Addr{router, router6}, []netip.Addr{printer}, []netip.Addr{router}, true},
		"in one family":           {[]netip.Addr{router, router6}, nil, []netip.Addr{router6}, true},
		"a laptop sleeps":         {[]netip.Addr{router}, []netip.Addr{laptop}, []netip.Addr{laptop}, false},
		"one of two sleeps":       {nil, []netip.Addr{printer, laptop}, []netip.Addr{laptop}, false},
		"nobody is left":          {nil, []netip.Addr{printer, laptop}, []netip.Addr{printer, laptop}, true},
		"there never was anybody": {nil, nil, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				l := e.onLAN()
				l.routers, l.others = tc.routers, tc.others
				e.w.mu.Lock()
				e.onStep = map[string]func(){"reach": func() { l.silence(tc.silent...) }}
				e.w.mu.Unlock()
				_, err := e.network(netDoc("lan", "Transparent", 9))
				if (err != nil) != tc.lost {
					e.t.Errorf("creating it: %v, want lost: %t", err, tc.lost)
				}
				if err != nil && !strings.Contains(err.Error(), tc.silent[0].String()) {
					e.t.Errorf("%v does not say who is gone", err)
				}
				if tc.lost == (e.named("lan") == 1) {
					e.t.Errorf("lost: %t, networks: %d", tc.lost, e.named("lan"))
				}
				// And while it waits.
				l.silence()
				for _, id := range e.e.Networks(filter(e, `{"Name":"lan"}`)) {
					e.ok(e.e.DeleteNetwork(context.Background(), id))
				}
				must(e.tentative("lan", time.Hour))(e)
				time.Sleep(time.Minute)
				l.silence(tc.silent...)
				time.Sleep(time.Minute)
				if tc.lost == (e.named("lan") == 1) {
					e.t.Errorf("while it waits, lost: %t, networks: %d", tc.lost, e.named("lan"))
				}
				if !tc.lost {
					e.ok(e.e.Confirm(context.Background(), "lan"))
				}
			})
		})
	}
}

// TestReachIsNotAskedForNothing: a network that is refused, or only asked about, asks nobody.
func TestReachIsNotAskedForNothing(t *testing.T) {
	run(t, func(e *env) {
		l := e.onLAN()
		doc := decode[hcn.HostComputeNetwork](e, netDoc("lan", "Transparent", 9))
		_, err := e.e.Plan(context.Background(), func(ctx context.Context) error {
			_, err := e.e.CreateNetworkFor(ctx, doc, time.Minute)
			return err
		})
		e.ok(err)
		doc.Name = DefaultNetworkName
		_, err = e.e.CreateNetwork(context.Background(), "", doc)
		e.wantCode(err, hcn.ErrNetworkAlreadyExists)
		if l.asked != 0 {
			e.t.Errorf("asked %d times", l.asked)
		}
	})
}

// attachFor attaches an endpoint that has to be confirmed.
func (e *env) attachFor(ns, ep hcn.GUID, within time.Duration) error {
	return e.e.Tentatively(context.Background(), within, func(ctx context.Context) error {
		return e.e.ModifyNamespace(ctx, ns, decode[*hcn.ModifyNamespaceSettingRequest](e, `{"ResourceType":"Endpoint","RequestType":"Add","Settings":{"EndpointId":"`+string(ep)+`"}}`))
	})
}

func (e *env) attached(ep hcn.GUID) bool {
	return !must(e.e.Endpoint(ep))(e).HostComputeNamespace.IsZero()
}

// TestConfirmAttachment: an endpoint that is attached to a network on a NIC is detached again when nobody confirms it, when the
// router falls silent, and after the daemon's death; confirmed, it stays. What attaches nothing there is refused, and so is a second one.
func TestConfirmAttachment(t *testing.T) {
	run(t, func(e *env) {
		l := e.onLAN()
		lan := must(e.network(netDoc("lan", "Transparent", 9)))(e)
		nat := must(e.network(netDoc("inside", "NAT", 7)))(e)
		a, b, inside := must(e.endpoint(epDoc(lan.ID, "")))(e), must(e.endpoint(epDoc(lan.ID, "")))(e), must(e.endpoint(epDoc(nat.ID, "")))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)

		e.wantKind(e.attachFor(ns.ID, a.ID, time.Millisecond), api.KindInvalid)
		e.wantKind(e.attachFor(ns.ID, inside.ID, time.Minute), api.KindInvalid)
		if e.attached(inside.ID) {
			e.t.Error("what was refused is attached")
		}
		e.wantCode(e.attachFor(ns.ID, hcn.NewGUID(), time.Minute), hcn.ErrEndpointNotFound)

		e.ok(e.attachFor(ns.ID, a.ID, time.Minute))
		if list := e.e.Unconfirmed(); len(list) != 1 || list[0].Endpoint != a.ID || list[0].NIC != "eth1" {
			e.t.Errorf("waiting: %+v", list)
		}
		e.wantKind(e.attachFor(ns.ID, b.ID, time.Minute), api.KindConflict)
		_, err := e.e.CreateNetworkFor(context.Background(), decode[hcn.HostComputeNetwork](e, netDoc("second", "Transparent", 8)), time.Minute)
		e.wantKind(err, api.KindConflict)
		time.Sleep(58 * time.Second)
		if !e.attached(a.ID) {
			e.t.Error("undone before its time")
		}
		time.Sleep(4 * time.Second)
		if e.attached(a.ID) || len(e.e.Unconfirmed()) != 0 {
			e.t.Error("what nobody confirmed is still attached")
		}

		e.ok(e.attachFor(ns.ID, a.ID, time.Minute))
		e.ok(e.e.Confirm(context.Background(), string(a.ID)))
		e.settle()
		if !e.e.view.port(plan.EndpointPortID(a.ID)).ConfirmBy.IsZero() {
			e.t.Error("the switch still has a time for what is confirmed")
		}
		time.Sleep(2 * time.Minute)
		if !e.attached(a.ID) {
			e.t.Error("what was confirmed is undone")
		}

		e.ok(e.attachFor(ns.ID, b.ID, time.Hour))
		l.silence(router)
		time.Sleep(time.Minute)
		if e.attached(b.ID) || !e.attached(a.ID) {
			e.t.Error("the router is silent: want the second one detached, and the first one left")
		}
		err = e.attachFor(ns.ID, b.ID, time.Hour) // it was silent before, so nobody is missed
		e.ok(err)
		l.silence()
		e.kill()
		e.start()
		e.onLAN()
		if e.attached(b.ID) || !e.attached(a.ID) {
			e.t.Error("after the daemon's death: want the second one detached, and the first one left")
		}
	})
}

// TestConfirmOverRestarts: a container that restarts takes along what its endpoint waits for. What nobody confirmed is attached again by
// no policy, and by no start of the daemon or the host, but by a user.
func TestConfirmOverRestarts(t *testing.T) {
	begin := func(e *env) (c string, ep hcn.GUID) {
		e.onLAN()
		must(e.network(netDoc("lan", "Transparent", 9)))(e)
		c = e.started("c", []string{"run"}, restart("always", 0))
		e.ok(e.e.Tentatively(bg, time.Minute, func(ctx context.Context) error {
			return e.e.ConnectContainer(ctx, "c", api.NetworkAttachment{Network: "lan"})
		}))
		return c, must(e.e.Container(c))(e).Endpoints[1].ID
	}
	restarted := func(e *env, c string) {
		n := e.state(c).RestartCount
		time.Sleep(backoffReset + time.Second) // it starts again without a wait
		e.endContainer(c, 1)
		time.Sleep(time.Second)
		if e.wantStatus(c, api.StatusRunning, 0); e.state(c).RestartCount != n+1 {
			e.t.Fatalf("restarted %d times, want %d", e.state(c).RestartCount, n+1)
		}
	}
	want := func(e *env, when string, ep hcn.GUID, attached bool, waiting int) {
		e.t.Helper()
		if e.attached(ep) != attached || len(e.e.Unconfirmed()) != waiting {
			e.t.Errorf("%s: attached %t, waiting %+v; want %t and %d", when, e.attached(ep), e.e.Unconfirmed(), attached, waiting)
		}
	}
	for name, undo := range map[string]func(*env){
		"time":   func(*env) { time.Sleep(time.Minute) },
		"router": func(e *env) { e.onLAN().silence(router); time.Sleep(20 * time.Second) },
		"daemon": func(e *env) { e.kill(); e.start(); e.onLAN() },
		"host":   func(e *env) { e.reboot(); e.onLAN(); time.Sleep(time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(e *env) {
				c, ep := begin(e)
				l := e.e.opt.Reach.(*link)
				by := e.e.Unconfirmed()[0].By
				restarted(e, c)
				want(e, "after a restart", ep, true, 1)
				if list := e.e.Unconfirmed(); len(list) == 1 && !list[0].By.Equal(by) {
					e.t.Errorf("waits until %s, want %s", list[0].By, by)
				}
				if name == "router" {
					l.silence(router)
				}
				undo(e)
				want(e, "undone", ep, false, 0)
				restarted(e, c)
				want(e, "undone and restarted", ep, false, 0)
				e.restart()
				e.onLAN()
				restarted(e, c)
				want(e, "after a restart of the daemon", ep, false, 0)
				e.ok(e.e.RestartContainer(bg, c, api.StopRequest{}))
				want(e, "restarted by the user", ep, true, 0)
				restarted(e, c)
				want(e, "restarted after that", ep, true, 0)
			})
		})
	}
	t.Run("confirmed", func(t *testing.T) {
		run(t, func(e *env) {
			c, ep := begin(e)
			e.ok(e.e.RestartContainer(bg, c, api.StopRequest{}))
			want(e, "restarted by the user", ep, true, 1)
			e.ok(e.e.StopContainer(bg, c, api.StopRequest{}))
			want(e, "stopped", ep, false, 1)
			e.ok(e.e.Confirm(bg, "c"))
			e.ok(e.e.StartContainer(bg, c))
			time.Sleep(2 * time.Minute)
			want(e, "confirmed", ep, true, 0)
		})
	})
	t.Run("stopped until it was over", func(t *testing.T) {
		run(t, func(e *env) {
			c, ep := begin(e)
			e.ok(e.e.StopContainer(bg, c, api.StopRequest{}))
			time.Sleep(2 * time.Minute)
			want(e, "over", ep, false, 0)
			e.w.startErr = errors.New("no such file or directory")
			err := e.e.Tentatively(bg, time.Hour, func(ctx context.Context) error { return e.e.StartContainer(ctx, c) })
			e.w.startErr = nil
			if err == nil {
				e.t.Error("a start that fails succeeds")
			}
			want(e, "not started", ep, false, 0)
			e.ok(e.e.StartContainer(bg, c))
			want(e, "started by the user", ep, true, 0)
		})
	})
	t.Run("detached", func(t *testing.T) {
		run(t, func(e *env) {
			c, ep := begin(e)
			e.ok(e.modifyNamespace(must(e.e.Container(c))(e).Namespace, "Remove", "Endpoint", string(ep)))
			want(e, "by the user", ep, false, 0)
			restarted(e, c)
			want(e, "and restarted", ep, true, 0)
		})
	})
}

// TestNetworkUnderTheConnection: who asks from afar by a NIC gets a network on it only if it is undone without a word, and moves none there.
func TestNetworkUnderTheConnection(t *testing.T) {
	run(t, func(e *env) {
		e.onLAN()
		doc := decode[hcn.HostComputeNetwork](e, netDoc("lan", "Transparent", 9))
		by := ByWay(context.Background(), netip.MustParseAddr("::ffff:10.9.0.1"))
		_, err := e.e.CreateNetwork(by, "", doc)
		e.wantCode(err, hcn.ErrRequestUnsupported)
		if !strings.Contains(err.Error(), "eth1") || e.named("lan") != 0 {
			e.t.Errorf("refused with %v, and networks: %d", err, e.named("lan"))
		}
		e.ok(e.e.DeleteNetwork(by, must(e.e.CreateNetwork(ByWay(context.Background(), netip.MustParseAddr("10.8.0.1")), "", doc))(e).ID))
		other := must(e.network(netDoc("other", "Transparent", 8)))(e)
		move := decode[hcn.ModifyNetworkSettingRequest](e, `{"ResourceType":"Policy","RequestType":"Update","Settings":{"Policies":[{"Type":"NetAdapterName","Settings":{"NetworkAdapterName":"eth1"}}]}}`)
		e.wantCode(e.e.ModifyNetwork(by, other.ID, &move), hcn.ErrSharedSwitchModification)
		macvlan := decode[hcn.HostComputeNetwork](e, netDoc("macvlan", "Transparent", 9))
		macvlan.Policies = append(macvlan.Policies, hcn.NewNetworkPolicy(hcn.Macvlan, hcn.EmptySetting{}))
		onIt := must(e.e.CreateNetwork(by, "", macvlan))(e)
		turn := decode[hcn.ModifyNetworkSettingRequest](e, `{"ResourceType":"Policy","RequestType":"Remove","Settings":{"Policies":[{"Type":"Bulkhead.Macvlan","Settings":{}}]}}`)
		e.wantCode(e.e.ModifyNetwork(by, onIt.ID, &turn), hcn.ErrRequestUnsupported)
		e.ok(e.e.DeleteNetwork(by, onIt.ID))
		must(e.e.CreateNetworkFor(by, doc, time.Minute))(e)
	})
}
