package lease

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

const (
	// firstWait is shorter than RFC 2131 suggests: a container waits, and the network is there already.
	firstWait = 2 * time.Second
	mostWait  = 64 * time.Second
	// declinePause is how long not to ask after an address was found in use (RFC 2131, section 3.1).
	declinePause = 10 * time.Second
	worstPause   = 5 * time.Minute
	leastRenewal = 5 * time.Second
)

// v4 is the machine of DHCPv4.
type v4 struct {
	machine
	xid   uint32
	begun time.Time // of what the client does now, for the secs field
	// shunned offered an address last and did not give it, for the reason why: another server's offer goes before its next.
	shunned netip.Addr
	why     string
	damaged netip.Addr // who answered last with what cannot be read
}

// requestTries4 are fourteen seconds: who waits for the container's start shall have another server's offer within it.
const requestTries4 = 3

func (m *v4) run(ctx context.Context) { m.repeat(ctx, m.once) }

// once gets a lease, or takes the stored one up, and holds it until it is lost.
func (m *v4) once(ctx context.Context) (err error) {
	l := m.held()
	if l != nil && l.over(time.Now()) {
		l = nil
	}
	fresh := false
	if l != nil {
		l, err = m.reboot(ctx, l)
	} else {
		l, err = m.acquire(ctx)
		fresh = true
	}
	if err != nil {
		return err
	}
	used, stop := m.s.watch(l.Addrs[0].Prefix.Addr(), false)
	defer stop()
	if fresh {
		m.s.announce(ctx, l.Addrs[0].Prefix.Addr())
	}
	return m.hold(ctx, l, used)
}

// acquire discovers servers until one gives a lease that can be used.
func (m *v4) acquire(ctx context.Context) (*Lease, error) {
	m.begin()
	m.damaged = netip.Addr{}
	m.resume(Asking)
	var offered *Lease
	tries, bad := 0, "" // bad is the offer that came and was not taken
	x := &exchange{
		pace: growing(firstWait, mostWait, 0), in: m.s.in4, failed: m.cannot(Asking),
		send: func(n int) error { tries = n + 1; return m.send(dhcpv4.MessageTypeDiscover, request{try: n}) },
		take: func(p packet) (bool, error) {
			d := m.answer(p, dhcpv4.MessageTypeOffer)
			if d == nil {
				if m.damaged.IsValid() && bad == "" {
					bad = fmt.Sprintf("%s sends what is no DHCP message, and no server has answered with one", m.damaged)
					m.enter(Asking, bad)
				}
				return false, nil
			}
			l, err := m.check(d, p)
			if err != nil {
				bad = fmt.Sprintf("server %s offers what cannot be used: %v", p.src, err)
				m.enter(Asking, bad)
				return false, nil
			}
			if l.Server == m.shunned && tries == 1 {
				bad = m.why
				return false, nil
			}
			offered = l
			return true, nil
		},
		silent: func(tries int, since time.Time) {
			if bad == "" {
				m.enter(Asking, silence("DHCP server", m.s.want.Network, tries, since))
			}
		},
	}
	if err := x.run(ctx, m.s); err != nil {
		return nil, err
	}
	m.enter(Asking, "")
	m.pend(offered)
	l, err := m.request(ctx, offered)
	if err == nil {
		m.shunned, m.why = netip.Addr{}, ""
		err = m.unused(ctx, l)
	} else {
		m.shunned, m.why = offered.Server, err.Error()
	}
	if err != nil {
		renounce(ctx, m, offered)
		return nil, err
	}
	m.take(l)
	return l, nil
}

// request takes an offer. Other servers learn from the broadcast that theirs are not taken.
func (m *v4) request(ctx context.Context, offered *Lease) (*Lease, error) {
	a := offered.Addrs[0].Prefix.Addr()
	var got *Lease
	wrong := "" // what came instead of an answer
	x := &exchange{
		pace: growing(firstWait, mostWait, requestTries4), in: m.s.in4, failed: m.cannot(Asking),
		send: func(n int) error {
			return m.send(dhcpv4.MessageTypeRequest, request{try: n, address: a, server: offered.Server})
		},
		take: m.taking(a, offered.Server, &got, func(text string) { wrong = text; m.enter(Asking, text) }),
		silent: func(tries int, since time.Time) {
			if wrong == "" {
				m.enter(Asking, unanswered("server", offered.Server, a, tries, since))
			}
		},
	}
	err := x.run(ctx, m.s)
	if errors.Is(err, errSilent) {
		if wrong != "" {
			return nil, troubled(0, "%s", wrong)
		}
		return nil, troubled(0, "server %s offered %s and does not answer the request for it", offered.Server, a)
	}
	return got, err
}

