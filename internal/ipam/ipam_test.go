package ipam

import (
	"errors"
	"net/netip"
	"testing"

	"go4.org/netipx"
	"pgregory.net/rapid"
)

// TestAddrAgainstModel holds the picker against the slow, obvious way: list
// every address of the pool, go round from the last pick, take the first free.
func TestAddrAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := netip.MustParsePrefix("10.0.0.0/27")
		var ranges []Range
		var all []netip.Addr
		at := base.Addr()
		for range rapid.IntRange(1, 3).Draw(t, "ranges") {
			for range rapid.IntRange(0, 3).Draw(t, "gap") {
				at = at.Next()
			}
			from := at
			n := rapid.IntRange(1, 6).Draw(t, "size")
			for i := range n {
				all = append(all, at)
				if i < n-1 {
					at = at.Next()
				}
			}
			ranges = append(ranges, netipx.IPRangeFrom(from, at))
			at = at.Next()
		}
		taken := map[netip.Addr]bool{}
		reserved := map[netip.Addr]bool{}
		for _, a := range all {
			taken[a] = rapid.Bool().Draw(t, "taken")
			reserved[a] = rapid.IntRange(0, 4).Draw(t, "reserved") == 0
		}
		var after netip.Addr
		begin := 0
		if rapid.Bool().Draw(t, "has after") {
			i := rapid.IntRange(0, len(all)-1).Draw(t, "after")
			after, begin = all[i], i+1
		}
		want := netip.Addr{}
		for i := range all {
			if a := all[(begin+i)%len(all)]; !taken[a] && !reserved[a] {
				want = a
				break
			}
		}
		pool := Pool{Ranges: ranges, Reserved: func(a netip.Addr) bool { return reserved[a] }}
		got, err := pool.Addr(func(a netip.Addr) bool { return taken[a] }, after)
		if want.IsValid() != (err == nil) || got != want {
			t.Fatalf("got %v, %v; want %v", got, err, want)
		}
		if err != nil && !errors.Is(err, ErrExhausted) {
			t.Fatalf("error %v is not ErrExhausted", err)
		}
	})
}

func TestFreePrefix(t *testing.T) {
	pool := []netip.Prefix{netip.MustParsePrefix("10.231.0.0/16")}
	parse := func(ss ...string) (out []netip.Prefix) {
		for _, s := range ss {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for name, tc := range map[string]struct {
		used []netip.Prefix
		want string
	}{
		"nothing used":              {nil, "10.231.0.0/24"},
		"first used":                {parse("10.231.0.0/24"), "10.231.1.0/24"},
		"a host route":              {parse("10.231.0.77/32"), "10.231.1.0/24"},
		"half the pool":             {parse("10.231.0.0/17"), "10.231.128.0/24"},
		"default route is no clash": {parse("0.0.0.0/0"), "10.231.0.0/24"},
		"all of it":                 {parse("10.0.0.0/8"), ""},
		"other family":              {parse("fd00::/8"), "10.231.0.0/24"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := FreePrefix(pool, 24, tc.used)
			if tc.want == "" {
				if !errors.Is(err, ErrExhausted) {
					t.Fatalf("got %v, %v; want ErrExhausted", got, err)
				}
				return
			}
			if err != nil || got.String() != tc.want {
				t.Fatalf("got %v, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestMACIsStableAndInPool(t *testing.T) {
	pool := []MACRange{MACPool("network")}
	taken := map[[6]byte]bool{}
	first := map[string][6]byte{}
	for i := range 4096 {
		id := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()
		m, err := MAC(pool, id, func(m [6]byte) bool { return taken[m] })
		if err != nil {
			t.Fatalf("pick %d: %v", i, err)
		}
		if taken[m] {
			t.Fatalf("%x given twice", m)
		}
		if m[0] != 0 || m[1] != 0x15 || m[2] != 0x5d {
			t.Fatalf("%x is outside the pool", m)
		}
		taken[m], first[id] = true, m
	}
	if _, err := MAC(pool, "one more", func(m [6]byte) bool { return taken[m] }); !errors.Is(err, ErrExhausted) {
		t.Fatalf("full pool: %v", err)
	}
	again, err := MAC(pool, "10.0.0.7", func([6]byte) bool { return false })
	want, _ := MAC(pool, "10.0.0.7", func([6]byte) bool { return false })
	if err != nil || again != want {
		t.Fatalf("same identity: %x and %x", again, want)
	}
}

func TestULAIsStable(t *testing.T) {
	a, b := ULA("machine", 1), ULA("machine", 1)
	if a != b || a == ULA("machine", 2) || a == ULA("other", 1) {
		t.Fatal("a ULA must follow from machine and number alone")
	}
	if !netip.MustParsePrefix("fd00::/8").Contains(a.Addr()) {
		t.Fatalf("%v is not locally assigned", a)
	}
}
