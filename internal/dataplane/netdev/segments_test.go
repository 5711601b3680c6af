package netdev

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// sizes is what `ip -d link` says of a device's segments, for IPv6 and for all families that have no setting of their own.
func sizes(t *testing.T, n *Netdev, netns, device string) plan.Segments {
	t.Helper()
	var l link
	var ok bool
	look := func() error {
		c, err := n.openConn()
		if err != nil {
			return err
		}
		defer c.close()
		l, ok, err = c.linkByName(device)
		return err
	}
	var err error
	if netns == "" {
		err = n.home.do(look)
	} else {
		var s *space
		ps := n.newPass(t.Context(), true)
		defer ps.close()
		if s, err = ps.space(netns); err == nil {
			l, ok, err = s.conn.linkByName(device)
		}
	}
	if err != nil || !ok {
		t.Fatalf("look at %s: %v, %v", device, ok, err)
	}
	if l.segments != l.gather {
		t.Errorf("%s sends segments of%s and gathers%s", device, l.segments, l.gather)
	}
	return l.segments
}

// TestBigSegments: both ends of a pair are born with the sizes of the plan, follow it, and go back to the kernel's.
func TestBigSegments(t *testing.T) {
	t.Parallel()
	_, n := open(t)
	f, err := n.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	big := f.Segments
	if big.IP6 != plan.MaxSegment {
		t.Fatalf("this kernel takes%s, want BIG TCP for IPv6 from 5.19 on", big)
	}
	p := onlyNetwork()
	ns, ep := addEndpoint(p, 1)
	ep.VNIC.Segments = big
	apply(t, n, &plan.Plan{}, p)
	check := func(want plan.Segments) {
		t.Helper()
		for _, place := range [][2]string{{"", ep.Device}, {ns.Path, "eth0"}} {
			got := sizes(t, n, place[0], place[1])
			if got.IP6 != orDefault(want.IP6) || big.IP4 > 0 && got.IP4 != orDefault(want.IP4) {
				t.Errorf("%s in %q takes%s, want%s", place[1], place[0], got, want)
			}
		}
		quiet(t, n, p)
	}
	check(big)
	for _, want := range []plan.Segments{{}, {IP6: 100_000}, big} {
		old, next := *p, *ep
		next.VNIC.Segments = want
		p = &plan.Plan{Host: old.Host, Namespaces: old.Namespaces, Ports: maps.Clone(old.Ports)}
		ep = &next
		p.Ports[ep.ID] = ep
		apply(t, n, &old, p)
		check(want)
	}
}

func TestAbility(t *testing.T) {
	t.Parallel()
	small, huge := plan.Segments{IP4: 65536, IP6: 65536}, 524280
	old := plan.Segments{IP6: 65536}
	for _, c := range []struct {
		lo   link
		want plan.Segments
	}{
		{link{index: 1}, plan.Segments{}},
		{link{index: 1, segments: old}, plan.Segments{}},
		{link{index: 1, segments: old, gather: old, most: huge}, plan.Segments{IP6: plan.MaxSegment}},
		{link{index: 1, segments: small, gather: small, most: huge}, plan.Segments{IP4: plan.MaxSegment, IP6: plan.MaxSegment}},
		{link{index: 1, segments: small, gather: small, most: 65536}, plan.Segments{}},
		{link{index: 2, segments: small, gather: small, most: huge}, plan.Segments{}},
	} {
		if got := ability([]link{c.lo}); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.lo, got, c.want)
		}
	}
	if got := strings.TrimSpace(fmt.Sprint(plan.Segments{IP4: 1, IP6: 2})); got != "gso_max_size 2 gso_ipv4_max_size 1" {
		t.Error(got)
	}
}
