package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
	th "github.com/bulkhead-net/bulkhead/internal/testhost"
)

// TestFlows has a connection from a to b, under a rule of each, and looks for it in the
// table, in the rules' counters, and in the log when it has ended.
func TestFlows(t *testing.T) {
	p := newPair(t, AttachAuto)
	allow := func(number uint32) *plan.RuleList {
		return &plan.RuleList{Rules: []plan.Rule{{Number: number, Action: plan.Allow, Protocols: []uint8{6}}}, Default: plan.Block, Hash: [16]byte{byte(number)}}
	}
	for port, policy := range map[*plan.Port]plan.Policy{p.a: {Out: allow(11)}, p.b: {In: allow(22)}} {
		changed := *port
		changed.Policy = policy
		p.plan.Ports[port.ID] = &changed
		p.update(change(port, &changed))
	}
	ended := make(chan Flow, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.lab.a.EndedFlows(ctx, func(f Flow) { ended <- f }) }()

	server := p.hostB.TCPEcho(netip.AddrPortFrom(p.b.Addrs[0], 7))
	conn, err := p.hostA.DialContext(t.Context(), "tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(conn, 10_000); err != nil {
		t.Fatal(err)
	}
	live := p.flows(t, p.a.ID)
	if len(live) != 1 {
		t.Fatalf("a has the flows %+v, want one", live)
	}
	p.checkFlow(t, live[0], FlowEstablished)
	if got := p.flows(t, p.c.ID); len(got) != 0 {
		t.Errorf("c has the flows %+v", got)
	}
	if err := p.lab.a.EachFlow("", func(Flow) bool { return false }); err != nil {
		t.Error(err)
	}
	before := p.ruleCounters(t)

	conn.Close()
	select {
	case f := <-ended:
		if f.State != FlowClosed && f.State != FlowReset {
			t.Errorf("the flow ended as %s", f.State)
		}
		p.checkFlow(t, f, f.State)
	case <-time.After(20 * time.Second):
		t.Fatal("the end of the flow is not in the log")
	}
	if got := p.flows(t, p.a.ID); len(got) != 0 {
		t.Errorf("a still has the flows %+v", got)
	}
	// What the flow had is the rules' now.
	if after := p.ruleCounters(t); after.Packets < before.Packets || after.Bytes < before.Bytes || after.Matches != 1 {
		t.Errorf("counters went from %+v to %+v", before, after)
	}
	if err := p.lab.a.EndedFlows(t.Context(), nil); !errors.Is(err, ErrFlowLogTaken) {
		t.Errorf("a second reader gets %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func (p *pair) flows(t *testing.T, port plan.PortID) (out []Flow) {
	t.Helper()
	if err := p.lab.a.EachFlow(port, func(f Flow) bool {
		if f.Protocol == 6 {
			out = append(out, f)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *pair) checkFlow(t *testing.T, f Flow, state FlowState) {
	t.Helper()
	if f.Opener.Port != p.a.ID || f.Peer.Port != p.b.ID || f.Opener.Addr != p.a.Addrs[0] || f.Peer != (FlowEnd{p.b.ID, p.b.Addrs[0], 7}) ||
		f.State != state || f.RuleOut != 11 || f.RuleIn != 22 || f.Bytes[0] < 10_000 || f.Bytes[1] < 10_000 || f.Packets[0] == 0 || f.Packets[1] == 0 ||
		time.Since(f.Opened) > time.Minute || f.Seen.Before(f.Opened.Add(-20*time.Millisecond)) || time.Until(f.Seen) > time.Second {
		t.Errorf("%+v", f)
	}
}

// ruleCounters are those of both rules, which count the same.
func (p *pair) ruleCounters(t *testing.T) RuleCounters {
	t.Helper()
	var got [2]RuleCounters
	for i, port := range []*plan.Port{p.a, p.b} {
		c, err := p.lab.a.RuleCounters(port.ID)
		if err != nil || len(c) != 1 {
			t.Fatalf("%s: %v, %v", port.ID, c, err)
		}
		got[i] = c[uint32(11*(i+1))]
		all, err := p.lab.a.AllRuleCounters()
		if err != nil || len(all[port.ID]) != 1 || all[port.ID][uint32(11*(i+1))] != got[i] {
			t.Errorf("read at once: %+v, %v, and of %s alone %+v", all, err, port.ID, got[i])
		}
	}
	if got[0] != got[1] || got[0].Bytes < 20_000 || got[0].Matches != 1 {
		t.Errorf("the rules count %+v", got)
	}
	return got[0]
}

// TestRuleCountersOfDrops: a packet that is blocked is counted by its rule.
func TestRuleCountersOfDrops(t *testing.T) {
	p := newPair(t, AttachAuto)
	blocked := *p.b
	blocked.Policy.In = &plan.RuleList{Rules: []plan.Rule{{Number: 5, Action: plan.Block}}, Default: plan.Block, Hash: [16]byte{5}}
	p.plan.Ports[p.b.ID] = &blocked
	p.update(change(p.b, &blocked))
	if err := p.hostA.Silent(p.b.Addrs[1]); err != nil {
		t.Error(err)
	}
	th.Eventually(t, 5*time.Second, func() error {
		c, err := p.lab.a.RuleCounters(p.b.ID)
		if err == nil && (c[5].Matches == 0 || c[5].Packets != c[5].Matches) {
			err = errors.New("not counted")
		}
		return err
	})
}

// TestFirstCountsOfTwoCPUs: a rule decides for the first time on two CPUs at once, and both have counted.
func TestFirstCountsOfTwoCPUs(t *testing.T) {
	const rules = 100
	p := newPair(t, AttachAuto)
	each := make([]plan.Rule, rules)
	for i := range each {
		each[i] = own(plan.Block, unix.IPPROTO_UDP, 1000+uint16(i))
	}
	p.b = p.replace(p.b, func(b *plan.Port) { b.Policy.In = list(plan.Allow, each...) })
	var at [2]atomic.Int64
	var both sync.WaitGroup
	for me := range 2 {
		conn, err := p.hostA.ListenPacket("udp", netip.AddrPortFrom(p.a.Addrs[0], 7000+uint16(me)).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		both.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with its one CPU
			var one unix.CPUSet
			one.Set(me % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				t.Error(err)
			}
			for i := range rules {
				at[me].Store(int64(i) + 1)
				for late := time.Now().Add(10 * time.Millisecond); at[1-me].Load() <= int64(i) && time.Now().Before(late); {
				}
				to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.b.Addrs[0], 1000+uint16(i)))
				if _, err := conn.WriteTo([]byte("x"), to); err != nil {
					t.Error(err)
				}
			}
		})
	}
	both.Wait()
	th.Eventually(t, 5*time.Second, func() error {
		c, err := p.lab.a.RuleCounters(p.b.ID)
		if err != nil {
			return err
		}
		for i := range uint32(rules) {
			if n := c[i+1]; n.Matches != 2 || n.Packets != 2 {
				return fmt.Errorf("rule %d has decided %d times, about %d packets, want 2", i+1, n.Matches, n.Packets)
			}
		}
		return nil
	})
}
