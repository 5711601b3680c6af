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
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// lan is a server on a LAN. It outlives the daemon.
type lan struct {
	silent bool
	// gives maps an endpoint to the address that it has.
	gives map[hcn.GUID]netip.Addr
	next  netip.Addr
	life  time.Duration
	dns   netip.Addr
	gone  bool // the NIC
	asked int  // how often a session was begun

	users     map[netip.Addr]plan.MAC // who else is there
	probed    []netip.Addr
	announced []netip.Addr
	// onAnnounce is called, with the world locked, before it.
	onAnnounce func()
}

func newLANServer() *lan {
	return &lan{gives: map[hcn.GUID]netip.Addr{}, next: netip.MustParseAddr("10.9.0.100"), life: time.Hour, dns: netip.MustParseAddr("10.9.0.53")}
}

// fakeLeases is one daemon's client on that LAN.
type fakeLeases struct {
	w      *world
	gen    int
	engine func() *Engine
	states map[hcn.GUID]*LeaseState
	wants  map[hcn.GUID]LeaseWant
}

func (f *fakeLeases) Sync(_ context.Context, wants []LeaseWant) {
	f.w.mu.Lock()
	if f.gen != f.w.gen {
		f.w.mu.Unlock()
		return
	}
	had := f.states
	f.states, f.wants = map[hcn.GUID]*LeaseState{}, map[hcn.GUID]LeaseWant{}
	for _, w := range wants {
		if w.Parked {
			continue
		}
		f.wants[w.Endpoint] = w
		if st := had[w.Endpoint]; st != nil {
			f.states[w.Endpoint] = st
			continue
		}
		f.w.lan.asked++
		st := &LeaseState{Endpoint: w.Endpoint, Source: plan.LeaseDHCPv4, Phase: "asking"}
		if l, ok := w.Stored[plan.LeaseDHCPv4]; ok && !l.Over(time.Now()) {
			st.Phase, st.Lease = "bound", &l
		}
		f.states[w.Endpoint] = st
	}
	f.w.mu.Unlock()
	f.ask()
}

// ask has the server answer those who have nothing, or renew.
func (f *fakeLeases) ask() {
	f.w.mu.Lock()
	var try []hcn.GUID
	for id := range f.states {
		try = append(try, id)
	}
	f.w.mu.Unlock()
	slices.Sort(try)
	for _, id := range try {
		f.askFor(id)
	}
	f.engine().LeasesChanged()
}

func (f *fakeLeases) askFor(id hcn.GUID) {
	f.w.mu.Lock()
	srv, st := f.w.lan, f.states[id]
	if srv.silent {
		if st.Lease == nil {
			st.Problem = "no answer from any DHCP server"
		}
		f.w.mu.Unlock()
		return
	}
	a, ok := srv.gives[id]
	if !ok {
		a = srv.next
	}
	f.w.mu.Unlock()
	err := f.engine().AdmitLease(id, a)
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if err != nil {
		st.Problem = "offers what cannot be used: " + err.Error()
		return
	}
	if !ok {
		srv.next = a.Next()
	}
	srv.gives[id] = a
	now := time.Now()
	st.Phase, st.Problem = "bound", ""
	st.Lease = &plan.Lease{
		Addrs:  []plan.LeasedAddress{{Prefix: netip.PrefixFrom(a, 24), Valid: now.Add(srv.life)}},
		Routes: []plan.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.9.0.1")}, {Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("10.9.0.7"), Metric: 1}},
		DNS:    []netip.Addr{srv.dns}, Search: []string{"lan.example"}, MTU: 1400,
		Server: netip.MustParseAddr("10.9.0.1"), Got: now, T1: now.Add(srv.life / 2), Expires: now.Add(srv.life),
	}
}

// lose ends a lease as a refusal of the server does.
func (f *fakeLeases) lose(id hcn.GUID) {
	f.w.mu.Lock()
	f.states[id].Lease, f.states[id].Problem = nil, "the server refused it"
	f.w.mu.Unlock()
	f.engine().LeasesChanged()
}

func (f *fakeLeases) States() (out []LeaseState) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	for _, st := range f.states {
		out = append(out, *st)
	}
	return out
}

