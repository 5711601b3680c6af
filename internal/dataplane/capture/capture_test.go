package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gopacket/gopacket/pcapgo"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// sink keeps what is written; live is closed by the first flush.
type sink struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	once sync.Once
	live chan struct{}
	fail error
}

func newSink() *sink { return &sink{live: make(chan struct{})} }

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return 0, s.fail
	}
	return s.buf.Write(p)
}

func (s *sink) Flush() error {
	s.once.Do(func() { close(s.live) })
	return nil
}

// lab is two hosts with a cable.
func lab(t *testing.T) (a, b *testhost.Host, c *Capturer) {
	t.Helper()
	a, b = testhost.New(t, testhost.WithName("a")), testhost.New(t, testhost.WithName("b"))
	a.Connect(b, testhost.Cable{Dev: "c0", PeerDev: "c0", Addrs: []string{"10.1.0.1/24", "2001:db8::1/64"}, PeerAddrs: []string{"10.1.0.2/24", "2001:db8::2/64"}})
	return a, b, &Capturer{Enter: func(_ string, fn func() error) (err error) { a.Do(func() { err = fn() }); return err }}
}

func (s *sink) run(t *testing.T, c *Capturer, o Options, traffic func()) (err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, o, s) }()
	select {
	case <-s.live:
	case err := <-done:
		t.Fatalf("it ends before it is live: %v", err)
	}
	traffic()
	if o.Packets == 0 && o.Duration == 0 {
		cancel()
	}
	return <-done
}

func source(dev string) []Source {
	return []Source{{Namespace: "a", Device: dev, Name: "web/eth0", Comment: "endpoint web"}}
}

// TestRun captures pings of both families, and reads them with the library's reader and with tcpdump.
func TestRun(t *testing.T) {
	a, _, c := lab(t)
	s := newSink()
	err := s.run(t, c, Options{Sources: source("c0"), Snaplen: 64, Version: "1", Duration: 2 * time.Second, Filter: Filter{
		Protocol: "icmp", Hosts: [][]netip.Prefix{{netip.MustParsePrefix("10.1.0.2/32"), netip.MustParsePrefix("2001:db8::2/128")}},
	}}, func() {
		for _, to := range []string{"10.1.0.2", "2001:db8::2"} {
			ping(t, a, to)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := pcapgo.NewNgReader(bytes.NewReader(s.buf.Bytes()), pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		data, ci, opts, err := r.ReadPacketDataWithOptions()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		way := map[pcapgo.NgEpbFlag]string{pcapgo.NgEpbFlagDirectionInbound: "in ", pcapgo.NgEpbFlagDirectionOutbound: "out "}[opts.Flags.Direction]
		got = append(got, way+testhost.Describe(data)[:4])
		if ci.CaptureLength != min(64, ci.Length) || ci.Length < 42 || time.Since(ci.Timestamp).Abs() > time.Minute {
			t.Errorf("%d of %d bytes, at %s", ci.CaptureLength, ci.Length, ci.Timestamp)
		}
	}
	text := tcpdump(t, s.buf.Bytes())
	for _, want := range []string{"10.1.0.1 > 10.1.0.2: ICMP echo request", "10.1.0.2 > 10.1.0.1: ICMP echo reply", "2001:db8::1 > 2001:db8::2: ICMP6, echo request", "2001:db8::2 > 2001:db8::1: ICMP6, echo reply"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("tcpdump does not see %q once:\n%s", want, text)
		}
	}
	if len(got) < 4 || !strings.HasPrefix(got[0], "out") || !strings.HasPrefix(got[1], "in") {
		t.Errorf("packets %q", got)
	}
	intf, err := r.Interface(0)
	if err != nil {
		t.Fatal(err)
	}
	if st := intf.Statistics; intf.Name != "web/eth0" || intf.Comment != "endpoint web" || intf.SnapLength != 64 ||
		st.PacketsReceived < 4 || st.PacketsDropped != 0 || st.EndTime.IsZero() {
		t.Errorf("interface %+v", intf)
	}
}

func ping(t *testing.T, h *testhost.Host, to string) {
	t.Helper()
	if err := h.Ping(netip.MustParseAddr(to)); err != nil {
		t.Error(err)
	}
}

func tcpdump(t *testing.T, file []byte) string {
	t.Helper()
	path := t.TempDir() + "/x.pcapng"
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "tcpdump", "-n", "-r", path).CombinedOutput()
	if err != nil {
		t.Fatalf("tcpdump: %v\n%s", err, out)
	}
	return string(out)
}

// TestEnds has captures end for every reason there is.
func TestEnds(t *testing.T) {
	a, _, c := lab(t)
	t.Run("duration", func(t *testing.T) {
		if err := newSink().run(t, c, Options{Sources: source("c0"), Duration: 50 * time.Millisecond}, func() {}); err != nil {
			t.Error(err)
		}
	})
	t.Run("reader leaves", func(t *testing.T) {
		if err := newSink().run(t, c, Options{Sources: source("c0")}, func() {}); err != nil {
			t.Error(err)
		}
	})
	t.Run("output fails", func(t *testing.T) {
		s, gone := newSink(), errors.New("gone")
		err := s.run(t, c, Options{Sources: source("c0"), Packets: 100}, func() {
			s.mu.Lock()
			s.fail = gone
			s.mu.Unlock()
			_ = a.Ping(netip.MustParseAddr("10.1.0.2"))
		})
		if !errors.Is(err, gone) {
			t.Errorf("it ends with %v", err)
		}
	})
	t.Run("device goes", func(t *testing.T) {
		a.Run(t, "ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1")
		a.Up("gone0")
		if err := newSink().run(t, c, Options{Sources: source("gone0"), Packets: 1}, func() { a.Run(t, "ip", "link", "del", "gone0") }); err != nil {
			t.Error(err)
		}
	})
	t.Run("no device", func(t *testing.T) {
		if err := c.Run(t.Context(), Options{Sources: source("nowhere0")}, newSink()); err == nil || !strings.Contains(err.Error(), "web/eth0") {
			t.Errorf("it ends with %v", err)
		}
	})
	// A packet socket of ours would be listed; so would a promiscuous device.
	if out := a.Run(t, "sh", "-c", "tail -n +2 /proc/self/net/packet; ip -o link | grep PROMISC; true"); strings.TrimSpace(out) != "" {
		t.Errorf("left behind: %s", out)
	}
}

// TestLosses floods a small buffer that nobody reads.
func TestLosses(t *testing.T) {
	a, _, _ := lab(t)
	filter, err := Filter{}.program(MaxSnaplen)
	if err != nil {
		t.Fatal(err)
	}
	var s *socket
	a.Do(func() { s, err = openSocket("c0", filter, 4096) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for range 100 {
		ping(t, a, "10.1.0.2")
	}
	received, dropped, err := s.stats()
	if err != nil || received < 200 || dropped < 100 || dropped >= received {
		t.Errorf("%d packets, %d lost, %v", received, dropped, err)
	}
	if again, still, err := s.stats(); err != nil || again < received || still < dropped {
		t.Errorf("asked again: %d packets, %d lost, %v", again, still, err)
	}
}