// taking looks for the answer to a request: an ACK of the address, or a NAK. server is whom was asked; invalid: any. wrong is told of
// an ACK that is none, which does not end the wait: anybody on the LAN can send one.
func (m *v4) taking(a, server netip.Addr, got **Lease, wrong func(string)) func(packet) (bool, error) {
	return func(p packet) (bool, error) {
		d := m.answer(p, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak, dhcpv4.MessageTypeOffer)
		if d == nil {
			return false, nil
		}
		from := serverOf(d)
		if server.IsValid() && from != server {
			if from.IsValid() && usable4(from) {
				m.sawOther(from)
			}
			return false, nil
		}
		if d.MessageType() == dhcpv4.MessageTypeNak {
			return false, troubled(0, "server %s refused %s (NAK)%s", who(from, p), a, reason(d))
		}
		if d.MessageType() != dhcpv4.MessageTypeAck {
			return false, nil
		}
		l, err := m.check(d, p)
		switch {
		case addr4(d.YourIPAddr) != a:
			wrong(fmt.Sprintf("server %s was asked for %s and acknowledges %s instead", who(from, p), a, addrText(addr4(d.YourIPAddr))))
			return false, nil
		case err != nil:
			wrong(fmt.Sprintf("server %s acknowledges %s in a way that cannot be used: %v", who(from, p), a, err))
			return false, nil
		}
		*got = l
		return true, nil
	}
}

// unused probes an address before it is used, and declines it if somebody has it.
func (m *v4) unused(ctx context.Context, l *Lease) error {
	a := l.Addrs[0].Prefix.Addr()
	m.enter(Probing, "")
	user, used, err := m.s.probe(ctx, a)
	if err != nil {
		return err
	}
	if !used {
		return nil
	}
	if err := m.send(dhcpv4.MessageTypeDecline, request{address: a, server: l.Server}); err != nil {
		return err
	}
	return troubled(declinePause, "address %s, which server %s gives, is used by %s: find out who that is, or take it out of the server's range",
		a, l.Server, macString(user))
}

// reboot asks whether a stored lease still holds (INIT-REBOOT). Silence does not end it: it is ours until it ends.
func (m *v4) reboot(ctx context.Context, l *Lease) (*Lease, error) {
	a := l.Addrs[0].Prefix.Addr()
	m.begin()
	m.enter(Rebooting, "")
	got := (*Lease)(nil)
	patience := growing(firstWait, mostWait, 3)
	x := &exchange{
		pace: func(n int) (time.Duration, bool) {
			wait, ok := patience(n)
			return wait, ok && !l.over(time.Now())
		},
		in: m.s.in4, failed: m.cannot(Rebooting),
		send: func(n int) error { return m.send(dhcpv4.MessageTypeRequest, request{try: n, address: a}) },
		take: m.taking(a, netip.Addr{}, &got, func(text string) { m.enter(Rebooting, text) }),
	}
	switch err := x.run(ctx, m.s); {
	case err == nil:
		m.take(got)
		return got, nil
	case errors.Is(err, errSilent):
		m.enter(Bound, "")
		return l, nil
	default:
		return nil, err
	}
}

// hold keeps a lease until it cannot be renewed, is refused, or ctx ends.
func (m *v4) hold(ctx context.Context, l *Lease, used <-chan plan.MAC) error {
	for {
		if !m.keep(ctx, l, used) {
			return ctx.Err()
		}
		m.begin()
		got, err := m.extend(ctx, l, Renewing, l.T2, request{client: l.Addrs[0].Prefix.Addr(), via: l})
		if errors.Is(err, errSilent) {
			got, err = m.extend(ctx, l, Rebinding, l.Expires, request{client: l.Addrs[0].Prefix.Addr()})
		}
		if errors.Is(err, errSilent) {
			return troubled(0, "the lease of %s ended at %s, and no DHCP server on %s renewed it",
				l.Addrs[0].Prefix.Addr(), l.Expires.Format(time.TimeOnly), m.s.want.Network)
		}
		if err != nil {
			return err
		}
		m.take(got)
		l = got
	}
}

func (m *v4) extend(ctx context.Context, l *Lease, phase Phase, deadline time.Time, r request) (*Lease, error) {
	a := l.Addrs[0].Prefix.Addr()
	var got *Lease
	var server netip.Addr
	problem, wrong := "", ""
	if r.via != nil {
		server = l.Server
	} else {
		problem = fmt.Sprintf("server %s has not renewed %s: any server is asked", l.Server, a)
	}
	m.enter(phase, problem)
	x := &exchange{
		pace: before(deadline, least(l)), in: m.s.in4, failed: m.cannot(phase),
		send: func(n int) error { r.try = n; return m.send(dhcpv4.MessageTypeRequest, r) },
		take: m.taking(a, server, &got, func(text string) { wrong = text; m.enter(phase, text) }),
		silent: func(tries int, since time.Time) {
			switch {
			case wrong != "":
			case server.IsValid():
				m.enter(phase, fmt.Sprintf("server %s has not answered since %s, when it was first asked to renew %s (%d tries)", server, since.Format(time.TimeOnly), a, tries))
			default:
				m.enter(phase, silence("DHCP server", m.s.want.Network, tries, since))
			}
		},
	}
	err := x.run(ctx, m.s)
	return got, err
}

