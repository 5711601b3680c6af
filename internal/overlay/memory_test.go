package overlay

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// known is a cache with one of everything, and what else is asked for.
func known(endpoints int) *cache {
	k := keys{"/test"}
	c := newCache(k, guid(0xa, 9))
	n, h := testNetwork("blue", 4096, "10.64.0.0/12", "fd77::/64"), guid(0xa, 1)
	n.ID, n.Doc.ID = guid(0xb, 1), guid(0xb, 1)
	host := Host{ID: h, Name: "h1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, RouterMAC: MAC{0, 0x15, 0x5d, 9, 9, 9}, Schema: Schema, Boot: "x", Keys: []HostKey{{1, [32]byte{7}, PortOf(1)}}}
	fill(c, k.schema(), encode(schemaRecord{Version: Schema, Cluster: guid(0xc, 1), Since: time.Unix(1, 0).UTC()}), k.host(h), encode(&host), k.network(n.ID), encode(&n))
	lb := hcn.HostComputeLoadBalancer{
		ID: guid(0xd, 1), HostComputeNetwork: n.ID, Name: "site", FrontendVIPs: []string{"10.96.0.10"}, HostComputeEndpoints: []hcn.GUID{guid(0xe, 0)},
		PortMappings: []hcn.LoadBalancerPortMapping{{Protocol: 6, InternalPort: 80, ExternalPort: 80}}, SchemaVersion: hcn.V2(),
	}
	fill(c, k.balancer(n.ID, h, lb.ID), encode(Balancer{ID: lb.ID, Doc: lb}))
	first := netip.MustParseAddr("10.64.0.0")
	for i, a := 0, first; i < endpoints; i, a = i+16, a.Next() {
		p, _ := a.Prefix(BlockBits(netip.MustParsePrefix("10.64.0.0/12")))
		fill(c, k.block(n.ID, p), encode(block{Host: h, Name: "h1"}))
		for range 15 {
			a = a.Next()
		}
	}
	for i, a := 0, first; i < endpoints; i, a = i+1, a.Next() {
		ep := endpoint(n, guid(0xe, i), fmt.Sprintf("web%d <&>", i), a)
		ep.Names = []string{"web"}
		fill(c, k.endpoint(n.ID, h, ep.ID), encode(&ep))
	}
	return c
}

func memoryOf(t testing.TB, c *cache) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeMemory(&b, memoryHead{memoryVersion, "/test", c.self, "boot", c.rev}, c.items()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestMemory: what is kept is read as it was, and not by another membership or after the host's restart; of a file that is not whole
// nothing is believed.
func TestMemory(t *testing.T) {
	c := known(5)
	b := memoryOf(t, c)
	read := func(b []byte, prefix string, host hcn.GUID, boot string) (*cache, error) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "known")
		write(t, path, b)
		return recall(path, prefix, host, boot)
	}
	got, err := read(b, "/test", c.self, "boot")
	if err != nil || got == nil {
		t.Fatal(err)
	}
	want, have := c.changes(), got.changes()
	if diff := cmp.Diff(want, have, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || len(have.Endpoints) != 5 || len(have.Balancers) != 1 || have.Balancers[BalancerKey{guid(0xb, 1), guid(0xa, 1), guid(0xd, 1)}] == nil {
		t.Errorf("it reads %+v (-kept +read): %s", have, diff)
	}
	for name, other := range map[string]func() (*cache, error){
		"prefix": func() (*cache, error) { return read(b, "/other", c.self, "boot") },
		"host":   func() (*cache, error) { return read(b, "/test", guid(0xa, 8), "boot") },
		"boot":   func() (*cache, error) { return read(b, "/test", c.self, "another") },
		"file":   func() (*cache, error) { return recall(filepath.Join(t.TempDir(), "none"), "/test", c.self, "boot") },
	} {
		if got, err := other(); got != nil || err != nil {
			t.Errorf("another %s: %v, %v", name, got, err)
		}
	}
	for i := 0; i < len(b)-1; i += 17 {
		if got, err := readMemory(bytes.NewReader(b[:i]), "/test", c.self, "boot"); err == nil || got != nil {
			t.Fatalf("cut after %d bytes it is believed", i)
		}
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if got, _ := readMemory(bytes.NewReader(bad), "/test", c.self, "boot"); got != nil {
			t.Fatalf("changed at %d it is believed: %q", i, bad[max(0, i-20):i+20])
		}
	}
	// The etcd may be one that was put back: what it says counts, whatever the revisions are.
	other := Host{ID: guid(0xa, 1), Name: "renamed", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}
	got.reset([]entry{{key: got.keys.host(other.ID), value: []byte(encode(&other)), created: 2, rev: got.hosts[other.ID].rev}}, 2, func(string) bool { return false })
	if u := got.changes(); got.hosts[other.ID].v.Name != "renamed" || len(got.endpoints)+len(got.networks)+len(got.blocks)+len(got.balancers.all) != 0 || len(u.Endpoints) != 5 || u.Endpoints[EndpointKey{guid(0xb, 1), guid(0xe, 3)}] != nil {
		t.Errorf("after etcd was read: %+v", u)
	}
}

// TestMemoryLarge: a value that becomes larger as it is read and written again spoils nothing else.
func TestMemoryLarge(t *testing.T) {
	c := known(1)
	n := testNetwork("green", 4097, "10.99.0.0/16")
	n.Doc.Policies = []hcn.NetworkPolicy{{Type: "NetAdapterName", Settings: []byte(`{"x":"` + strings.Repeat("<", 200<<10) + `"}`)}}
	c.networks[n.ID] = &item[Network]{v: n}
	got, err := readMemory(bytes.NewReader(memoryOf(t, c)), "/test", c.self, "boot")
	if err != nil || len(got.networks) != 1 || len(got.endpoints) != 1 {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzMemory: whatever is in the file, what counts of it is sound.
func FuzzMemory(f *testing.F) {
	good := memoryOf(f, known(2))
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte("10.64"), []byte("10.65")))
	f.Add([]byte("{}\n{}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := readMemory(bytes.NewReader(b), "/test", guid(0xa, 9), "boot"); err == nil && c != nil {
			sound(t, c)
		}
	})
}

// BenchmarkMemory: what it takes to keep 50,000 endpoints, and to read them.
func BenchmarkMemory(b *testing.B) {
	c := known(50_000)
	path := filepath.Join(b.TempDir(), "known")
	b.Run("write", func(b *testing.B) {
		a := New(Config{Prefix: "/test", Host: Host{ID: c.self, Boot: "boot"}, Memory: path, known: c})
		for b.Loop() {
			if err := a.save(); err != nil {
				b.Fatal(err)
			}
		}
		if info, err := os.Stat(path); err == nil {
			b.ReportMetric(float64(info.Size()), "bytes")
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			if got, err := recall(path, "/test", c.self, "boot"); err != nil || got == nil {
				b.Fatal(err)
			}
		}
	})
}
