package overlay

import (
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzKeys: a key that is read makes the same key again.
func FuzzKeys(f *testing.F) {
	k := keys{"/test"}
	n, h, e := guid(0xb, 1), guid(0xa, 1), guid(0xe, 1)
	for _, s := range []string{
		k.schema(), k.allocator(), k.host(h), k.forgotten(h), k.network(n), k.block(n, netip.MustParsePrefix("10.0.0.0/28")), k.endpoint(n, h, e),
		k.token("aa"), "/test/v1/", "/test/v1/hosts/", "/test/v1/blocks//", "/other/x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		p, err := k.parse(key)
		if err != nil {
			return
		}
		again := map[kind]string{
			kindSchema: k.schema(), kindAllocator: k.allocator(), kindHost: k.host(p.id), kindForgotten: k.forgotten(p.id), kindNetwork: k.network(p.id),
			kindBlock: k.block(p.network, p.prefix), kindEndpoint: k.endpoint(p.network, p.host, p.id), kindToken: key,
		}[p.kind]
		if again != key {
			t.Errorf("%q is read as %+v, which makes %q", key, p, again)
		}
	})
}

// FuzzCache: whatever is in etcd, the cache holds, and what counts is sound; taking all of it out again leaves nothing.
func FuzzCache(f *testing.F) {
	k := keys{"/test"}
	n, h, e := testNetwork("blue", 4096, "10.77.0.0/20", "fd77::/64"), guid(0xa, 1), guid(0xe, 1)
	host := Host{ID: h, Name: "h1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	p := netip.MustParsePrefix("10.77.0.16/28")
	ep := endpoint(n, e, "web", netip.MustParseAddr("10.77.0.17"))
	for _, s := range [][2]string{
		{k.schema(), `{"version":1}`},
		{k.host(h), encode(&host)},
		{k.network(n.ID), encode(&n)},
		{k.block(n.ID, p), encode(block{Host: h})},
		{k.endpoint(n.ID, h, e), encode(&ep)},
		{k.forgotten(h), `{"name":"x"}`},
		{k.allocator(), `{"vni":4}`},
	} {
		f.Add(s[0], s[1], s[0], strings.Replace(s[1], "1", "2", 1))
	}
	f.Fuzz(func(t *testing.T, key1, value1, key2, value2 string) {
		c := newCache(k, guid(0xa, 9))
		good := []entry{
			{key: k.host(h), value: []byte(encode(&host))},
			{key: k.network(n.ID), value: []byte(encode(&n))},
			{key: k.block(n.ID, p), value: []byte(encode(block{Host: h}))},
			{key: k.endpoint(n.ID, h, e), value: []byte(encode(&ep))},
		}
		hostile := []entry{{key: key1, value: []byte(value1)}, {key: key2, value: []byte(value2)}, {key: key1, value: []byte(value2)}}
		for i, en := range append(append([]entry(nil), good...), hostile...) {
			en.created, en.rev = int64(i+1), int64(i+1)
			c.put(en)
		}
		sound(t, c)
		for _, en := range append(good, hostile...) {
			c.put(entry{key: en.key, deleted: true, rev: 100})
		}
		if left := c.known(); len(left) > 0 || len(c.claims)+len(c.byHost)+len(c.endpoints)+len(c.blocks) > 0 {
			t.Errorf("left: %v, %v %v %v", left, c.claims, c.byHost, c.count)
		}
	})
}

// sound says whether what counts is what it should be: the one invariant that everything else is for.
func sound(t *testing.T, c *cache) {
	t.Helper()
	vnis := map[uint32]bool{}
	for id := range c.networks {
		it, _ := c.network(id)
		if it == nil {
			continue
		}
		if vnis[it.v.VNI] || it.v.VNI < minVNI || it.v.VNI > maxVNI {
			t.Errorf("VNI %d", it.v.VNI)
		}
		vnis[it.v.VNI] = true
	}
	for net, of := range c.endpoints {
		has := map[netip.Addr]bool{}
		for id := range of {
			it, _ := c.endpoint(net, id)
			if it == nil {
				continue
			}
			for _, a := range it.v.Addrs {
				if has[a] {
					t.Errorf("two endpoints of %s have %s", net, a)
				}
				has[a] = true
			}
			if !utf8.ValidString(it.v.Name) || strings.ContainsAny(it.v.Name, "\x1b\n") || it.v.MAC[0]&1 != 0 {
				t.Errorf("endpoint %+v", it.v)
			}
		}
	}
}

// FuzzToken: what is read is what makes the same token again.
func FuzzToken(f *testing.F) {
	good := Token{Addrs: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:2391")}, CA: strings.Repeat("ab", 32), ID: randomHex(8), Secret: randomHex(16)}
	f.Add(good.String())
	f.Add("bulkhead1.e30")
	f.Add("bulkhead1.")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again.String() != tok.String() {
			t.Errorf("%q: %v", s, err)
		}
	})
}
