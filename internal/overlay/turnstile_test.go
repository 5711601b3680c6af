package overlay

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestTurnstile: one address has so many connections and no more, until some of them end.
func TestTurnstile(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		t.Fatal(err)
	}
	ts := newTurnstile(ln)
	in := make(chan net.Conn, 2*maxPerAddr)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ts.Accept()
			if err != nil {
				return
			}
			in <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String()) //nolint:noctx // it is local
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	var out []net.Conn
	for range maxPerAddr {
		out = append(out, dial())
	}
	var admitted []net.Conn
	for range maxPerAddr {
		admitted = append(admitted, <-in)
	}
	over := dial()
	if err := over.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := over.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("one more: %v, want its end", err)
	}
	admitted[0].Close()
	admitted[0].Close()                                   // counts once
	testhost.Eventually(t, 10*time.Second, func() error { // there is room again
		c := dial()
		out = append(out, c)
		select {
		case a := <-in:
			admitted = append(admitted, a)
			return nil
		case <-time.After(100 * time.Millisecond):
			return net.ErrClosed
		}
	})
	ln.Close()
	<-done
	for _, c := range append(append(out, over), admitted...) {
		c.Close()
	}
	if ts.all != 0 || len(ts.in) != 0 {
		t.Errorf("%d connections count, %v", ts.all, ts.in)
	}
}

// TestSource: addresses that one host can choose among are one source.
func TestSource(t *testing.T) {
	for from, want := range map[string]string{
		"192.0.2.1:1": "192.0.2.1/32", "[::ffff:192.0.2.1]:2": "192.0.2.1/32", "[2001:db8::1]:3": "2001:db8::/64", "[2001:db8::ffff:0:0:2]:4": "2001:db8::/64",
		"[2001:db8:0:1::1]:5": "2001:db8:0:1::/64", "[fe80::1%eth0]:6": "fe80::/64",
	} {
		if got := source(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))); got.String() != want {
			t.Errorf("%s is %s, want %s", from, got, want)
		}
	}
}

func isTimeout(err error) bool {
	n, ok := err.(net.Error) //nolint:errorlint // it comes right from the connection
	return ok && n.Timeout()
}
