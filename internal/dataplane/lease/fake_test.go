package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The tests of the machines run in the time of synctest, on a wire whose other end is a function.

const guid = hcn.GUID("11223344-5566-7788-99AA-BBCCDDEEFF00")

var (
	ourMAC    = plan.MAC{2, 0, 0, 0, 0, 1}
	serverMAC = plan.MAC{2, 0, 0, 0, 0, 0xfe}
	otherMAC  = plan.MAC{2, 0, 0, 0, 0, 0xbb}

	serverAddr  = netip.MustParseAddr("10.1.0.1")
	rogueAddr   = netip.MustParseAddr("10.1.0.66")
	leasedAddr  = netip.MustParseAddr("10.1.0.9")
	linkLocal   = netip.MustParseAddr("fe80::ff:fe00:1")
	routerAddr  = netip.MustParseAddr("fe80::1")
	leasedAddr6 = netip.MustParseAddr("fd01::9")
)

var errPulled = errors.New("the cable is pulled")

// wire is a link whose other end is what hears decides.
type wire struct {
	in    chan []byte
	reads int

	mu     sync.Mutex
	closed chan struct{}
	hears  func(frame []byte)
	claims []netip.Addr
}

func newWire() *wire {
	return &wire{in: make(chan []byte, 1<<16)}
}

// plug opens the link.
func (w *wire) plug() (Link, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = make(chan struct{})
	return w, nil
}

func (w *wire) Send(frame []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hears != nil {
		w.hears(frame)
	}
	return nil
}

func (w *wire) Receive(buf []byte) (int, bool, error) {
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	select {
	case f := <-w.in:
		w.reads++
		return copy(buf, f), true, nil
	case <-closed:
		return 0, false, errPulled
	}
}

func (w *wire) Listen(claims []netip.Addr) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.claims = claims
	return nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return nil
}

// stage is a client on a wire, and a record of what it did.
type stage struct {
	t    *testing.T
	c    *Client
	wire *wire
	// open says what opening the link gives.
	open  func() (Link, error)
	admit func(netip.Addr) error
	began time.Time

	mu    sync.Mutex
	sent  []string // what the client has sent, in short
	at    []time.Time
	wakes int
}

func newStage(t *testing.T) *stage {
	s := &stage{t: t, wire: newWire(), began: time.Now()}
	s.open = s.wire.plug
	s.c = New(Config{
		Log:  slog.New(slog.NewTextHandler(t.Output(), nil)),
		Open: func(context.Context, *Want) (Link, error) { return s.open() },
		Wake: func() {
			s.mu.Lock()
			s.wakes++
			s.mu.Unlock()
		},
		Admit: func(_ hcn.GUID, a netip.Addr) error {
			if s.admit != nil {
				return s.admit(a)
			}
			return nil
		},
	})
	return s
}

func want4() Want {
	return Want{
		Endpoint: guid, Network: "lan", Name: "web", Device: "eth0", MAC: ourMAC, LinkLocal: linkLocal, Hostname: "web", IPv4: true,
	}
}

func want6() Want {
	w := want4()
	w.IPv4, w.IPv6 = false, true
	return w
}

// note records what the client sends.
func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, fmt.Sprintf(format, args...))
	s.at = append(s.at, time.Now())
}

// times of what was sent that starts so, since the beginning.
func (s *stage) times(prefix string) (at []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.sent {
		if strings.HasPrefix(m, prefix) {
			at = append(at, s.at[i].Sub(s.began))
		}
	}
	return at
}

// story is what was sent, repetitions left out.
func (s *stage) story() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(slices.Compact(slices.Clone(s.sent)), "\n")
}

func (s *stage) state(src Source) State { return state(s.c, src) }

// set changes what the other end of the wire does.
func (s *stage) set(f func()) {
	s.wire.mu.Lock()
	defer s.wire.mu.Unlock()
	f()
}

// after lets time pass.
func (s *stage) after(d time.Duration) {
	sleep(s.t.Context(), d)
	synctest.Wait()
}

