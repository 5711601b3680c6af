package engine

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

var squatterMAC = plan.MAC{2, 0, 0, 0, 0, 0xbb}

// amongOthers is a test on a LAN where somebody has some addresses of a network with static ones.
func amongOthers(t *testing.T, kind string, users []string, fn func(e *env, n hcn.HostComputeNetwork)) {
	t.Helper()
	onLAN(t, func(e *env, lanNet hcn.HostComputeNetwork) {
		e.ok(e.e.DeleteNetwork(bg, lanNet.ID))
		n := must(e.network(`{"Name":"office","Type":"` + kind + `",` + v2 + `,"Ipams":[{"Subnets":[{"IpAddressPrefix":"10.9.0.0/24","Routes":[{"NextHop":"10.9.0.254","DestinationPrefix":"0.0.0.0/0"}]},
			{"IpAddressPrefix":"fd09::/64","Routes":[{"NextHop":"fd09::fe","DestinationPrefix":"::/0"}]}]}]}`))(e)
		e.settle()
		e.lanServer(func(l *lan) {
			l.users = map[netip.Addr]plan.MAC{}
			for _, a := range users {
				l.users[netip.MustParseAddr(a)] = squatterMAC
			}
		})
		fn(e, n)
	})
}

func fixed(addrs ...string) func(*api.ContainerSpec) {
	return func(s *api.ContainerSpec) {
		s.Networks = []api.NetworkAttachment{{Network: "office", Addresses: addrs}}
	}
}

func (e *env) lanSaw(what func(*lan) []netip.Addr) []netip.Addr {
	e.w.mu.Lock()
	defer e.w.mu.Unlock()
	return slices.Clone(what(e.w.lan))
}

func probedOf(l *lan) []netip.Addr    { return l.probed }
func announcedOf(l *lan) []netip.Addr { return l.announced }

// TestSquatter: an address that somebody on the LAN has is not taken from them, and nothing is half done.
func TestSquatter(t *testing.T) {
	for _, kind := range []string{"Transparent", "L2Bridge", "L2Tunnel"} {
		amongOthers(t, kind, []string{"10.9.0.40", "fd09::40"}, func(e *env, n hcn.HostComputeNetwork) {
			for _, a := range []string{"10.9.0.40", "fd09::40"} {
				want := "address " + a + " of endpoint web ("
				_, err := e.create("web", []string{"run"}, fixed(a))
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "is used by 02:00:00:00:00:bb on the LAN of nic1") {
					t.Errorf("%s: created: %v, want %q", kind, err, want)
				}
				_, err = e.endpoint(`{"Name":"ep","HostComputeNetwork":"` + string(n.ID) + `",` + v2 + `,"IpConfigurations":[{"IpAddress":"` + a + `"}]}`)
				e.wantCode(err, hcn.ErrAddrInvalidOrReserved)
			}
			if got := len(e.e.Containers()) + len(e.e.Endpoints(hcn.Filter{})); got != 0 {
				t.Errorf("%s: %d objects are left", kind, got)
			}
			joined := e.started("joined", []string{"run"})
			err := e.e.ConnectContainer(bg, joined, api.NetworkAttachment{Network: "office", Addresses: []string{"10.9.0.40"}})
			if err == nil || !strings.Contains(err.Error(), "is used by") || len(must(e.e.Container(joined))(e).Endpoints) != 1 {
				t.Errorf("%s: joined: %v", kind, err)
			}
			e.ok(e.e.ConnectContainer(bg, joined, api.NetworkAttachment{Network: "office", Addresses: []string{"10.9.0.41"}}))
			e.settle()
			if got := e.lanSaw(announcedOf); !slices.Contains(got, netip.MustParseAddr("10.9.0.41")) || slices.Contains(got, netip.MustParseAddr("10.9.0.40")) {
				t.Errorf("%s: announced %v", kind, got)
			}
		})
	}
}

// TestSquatterAvoided: the daemon chooses what nobody has, and asks once for what it makes and attaches.
func TestSquatterAvoided(t *testing.T) {
	amongOthers(t, "Transparent", []string{"10.9.0.1", "10.9.0.3", "10.9.0.4", "fd09::1", "fd09::2"}, func(e *env, _ hcn.HostComputeNetwork) {
		begun := time.Now()
		id := e.started("web", []string{"run"}, onNetwork("office"))
		ep := must(e.e.Container(id))(e).Endpoints[0]
		if got := strings.Join(ep.Addresses, " "); got != "10.9.0.5/24 fd09::3/64" {
			t.Errorf("chosen: %s", got)
		}
		if took := time.Since(begun); took > 5*DefaultProbe {
			t.Errorf("it took %s", took)
		}
		seen := map[netip.Addr]int{}
		for _, a := range e.lanSaw(probedOf) {
			if seen[a]++; seen[a] > 1 && a == netip.MustParseAddr("10.9.0.5") {
				t.Errorf("%s was asked for again", a)
			}
		}
		e.settle()
		if got := e.lanSaw(announcedOf); len(got) != 4 {
			t.Errorf("announced %v, want both addresses twice", got)
		}
	})
}

