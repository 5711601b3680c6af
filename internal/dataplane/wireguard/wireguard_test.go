package wireguard

import (
	"bytes"
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
	mode  Mode
	plan  *plan.Plan
	at    netip.Addr
	inner *testhost.Host // the compartment
	woken chan string
}

// modes runs a test with a process, and with the kernel's devices where it has such. kernelEnv demands that it has.
func modes(t *testing.T, test func(t *testing.T, m Mode)) {
	t.Helper()
	for _, m := range []Mode{UserSpace, Kernel} {
		t.Run(string(m), func(t *testing.T) {
			if m == Kernel {
				needKernel(t)
			}
			test(t, m)
		})
	}
}

const kernelEnv = "REQUIRE_KERNEL_WIREGUARD"

func needKernel(t *testing.T) {
	t.Helper()
	testhost.RequireRoot(t)
	err := ProbeKernel()
	if err != nil && os.Getenv(kernelEnv) == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newSide(t *testing.T, lan *testhost.LAN, n int, v4 bool, m Mode) *side {
	t.Helper()
	s := &side{Host: testhost.New(t), t: t, mode: m}
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
		s.leavesNothing()
	})
	return s
}

// leavesNothing: neither processes nor devices, and the UDP ports are free again.
func (s *side) leavesNothing() {
	s.t.Helper()
	if out := s.links() + s.Run(s.t, "sh", "-c", "ls /run/wireguard 2>/dev/null || true"); out != "" {
		s.t.Errorf("it leaves %s", out)
	}
	s.DoMount(func() {
		if err := errors.Join(portIsFree(2392), portIsFree(2393)); err != nil {
			s.t.Error(err)
		}
		if left := Leftovers("", "/run/netns/hns-wireguard"); len(left) > 0 {
			s.t.Errorf("it leaves %q", left)
		}
	})
}

// links are the devices of the compartment, beside loopback.
func (s *side) links() string {
	s.t.Helper()
	var out strings.Builder
	for line := range strings.Lines(s.Run(s.t, "ip", "-n", "hns-wireguard", "-o", "link")) {
		if !strings.Contains(line, " lo: ") {
			out.WriteString(line)
		}
	}
	return out.String()
}

// identity tells a device from one that was made anew.
func (s *side) identity(device string) string {
	if s.mode == Kernel {
		return s.Run(s.t, "ip", "-n", "hns-wireguard", "-o", "link", "show", device)
	}
	return fmt.Sprint(s.a.procs[device].cl.pid)
}

// open is a daemon's start.
func (s *side) open() {
	s.woken = make(chan string, 16)
	woken := s.woken
	s.a = New(Options{
		Open: openPath, Mode: s.mode,
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

// marker is what must not be seen between the hosts.
const marker = "nobody-elses-business"

// wire is what passes between two hosts.
type wire struct {
	t     *testing.T
	sides []*side
	seen  []*testhost.Capture
	in    net.PacketConn
	out   net.Conn
}

// tap listens between two hosts, and has one of them ready to send to the other inside.
func tap(t *testing.T, from, to *side) *wire {
	t.Helper()
	w := &wire{t: t, sides: []*side{from, to}}
	for _, s := range w.sides {
		w.seen = append(w.seen, s.Capture("eth0", ""))
	}
	var err error
	if w.in, err = to.inner.ListenPacket("udp", netip.AddrPortFrom(to.plan.Secure.Addr, 5000).String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.in.Close() })
	if w.out, err = from.inner.DialContext(t.Context(), "udp", netip.AddrPortFrom(to.plan.Secure.Addr, 5000).String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.out.Close() })
	return w
}

// exchange finds any loss.
func (w *wire) exchange() {
	w.t.Helper()
	for range 20 {
		w.send()
		buf := make([]byte, 64)
		if err := w.in.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			w.t.Fatal(err)
		}
		if _, _, err := w.in.ReadFrom(buf); err != nil {
			w.t.Fatalf("a datagram was lost: %v", err)
		}
	}
}