// gone ends an endpoint and gives its leases back.
func (s *stage) gone(w Want) {
	s.t.Helper()
	w.Stored = stored(s.c)
	s.c.Sync(s.t.Context(), nil)
	before := len(s.story())
	s.after(time.Minute)
	if now := s.story(); len(now) != before {
		s.t.Errorf("sent when it has ended: %s", now[before:])
	}
	if err := s.c.GiveBack(s.t.Context(), w); err != nil {
		s.t.Errorf("give back: %v", err)
	}
}

// server is a DHCPv4 server of the test.
type fakeServer struct {
	s      *stage
	addr   netip.Addr
	mac    plan.MAC
	silent bool
	// spoil changes an answer before it is sent; false: it is not sent.
	spoil func(question, answer *dhcpv4.DHCPv4) bool
	life  time.Duration
	times [2]time.Duration // T1, T2
	used  netip.Addr       // an address that otherMAC has
}

func (s *stage) server4() *fakeServer {
	f := &fakeServer{s: s, addr: serverAddr, mac: serverMAC, life: time.Hour}
	s.wire.hears = f.hear
	return f
}

// hear answers frames of a client.
func (f *fakeServer) hear(frame []byte) {
	switch {
	case frame[12] == 8 && frame[13] == 6:
		target := netip.AddrFrom4([4]byte(frame[38:42]))
		if [4]byte(frame[28:32]) == target.As4() {
			f.s.note("announce %s", target)
			return
		}
		f.s.note("probe %s", target)
		if target == f.used {
			f.s.wire.in <- arpProbe(otherMAC, target)
		}
		return
	case frame[12] != 8 || frame[13] != 0:
		return
	}
	d, err := dhcpv4.FromBytes(frame[ethLen+ip4Len+udpLen:])
	if err != nil {
		f.s.t.Errorf("the client sends what is no DHCP: %v", err)
		return
	}
	f.s.note("%s", inShort(frame, d))
	if f.silent {
		return
	}
	f.answer(d)
}

// inShort writes a client's message: type, from, to, and what it is about.
func inShort(frame []byte, d *dhcpv4.DHCPv4) string {
	b := frame[ethLen:]
	text := fmt.Sprintf("%s %s > %s", d.MessageType(), netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20])))
	if !d.ClientIPAddr.IsUnspecified() {
		text += " have " + d.ClientIPAddr.String()
	}
	if ip := d.RequestedIPAddress(); ip != nil {
		text += " ask " + ip.String()
	}
	if ip := d.ServerIdentifier(); ip != nil {
		text += " of " + ip.String()
	}
	return text
}

func (f *fakeServer) answer(d *dhcpv4.DHCPv4) {
	kind := dhcpv4.MessageTypeAck
	switch d.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case dhcpv4.MessageTypeRequest:
		if ip := d.ServerIdentifier(); ip != nil && addr4(ip) != f.addr {
			return
		}
	default:
		return
	}
	a, err := dhcpv4.NewReplyFromRequest(d, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(leasedAddr.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(f.addr.AsSlice())), dhcpv4.WithNetmask([]byte{255, 255, 255, 0}),
		dhcpv4.WithRouter(serverAddr.AsSlice()), dhcpv4.WithLeaseTime(uint32(f.life/time.Second)))
	if err != nil {
		f.s.t.Error(err)
		return
	}
	if f.times[0] != 0 {
		a.UpdateOption(dhcpv4.OptRenewTimeValue(f.times[0]))
		a.UpdateOption(dhcpv4.OptRebindingTimeValue(f.times[1]))
	}
	if f.spoil == nil || f.spoil(d, a) {
		f.send(a)
	}
}

func (f *fakeServer) send(a *dhcpv4.DHCPv4) {
	f.s.wire.in <- answer4(f.mac, f.addr, a.ToBytes())
}

// answer4 is a frame from a server to the client.
func answer4(mac plan.MAC, src netip.Addr, payload []byte) []byte {
	frame := udp4(mac, ourMAC, src, leasedAddr, payload)
	return swapPorts(frame, ethLen+ip4Len)
}

// swapPorts makes a server's datagram of a client's; the checksum stays right.
func swapPorts(frame []byte, at int) []byte {
	p := frame[at : at+4]
	p[0], p[1], p[2], p[3] = p[2], p[3], p[0], p[1]
	return frame
}

