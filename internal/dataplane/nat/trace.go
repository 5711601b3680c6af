package nat

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The kernel tells what each rule of everybody's tables does to a packet that some rule has marked with `meta nftrace set 1`.
// For one packet of a probe a second table of ours does that, before all others have seen it. It is there for as long as the
// probe; the next Sync takes away what a crash has left.

// TraceTable is the name of the table that marks a probe; its family is inet.
const TraceTable = "bulkhead_trace"

// The bounds of one trace.
const (
	traceEvents = 2048
	traceSettle = 30 * time.Millisecond
	traceTexts  = 2 * time.Second
	// traceRules is how many verdicts are told of.
	traceRules = 64
)

// Trace asks for the verdicts about a packet that is yet to be sent, and about its answer. Who calls it calls the function that
// it gives, once, after the packet was sent. Traces take turns.
func (a *Applier) Trace(ctx context.Context, f plan.HostFlow) (func() ([]plan.HostVerdict, error), error) {
	select {
	case a.tracing <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("trace the host's tables: another trace goes on: %w", ctx.Err())
	}
	t := &trace{a: a, flow: f, done: make(chan struct{}), seen: map[bool]bool{}, now: map[uint32]bool{}}
	_, t.legacy = a.readLegacyOf(f)
	err := t.begin(ctx, f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("trace the host's tables: %w", err), t.end())
	}
	return t.finish, nil
}

// trace is one that goes on.
type trace struct {
	a    *Applier
	flow plan.HostFlow
	c    *netlink.Conn
	done chan struct{} // closed when the reader has ended
	// legacy are the tables of iptables-legacy as they were before.
	legacy []legacyTable

	// What follows belongs to the reader until it has ended.
	events []traceEvent
	err    error
	// seen tells whether the probe and its answer (true) have begun; now are their numbers.
	seen map[bool]bool
	now  map[uint32]bool
}

func (t *trace) begin(ctx context.Context, f plan.HostFlow) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.a.k.netns, Groups: 1 << (unix.NFNLGRP_NFTRACE - 1)})
	if err != nil {
		close(t.done)
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	t.c = c
	go t.read()
	return t.a.inNetns(func() error {
		nft, err := knftables.New(knftables.InetFamily, TraceTable, knftables.NoObjectCommentEmulation)
		if err != nil {
			return err
		}
		tx := nft.NewTransaction()
		tx.Add(&knftables.Table{}) // what a crash has left goes first
		tx.Delete(&knftables.Table{})
		tx.Add(&knftables.Table{})
		traceChains(tx, f)
		return t.a.commit(func() error { return nft.Run(ctx, tx) })
	})
}

// traceChains mark the packet before anybody sees it, and the answer as soon as conntrack knows it for that.
func traceChains(tx *knftables.Transaction, f plan.HostFlow) {
	there, back := traceMatches(f)
	for _, c := range []struct{ name, hook, priority, match string }{
		{"in", "prerouting", "-450", there},
		{"out", "output", "-450", there},
		{"answer_in", "prerouting", "-199", back},
		{"answer_out", "output", "-199", back},
	} {
		tx.Add(&knftables.Chain{
			Name: c.name, Type: new(knftables.FilterType),
			Hook: new(knftables.BaseChainHook(c.hook)), Priority: new(knftables.BaseChainPriority(c.priority)),
		})
		tx.Add(&knftables.Rule{Chain: c.name, Rule: c.match + " meta nftrace set 1"})
	}
}

// traceMatches are the conditions for the packet, and for what answers it.
func traceMatches(f plan.HostFlow) (there, back string) {
	ip, echo, proto := "ip", "icmp type echo-request icmp id", "icmp"
	if f.Dst.Is6() {
		ip, echo, proto = "ip6", "icmpv6 type echo-request icmpv6 id", "icmpv6"
	}
	there = fmt.Sprintf("%s saddr %s %s daddr %s ", ip, f.Src, ip, f.Dst)
	back = fmt.Sprintf("ct direction reply ct original %s saddr %s ct original %s daddr %s ", ip, f.Src, ip, f.Dst)
	switch f.Protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		proto = map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[f.Protocol]
		there += fmt.Sprintf("%s sport %d %s dport %d", proto, f.SrcPort, proto, f.DstPort)
		back += fmt.Sprintf("meta l4proto %s ct original proto-src %d ct original proto-dst %d", proto, f.SrcPort, f.DstPort)
	default:
		there += fmt.Sprintf("%s %d", echo, f.SrcPort)
		back += fmt.Sprintf("meta l4proto %s ct original proto-src %d", proto, f.SrcPort)
	}
	return there, back
}

// read takes what the kernel tells about packets that our table has marked; others may trace packets of their own.
func (t *trace) read() {
	defer close(t.done)
	for len(t.events) < traceEvents {
		msgs, err := t.c.Receive()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		case errors.Is(err, unix.ENOBUFS): // some were lost: what is here is true all the same
			continue
		case err != nil:
			t.err = fmt.Errorf("read the trace: %w", err)
			return
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE {
				continue
			}
			if ev, err := parseTrace(m.Data); err == nil { // what cannot be read is not told of
				t.take(ev)
			}
		}
	}
}