// send is allowed to have no way.
func (w *wire) send() {
	w.t.Helper()
	_, err := w.out.Write([]byte(marker))
	for _, fine := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EDESTADDRREQ, unix.ENOKEY, unix.ECONNREFUSED, unix.EADDRNOTAVAIL} {
		if errors.Is(err, fine) {
			return
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// secret: all of that was inside WireGuard.
func (w *wire) secret() {
	w.t.Helper()
	for i, c := range w.seen {
		wrapped := 0
		for _, f := range c.Stop() {
			text := testhost.Describe(f.Data)
			if strings.Contains(text, "> 2392") || strings.Contains(text, "> 2393") {
				wrapped++
			}
			if bytes.Contains(f.Data, []byte(marker)) || strings.Contains(text, "> 5000") {
				w.t.Errorf("side %d: anybody can read %s", i, text)
			}
		}
		if wrapped == 0 {
			w.t.Errorf("side %d: no frame of WireGuard", i)
		}
	}
}

// TestDevices: two hosts reach each other inside; what somebody breaks is mended and reported; a new daemon finds all as it is.
func TestDevices(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		for name, v4 := range map[string]bool{"IPv4": true, "IPv6": false} {
			t.Run(name, func(t *testing.T) { devices(t, m, v4) })
		}
	})
}

func devices(t *testing.T, m Mode, v4 bool) {
	lan := testhost.Switch(t)
	a, b := newSide(t, lan, 1, v4, m), newSide(t, lan, 2, v4, m)
	sides, pairs := []*side{a, b}, map[string]plan.Secret{}
	keys(t, sides, pairs, 1)
	a.sync()
	b.sync()
	w := tap(t, a, b)
	a.reaches(b)
	w.exchange()
	if drift := a.sync(); len(drift) > 0 {
		t.Errorf("a second Sync finds %v", drift)
	}
	if fine, err := a.a.Check(t.Context(), a.plan); err != nil || !fine {
		t.Errorf("Check: %v, %v", fine, err)
	}
	st := a.a.Status()
	if got := st.Traffic["1"]; got.Handshake.IsZero() || got.Sent < 20*uint64(len(marker)) || got.Received == 0 || st.Kernel != (m == Kernel) {
		t.Errorf("status: %+v", st)
	}

	// A daemon that restarts finds the device, and cuts nothing: not a packet is lost, and no hand is shaken again.
	was, shaken := a.identity("bhw1"), st.Traffic["1"].Handshake
	a.a.Close()
	w.exchange()
	a.open()
	if drift := a.sync(); len(drift) > 0 || a.identity("bhw1") != was || !a.a.Status().Traffic["1"].Handshake.Equal(shaken) {
		t.Errorf("a new daemon finds %v, and %s instead of %s", drift, a.identity("bhw1"), was)
	}
	w.exchange()
	untold := *a.plan
	without := *a.plan.Secure
	without.Told, without.Devices = false, nil
	untold.Secure = &without
	if _, err := a.a.Sync(t.Context(), &untold); err != nil || a.inner.Ping(b.plan.Secure.Addr) != nil {
		t.Errorf("before keys are told, the devices stay: %v", err)
	}

	// What is broken is mended. The peer hears of the new device at once.
	for what, broken := range a.breakers() {
		begin := time.Now()
		broken()
		w.send()
		if a.mend() == nil {
			t.Errorf("%s: it is not reported", what)
		}
		mended := time.Since(begin)
		a.reaches(b)
		t.Logf("%s: mended after %s, reached after %s", what, mended, time.Since(begin))
	}
	w.secret()
}

// breakers break a side's device.
func (s *side) breakers() map[string]func() {
	ip := func(args ...string) func() {
		return func() { s.Run(s.t, "ip", append([]string{"-6", "-n", "hns-wireguard"}, args...)...) }
	}
	out := map[string]func(){
		"device": ip("link", "del", "bhw1"),
		"down":   ip("link", "set", "bhw1", "down"),
		"mtu":    ip("link", "set", "bhw1", "mtu", "1300"),
		"route":  ip("route", "flush", "dev", "bhw1"),
		"peer":   s.forgetPeers,
	}
	if s.mode == Kernel {
		out["one that leads nowhere"] = func() {
			ip("link", "del", "bhw1")()
			s.inner.Run(s.t, "ip", "link", "add", "bhw1", "type", "wireguard")
		}
	} else {
		out["killed"] = func() { _ = syscall.Kill(s.a.procs["bhw1"].cl.pid, syscall.SIGKILL); <-s.woken }
	}
	return out
}