func (f *fakeLeases) GiveBack(_ context.Context, w LeaseWant) error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	switch {
	case f.gen != f.w.gen:
		return errKilled
	case f.w.lan.gone:
		return errors.New("no such device")
	case w.Device != "nic1" || len(w.Stored) == 0:
		return fmt.Errorf("a strange farewell: %+v", w)
	}
	delete(f.w.lan.gives, w.Endpoint)
	return nil
}

func (f *fakeLeases) Probe(_ context.Context, w LeaseWant, addrs []netip.Addr, wait time.Duration) (map[netip.Addr]plan.MAC, error) {
	time.Sleep(wait)
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if w.Namespace != "" || w.Device == "" || w.MAC == (plan.MAC{}) {
		return nil, fmt.Errorf("asked from nowhere: %+v", w)
	}
	f.w.lan.probed = append(f.w.lan.probed, addrs...)
	used := map[netip.Addr]plan.MAC{}
	for _, a := range addrs {
		if mac, ok := f.w.lan.users[a]; ok {
			used[a] = mac
		}
	}
	return used, nil
}

func (f *fakeLeases) Announce(_ context.Context, w LeaseWant, addrs []netip.Addr) error {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	if w.Device == "" || w.MAC == (plan.MAC{}) {
		return fmt.Errorf("announced from nowhere: %+v", w)
	}
	if f.w.lan.onAnnounce != nil {
		f.w.lan.onAnnounce()
	}
	f.w.lan.announced = append(f.w.lan.announced, addrs...)
	return nil
}

func (f *fakeLeases) Close() {}

// lanDoc names no ipam: a Transparent network then leaves addresses to its LAN.
const lanDoc = `{"Name":"lan","Type":"Transparent",` + v2 + `}`

// onLAN is a test on a host with a NIC on a LAN that has a server.
func onLAN(t *testing.T, fn func(e *env, n hcn.HostComputeNetwork)) {
	t.Helper()
	run(t, func(e *env) {
		e.w.mu.Lock()
		e.w.facts.NICs = []plan.NIC{{Name: "nic1", Index: 7, MTU: 1500, Up: true, MAC: plan.MAC{2, 0, 0, 0, 0, 7}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}}}
		e.w.facts.HostAddrs = []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}
		e.w.mu.Unlock()
		fn(e, must(e.network(lanDoc))(e))
	})
}

func onNetwork(name string) func(*api.ContainerSpec) {
	return func(s *api.ContainerSpec) { s.Networks = []api.NetworkAttachment{{Network: name}} }
}

func (e *env) givenTo() map[hcn.GUID]netip.Addr {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return maps.Clone(e.w.lan.gives)
}

func (e *env) lanServer(change func(*lan)) {
	e.w.mu.Lock()
	change(e.w.lan)
	e.w.mu.Unlock()
	e.leases.ask()
}

func (e *env) wantAddress(id, want string) api.ContainerEndpoint {
	e.t.Helper()
	e.settle()
	ep := must(e.e.Container(id))(e).Endpoints[0]
	if got := strings.Join(ep.Addresses, " "); got != want {
		e.t.Fatalf("addresses %q, want %q: %s", got, want, toJSON(ep))
	}
	if text := e.w.text(); strings.Contains(text, "[10.9.0.") != (want != "") || want != "" && !strings.Contains(text, "["+want+"]") {
		e.t.Errorf("the kernel has not %q\n%s", want, text)
	}
	return ep
}

