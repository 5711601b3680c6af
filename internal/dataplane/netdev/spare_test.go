package netdev

import (
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// guarded counts the devices that have a program on them beforehand.
type guarded struct{ now, ever atomic.Int64 }

func (g *guarded) guard(int) (func(), error) {
	g.now.Add(1)
	g.ever.Add(1)
	return func() { g.now.Add(-1) }, nil
}

// openSpares opens a host whose pool has pairs: one endpoint was made there.
func openSpares(t *testing.T, pool int) (*testhost.Host, *Netdev, *guarded, *plan.Plan) {
	t.Helper()
	h, g := testhost.New(t), &guarded{}
	n := openWith(t, h, Options{StateDir: "/var/lib/bulkhead", Pool: pool, Guard: g.guard})
	testhost.Eventually(t, 5*time.Second, n.pool.filled)
	if id, _ := n.Promise(); id != "" || strings.Contains(h.Run(t, "ip", "-o", "link"), "bhp") {
		t.Error("there are pairs before any endpoint")
	}
	p := onlyNetwork()
	addEndpoint(p, 1)
	apply(t, n, &plan.Plan{}, p)
	testhost.Eventually(t, 5*time.Second, n.pool.filled)
	return h, n, g, p
}

// withSpare is p and an endpoint with an ID of a spare, if ok.
func withSpare(t *testing.T, n *Netdev, p *plan.Plan, i int) (next *plan.Plan, ep *plan.Port) {
	t.Helper()
	id, _ := n.Promise()
	if id == "" {
		t.Fatal("there is no spare")
	}
	next = onlyNetwork()
	maps.Copy(next.Namespaces, p.Namespaces)
	maps.Copy(next.Ports, p.Ports)
	_, ep = addEndpoint(next, i)
	delete(next.Ports, ep.ID)
	ep.ID = plan.EndpointPortID(id)
	ep.Device, ep.Alias = plan.DeviceName(plan.PortPrefix, ep.ID), plan.Alias("port", string(id), "n")
	next.Ports[ep.ID] = ep
	return next, ep
}

func spares(t *testing.T, h *testhost.Host) int {
	t.Helper()
	return strings.Count(h.Run(t, "ip", "-o", "link"), "alias "+spareAlias)
}

func TestSpareBecomesAPort(t *testing.T) {
	t.Parallel()
	h, n, g, p := openSpares(t, 3)
	if got := spares(t, h); got != 2 || g.now.Load() != 2 {
		t.Errorf("%d spares, %d guarded, want 2 of 3", got, g.now.Load())
	}
	if out := h.Run(t, "sh", "-c", "ip -o link | grep spare"); strings.Contains(out, "UP") {
		t.Errorf("a spare is up:\n%s", out)
	}
	quiet(t, n, p) // no drift, and not removed
	if left, err := n.Leftovers(t.Context(), p); err != nil || strings.Contains(strings.Join(left, " "), "link") {
		t.Errorf("left over: %v, %v", left, err)
	}
	for i, change := range []func(*plan.Port){
		func(*plan.Port) {},
		func(ep *plan.Port) { ep.VNIC.MTU, ep.VNIC.Segments = 1300, plan.Segments{IP6: 100000, IP4: 90000} },
	} {
		next, ep := withSpare(t, n, p, 2+i)
		change(ep)
		index, ever := h.Link(ep.Device).Attrs().Index, g.ever.Load()
		apply(t, n, p, next)
		if got := h.Link(ep.Device).Attrs().Index; got != index {
			t.Errorf("the port is device %d, the spare was %d", got, index)
		}
		testhost.Eventually(t, 5*time.Second, n.pool.filled)
		if g.ever.Load() != ever+1 || g.now.Load() != 2 {
			t.Errorf("%d guarded, of %d ever, want the port let go and one more made", g.now.Load(), g.ever.Load())
		}
		quiet(t, n, next)
		p = next
	}
	second := plan.NamespacePath(guid('C', 2))
	out := h.Run(t, "nsenter", "--net="+second, "ip", "addr", "show", "eth0")
	for _, want := range []string{"10.77.1.2/16", "fd77::1:2/64", "fe80::1:ff:fe00:2/64", "02:01:00:00:00:02", "LOWER_UP"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	apply(t, n, p, &plan.Plan{})
	n.Close()
	if out := h.Run(t, "ip", "-o", "link"); strings.Contains(out, "bhp") || g.now.Load() != 0 {
		t.Errorf("left behind, %d guarded:\n%s", g.now.Load(), out)
	}
}

// What becomes of a spare that does not become the port that it was promised to be.
func TestSpareIsGivenUp(t *testing.T) {
	t.Parallel()
	h, n, g, p := openSpares(t, 2)
	again := func() {
		t.Helper()
		testhost.Eventually(t, 5*time.Second, n.pool.filled)
		testhost.Eventually(t, 5*time.Second, func() error {
			if got := spares(t, h); got != 1 || g.now.Load() != 1 {
				return fmt.Errorf("%d spares, %d guarded, want 1", got, g.now.Load())
			}
			return nil
		})
		quiet(t, n, p)
	}
	for _, c := range []struct {
		name   string
		change func(ep *plan.Port)
	}{
		{"its vNIC has another name", func(ep *plan.Port) { ep.VNIC.Device = "lan0" }},
		{"somebody deleted it", func(ep *plan.Port) { h.Run(t, "ip", "link", "del", ep.Device) }},
		{"somebody renamed it", func(ep *plan.Port) { h.Run(t, "ip", "link", "set", ep.Device, "name", "stolen") }},
		{"its compartment is an old one", func(ep *plan.Port) {
			ep.VNIC.Namespace, ep.VNIC.Device = plan.NamespacePath(guid('C', 1)), "eth1"
			ep.VNIC.Routes = nil
		}},
	} {
		t.Log(c.name)
		next, ep := withSpare(t, n, p, 2)
		c.change(ep)
		apply(t, n, p, next)
		testhost.Eventually(t, 5*time.Second, n.pool.filled) // filling it writes
		quiet(t, n, next)
		if l := h.Link(ep.Device); l.Attrs().Alias != ep.Alias {
			t.Errorf("alias %q, want %q", l.Attrs().Alias, ep.Alias)
		}
		apply(t, n, next, p)
		again()
	}
	id, giveBack := n.Promise()
	giveBack()
	if same, _ := n.Promise(); same != id {
		t.Errorf("promised %s, want %s that was given back", same, id)
	}
	var none []hcn.GUID
	for range 3 {
		testhost.Eventually(t, 5*time.Second, n.pool.filled)
		more, _ := n.Promise()
		none = append(none, more)
	}
	if none[0] == "" || none[1] != "" || none[2] != "" {
		t.Errorf("beside one promise there are %q, want one: as many as the pool has", none)
	}
	if !n.pool.has(plan.DeviceName(plan.PortPrefix, plan.EndpointPortID(id))) {
		t.Error("the promised spare is not known")
	}
	n.pool.expire(time.Now().Add(promiseLife))
	giveBack()
	again()
}

// A daemon that is killed has no time to remove its spares: they go with its file descriptors.
func TestSparesDieWithTheDaemon(t *testing.T) {
	t.Parallel()
	h, n, _, p := openSpares(t, 2)
	n.Promise()
	testhost.Eventually(t, 5*time.Second, n.pool.filled)
	if got := spares(t, h); got != 2 {
		t.Errorf("%d spares, want 2", got)
	}
	close(n.pool.stop)
	<-n.pool.done
	n.pool.stop = make(chan struct{})
	for _, s := range append(n.pool.pairs, n.pool.promised[plan.EndpointPortID(promisedID(n))]) {
		s.close()
	}
	n.pool.pairs, n.pool.promised = nil, map[plan.PortID]*spare{}
	testhost.Eventually(t, 5*time.Second, func() error {
		if got := spares(t, h); got != 0 {
			return fmt.Errorf("%d spares are left", got)
		}
		return nil
	})
	quiet(t, openIn(t, h), p)
}

func promisedID(n *Netdev) (id hcn.GUID) {
	for _, s := range n.pool.promised {
		id = s.endpoint
	}
	return id
}
