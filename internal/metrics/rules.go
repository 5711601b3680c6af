package metrics

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// ruleSums makes the series of rules: one for each of the first so many, and one for the rest.
type ruleSums struct {
	slots *slots
	// rest sums the rules without a series; last is what was read of each.
	rest    [3]uint64
	last    map[string][3]uint64
	crowded bool
}

func newRuleSums(most int) ruleSums {
	return ruleSums{slots: newSlots(most), last: map[string][3]uint64{}}
}

// ruleSeries is what its labels make of a rule. A rule that is changed keeps its series, if it keeps its Id.
type ruleSeries struct {
	key    string
	labels []string
	values [3]uint64
}

func (r *Rule) series(networks *slots) ruleSeries {
	id := cmp.Or(r.ID, fmt.Sprintf("%08x", r.Number))
	key := strings.Join([]string{r.EndpointID, r.Direction, r.Action, id}, "\x00")
	return ruleSeries{key, []string{r.Endpoint, r.EndpointID, networks.name(r.Network), r.Direction, r.Action, id}, [3]uint64{r.Matches, r.Packets, r.Bytes}}
}

func (s *ruleSums) send(list []Rule, networks *slots, send sender) {
	var all []ruleSeries
	at := map[string]int{}
	for i := range list {
		one := list[i].series(networks)
		j, known := at[one.key]
		if !known {
			at[one.key] = len(all)
			all = append(all, one)
			continue
		}
		for k, n := range one.values {
			all[j].values[k] += n
		}
	}
	slices.SortFunc(all, func(a, b ruleSeries) int { return cmp.Compare(a.key, b.key) })
	keys := make([]string, len(all))
	for i := range all {
		keys[i] = all[i].key
	}
	s.slots.keep(keys)
	last := map[string][3]uint64{}
	for _, one := range all {
		if s.slots.own[one.key] {
			sendRule(one.values, send, one.labels...)
			continue
		}
		s.crowded = true
		for i, n := range one.values {
			s.rest[i] += since(s.last[one.key][i], n)
		}
		last[one.key] = one.values
	}
	s.last = last
	if s.crowded {
		sendRule(s.rest, send, other, "", other, other, other, other)
	}
}

func sendRule(v [3]uint64, send sender, labels ...string) {
	for i, m := range []metric{ruleMatches, rulePackets, ruleBytes} {
		send(m, prometheus.CounterValue, float64(v[i]), labels...)
	}
}