// TestLease: a container that starts has what the LAN gave, everywhere.
func TestLease(t *testing.T) {
	onLAN(t, func(e *env, n hcn.HostComputeNetwork) {
		if toJSON(n.Ipams) != `[{"Type":"Dhcp"}]` {
			t.Errorf("the network shows the ipams %s", toJSON(n.Ipams))
		}
		if _, err := e.network(strings.Replace(lanDoc, `"lan"`, `"none","Ipams":[{"Type":"Static"}]`, 1)); hcn.CodeOf(err) != hcn.ErrInvalidNetwork ||
			!strings.Contains(err.Error(), "leave Ipams out for DHCP") {
			t.Errorf("static addresses without a subnet: %v", err)
		}
		waiting := must(e.endpoint(`{"Name":"later","HostComputeNetwork":"` + string(n.ID) + `",` + v2 + `}`))(e)
		if len(waiting.IpConfigurations) != 0 {
			t.Errorf("an endpoint without a lease shows %s", toJSON(waiting.IpConfigurations))
		}
		ctx, cancel := context.WithCancel(bg)
		defer cancel()
		events := must(e.e.Subscribe(ctx, e.e.LastEvent()))(e)
		id := e.started("web", []string{"run"}, onNetwork("lan"))
		e.w.mu.Lock()
		cfg := e.w.ctrs[id].cfg
		e.w.mu.Unlock()
		if cfg.ResolvConf != "nameserver 10.9.0.53\nsearch lan.example\n" || !strings.Contains(cfg.Hosts, "10.9.0.100\t") {
			t.Errorf("started with\n%s%s", cfg.ResolvConf, cfg.Hosts)
		}
		ep := e.wantAddress(id, "10.9.0.100/24")
		if fmt.Sprint(ep.Gateways) != "[10.9.0.1]" || len(ep.Leases) != 1 || ep.Leases[0].Server != "10.9.0.1" || ep.Leases[0].State != "bound" {
			t.Errorf("endpoint %s", toJSON(ep))
		}
		doc := must(e.e.Endpoint(ep.ID))(e)
		if toJSON(doc.IpConfigurations) != `[{"IpAddress":"10.9.0.100","PrefixLength":24}]` || toJSON(doc.Routes) != `[{"NextHop":"10.9.0.1","DestinationPrefix":"0.0.0.0/0"}]` ||
			fmt.Sprint(doc.Dns.ServerList) != "[10.9.0.53]" {
			t.Errorf("document %s", toJSON(doc))
		}
		if text := e.w.text(); !strings.Contains(text, "mtu 1400") {
			t.Errorf("the MTU of the lease is not there:\n%s", text)
		}
		if all := toJSON(e.e.Addresses()); !strings.Contains(all, `"10.9.0.100"`) {
			t.Errorf("addresses %s", all)
		}
		want := e.leases.wants[ep.ID]
		if want.Hostname != "web" || want.Device != "eth0" || !strings.HasPrefix(want.Namespace, "/run/netns/hns-") || !want.IPv4 || !want.IPv6 {
			t.Errorf("asked for %+v", want)
		}
		found := false
		for len(events) > 0 {
			ev := <-events
			found = found || ev.Kind == "endpoint" && ev.Action == "lease" && ev.Attributes["addresses"] == "10.9.0.100/24"
		}
		if !found {
			t.Error("no event tells of the lease")
		}
	})
}

// TestLeaseSilence: a start does not wait for ever, and leaves nothing.
func TestLeaseSilence(t *testing.T) {
	onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
		e.lanServer(func(l *lan) { l.silent = true })
		c := must(e.create("web", []string{"run"}, onNetwork("lan")))(e)
		begin := time.Now()
		err := e.e.StartContainer(bg, c.ID)
		e.wantKind(err, api.KindUnavailable)
		if took := time.Since(begin); took < DefaultLeaseWait || took > DefaultLeaseWait+time.Second {
			t.Errorf("failed after %s", took)
		}
		if !strings.Contains(err.Error(), `no address from the LAN of network "lan" within 30s: no answer from any DHCP server`) {
			t.Errorf("error %v", err)
		}
		e.wantStatus(c.ID, api.StatusFailed, 125)
		if text := e.w.text(); strings.Contains(text, "eth0") {
			t.Errorf("left over:\n%s", text)
		}
		// One that runs is joined to the LAN by the same rule.
		other := e.started("other", []string{"run"})
		err = e.e.ConnectContainer(bg, other, api.NetworkAttachment{Network: "lan"})
		e.wantKind(err, api.KindInternal)
		if got := must(e.e.Container(other))(e).Endpoints; len(got) != 1 {
			t.Errorf("endpoints %s", toJSON(got))
		}
		e.lanServer(func(l *lan) { l.silent = false })
		e.ok(e.e.StartContainer(bg, c.ID))
		e.wantAddress(c.ID, "10.9.0.100/24")
		e.ok(e.e.ConnectContainer(bg, other, api.NetworkAttachment{Network: "lan"}))
	})
}

