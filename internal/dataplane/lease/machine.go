package lease

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// machine is what the three have in common.
type machine struct {
	s   *session
	src Source
}

func (m *machine) source() Source { return m.src }
func (m *machine) key() Key       { return Key{m.s.want.Endpoint, m.src} }
func (m *machine) held() *Lease   { return m.s.c.lease(m.key()) }

// resume a phase; what is wrong stays said until more is known.
func (m *machine) resume(p Phase) {
	m.s.c.update(m.key(), func(st *State) { st.Phase = p })
}

// enter a phase; the lease stays as it is.
func (m *machine) enter(p Phase, problem string) {
	m.s.c.update(m.key(), func(st *State) { st.Phase, st.Problem = p, problem })
}

// take publishes a lease.
func (m *machine) take(l *Lease) {
	if !m.held().alike(l) {
		m.s.log.Info("lease taken", "source", string(m.src), "addresses", fmt.Sprint(prefixes(l)), "server", l.Server.String())
	}
	m.s.c.update(m.key(), func(st *State) { st.Phase, st.Problem, st.Lease, st.Pending = Bound, "", l, nil })
}

// lose takes the lease back from the caller, and waits.
func (m *machine) lose(problem string) {
	if l := m.held(); l != nil {
		m.s.log.Warn("lease lost", "source", string(m.src), "addresses", fmt.Sprint(prefixes(l)), "problem", problem)
	}
	m.s.c.update(m.key(), func(st *State) { st.Phase, st.Problem, st.Lease, st.Pending = Waiting, problem, nil, nil })
}

// pend notes what a server is asked for.
func (m *machine) pend(l *Lease) {
	m.s.c.update(m.key(), func(st *State) { st.Pending = l })
}

// renounce gives back what was asked for, if that has come to its end because ctx has: the server may have it down as ours.
func renounce(ctx context.Context, m runner, l *Lease) {
	if ctx.Err() == nil {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_ = m.release(last, l) // it ends by itself
}

// sawOther notes a server that answers as well.
func (m *machine) sawOther(server netip.Addr) {
	m.s.c.update(m.key(), func(st *State) {
		if len(st.Others) < maxOthers && !slices.Contains(st.Others, server) {
			st.Others = append(slices.Clone(st.Others), server)
		}
	})
}

func prefixes(l *Lease) (ps []netip.Prefix) {
	for _, a := range l.Addrs {
		ps = append(ps, a.Prefix)
	}
	return ps
}

// admit asks the caller about an address, and checks it against the network's subnets.
func (m *machine) admit(a netip.Addr) error {
	w := &m.s.want
	if len(w.Within) > 0 && !slices.ContainsFunc(w.Within, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return fmt.Errorf("address %s is in none of the subnets of network %s, %v", a, w.Network, w.Within)
	}
	if m.s.c.cfg.Admit != nil {
		return m.s.c.cfg.Admit(w.Endpoint, a)
	}
	return nil
}

// trouble ends what a machine has, or is about to have; its text is for people.
type trouble struct {
	text  string
	pause time.Duration // the shortest before it begins again
}

func (t *trouble) Error() string { return t.text }

func troubled(pause time.Duration, format string, args ...any) error {
	return &trouble{fmt.Sprintf(format, args...), pause}
}

// repeat does once again and again: each time that it ends, with the lease lost, after a pause that grows while it keeps
// ending soon. Refusals come as fast as a hostile server sends them; what we answer does not.
func (m *machine) repeat(ctx context.Context, once func(context.Context) error) {
	pause := time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := once(ctx)
		if ctx.Err() != nil {
			return
		}
		m.lose(err.Error())
		if time.Since(began) > worstPause {
			pause = time.Second
		}
		var least time.Duration
		if t := (*trouble)(nil); errors.As(err, &t) {
			least = t.pause
		}
		pause = max(pause, least)
		if !sleep(ctx, jitter(pause)) {
			return
		}
		pause = min(2*pause, worstPause)
	}
}

// errSilent: nobody gave an answer that can be used.
var errSilent = errors.New("no answer")

// pace says how long to wait for an answer to try number n, from 0; false: no such try is made.
type pace func(n int) (time.Duration, bool)

// growing waits from first up to most, doubling; tries 0 is for ever.
func growing(first, most time.Duration, tries int) pace {
	return func(n int) (time.Duration, bool) {
		return jitter(min(first<<min(n, 20), most)), tries == 0 || n < tries
	}
}