// server6 is a router and DHCPv6 server of the test.
type fakeRouter struct {
	s      *stage
	advert []byte // the options of its advertisements, and
	flags  byte
	life   uint16
	silent bool // as DHCPv6 server
	mute   bool // as router
	spoil  func(question, answer *dhcpv6.Message) bool
	valid  time.Duration
	rapid  bool
	used   netip.Addr
	addr   netip.Addr
}

func (s *stage) router() *fakeRouter {
	f := &fakeRouter{s: s, flags: 0x80, life: 65535, valid: time.Hour, addr: leasedAddr6}
	f.advert = prefixOption("fd01::/64", 0x80, 3600, 1800)
	s.wire.hears = f.hear
	return f
}

// prefixOption of an advertisement: 0x80 on the link, 0x40 for addresses.
func prefixOption(p string, flags byte, valid, preferred uint32) []byte {
	prefix := netip.MustParsePrefix(p)
	o := []byte{optPrefix, 4, byte(prefix.Bits()), flags}
	for _, v := range []uint32{valid, preferred, 0} {
		o = append(o, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return append(o, prefix.Addr().AsSlice()...)
}

func (f *fakeRouter) advertise() { f.advertiseFrom(routerAddr) }

func (f *fakeRouter) advertiseFrom(src netip.Addr) {
	msg := append([]byte{routerAdvert, 0, 0, 0, 64, f.flags, byte(f.life >> 8), byte(f.life), 0, 0, 0, 0, 0, 0, 0, 0}, f.advert...)
	f.s.wire.in <- icmp6(serverMAC, src, netip.MustParseAddr("ff02::1"), msg)
}

func (f *fakeRouter) hear(frame []byte) {
	if frame[12] != 0x86 {
		return
	}
	if frame[ethLen+6] == protoICMPv6 {
		f.hearND(frame[ethLen+ip6Len:])
		return
	}
	d, err := dhcpv6.MessageFromBytes(frame[ethLen+ip6Len+udpLen:])
	if err != nil {
		f.s.t.Errorf("the client sends what is no DHCPv6: %v", err)
		return
	}
	text := d.MessageType.String()
	for _, ia := range d.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			text += " " + a.IPv6Addr.String()
		}
	}
	f.s.note("%s", text)
	if !f.silent {
		f.answer(d)
	}
}

func (f *fakeRouter) hearND(b []byte) {
	switch b[0] {
	case routerSolicit:
		f.s.note("solicit routers")
		if !f.mute {
			f.advertise()
		}
	case neighbourClaim:
		f.s.note("announce %s", netip.AddrFrom16([16]byte(b[8:24])))
	case neighbourSolicit:
		a := netip.AddrFrom16([16]byte(b[8:24]))
		f.s.note("probe %s", a)
		if a == f.used {
			f.s.wire.in <- neighbourProbe(otherMAC, a)
		}
	}
}

func (f *fakeRouter) answer(d *dhcpv6.Message) {
	a := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: d.TransactionID}
	a.AddOption(dhcpv6.OptClientID(d.Options.ClientID()))
	a.AddOption(dhcpv6.OptServerID(&dhcpv6.DUIDUUID{UUID: [16]byte{0xaa}}))
	switch d.MessageType {
	case dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		a.AddOption(&dhcpv6.OptStatusCode{})
	case dhcpv6.MessageTypeSolicit:
		if !f.rapid {
			a.MessageType = dhcpv6.MessageTypeAdvertise
		} else {
			a.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
		}
		fallthrough
	default:
		ia := &dhcpv6.OptIANA{IaId: [4]byte{0x11, 0x22, 0x33, 0x44}, T1: f.valid / 2, T2: f.valid * 4 / 5}
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: f.addr.AsSlice(), PreferredLifetime: f.valid, ValidLifetime: f.valid})
		a.AddOption(ia)
	}
	if f.spoil == nil || f.spoil(d, a) {
		f.send(a.ToBytes())
	}
}

func (f *fakeRouter) send(payload []byte) { f.s.wire.in <- answer6(payload) }

// answer6 is a frame from a DHCPv6 server to the client.
func answer6(payload []byte) []byte {
	frame := ip6(serverMAC, routerAddr, linkLocal, protoUDP, 64, udpLen+len(payload))
	return udp(frame, routerAddr, linkLocal, server6, client6, payload)
}
