package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// fill puts keys in as they were written, one after the other.
func fill(c *cache, keysAndValues ...string) {
	for i := 0; i < len(keysAndValues); i += 2 {
		c.put(entry{key: keysAndValues[i], value: []byte(keysAndValues[i+1]), created: c.rev + 1, rev: c.rev + 1})
	}
}

// TestOldestClaim: of two endpoints of a host with one address the older counts, also where somebody without a right to it was there first.
func TestOldestClaim(t *testing.T) {
	k := keys{"/test"}
	c := newCache(k, guid(0xa, 9))
	n, h, thief := testNetwork("blue", 4096, "10.77.0.0/20"), guid(0xa, 1), guid(0xa, 2)
	a := netip.MustParseAddr("10.77.0.17")
	put := func(id, host hcn.GUID) {
		ep := endpoint(n, id, "web", a)
		fill(c, k.endpoint(n.ID, host, id), encode(&ep))
	}
	for _, id := range []hcn.GUID{h, thief} {
		fill(c, k.host(id), encode(&Host{ID: id, Name: "h", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}))
	}
	fill(c, k.network(n.ID), encode(&n), k.block(n.ID, netip.MustParsePrefix("10.77.0.16/28")), encode(block{Host: h}))
	put(guid(0xe, 1), thief)
	put(guid(0xe, 2), h)
	put(guid(0xe, 3), h)
	for i, want := range []string{"in no block of its host", "", "is that of endpoint " + string(guid(0xe, 2))} {
		it, err := c.endpoint(n.ID, guid(0xe, i+1))
		if (it != nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("endpoint %d: %v, %v", i+1, it, err)
		}
	}
	sound(t, c)
}

// TestUncheckedFields: each member of a value that is used or shown has bounds.
func TestUncheckedFields(t *testing.T) {
	k := keys{"/test"}
	n := testNetwork("blue", 4096, "10.77.0.0/20")
	bad := n
	bad.By = "me"
	h := Host{ID: guid(0xa, 1), Name: "h", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Session: "a\x1b[2J"}
	for key, value := range map[string]string{
		k.block(n.ID, netip.MustParsePrefix("10.77.0.16/28")): `{"host":"me"}`,
		k.forgotten(guid(0xa, 1)):                             `{"name":"x","by":"\u001b[2J"}`,
		k.schema():                                            `{"version":1,"cluster":"mine"}`,
		k.network(n.ID):                                       encode(&bad),
		k.host(h.ID):                                          encode(&h),
	} {
		c := newCache(k, guid(0xa, 9))
		fill(c, key, value)
		if len(c.problems) != 1 || len(c.hosts)+len(c.networks)+len(c.blocks) > 0 || c.schema != nil {
			t.Errorf("%s: %s is taken: %v", key, value, c.problems)
		}
	}
}

// TestUnnamedProblems: those beyond what is named are counted for as long as they are there.
func TestUnnamedProblems(t *testing.T) {
	k := keys{"/test"}
	c := newCache(k, guid(0xa, 9))
	for i := range maxProblems + 10 {
		fill(c, fmt.Sprintf("/test/v1/x%d", i), "x", fmt.Sprintf("/test/v1/x%d", i), "y") // twice: it is one
	}
	if len(c.problems) != maxProblems || len(c.unnamed) != 10 {
		t.Errorf("%d named, %d not", len(c.problems), len(c.unnamed))
	}
	for i := range maxProblems + 10 {
		c.put(entry{key: fmt.Sprintf("/test/v1/x%d", i), deleted: true, rev: c.rev + 1})
	}
	if len(c.problems)+len(c.unnamed) != 0 {
		t.Errorf("%d and %d are left", len(c.problems), len(c.unnamed))
	}
	for i := range maxProblems + 10 {
		fill(c, fmt.Sprintf("/test/v1/x%d", i), "x")
	}
	if c.reset(nil, c.rev, func(string) bool { return false }); len(c.problems)+len(c.unnamed) != 0 {
		t.Errorf("%d and %d are left by a snapshot without them", len(c.problems), len(c.unnamed))
	}
}
