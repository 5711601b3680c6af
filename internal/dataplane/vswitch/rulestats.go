package vswitch

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// RuleCounters of a rule at a port.
type RuleCounters struct {
	// Matches counts the times that the rule decided: once for a flow, and once for each
	// packet that belongs to none.
	Matches uint64
	// Packets and Bytes of what it decided about, both ways.
	Packets, Bytes uint64
}

// RuleCounters reads the counters of the rules that a port has now, by number. Those that
// nothing has met yet are missing. A flow that ends meanwhile may be missing too: the next
// reading has it.
func (a *Applier) RuleCounters(port plan.PortID) (map[uint32]RuleCounters, error) {
	index, numbers := a.ruleNumbers(port)
	out := map[uint32]RuleCounters{}
	for _, n := range numbers {
		var perCPU []bpfRuleStats
		err := a.objs.BhRulestatsV1.Lookup(&bpfRuleStatKey{Port: index, Rule: n}, &perCPU)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the counters of rule %d of port %s: %w", n, port, err)
		}
		var c RuleCounters
		for _, v := range perCPU {
			c.Matches += v.Matches
			c.Packets += v.Packets
			c.Bytes += v.Bytes
		}
		out[n] = c
	}
	if len(numbers) == 0 {
		return out, nil
	}
	err := a.addLive(func(decided, rule uint32, c RuleCounters) {
		if decided == index {
			out[rule] = out[rule].plus(c)
		}
	})
	return out, err
}

// AllRuleCounters reads those of all ports, in one pass over each table.
func (a *Applier) AllRuleCounters() (map[plan.PortID]map[uint32]RuleCounters, error) {
	byIndex := map[uint32]map[uint32]RuleCounters{}
	out := map[plan.PortID]map[uint32]RuleCounters{}
	a.mu.Lock()
	ids := slices.Collect(maps.Keys(a.applied))
	a.mu.Unlock()
	for _, id := range ids {
		index, numbers := a.ruleNumbers(id)
		if len(numbers) == 0 {
			continue
		}
		counts := map[uint32]RuleCounters{}
		for _, n := range numbers {
			counts[n] = RuleCounters{}
		}
		byIndex[index], out[id] = counts, counts
	}
	if len(out) == 0 {
		return out, nil
	}
	add := func(port, rule uint32, c RuleCounters) {
		if now, has := byIndex[port][rule]; has {
			byIndex[port][rule] = now.plus(c)
		}
	}
	var key bpfRuleStatKey
	var perCPU []bpfRuleStats
	it := a.objs.BhRulestatsV1.Iterate()
	for it.Next(&key, &perCPU) {
		for _, v := range perCPU {
			add(key.Port, key.Rule, RuleCounters{v.Matches, v.Packets, v.Bytes})
		}
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // aborted: it changes fast; the next reading has it
		return nil, fmt.Errorf("read the counters of rules: %w", err)
	}
	return out, a.addLive(add)
}

func (c RuleCounters) plus(o RuleCounters) RuleCounters {
	return RuleCounters{c.Matches + o.Matches, c.Packets + o.Packets, c.Bytes + o.Bytes}
}

// addLive adds the packets of flows that are under way, which the flow table has.
func (a *Applier) addLive(add func(port, rule uint32, c RuleCounters)) error {
	return eachEntry(bpfMapBhFlowsV4, a.objs.BhFlowsV4, batch, func(_ *bpfFlowKey, f *bpfFlow) bool {
		opener := f.Opener & 1
		for _, decided := range []struct{ port, rule uint32 }{
			{f.End[opener].Port, f.RuleOut}, {f.End[1-opener].Port, f.RuleIn},
		} {
			if decided.rule != 0 {
				add(decided.port, decided.rule, RuleCounters{Packets: f.Packets[0] + f.Packets[1], Bytes: f.Bytes[0] + f.Bytes[1]})
			}
		}
		return true
	})
}

// ruleNumbers are the rules that a port was given.
func (a *Applier) ruleNumbers(port plan.PortID) (index uint32, numbers []uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.applied[port]
	if s == nil {
		return 0, nil
	}
	for _, key := range []listKey{s.out, s.in} {
		if list := a.policies.byKey[key]; list != nil {
			for i := range list.list.Rules {
				numbers = append(numbers, list.list.Rules[i].Number)
			}
		}
	}
	return s.index, numbers
}