// before asks until a deadline: each time after half of what is left, but not more often than every least (RFC 2131,
// section 4.4.5). A zero deadline never comes.
func before(deadline time.Time, least time.Duration) pace {
	return func(n int) (time.Duration, bool) {
		if deadline.IsZero() {
			return jitter(min(least<<min(n, 10), time.Hour)), true
		}
		left := time.Until(deadline)
		return min(max(left/2, least), left), left > 0
	}
}

// exchange is a question and who may answer it.
type exchange struct {
	pace pace
	in   <-chan packet
	send func(n int) error
	// take looks at a packet: it is the answer, or it ends the exchange with an error, or it is nothing.
	take func(packet) (done bool, err error)
	// silent is called with each question but the first: how many were sent by now, since when, without an answer.
	silent func(tries int, since time.Time)
	// failed is called when a question could not be sent, and with nil when one can be again.
	failed func(error)
}

// run asks until there is an answer. errSilent: there was none.
func (x *exchange) run(ctx context.Context, s *session) error {
	drain(x.in) // what came late is about an earlier question
	began, failing := time.Now(), false
	for n := 0; ; n++ {
		wait, ok := x.pace(n)
		if !ok {
			return errSilent
		}
		up := s.linkUp()
		if err := x.send(n); err != nil {
			x.failed(err)
			failing = true
			// Not a try: nobody could have heard it. The pace is asked again, because of its deadline.
			if !rest(ctx, up, wait) {
				return ctx.Err()
			}
			n--
			began = time.Now()
			continue
		}
		if failing {
			x.failed(nil)
			failing = false
		}
		if n > 0 && x.silent != nil {
			x.silent(n+1, began)
		}
		if done, err := x.listen(ctx, wait); done || err != nil {
			return err
		}
	}
}

// rest waits for a link, or for as long as the answer would have been waited for; false: ctx has ended. A link that was
// there, and still did not send, is given a second.
func rest(ctx context.Context, up <-chan struct{}, wait time.Duration) bool {
	select {
	case <-up:
		return sleep(ctx, min(wait, time.Second))
	default:
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-up:
	case <-t.C:
	case <-ctx.Done():
		return false
	}
	return true
}

func (x *exchange) listen(ctx context.Context, wait time.Duration) (done bool, err error) {
	t := time.NewTimer(wait)
	defer t.Stop()
	for {
		select {
		case p := <-x.in:
			if done, err := x.take(p); done || err != nil {
				return done, err
			}
		case <-t.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

func drain(in <-chan packet) {
	for {
		select {
		case <-in:
		default:
			return
		}
	}
}

// silence tells people since when nobody has answered. It says no duration: it is read when more time has passed.
func silence(who, network string, tries int, since time.Time) string {
	return fmt.Sprintf("no answer from any %s on %s since %s (%d tries); is there one, and does it know this network?",
		who, network, since.Format(time.TimeOnly), tries)
}

// unanswered tells people of a server that has offered an address and is asked for it.
func unanswered(who string, server, a netip.Addr, tries int, since time.Time) string {
	return fmt.Sprintf("%s %s offered %s and has not answered the request for it since %s (%d tries)", who, server, a, since.Format(time.TimeOnly), tries)
}

// defendPause is between answers to somebody who uses our address as well (RFC 5227, section 2.4).
const defendPause = 10 * time.Second

// keep a lease until it is time to renew it; a zero time never comes. false: ctx has ended. Whoever uses the address as
// well is told whose it is, and people are told who does. The address stays: the server has given it to us, and to let
// go would mean that anybody on the LAN can take a container's address away.
func (m *machine) keep(ctx context.Context, l *Lease, used <-chan plan.MAC) bool {
	a := l.Addrs[0].Prefix.Addr()
	var renew <-chan time.Time
	if !l.T1.IsZero() {
		t := time.NewTimer(time.Until(l.T1))
		defer t.Stop()
		renew = t.C
	}
	var quiet <-chan time.Time
	for {
		heard := used
		if quiet != nil {
			heard = nil
		}
		select {
		case mac := <-heard:
			m.enter(Bound, fmt.Sprintf("address %s is used by %s as well: find out who that is, and end it there", a, macString(mac)))
			m.s.claim(a)
			quiet = time.After(defendPause)
		case <-quiet:
			quiet = nil
		case <-renew:
			return true
		case <-ctx.Done():
			return false
		}
	}
}