// TestLeaseCut: a daemon that dies while it notes a lease finishes or undoes the start.
func TestLeaseCut(t *testing.T) {
	for _, cut := range []string{"lease", "apply", "launch"} {
		onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
			c := must(e.create("web", []string{"run"}, onNetwork("lan")))(e)
			e.cutAt(cut, 1)
			_ = e.e.StartContainer(bg, c.ID)
			e.settle()
			e.cutAt("", 0)
			e.revive()
			e.settle()
			if got := e.state(c.ID).Status; got != api.StatusRunning && got != api.StatusCreated {
				t.Errorf("cut at %s: %s", cut, got)
			}
			e.ok(e.e.StartContainer(bg, c.ID))
			e.wantAddress(c.ID, "10.9.0.100/24")
		})
	}
}

// TestLeaseChanges: what the server changes or ends reaches the container.
func TestLeaseChanges(t *testing.T) {
	onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
		id := e.started("web", []string{"run"}, onNetwork("lan"))
		ep := e.wantAddress(id, "10.9.0.100/24")
		rev := e.revision()
		e.lanServer(func(l *lan) { l.life = 65 * time.Minute }) // times alone, not by a quarter
		e.settle()
		if now := e.revision(); now != rev {
			t.Errorf("%d writes for some minutes", now-rev)
		}
		e.lanServer(func(l *lan) { l.gives[ep.ID] = netip.MustParseAddr("10.9.0.222") })
		e.wantAddress(id, "10.9.0.222/24")
		e.leases.lose(ep.ID)
		if now := e.wantAddress(id, ""); now.Leases[0].Problem != "the server refused it" || len(now.Gateways) != 0 {
			t.Errorf("endpoint %s", toJSON(now))
		}
		checks := toJSON(e.e.Doctor(bg))
		if !strings.Contains(checks, "the server refused it") {
			t.Errorf("the doctor says %s", checks)
		}
		e.lanServer(func(*lan) {})
		e.wantAddress(id, "10.9.0.222/24")
	})
}

// TestLeaseFiles: what a lease says of names is in the containers' files as long as they run, also of one that shares the compartment,
// and after a death of the daemon in between.
func TestLeaseFiles(t *testing.T) {
	onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
		id := e.started("web", []string{"run"}, onNetwork("lan"))
		side := e.started("side", []string{"run"}, func(s *api.ContainerSpec) { s.NetworkMode = "container:web" })
		files := func() string {
			e.settle()
			e.w.mu.Lock()
			defer e.w.mu.Unlock()
			a, b := e.w.ctrs[id].cfg, e.w.ctrs[side].cfg
			if a.ResolvConf != b.ResolvConf {
				t.Errorf("they differ: %q, %q", a.ResolvConf, b.ResolvConf)
			}
			return a.ResolvConf + a.Hosts
		}
		if got := files(); !strings.Contains(got, "nameserver 10.9.0.53\n") || !strings.Contains(got, "10.9.0.100\t") {
			t.Errorf("at first %s", got)
		}
		ep := must(e.e.Container(id))(e).Endpoints[0].ID
		e.lanServer(func(l *lan) { l.dns, l.gives[ep] = netip.MustParseAddr("10.9.0.54"), netip.MustParseAddr("10.9.0.222") })
		if got := files(); !strings.Contains(got, "nameserver 10.9.0.54\n") || !strings.Contains(got, "10.9.0.222\t") || strings.Contains(got, "10.9.0.100\t") {
			t.Errorf("then %s", got)
		}
		e.w.mu.Lock()
		e.w.ctrs[id].cfg.ResolvConf, e.w.ctrs[side].cfg.ResolvConf = "old", "old" // as a daemon leaves it that dies before it writes
		e.w.mu.Unlock()
		e.kill()
		e.start()
		if got := files(); !strings.Contains(got, "nameserver 10.9.0.54\n") {
			t.Errorf("after a death %s", got)
		}
	})
}