// take keeps the events of the first packet there and of the first one back; what comes after them says the same again. The
// kernel's numbers of packets are addresses in disguise, and come again: a packet begins where our table marks it.
func (t *trace) take(ev traceEvent) {
	if ev.family == nftables.TableFamilyINet && ev.table == TraceTable {
		// The end of a chain is told like a rule, without a handle.
		if ev.kind == unix.NFT_TRACETYPE_RULE && ev.handle != 0 {
			ev.answer = strings.HasPrefix(ev.chain, "answer")
			if t.seen[ev.answer] {
				delete(t.now, ev.id)
			} else {
				t.seen[ev.answer], t.now[ev.id] = true, ev.answer
			}
		}
		return
	}
	if answer, ok := t.now[ev.id]; ok {
		ev.answer = answer
		t.events = append(t.events, ev)
	}
}

// finish ends the trace and gives what was seen.
func (t *trace) finish() ([]plan.HostVerdict, error) {
	_ = t.c.SetReadDeadline(time.Now().Add(traceSettle)) // cannot fail on an open socket
	<-t.done
	out := t.verdicts()
	// The texts are read while the table is still there: the turn is ours until then.
	t.a.ruleTexts(out)
	if len(t.legacy) > 0 {
		family, now := t.a.readLegacyOf(t.flow)
		counted := legacyCounted(&family, t.legacy, now)
		for i := range counted {
			counted[i].Src, counted[i].Dst = t.flow.Src, netip.AddrPortFrom(t.flow.Dst, t.flow.DstPort)
		}
		t.a.legacyTexts(counted)
		out = append(out, counted...)
	}
	return out, errors.Join(t.err, t.end())
}

// end takes the table away and gives the turn to the next.
func (t *trace) end() error {
	var errs []error
	if t.c != nil {
		_ = t.c.SetReadDeadline(time.Unix(1, 0)) // cannot fail on an open socket
		<-t.done
		errs = append(errs, t.c.Close())
	}
	errs = append(errs, t.a.deleteTrace())
	<-t.a.tracing
	return errors.Join(errs...)
}

// verdicts are the events that decided something, in order. Of our own table only drops are told: an explanation says the rest.
func (t *trace) verdicts() []plan.HostVerdict {
	var out []plan.HostVerdict
	headers := map[bool]packetHeader{}
	for _, ev := range t.events {
		if ev.header.src.IsValid() {
			headers[ev.answer] = ev.header
		}
		word, own := ev.word(), ours(&nftables.Table{Name: ev.table, Family: ev.family})
		if word == "" || own && word != "drop" || len(out) == traceRules {
			continue
		}
		h := headers[ev.answer]
		v := plan.HostVerdict{
			Table: familyName(ev.family) + " " + ev.table, Chain: ev.chain, Keeper: t.keeper(ev), Handle: ev.handle, Verdict: word, Answer: ev.answer,
			Src: h.src, Dst: netip.AddrPortFrom(h.dst, h.dstPort),
		}
		if ev.kind == unix.NFT_TRACETYPE_POLICY {
			v.Handle = 0
		}
		out = append(out, v)
	}
	return out
}

// keeper names who keeps the rules of an event's table: the packet has passed that one's chains, if it did not end in one.
func (t *trace) keeper(of traceEvent) string {
	for _, ev := range t.events {
		if ev.family == of.family && ev.table == of.table && (strings.HasPrefix(ev.chain, "ufw-") || strings.HasPrefix(ev.chain, "ufw6-")) {
			return "ufw"
		}
	}
	return ""
}

// ruleTexts asks nft for the texts of the rules. What cannot be had stays empty.
func (a *Applier) ruleTexts(list []plan.HostVerdict) {
	ctx, cancel := context.WithTimeout(context.Background(), traceTexts)
	defer cancel()
	texts := map[string]string{}
	for i := range list {
		v := &list[i]
		where := v.Table + " " + v.Chain
		text, known := texts[where]
		if !known {
			text = a.listChain(ctx, v.Table, v.Chain)
			texts[where] = text
		}
		v.Rule = ruleText(text, v.Handle)
	}
}

// listChain is `nft -a list chain` of a table that is not ours.
func (a *Applier) listChain(ctx context.Context, table, chain string) string {
	family, name, _ := strings.Cut(table, " ")
	var text []byte
	_ = a.inNetns(func() (err error) { // without a text the handle has to do
		text, err = exec.CommandContext(ctx, "nft", "-a", "list", "chain", family, name, chain).Output()
		return err
	})
	return string(text)
}

// ruleText finds a rule by its handle in what `nft -a` prints.
func ruleText(list string, handle uint64) string {
	if handle == 0 {
		return ""
	}
	end := fmt.Sprintf(" # handle %d", handle)
	for line := range strings.Lines(list) {
		if text, ok := strings.CutSuffix(strings.TrimSpace(line), end); ok && !strings.HasSuffix(text, "{") {
			return text
		}
	}
	return ""
}

// deleteTrace takes the table of traces away; its absence is success.
func (a *Applier) deleteTrace() error {
	return a.withConn(func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
		if err != nil {
			return fmt.Errorf("list tables: %w", err)
		}
		i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == TraceTable })
		if i < 0 {
			return nil
		}
		return a.commit(func() error {
			c.DelTable(tables[i])
			if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete table inet %s: %w", TraceTable, err)
			}
			return nil
		})
	})
}

// withConn gives a connection of its own to a function.
func (a *Applier) withConn(fn func(*nftables.Conn) error) error {
	c, err := nftables.New(nftables.WithNetNSFd(a.k.netns))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	return fn(c)
}

// tidyTrace takes away what a crash has left of a trace, unless one goes on.
func (a *Applier) tidyTrace() error {
	select {
	case a.tracing <- struct{}{}:
		defer func() { <-a.tracing }()
		return a.deleteTrace()
	default:
		return nil
	}
}