// least is how often to ask for a renewal at most: a minute, or less for a short lease.
func least(l *Lease) time.Duration {
	return min(time.Minute, max(leastRenewal, l.Expires.Sub(l.Got)/20))
}

// release gives the lease back. There is no answer to it.
func (m *v4) release(_ context.Context, l *Lease) error {
	m.begin()
	return m.send(dhcpv4.MessageTypeRelease, request{client: l.Addrs[0].Prefix.Addr(), server: l.Server, via: l})
}

// begin starts another transaction.
func (m *v4) begin() {
	m.xid, m.begun = rand.Uint32(), time.Now()
	m.s.xid4.Store(m.xid)
}

// cannot tells that a question could not be sent, or can be again.
func (m *machine) cannot(p Phase) func(error) {
	return func(err error) {
		if err == nil {
			m.enter(p, "")
			return
		}
		m.enter(p, err.Error())
	}
}

// request is what differs between messages.
type request struct {
	try     int
	client  netip.Addr // the address that the client has: ciaddr
	address netip.Addr // the one that it asks for
	server  netip.Addr // whose offer it takes, or whom it gives something back
	via     *Lease     // sent to this lease's server alone
}

func (m *v4) send(kind dhcpv4.MessageType, r request) error {
	w := &m.s.want
	d, err := dhcpv4.New(dhcpv4.WithHwAddr(w.MAC[:]), dhcpv4.WithMessageType(kind),
		dhcpv4.WithTransactionID(dhcpv4.TransactionID{byte(m.xid >> 24), byte(m.xid >> 16), byte(m.xid >> 8), byte(m.xid)}),
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(m.s.id.clientID())))
	if err != nil {
		return fmt.Errorf("make a message: %w", err)
	}
	if kind != dhcpv4.MessageTypeRelease && kind != dhcpv4.MessageTypeDecline {
		d.NumSeconds = uint16(min(time.Since(m.begun)/time.Second, 0xffff))
		m.wishes(d)
		// An answer can be heard without an address, but some switch on the way may not carry it: every other pair of
		// tries asks for a broadcast.
		if !r.client.IsValid() && r.try%4 >= 2 {
			d.SetBroadcast()
		}
	}
	if r.address.IsValid() {
		d.UpdateOption(dhcpv4.OptRequestedIPAddress(r.address.AsSlice()))
	}
	if r.server.IsValid() {
		d.UpdateOption(dhcpv4.OptServerIdentifier(r.server.AsSlice()))
	}
	src, dst, to := netip.IPv4Unspecified(), broadcast4, broadcastMAC
	if r.client.IsValid() {
		d.ClientIPAddr, src = r.client.AsSlice(), r.client
	}
	if r.via != nil {
		dst, to = r.via.Server, r.via.ServerMAC
	}
	return m.s.send(udp4(w.MAC, to, src, dst, d.ToBytes()))
}

// wishes are what a client asks for, and who it says it is. A name with dots is a full one (RFC 4702), which replaces the
// plain name.
func (m *v4) wishes(d *dhcpv4.DHCPv4) {
	d.UpdateOption(dhcpv4.OptParameterRequestList(dhcpv4.OptionSubnetMask, dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionRouter,
		dhcpv4.OptionDomainNameServer, dhcpv4.OptionDomainName, dhcpv4.OptionDNSDomainSearchList, dhcpv4.OptionInterfaceMTU,
		dhcpv4.OptionBroadcastAddress, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue))
	d.UpdateOption(dhcpv4.OptMaxMessageSize(1500))
	switch name := hostname(m.s.want.Hostname); {
	case strings.Contains(name, "."):
		// Flags: S, the server shall update the name, and E, in the encoding of DNS.
		labels := &rfc1035label.Labels{Labels: []string{name}}
		d.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionFQDN, append([]byte{0x05, 0, 0}, labels.ToBytes()...)))
	case name != "":
		d.UpdateOption(dhcpv4.OptHostName(name))
	}
}

// hostname leaves out of a name what a host's name cannot have (RFC 1123).
func hostname(s string) string {
	var labels []string
	for label := range strings.SplitSeq(strings.ToLower(s), ".") {
		label = strings.Map(func(r rune) rune {
			switch {
			case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
				return r
			case r == '_', r == ' ':
				return '-'
			}
			return -1
		}, label)
		label = strings.Trim(label[:min(len(label), 63)], "-")
		if label != "" {
			labels = append(labels, label)
		}
	}
	name := strings.Join(labels, ".")
	for len(name) > 250 {
		name = name[:strings.LastIndexByte(name, '.')]
	}
	return name
}

func macString(m plan.MAC) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