// TestLeaseKept: an address is the endpoint's while its container is stopped, over the daemon's death, and until the lease ends.
func TestLeaseKept(t *testing.T) {
	onLAN(t, func(e *env, n hcn.HostComputeNetwork) {
		id := e.started("web", []string{"run"}, onNetwork("lan"))
		ep := e.wantAddress(id, "10.9.0.100/24")
		e.w.mu.Lock()
		e.w.writes = nil
		e.w.mu.Unlock()
		for _, again := range []func(){e.restart, func() { e.kill(); e.start() }} {
			again()
			e.settle()
			if len(e.w.writes) > 0 {
				t.Errorf("a restart writes %v", e.w.writes)
			}
		}
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		e.settle()
		if got := must(e.e.Endpoint(ep.ID))(e); addrs(got) != "10.9.0.100/24" {
			t.Errorf("stopped: %s", toJSON(got))
		}
		if _, err := e.endpoint(epDoc(n.ID, `"IpConfigurations":[{"IpAddress":"10.9.0.100","PrefixLength":24}]`)); !errors.Is(err, hcn.ErrAddrInvalidOrReserved) {
			t.Errorf("given away: %v", err)
		}
		if len(e.givenTo()) != 1 {
			t.Error("given back by a stop")
		}
		e.ok(e.e.StartContainer(bg, id))
		e.wantAddress(id, "10.9.0.100/24")
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		time.Sleep(2 * time.Hour)
		e.settle()
		if got := must(e.e.Endpoint(ep.ID))(e); len(got.IpConfigurations) != 0 {
			t.Errorf("after the lease's end: %s", toJSON(got))
		}
	})
}

// TestLeaseReleased: the server learns of an endpoint's end, whatever it was doing and whatever befalls the daemon.
func TestLeaseReleased(t *testing.T) {
	ends := map[string]func(e *env, id string, n hcn.GUID) error{
		"rm":         func(e *env, id string, _ hcn.GUID) error { return e.e.RemoveContainer(bg, id, true) },
		"disconnect": func(e *env, id string, _ hcn.GUID) error { return e.e.DisconnectContainer(bg, id, "lan") },
		"network":    func(e *env, _ string, n hcn.GUID) error { return e.e.DeleteNetwork(bg, n) },
		"stopped": func(e *env, id string, _ hcn.GUID) error {
			if err := e.e.StopContainer(bg, id, api.StopRequest{}); err != nil {
				return err
			}
			return e.e.RemoveContainer(bg, id, false)
		},
	}
	for name, end := range ends {
		for _, cut := range []string{"", "apply", "cut", "half-stored", "farewell", "farewell-said"} {
			t.Run(name+" "+cut, func(t *testing.T) {
				onLAN(t, func(e *env, n hcn.HostComputeNetwork) {
					id := e.started("web", []string{"run"}, onNetwork("lan"))
					e.wantAddress(id, "10.9.0.100/24")
					e.cutAt(cut, 1)
					_ = end(e, id, n.ID)
					e.settle()
					e.cutAt("", 0)
					e.revive()
					e.settle()
					_ = end(e, id, n.ID) // what was cut before it was stored
					e.settle()
					if got := e.givenTo(); len(got) != 0 {
						t.Errorf("not given back: %v", got)
					}
					e.e.mu.RLock()
					defer e.e.mu.RUnlock()
					if len(e.e.st.farewells) != 0 {
						t.Errorf("farewells that were said are kept: %s", toJSON(e.e.st.farewells))
					}
				})
			})
		}
	}
}

// TestFarewellWaits for a NIC that is away, and is given up when the lease has ended by itself.
func TestFarewellWaits(t *testing.T) {
	onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
		for _, away := range []time.Duration{5 * time.Minute, 2 * time.Hour} {
			id := e.started("web", []string{"run"}, onNetwork("lan"))
			e.lanServer(func(l *lan) { l.gone = true })
			e.ok(e.e.RemoveContainer(bg, id, true))
			time.Sleep(away)
			if len(e.givenTo()) != 1 {
				t.Error("given back by a NIC that is not there")
			}
			e.lanServer(func(l *lan) { l.gone = false })
			e.settle()
			if has := len(e.givenTo()); has != 0 && away < time.Hour {
				t.Error("not given back when the NIC came")
			}
			e.e.mu.RLock()
			if len(e.e.st.farewells) != 0 {
				t.Error("still to be said")
			}
			e.e.mu.RUnlock()
			e.lanServer(func(l *lan) { clear(l.gives) })
		}
	})
}

// TestLeaseNotOurs: addresses that an endpoint cannot have, whoever offers them.
func TestLeaseNotOurs(t *testing.T) {
	onLAN(t, func(e *env, n hcn.HostComputeNetwork) {
		must(e.endpoint(epDoc(n.ID, `"Name":"fixed","IpConfigurations":[{"IpAddress":"10.9.0.50","PrefixLength":24}]`)))(e)
		first := e.started("first", []string{"run"}, onNetwork("lan"))
		e.wantAddress(first, "10.9.0.100/24")
		for offered, why := range map[string]string{
			"10.9.0.2": "one of this host", "10.9.0.50": `belongs to endpoint "fixed"`, "10.9.0.100": `belongs to endpoint "first"`, "10.9.0.1": "gateway of endpoint",
		} {
			e.lanServer(func(l *lan) { l.next = netip.MustParseAddr(offered) })
			c := must(e.create("second-"+offered, []string{"run"}, onNetwork("lan")))(e)
			err := e.e.StartContainer(bg, c.ID)
			if err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("offered %s: %v, want %q", offered, err, why)
			}
		}
		e.wantAddress(first, "10.9.0.100/24")
	})
}

