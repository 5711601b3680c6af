package wireguard

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestMain is also the process of a device, as the daemon's program is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "wireguard" {
		var o ServeOptions
		f := flag.NewFlagSet("wireguard", flag.ExitOnError)
		f.StringVar(&o.Device, "device", "", "")
		f.StringVar(&o.Namespace, "namespace", "", "")
		f.StringVar(&o.Socket, "socket", "", "")
		f.IntVar(&o.MTU, "mtu", 0, "")
		_ = f.Parse(os.Args[2:])
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		err := Serve(ctx, o)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// side is a host with an applier.
type side struct {
	*testhost.Host
	t     *testing.T
	a     *Applier
	plan  *plan.Plan
	at    netip.Addr
	inner *testhost.Host // the compartment
	woken chan string
}

func newSide(t *testing.T, lan *testhost.LAN, n int, v4 bool) *side {
	t.Helper()
	s := &side{Host: testhost.New(t), t: t}
	four, six := fmt.Sprintf("192.0.2.%d", n), fmt.Sprintf("2001:db8::%d", n)
	lan.Plug(s.Host, "eth0", four+"/24", six+"/64")
	s.at = netip.MustParseAddr(six)
	if v4 {
		s.at = netip.MustParseAddr(four)
	}
	s.Run(t, "ip", "netns", "add", "hns-wireguard")
	s.inner = s.Namespace("/run/netns/hns-wireguard")
	s.plan = plan.New()
	s.plan.Secure = &plan.Secure{
		Namespace: "/run/netns/hns-wireguard", Addr: innerAddr(n), MTU: 1420, Told: true,
	}
	s.open()
	t.Cleanup(func() {
		s.plan.Secure = nil
		if _, err := s.a.Sync(context.Background(), s.plan); err != nil {
			t.Errorf("take it away: %v", err)
		}
		s.a.Close()
		if out := s.Run(t, "sh", "-c", "ls /run/wireguard 2>&1 || true; ip -n hns-wireguard -o link | grep -v lo: || true"); !strings.Contains(out, "No such file") || strings.Contains(out, "bhw") {
			t.Errorf("it leaves %s", out)
		}
	})
	return s
}

// open is a daemon's start.
func (s *side) open() {
	s.woken = make(chan string, 16)
	woken := s.woken
	s.a = New(Options{
		Open: func(path string) (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) },
		Home: func(fn func() error) (err error) { s.DoMount(func() { err = fn() }); return err },
		Wake: func(cause string) { woken <- cause }, LogDir: "/run/bulkhead", Command: []string{"/proc/self/exe", "wireguard"},
	})
}