// TestSquatterLater: who takes a container's address while it is stopped keeps it from starting, until they are gone.
func TestSquatterLater(t *testing.T) {
	amongOthers(t, "Transparent", nil, func(e *env, _ hcn.HostComputeNetwork) {
		id := e.started("web", []string{"run"}, fixed("10.9.0.40"))
		e.ok(e.e.StopContainer(bg, id, api.StopRequest{}))
		e.lanServer(func(l *lan) { l.users[netip.MustParseAddr("10.9.0.40")] = squatterMAC })
		if err := e.e.StartContainer(bg, id); err == nil || !strings.Contains(err.Error(), "is used by 02:00:00:00:00:bb") {
			t.Errorf("started: %v", err)
		}
		e.wantStatus(id, api.StatusFailed, 125)
		e.settle()
		e.lanServer(func(l *lan) { clear(l.users) })
		e.ok(e.e.StartContainer(bg, id))
	})
}

// TestProxyARP: clouds and routers that answer for every address keep nobody from his on a network with one MAC; on one whose
// containers have MACs of their own they are somebody else.
func TestProxyARP(t *testing.T) {
	users := []string{"10.9.0.254", "10.9.0.40", "fd09::fe", "fd09::40"}
	amongOthers(t, "L2Bridge", users, func(e *env, _ hcn.HostComputeNetwork) {
		e.started("web", []string{"run"}, fixed("10.9.0.40", "fd09::40"))
	})
	amongOthers(t, "Transparent", users, func(e *env, _ hcn.HostComputeNetwork) {
		if _, err := e.create("web", []string{"run"}, fixed("10.9.0.40")); err == nil {
			t.Error("a squatter was taken for a proxy")
		}
	})
}

// TestNobodyToAsk: no time is lost where nobody can answer or nobody is to be asked.
func TestNobodyToAsk(t *testing.T) {
	amongOthers(t, "Transparent", []string{"10.9.0.40"}, func(e *env, _ hcn.HostComputeNetwork) {
		e.e.mu.Lock()
		e.e.facts.NICs[0].NoCarrier = true
		e.e.mu.Unlock()
		e.started("web", []string{"run"}, fixed("10.9.0.40"))
		e.e.mu.Lock()
		e.e.facts.NICs[0].NoCarrier = false
		e.e.mu.Unlock()
		e.e.opt.Probe = 0
		e.lanServer(func(l *lan) { l.users[netip.MustParseAddr("10.9.0.41")] = squatterMAC })
		e.started("other", []string{"run"}, fixed("10.9.0.41"))
		if got := e.lanSaw(probedOf); len(got) != 0 {
			t.Errorf("asked for %v", got)
		}
	})
}

// TestMoved: when a NIC has moved, the addresses of the containers on it are announced, those of their own and those of leases, and
// nobody else's.
func TestMoved(t *testing.T) {
	amongOthers(t, "L2Bridge", nil, func(e *env, _ hcn.HostComputeNetwork) {
		must(e.network(lanDoc))(e)
		e.started("leased", []string{"run"}, onNetwork("lan"))
		e.started("own", []string{"run"}, fixed("10.9.0.40", "fd09::40"))
		e.started("behind", []string{"run"})
		e.ok(e.e.StopContainer(bg, e.started("stopped", []string{"run"}, fixed("10.9.0.41")), api.StopRequest{}))
		e.settle()
		time.Sleep(announceAgain)
		announced := func(nic string) []string {
			e.lanServer(func(l *lan) { l.announced = nil })
			e.e.Moved(nic)
			time.Sleep(2 * announceAgain)
			var out []string
			for _, a := range e.lanSaw(announcedOf) {
				out = append(out, a.String())
			}
			slices.Sort(out)
			return out
		}
		if got := strings.Join(announced("nic1"), " "); got != "10.9.0.100 10.9.0.100 10.9.0.40 10.9.0.40 fd09::40 fd09::40" {
			t.Errorf("announced %s, want each address twice", got)
		}
		// With a MAC of its own, which the switch has to know first.
		e.lanServer(func(l *lan) { l.announced = nil })
		e.w.mu.Lock()
		e.w.facts.NICs = slices.Clone(e.w.facts.NICs)
		e.w.facts.NICs[0].MAC = plan.MAC{2, 0, 0, 0, 0, 9}
		e.w.lan.onAnnounce = func() {
			if text := kernelText(e.w.kernel); !strings.Contains(text, "02:00:00:00:00:09") {
				t.Errorf("announced before the switch knows the new MAC:\n%s", text)
			}
		}
		e.w.mu.Unlock()
		if got := announced("nic1"); len(got) != 6 {
			t.Errorf("with another MAC: announced %v", got)
		}
		e.lanServer(func(l *lan) { l.announced, l.onAnnounce = nil, nil })
		// By an administrator, of whom no driver tells.
		e.w.mu.Lock()
		e.w.facts.NICs = slices.Clone(e.w.facts.NICs)
		e.w.facts.NICs[0].MAC = plan.MAC{2, 0, 0, 0, 0, 10}
		e.w.mu.Unlock()
		e.e.Wake("link nic1 changed")
		time.Sleep(2 * announceAgain)
		if got := e.lanSaw(announcedOf); len(got) != 6 {
			t.Errorf("with a MAC that somebody changed: announced %v", got)
		}
		if got := announced("nic2"); len(got) != 0 {
			t.Errorf("another NIC's move: announced %v", got)
		}
		// Nobody tells of what happened while the daemon was away.
		e.restart()
		time.Sleep(2 * announceAgain)
		if got := fmt.Sprint(e.lanSaw(announcedOf)); strings.Count(got, "10.9.0.40") != 2 || strings.Count(got, "fd09::40") != 2 {
			t.Errorf("after a restart: announced %s", got)
		}
	})
}