// TestLeaseInStaticNetwork: a single endpoint may ask, of a network whose others have fixed addresses, within its subnets.
func TestLeaseInStaticNetwork(t *testing.T) {
	onLAN(t, func(e *env, lanNet hcn.HostComputeNetwork) {
		e.ok(e.e.DeleteNetwork(bg, lanNet.ID))
		n := must(e.network(`{"Name":"office","Type":"Transparent",` + v2 + `,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.9.0.0/24","Routes":[{"NextHop":"10.9.0.254","DestinationPrefix":"0.0.0.0/0"}]}]}]}`))(e)
		ns := must(e.namespace(`{` + v2 + `}`))(e)
		ep := must(e.endpoint(epDoc(n.ID, `"Flags":32`)))(e)
		if len(ep.IpConfigurations) != 0 || ep.Flags != hcn.EnableDhcp {
			t.Errorf("made %s", toJSON(ep))
		}
		e.ok(e.attach(ns.ID, ep.ID)) // HCN clients do not wait: an endpoint has no address until it is leased
		e.settle()
		got := must(e.e.Endpoint(ep.ID))(e)
		sub := n.Ipams[0].Subnets[0].ID
		if toJSON(got.IpConfigurations) != fmt.Sprintf(`[{"IpAddress":"10.9.0.100","PrefixLength":24,"IpSubnetId":%q}]`, sub) {
			t.Errorf("leased %s", toJSON(got))
		}
		// The network's gateway is the administrator's word.
		if toJSON(got.Routes) != `[{"NextHop":"10.9.0.254","DestinationPrefix":"0.0.0.0/0"}]` {
			t.Errorf("routes %s", toJSON(got.Routes))
		}
		if w := e.leases.wants[ep.ID]; w.IPv6 || fmt.Sprint(w.Within) != "[10.9.0.0/24]" {
			t.Errorf("asked for %+v", w)
		}
	})
}

// TestLeaseLacks: what is missing of DHCP is told beside what is missing of IPv6, whatever state it is in.
func TestLeaseLacks(t *testing.T) {
	onLAN(t, func(e *env, _ hcn.HostComputeNetwork) {
		e.lanServer(func(l *lan) { l.silent = true })
		c := must(e.create("web", []string{"run"}, onNetwork("lan")))(e)
		id := must(e.e.Container(c.ID))(e).Endpoints[0].ID
		offered := &plan.Lease{Addrs: []plan.LeasedAddress{{Prefix: netip.MustParsePrefix("10.9.0.5/24")}}, Server: netip.MustParseAddr("10.9.0.1")}
		router := LeaseState{Endpoint: id, Source: plan.LeaseRouter, Phase: "asking", Problem: "no router"}
		for _, tc := range []struct {
			st   LeaseState
			want string
		}{
			{LeaseState{Phase: "asking"}, "no DHCP server has answered yet; no router"},
			{LeaseState{Phase: "asking", Pending: offered}, "server 10.9.0.1 has offered 10.9.0.5/24 and not yet answered the request for it; no router"},
			{LeaseState{Phase: phaseProbing, Pending: offered}, "server 10.9.0.1 gives 10.9.0.5/24, and the LAN is still being asked whether somebody has it; no router"},
			{LeaseState{Phase: "waiting", Problem: "server refused"}, "server refused; no router"},
		} {
			tc.st.Endpoint, tc.st.Source = id, plan.LeaseDHCPv4
			e.e.leases.note(map[leaseKey]LeaseState{{id, plan.LeaseDHCPv4}: tc.st, {id, plan.LeaseRouter}: router})
			err := e.e.missingLease([]hcn.GUID{id}, 5*time.Second, true)
			if err == nil || !strings.Contains(err.Error(), "within 5s: "+tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		}
	})
}
