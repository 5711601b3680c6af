package testhost_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestServers(t *testing.T) {
	t.Parallel()
	a, b := testhost.New(t), testhost.New(t, testhost.WithName("web"))
	a.Connect(b, testhost.Cable{
		Addrs:     []string{"192.0.2.1/24", "2001:db8::1/64"},
		PeerAddrs: []string{"192.0.2.2/24", "2001:db8::2/64"},
	})
	for client, server := range map[string]string{"192.0.2.1": "192.0.2.2:0", "[2001:db8::1]": "[2001:db8::2]:0"} {
		addr := netip.MustParseAddrPort(server)
		got, err := a.HTTPGet(b.ListenHTTP(addr, nil))
		if err != nil || !strings.HasPrefix(got, "web sees "+client+":") {
			t.Errorf("HTTP: %q, %v", got, err)
		}
		got, err = a.UDPAsk(b.UDPEcho(addr), "hello")
		if err != nil || !strings.HasPrefix(got, client+":") || !strings.HasSuffix(got, " hello") {
			t.Errorf("UDP: %q, %v", got, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		conn, err := a.DialContext(ctx, "tcp", b.TCPEcho(addr).String())
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 5)
		_, werr := conn.Write([]byte("hello"))
		if n, err := conn.Read(buf); err != nil || werr != nil || string(buf[:n]) != "hello" {
			t.Errorf("TCP echo: %q, %v, %v", buf, werr, err)
		}
		conn.Close()
	}
	if _, err := a.HTTPGet("http://192.0.2.2:1/"); err == nil {
		t.Error("HTTP from a closed port succeeded")
	}
	if _, err := a.UDPAsk(netip.MustParseAddrPort("192.0.2.2:1"), "x"); err == nil {
		t.Error("UDP from a closed port answered")
	}
}