// forgetPeers takes all peers from a device.
func (s *side) forgetPeers() {
	gone := &change{}
	for i := range s.plan.Secure.Devices[0].Peers {
		gone.peers = append(gone.peers, peerChange{key: s.plan.Secure.Devices[0].Peers[i].Key, remove: true})
	}
	s.DoMount(func() {
		set := func() error {
			cl, err := dial(s.a.socket("bhw1"))
			if err != nil {
				return err
			}
			defer cl.close()
			return cl.set(gone)
		}
		if s.mode == Kernel {
			set = func() error {
				fd, err := openPath("/run/netns/hns-wireguard")
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				k, err := openKernelDevice(fd, "bhw1")
				if err != nil {
					return err
				}
				defer k.close()
				return k.set(gone)
			}
		}
		if err := set(); err != nil {
			s.t.Error(err)
		}
	})
}

// TestRotation: while keys are changed, nothing is lost.
func TestRotation(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		lan := testhost.Switch(t)
		a, b := newSide(t, lan, 1, true, m), newSide(t, lan, 2, true, m)
		sides, pairs := []*side{a, b}, map[string]plan.Secret{}
		keys(t, sides, pairs, 1)
		a.sync()
		b.sync()
		a.reaches(b)
		w := tap(t, a, b)
		w.exchange()
		keys(t, sides, pairs, 1, 2)
		a.sync()
		w.exchange()
		if a.a.ways[b.plan.Secure.Addr] != "bhw1" {
			t.Error("the new key is used before the other end has it")
		}
		b.sync()
		testhost.Eventually(t, 10*time.Second, func() error {
			w.exchange()
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
		w.exchange()
		keys(t, sides, pairs, 2)
		a.sync()
		w.exchange()
		b.sync()
		w.exchange()
		if out := a.links() + a.Run(t, "sh", "-c", "ls /run/wireguard 2>/dev/null || true"); strings.Contains(out, "bhw1") {
			t.Errorf("the old device is left: %s", out)
		}
		if st := a.a.Status(); len(st.Silent) > 0 || len(st.Devices) != 1 || st.Devices[2]["1"].IsZero() {
			t.Errorf("status %+v", st)
		}
		w.secret()
	})
}

// TestKernelTakesOver: a daemon that encrypts by the kernel takes the place of one that did by a process, and the other way round, while
// somebody sends all the time. Nothing is sent in clear text, and nothing is left of the other way.
func TestKernelTakesOver(t *testing.T) {
	needKernel(t)
	lan := testhost.Switch(t)
	a, b := newSide(t, lan, 1, true, UserSpace), newSide(t, lan, 2, true, Kernel)
	sides := []*side{a, b}
	keys(t, sides, map[string]plan.Secret{}, 1)
	a.sync()
	b.sync()
	a.reaches(b)
	w := tap(t, a, b)
	w.exchange()
	for _, m := range []Mode{Kernel, UserSpace, Kernel} {
		a.a.Close()
		a.mode = m
		a.open()
		w.send()
		if drift := a.sync(); len(drift) != 1 {
			t.Errorf("to %s: %v", m, drift)
		}
		w.send()
		a.reaches(b)
		sockets := a.Run(t, "sh", "-c", "ls -d /run/wireguard /run/bulkhead/wireguard-* 2>/dev/null || true")
		ofKernel := a.Run(t, "ip", "-n", "hns-wireguard", "-o", "link", "show", "type", "wireguard")
		if (sockets != "") == (m == Kernel) || (ofKernel != "") != (m == Kernel) {
			t.Errorf("by %s there are %q and %q", m, sockets, ofKernel)
		}
	}
	w.secret()
}

// TestHeldCompartment: the kernel's device is gone with its compartment, also if somebody is still in there, and so has its UDP port.
func TestHeldCompartment(t *testing.T) {
	needKernel(t)
	lan := testhost.Switch(t)
	a, b := newSide(t, lan, 1, true, Kernel), newSide(t, lan, 2, true, Kernel)
	keys(t, []*side{a, b}, map[string]plan.Secret{}, 1)
	a.sync()
	b.sync()
	a.reaches(b)
	a.Run(t, "ip", "netns", "del", "hns-wireguard") // a.inner is in it still
	a.Run(t, "ip", "netns", "add", "hns-wireguard")
	old := a.inner
	a.inner = a.Namespace("/run/netns/hns-wireguard")
	a.sync()
	a.reaches(b)
	if out := old.Run(t, "ip", "-o", "link"); strings.Contains(out, "bhw") {
		t.Errorf("the old compartment has %s", out)
	}
}