func innerAddr(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd12:3456:789a::%d", n)) }

// keys gives everybody keys of these generations, and tells all of all.
func keys(t *testing.T, sides []*side, pairs map[string]plan.Secret, generations ...uint32) {
	t.Helper()
	private := func(n int, g uint32) plan.Secret {
		id := fmt.Sprint(n, " ", g)
		if _, ok := pairs[id]; !ok {
			var k plan.Secret
			if _, err := rand.Read(k[:]); err != nil {
				t.Fatal(err)
			}
			k[0], k[31] = k[0]&248, k[31]&127|64
			pairs[id] = k
		}
		return pairs[id]
	}
	for i, s := range sides {
		next := *s.plan.Secure
		next.Devices = nil
		for _, g := range generations {
			d := plan.SecureDevice{Generation: g, Device: plan.SecureDeviceName(g), Private: private(i, g), Port: 2392 + uint16(g%2)}
			for j, other := range sides {
				if i == j {
					continue
				}
				k := private(j, g)
				p, err := ecdh.X25519().NewPrivateKey(k[:])
				if err != nil {
					t.Fatal(err)
				}
				d.Peers = append(d.Peers, plan.SecurePeer{
					Host: hcn.GUID(fmt.Sprint(j)), Name: fmt.Sprint("side", j), Key: plan.Key(p.PublicKey().Bytes()),
					Endpoint: netip.AddrPortFrom(other.at, d.Port), Addr: other.plan.Secure.Addr,
				})
			}
			next.Devices = append(next.Devices, d)
		}
		s.plan.Secure = &next
	}
}

func (s *side) sync() []plan.Drift {
	s.t.Helper()
	drift, err := s.a.Sync(s.t.Context(), s.plan)
	if err != nil {
		s.t.Fatal(err)
	}
	return drift
}

func (s *side) reaches(other *side) {
	s.t.Helper()
	testhost.Eventually(s.t, 10*time.Second, func() error { return s.inner.Ping(other.plan.Secure.Addr) })
}

// mend is what the engine does when a check finds something.
func (s *side) mend() []plan.Drift {
	s.t.Helper()
	var drift []plan.Drift
	testhost.Eventually(s.t, 5*time.Second, func() error {
		fine := true
		for range lookEvery {
			ok, err := s.a.Check(s.t.Context(), s.plan)
			if err != nil {
				return err
			}
			fine = fine && ok
		}
		if !fine {
			drift = append(drift, s.sync()...)
			return errors.New("not yet")
		}
		return nil
	})
	return drift
}

// TestDevices: two hosts reach each other inside; what somebody breaks is mended and reported; a new daemon finds all as it is.
func TestDevices(t *testing.T) {
	for name, v4 := range map[string]bool{"IPv4": true, "IPv6": false} {
		t.Run(name, func(t *testing.T) {
			lan := testhost.Switch(t)
			a, b := newSide(t, lan, 1, v4), newSide(t, lan, 2, v4)
			sides, pairs := []*side{a, b}, map[string]plan.Secret{}
			keys(t, sides, pairs, 1)
			a.sync()
			b.sync()
			a.reaches(b)
			if drift := a.sync(); len(drift) > 0 {
				t.Errorf("a second Sync finds %v", drift)
			}
			if fine, err := a.a.Check(t.Context(), a.plan); err != nil || !fine {
				t.Errorf("Check: %v, %v", fine, err)
			}

			// A daemon that restarts finds the process, and cuts nothing.
			pid := a.a.procs["bhw1"].cl.pid
			a.a.Close()
			a.open()
			if drift := a.sync(); len(drift) > 0 || a.a.procs["bhw1"].cl.pid != pid {
				t.Errorf("a new daemon finds %v, and process %d instead of %d", drift, a.a.procs["bhw1"].cl.pid, pid)
			}
			untold := *a.plan
			without := *a.plan.Secure
			without.Told, without.Devices = false, nil
			untold.Secure = &without
			if _, err := a.a.Sync(t.Context(), &untold); err != nil || a.inner.Ping(b.plan.Secure.Addr) != nil {
				t.Errorf("before keys are told, the devices stay: %v", err)
			}

			// What is broken is mended. The peer hears of the new device at once.
			for what, broken := range map[string]func(){
				"device": func() { a.Run(t, "ip", "-n", "hns-wireguard", "link", "del", "bhw1") },
				"down":   func() { a.Run(t, "ip", "-n", "hns-wireguard", "link", "set", "bhw1", "down") },
				"mtu":    func() { a.Run(t, "ip", "-n", "hns-wireguard", "link", "set", "bhw1", "mtu", "1300") },
				"route":  func() { a.Run(t, "ip", "-6", "-n", "hns-wireguard", "route", "flush", "dev", "bhw1") },
				"killed": func() { _ = syscall.Kill(a.a.procs["bhw1"].cl.pid, syscall.SIGKILL); <-a.woken },
				"peer": func() {
					a.DoMount(func() {
						cl, err := dial(a.a.socket("bhw1"))
						if err != nil {
							t.Error(err)
							return
						}
						defer cl.close()
						if err := cl.set([]string{"replace_peers=true"}); err != nil {
							t.Error(err)
						}
					})
				},
			} {
				begin := time.Now()
				broken()
				if a.mend() == nil {
					t.Errorf("%s: it is not reported", what)
				}
				mended := time.Since(begin)
				a.reaches(b)
				t.Logf("%s: mended after %s, reached after %s", what, mended, time.Since(begin))
			}
		})
	}
}

// TestRotation: while keys are changed, nothing is lost.
func TestRotation(t *testing.T) {
	lan := testhost.Switch(t)
	a, b := newSide(t, lan, 1, true), newSide(t, lan, 2, true)
	sides, pairs := []*side{a, b}, map[string]plan.Secret{}
	keys(t, sides, pairs, 1)
	a.sync()
	b.sync()
	a.reaches(b)
	conn, err := b.inner.ListenPacket("udp", netip.AddrPortFrom(b.plan.Secure.Addr, 5000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	out, err := a.inner.DialContext(t.Context(), "udp", netip.AddrPortFrom(b.plan.Secure.Addr, 5000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	exchange := func() { // any loss is found
		t.Helper()
		for range 20 {
			if _, err := out.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 16)
			if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.ReadFrom(buf); err != nil {
				t.Fatalf("a datagram was lost: %v", err)
			}
		}
	}
	exchange()
	keys(t, sides, pairs, 1, 2)
	a.sync()
	exchange()
	if a.a.ways[b.plan.Secure.Addr] != "bhw1" {
		t.Error("the new key is used before the other end has it")
	}
	b.sync()
	testhost.Eventually(t, 10*time.Second, func() error {
		exchange()
		for _, s := range sides {
			if _, err := s.a.Check(t.Context(), s.plan); err != nil {
				return err
			}
		}
		if a.a.ways[b.plan.Secure.Addr] != "bhw0" || b.a.ways[a.plan.Secure.Addr] != "bhw0" {
			return fmt.Errorf("ways %v and %v", a.a.ways, b.a.ways)
		}
		return nil
	})
	exchange()
	keys(t, sides, pairs, 2)
	a.sync()
	exchange()
	b.sync()
	exchange()
	if out := a.Run(t, "sh", "-c", "ip -n hns-wireguard -o link; ls /run/wireguard"); strings.Contains(out, "bhw1") {
		t.Errorf("the old device is left: %s", out)
	}
	if st := a.a.Status(); len(st.Silent) > 0 || len(st.Devices) != 1 || st.Devices[2]["1"].IsZero() {
		t.Errorf("status %+v", st)
	}
}

// TestPortTaken: the reason says so, and it works when the port is free again.
func TestPortTaken(t *testing.T) {
	lan := testhost.Switch(t)
	a := newSide(t, lan, 1, true)
	keys(t, []*side{a}, map[string]plan.Secret{}, 1)
	a.plan.Switches["N"] = &plan.Switch{Network: "N", Overlay: &plan.Overlay{Encrypted: true}}
	held, err := a.ListenPacket("udp", net.JoinHostPort("", "2393"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.a.Sync(t.Context(), a.plan)
	var of *plan.ObjectError
	if !errors.As(err, &of) || of.Kind != "network" || !errors.Is(err, errPortInUse) || a.a.Status().Problem == "" {
		t.Errorf("with its port taken: %v, problem %q", err, a.a.Status().Problem)
	}
	held.Close()
	if w, err := a.a.Preview(t.Context(), a.plan, &plan.Delta{Secure: true}); err != nil || len(w) != 1 || w[0].Sign != plan.Adds || w[0].Object != "WireGuard device bhw1" {
		t.Errorf("preview: %+v, %v", w, err)
	}
	a.sync()
	if w, err := a.a.Preview(t.Context(), plan.New(), &plan.Delta{Secure: true}); err != nil || len(w) != 1 || w[0].Sign != plan.Removes {
		t.Errorf("preview of its removal: %+v, %v", w, err)
	}
	if p := a.a.Status().Problem; p != "" {
		t.Errorf("problem %q", p)
	}
}

func TestStateRoundTrip(t *testing.T) {
	want := &plan.SecureDevice{Private: plan.Secret{1}, Port: 7, Peers: []plan.SecurePeer{{
		Name: "p", Key: plan.Key{2}, Endpoint: netip.MustParseAddrPort("192.0.2.1:9"), Addr: innerAddr(9),
	}}}
	lines, found := difference(want, &state{}, time.Now())
	if len(found) != 3 {
		t.Errorf("found %q", found)
	}
	have, err := parseState(lines)
	if err != nil {
		t.Fatal(err)
	}
	if lines, found := difference(want, have, time.Now()); len(lines)+len(found) > 0 {
		t.Errorf("what was written differs: %q, %q", lines, found)
	}
	if text := fmt.Sprintf("%v %+v %#v", want, want, want.Private); strings.Contains(text, "[1 0") {
		t.Errorf("the private key prints: %s", text)
	}
}
