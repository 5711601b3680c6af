package lease

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Times of RFC 8415, section 7.6. Those of renewals come from the lease's own end, as in DHCPv4.
const (
	firstWait6    = time.Second
	mostSolicit   = time.Hour
	mostRequest   = 30 * time.Second
	requestTries  = 5
	confirmTries  = 4
	declineTries  = 2
	defaultInform = 24 * time.Hour
	leastInform   = 10 * time.Minute
)

// errNoBinding: the server does not know the lease.
var errNoBinding = errors.New("the server does not know the lease")

// v6 is the machine of DHCPv6.
type v6 struct {
	machine
	xid   dhcpv6.TransactionID
	begun time.Time
}

func (m *v6) run(ctx context.Context) { m.repeat(ctx, m.once) }

// once gets a lease, or takes the stored one up, and holds it until it is lost. Without a lease it waits for a router to
// say that there is a server for addresses, or one for the rest.
func (m *v6) once(ctx context.Context) (err error) {
	l := m.held()
	if l != nil && (l.over(time.Now()) || len(l.Addrs) == 0) {
		l = nil
	}
	fresh := false
	if l != nil {
		l, err = m.confirm(ctx, l)
	} else {
		if err := m.invited(ctx); err != nil {
			return err
		}
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

// invited waits for the M flag, and meanwhile asks for what comes without an address if there is an O flag.
func (m *v6) invited(ctx context.Context) error {
	if m.isManaged() {
		return nil
	}
	if m.held() == nil {
		m.enter(Waiting, "")
	}
	var again <-chan time.Time
	other := m.s.other
	for {
		select {
		case <-m.s.managed:
			return nil
		case <-other:
			if m.isManaged() { // both may be said at once
				return nil
			}
		case <-again:
		case <-ctx.Done():
			return ctx.Err()
		}
		other = nil
		wait, err := m.inform(ctx)
		if err != nil {
			return err
		}
		again = time.After(wait)
	}
}

// isManaged tells whether a router has said the M flag.
func (m *v6) isManaged() bool {
	select {
	case <-m.s.managed:
		return true
	default:
		return false
	}
}

// inform asks for resolvers and domains only.
func (m *v6) inform(ctx context.Context) (time.Duration, error) {
	m.begin()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var got *Lease
	wait := defaultInform
	x := &exchange{
		pace: growing(firstWait6, mostSolicit, 0), in: m.s.in6, failed: m.cannot(Waiting),
		send: func(int) error { return m.send(dhcpv6.MessageTypeInformationRequest, nil, nil) },
		take: func(p packet) (bool, error) {
			d := m.answer(p, dhcpv6.MessageTypeReply)
			if d == nil {
				return false, nil
			}
			got = &Lease{Server: p.src, ServerMAC: p.mac, Got: time.Now()}
			got.extras6(d)
			wait = max(d.Options.InformationRefreshTime(defaultInform), leastInform)
			got.Expires = got.Got.Add(2 * wait)
			return true, nil
		},
	}
	if err := x.run(ctx, m.s); err != nil {
		return 0, err
	}
	m.take(got)
	return min(wait, 7*24*time.Hour), nil
}

// acquire solicits servers, takes the best advertisement of the first second or else the first, and requests it. A
// server may give the lease at once (rapid commit).
func (m *v6) acquire(ctx context.Context) (*Lease, error) {
	m.begin()
	m.resume(Asking)
	var best *Lease
	bad := "" // the offer that came and was not taken
	var preference uint8
	committed := false
	patience := growing(firstWait6, mostSolicit, 0)
	x := &exchange{
		pace: func(n int) (time.Duration, bool) {
			wait, _ := patience(n)
			return wait, best == nil
		},
		in: m.s.in6, failed: m.cannot(Asking),
		send: func(int) error { return m.send(dhcpv6.MessageTypeSolicit, nil, nil) },
		take: func(p packet) (bool, error) {
			d := m.answer(p, dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply)
			if d == nil || d.MessageType == dhcpv6.MessageTypeReply && d.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
				return false, nil
			}
			l, err := m.check(d, p)
			if err != nil {
				bad = fmt.Sprintf("DHCPv6 server %s offers what cannot be used: %v", p.src, err)
				m.enter(Asking, bad)
				return false, nil
			}
			if d.MessageType == dhcpv6.MessageTypeReply {
				best, committed = l, true
				return true, nil
			}
			late := best == nil && time.Since(m.begun) > firstWait6
			if v := d.Options.Preference(); best == nil || v > preference {
				best, preference = l, v
			} else {
				m.sawOther(l.Server)
			}
			return preference == 255 || late, nil
		},
		silent: func(tries int, since time.Time) {
			if best == nil && bad == "" {
				m.enter(Asking, silence("DHCPv6 server", m.s.want.Network, tries, since))
			}
		},
	}
	if err := x.run(ctx, m.s); err != nil && (!errors.Is(err, errSilent) || best == nil) {
		return nil, err
	}
	m.enter(Asking, "")
	m.pend(best)
	l, err := best, error(nil)
	if !committed {
		l, err = m.request(ctx, best, Asking)
	}
	if err == nil {
		err = m.unused(ctx, l)
	}
	if err != nil {
		renounce(ctx, m, best)
		return nil, err
	}
	m.take(l)
	return l, nil
}

// request asks a server for the lease that it has offered, or had given.
func (m *v6) request(ctx context.Context, l *Lease, phase Phase) (*Lease, error) {
	m.begin()
	got, err := m.ask(ctx, dhcpv6.MessageTypeRequest, l, phase, growing(firstWait6, mostRequest, requestTries))
	switch {
	case errors.Is(err, errSilent):
		return nil, troubled(0, "DHCPv6 server %s offered %s and does not answer the request for it", l.Server, l.Addrs[0].Prefix.Addr())
	case errors.Is(err, errNoBinding):
		return nil, troubled(0, "DHCPv6 server %s offered %s and does not know it any more", l.Server, l.Addrs[0].Prefix.Addr())
	}
	return got, err
}

// ask sends a message about a lease until the server, or any if the message is for any, has given it anew.
func (m *v6) ask(ctx context.Context, kind dhcpv6.MessageType, l *Lease, phase Phase, p pace) (*Lease, error) {
	var got *Lease
	server := l
	if kind == dhcpv6.MessageTypeRebind {
		server = nil
	}
	x := &exchange{
		pace: p, in: m.s.in6, failed: m.cannot(phase),
		send: func(int) error { return m.send(kind, l, server) },
		take: func(p packet) (bool, error) {
			d := m.answer(p, dhcpv6.MessageTypeReply)
			if d == nil {
				return false, nil
			}
			if server != nil && serverID(d) != l.ServerID {
				m.sawOther(p.src)
				return false, nil
			}
			fresh, err := m.check(d, p)
			switch {
			case errors.Is(err, errNoBinding):
				return false, err
			case err != nil && kind == dhcpv6.MessageTypeRequest:
				return false, troubled(0, "DHCPv6 server %s refused %s: %v", p.src, l.Addrs[0].Prefix.Addr(), err)
			case err != nil:
				return false, troubled(0, "DHCPv6 server %s ended the lease of %s: %v", p.src, l.Addrs[0].Prefix.Addr(), err)
			case kind != dhcpv6.MessageTypeRequest && fresh.Addrs[0].Prefix != l.Addrs[0].Prefix:
				return false, troubled(0, "DHCPv6 server %s gives %s instead of %s", p.src, fresh.Addrs[0].Prefix.Addr(), l.Addrs[0].Prefix.Addr())
			}
			got = fresh
			return true, nil
		},
		silent: func(tries int, since time.Time) {
			if kind == dhcpv6.MessageTypeRequest {
				m.enter(phase, unanswered("DHCPv6 server", l.Server, l.Addrs[0].Prefix.Addr(), tries, since))
				return
			}
			m.enter(phase, silence("DHCPv6 server", m.s.want.Network, tries, since))
		},
	}
	err := x.run(ctx, m.s)
	return got, err
}

// unused probes an address before it is used, and declines it if somebody has it.
func (m *v6) unused(ctx context.Context, l *Lease) error {
	a := l.Addrs[0].Prefix.Addr()
	m.enter(Probing, "")
	user, used, err := m.s.probe(ctx, a)
	if err != nil {
		return err
	}
	if !used {
		return nil
	}
	if err := m.part(ctx, dhcpv6.MessageTypeDecline, l); err != nil {
		m.s.log.Warn("address not declined: its lease ends by itself", "address", a.String(), "error", err)
	}
	return troubled(declinePause, "address %s, which DHCPv6 server %s gives, is used by %s: find out who that is, or take it out of the server's range",
		a, l.Server, macString(user))
}

// confirm asks whether a stored lease is still of this network. Silence is consent; then it is renewed, for a server
// confirms where the address is from, and not that it is ours.
func (m *v6) confirm(ctx context.Context, l *Lease) (*Lease, error) {
	m.begin()
	m.enter(Rebooting, "")
	patience := growing(firstWait6, 4*time.Second, confirmTries)
	x := &exchange{
		pace: func(n int) (time.Duration, bool) {
			wait, ok := patience(n)
			return wait, ok && !l.over(time.Now())
		},
		in: m.s.in6, failed: m.cannot(Rebooting),
		send: func(int) error { return m.send(dhcpv6.MessageTypeConfirm, l, nil) },
		take: func(p packet) (bool, error) {
			d := m.answer(p, dhcpv6.MessageTypeReply)
			if d == nil {
				return false, nil
			}
			if code, text := statusOf(d.Options.Status()); code != 0 {
				return false, troubled(0, "DHCPv6 server %s says that %s is not of this network (%s)", p.src, l.Addrs[0].Prefix.Addr(), text)
			}
			return true, nil
		},
	}
	if err := x.run(ctx, m.s); err != nil && !errors.Is(err, errSilent) {
		return nil, err
	}
	m.enter(Bound, "")
	return l, nil
}

// hold keeps a lease until it cannot be renewed, is taken away, or ctx ends.
func (m *v6) hold(ctx context.Context, l *Lease, used <-chan plan.MAC) error {
	for {
		if !m.keep(ctx, l, used) {
			return ctx.Err()
		}
		m.begin()
		m.enter(Renewing, "")
		got, err := m.ask(ctx, dhcpv6.MessageTypeRenew, l, Renewing, before(l.T2, least(l)))
		if errors.Is(err, errNoBinding) {
			// A server that has forgotten may give the same again.
			if got, err = m.request(ctx, l, Renewing); err == nil && got.Addrs[0].Prefix != l.Addrs[0].Prefix {
				err = troubled(0, "DHCPv6 server %s gives %s instead of %s", got.Server, got.Addrs[0].Prefix.Addr(), l.Addrs[0].Prefix.Addr())
			}
		}
		if errors.Is(err, errSilent) {
			m.begin()
			m.enter(Rebinding, fmt.Sprintf("DHCPv6 server %s has not renewed %s: any server is asked", l.Server, l.Addrs[0].Prefix.Addr()))
			got, err = m.ask(ctx, dhcpv6.MessageTypeRebind, l, Rebinding, before(l.Expires, least(l)))
		}
		switch {
		case errors.Is(err, errSilent):
			return troubled(0, "the lease of %s ended at %s, and no DHCPv6 server on %s renewed it",
				l.Addrs[0].Prefix.Addr(), l.Expires.Format(time.TimeOnly), m.s.want.Network)
		case errors.Is(err, errNoBinding):
			return troubled(0, "no DHCPv6 server on %s knows the lease of %s", m.s.want.Network, l.Addrs[0].Prefix.Addr())
		case err != nil:
			return err
		}
		m.take(got)
		l = got
	}
}

// release gives the lease back, if there is an address in it.
func (m *v6) release(ctx context.Context, l *Lease) error {
	if len(l.Addrs) == 0 {
		return nil
	}
	return m.part(ctx, dhcpv6.MessageTypeRelease, l)
}

// part gives an address away, and waits a moment for the server to say that it knows. One that says nothing may have heard it
// all the same.
func (m *v6) part(ctx context.Context, kind dhcpv6.MessageType, l *Lease) error {
	m.begin()
	var unsent error
	x := &exchange{
		pace: growing(400*time.Millisecond, time.Second, declineTries), in: m.s.in6,
		send:   func(int) error { unsent = m.send(kind, l, l); return unsent },
		take:   func(p packet) (bool, error) { return m.answer(p, dhcpv6.MessageTypeReply) != nil, nil },
		failed: func(error) {},
	}
	if err := x.run(ctx, m.s); err != nil && unsent != nil {
		return unsent
	}
	return nil
}

func (m *v6) begin() {
	v := rand.Uint32()
	m.xid, m.begun = dhcpv6.TransactionID{byte(v >> 16), byte(v >> 8), byte(v)}, time.Now()
}

// send a message about a lease, if it is about one, to the server of another, or to all.
func (m *v6) send(kind dhcpv6.MessageType, about, server *Lease) error {
	d := &dhcpv6.Message{MessageType: kind, TransactionID: m.xid}
	d.AddOption(dhcpv6.OptClientID(&dhcpv6.DUIDUUID{UUID: m.s.id.uuid}))
	if server != nil {
		raw, err := hex.DecodeString(server.ServerID)
		if err != nil {
			return fmt.Errorf("read the server's identifier: %w", err)
		}
		d.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionServerID, OptionData: raw})
	}
	d.AddOption(dhcpv6.OptElapsedTime(min(time.Since(m.begun), 655*time.Second)))
	if kind != dhcpv6.MessageTypeInformationRequest {
		ia := &dhcpv6.OptIANA{IaId: m.s.id.iaid}
		if about != nil {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: about.Addrs[0].Prefix.Addr().AsSlice()})
		}
		d.AddOption(ia)
	}
	if kind == dhcpv6.MessageTypeSolicit {
		d.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	}
	if !slices.Contains([]dhcpv6.MessageType{dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeConfirm}, kind) {
		d.AddOption(dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList, dhcpv6.OptionInformationRefreshTime))
		if name := hostname(m.s.want.Hostname); name != "" {
			// Flag S: the server shall update the name (RFC 4704).
			d.AddOption(&dhcpv6.OptFQDN{Flags: 1, DomainName: &rfc1035label.Labels{Labels: []string{name}}})
		}
	}
	return m.s.send(udp6(m.s.want.MAC, m.s.want.LinkLocal, d.ToBytes()))
}