// TestReset: without a daemon, all of it is found and removed.
func TestReset(t *testing.T) {
	modes(t, func(t *testing.T, m Mode) {
		a := newSide(t, testhost.Switch(t), 1, true, m)
		keys(t, []*side{a}, map[string]plan.Secret{}, 1, 2)
		a.sync()
		a.a.Close()
		a.DoMount(func() {
			if left := Leftovers("", "/run/netns/hns-wireguard"); len(left) != 2 {
				t.Errorf("it would find %q", left)
			}
			for range 2 {
				if err := Reset("", "/run/bulkhead", "/run/netns/hns-wireguard"); err != nil {
					t.Error(err)
				}
			}
			if err := Reset("", "/run/bulkhead", "/run/netns/none"); err != nil {
				t.Error(err)
			}
		})
		a.leavesNothing()
		a.open()
	})
}

// TestChoice: which of the two it is, and what is said of it.
func TestChoice(t *testing.T) {
	none := func() error { return errors.New("there is none") }
	for _, tc := range []struct {
		mode   Mode
		probe  func() error
		kernel bool
		says   string
	}{
		{Auto, none, false, "in a process of its own: there is none"},
		{Auto, func() error { return nil }, true, "WireGuard of the kernel"},
		{UserSpace, func() error { return nil }, false, "as --wireguard says"},
		{Kernel, func() error { return nil }, true, "WireGuard of the kernel"},
		{Kernel, none, true, "demanded (--wireguard=kernel): there is none"},
	} {
		a := &Applier{choice: newChoice(tc.mode, tc.probe)}
		got, err := a.kernel()
		text, said := a.Implementation()
		if err != nil {
			text = said.Error()
		}
		if got != tc.kernel || (err != nil) != (said != nil) || !strings.Contains(text, tc.says) {
			t.Errorf("%s: %v, %v, %q", tc.mode, got, err, text)
		}
	}
	if err := Mode("magic").Check(); err == nil {
		t.Error("no such mode")
	}
}

// TestKernelMissing: what is demanded and cannot be had is said, and nothing else is used instead.
func TestKernelMissing(t *testing.T) {
	a := newSide(t, testhost.Switch(t), 1, true, Kernel)
	a.a.choice = newChoice(Kernel, func() error { return errors.New("there is none") })
	keys(t, []*side{a}, map[string]plan.Secret{}, 1)
	a.plan.Switches["N"] = &plan.Switch{Network: "N", Overlay: &plan.Overlay{Encrypted: true}}
	_, err := a.a.Sync(t.Context(), a.plan)
	var of *plan.ObjectError
	if !errors.As(err, &of) || of.Kind != "network" || !strings.Contains(a.a.Status().Problem, "there is none") {
		t.Errorf("%v, problem %q", err, a.a.Status().Problem)
	}
	if out := a.Run(t, "ip", "-n", "hns-wireguard", "-o", "link"); strings.Contains(out, "bhw") {
		t.Errorf("it made %s", out)
	}
}

// TestPortTaken: the reason says so, and it works when the port is free again.
func TestPortTaken(t *testing.T) { modes(t, portTaken) }

func portTaken(t *testing.T, m Mode) {
	lan := testhost.Switch(t)
	a := newSide(t, lan, 1, true, m)
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
	diff := difference(want, &state{peers: map[plan.Key]peerState{{3}: {}}}, time.Now())
	if len(diff.found) != 4 {
		t.Errorf("found %q", diff.found)
	}
	cfg := diff.config()
	if len(cfg.Peers) != 2 || *cfg.ListenPort != 7 || plan.Secret(*cfg.PrivateKey) != want.Private || cfg.Peers[0].Endpoint.String() != "192.0.2.1:9" || !cfg.Peers[1].Remove {
		t.Errorf("the kernel is told %+v", cfg)
	}
	diff = difference(want, &state{}, time.Now())
	have, err := parseState(append(diff.lines(), "rx_bytes=5", "tx_bytes=6"))
	if err != nil {
		t.Fatal(err)
	}
	if p := have.peers[plan.Key{2}]; p.received != 5 || p.sent != 6 {
		t.Errorf("counters: %+v", p)
	}
	if diff := difference(want, have, time.Now()); !diff.empty() || len(diff.found) > 0 {
		t.Errorf("what was written differs: %q", diff.found)
	}
	if text := fmt.Sprintf("%v %+v %#v", want, want, want.Private); strings.Contains(text, "[1 0") {
		t.Errorf("the private key prints: %s", text)
	}
}
