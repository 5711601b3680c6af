package metrics

import (
	"maps"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// scraper reads the sources at each scrape.
type scraper struct {
	src Sources

	mu        sync.Mutex
	endpoints *slots
	networks  *slots
	// rest sums the endpoints without a place; last is what was read of each.
	rest [6]uint64
	last map[string][6]uint64
	// drops sum ports by network and reason: a port that goes must not take its share away.
	drops    map[[2]string]uint64
	lastDrop map[[2]string]uint64
	rules    ruleSums
}

func newScraper(o Options) *scraper {
	return &scraper{
		src: o.Sources, endpoints: newSlots(o.MaxEndpoints), networks: newSlots(o.MaxNetworks),
		last: map[string][6]uint64{}, drops: map[[2]string]uint64{}, lastDrop: map[[2]string]uint64{},
		rules: newRuleSums(o.MaxRules),
	}
}

// slots give a bounded number of keys a place, for as long as they are there.
type slots struct {
	max int
	own map[string]bool
}

func newSlots(most int) *slots { return &slots{most, map[string]bool{}} }

// keep frees the places of what is gone and gives them to others, in the order of keys.
func (s *slots) keep(keys []string) {
	there := map[string]bool{}
	for _, k := range keys {
		there[k] = true
	}
	maps.DeleteFunc(s.own, func(k string, _ bool) bool { return !there[k] })
	for _, k := range keys {
		if len(s.own) >= s.max {
			return
		}
		s.own[k] = true
	}
}

func (s *slots) name(key string) string {
	if s.own[key] {
		return key
	}
	return other
}

// Describe lists the metrics.
func (s *scraper) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range []metric{objects, rxPackets, rxBytes, rxDropped, txPackets, txBytes, txDropped, dropsTotal, ruleMatches, rulePackets, ruleBytes, flowsMissing, dnsQueries, dnsCache} {
		ch <- m.desc()
	}
}

// Collect reads the sources.
func (s *scraper) Collect(ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	send := func(m metric, kind prometheus.ValueType, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc(), kind, v, labels...)
	}
	if s.src.Objects != nil {
		for kind, n := range s.src.Objects() {
			send(objects, prometheus.GaugeValue, float64(n), kind)
		}
	}
	s.sendMissing(ch)
	var dns []DNS
	if s.src.DNS != nil {
		dns = s.src.DNS()
	}
	endpoints, err := read(s.src.Endpoints)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(rxPackets.desc(), err)
	}
	drops, err := read(s.src.Drops)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(dropsTotal.desc(), err)
	}
	rules, err := read(s.src.Rules)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(ruleMatches.desc(), err)
	}
	s.networks.keep(networkNames(endpoints, drops, dns))
	s.sendEndpoints(endpoints, send)
	s.sendDrops(drops, send)
	s.rules.send(rules, s.networks, send)
	s.sendDNS(dns, send)
}

func (s *scraper) sendMissing(ch chan<- prometheus.Metric) {
	if s.src.MissingFlows == nil {
		return
	}
	lost, skipped, err := s.src.MissingFlows()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(flowsMissing.desc(), err)
		return
	}
	ch <- prometheus.MustNewConstMetric(flowsMissing.desc(), prometheus.CounterValue, float64(lost), "lost")
	ch <- prometheus.MustNewConstMetric(flowsMissing.desc(), prometheus.CounterValue, float64(skipped), "skipped")
}

func read[T any](from func() ([]T, error)) ([]T, error) {
	if from == nil {
		return nil, nil
	}
	return from()
}

func networkNames(endpoints []Endpoint, drops []Drop, dns []DNS) []string {
	names := map[string]bool{}
	for _, e := range endpoints {
		names[e.Network] = true
	}
	for _, d := range drops {
		names[d.Network] = true
	}
	for _, d := range dns {
		names[d.Network] = true
	}
	return slices.Sorted(maps.Keys(names))
}

type sender func(m metric, kind prometheus.ValueType, v float64, labels ...string)

func (s *scraper) sendEndpoints(list []Endpoint, send sender) {
	ids := make([]string, len(list))
	for i, e := range list {
		ids[i] = e.ID
	}
	s.endpoints.keep(ids)
	last, crowded := map[string][6]uint64{}, s.rest != [6]uint64{}
	for _, e := range list {
		now := [6]uint64{e.RxPackets, e.RxBytes, e.RxDropped, e.TxPackets, e.TxBytes, e.TxDropped}
		if s.endpoints.own[e.ID] {
			sendCounters(now, send, e.Name, e.ID, s.networks.name(e.Network))
			continue
		}
		crowded = true
		for i, n := range now {
			s.rest[i] += since(s.last[e.ID][i], n)
		}
		last[e.ID] = now
	}
	s.last = last
	if crowded {
		sendCounters(s.rest, send, other, "", other)
	}
}

func sendCounters(v [6]uint64, send sender, labels ...string) {
	for i, m := range []metric{rxPackets, rxBytes, rxDropped, txPackets, txBytes, txDropped} {
		send(m, prometheus.CounterValue, float64(v[i]), labels...)
	}
}

// since is how far a counter went on; one that went back began anew.
func since(last, now uint64) uint64 {
	if now < last {
		return now
	}
	return now - last
}

func (s *scraper) sendDrops(list []Drop, send sender) {
	last := map[[2]string]uint64{}
	for _, d := range list {
		k := [2]string{d.Port, d.Reason}
		s.drops[[2]string{s.networks.name(d.Network), d.Reason}] += since(s.lastDrop[k], d.Packets)
		last[k] = d.Packets
	}
	s.lastDrop = last
	for k, n := range s.drops {
		if k[0] != other && !s.networks.own[k[0]] {
			delete(s.drops, k) // the network is gone
			continue
		}
		send(dropsTotal, prometheus.CounterValue, float64(n), k[0], k[1])
	}
}

// sendDNS sums the resolvers of networks without a place. Their counters live as long as
// the networks, so the sum goes back only when one goes, which reads as a new beginning.
func (s *scraper) sendDNS(list []DNS, send sender) {
	queries, cache := map[[2]string]uint64{}, map[string]int{}
	for _, d := range list {
		name := s.networks.name(d.Network)
		for outcome, n := range d.Outcomes {
			queries[[2]string{name, outcome}] += n
		}
		cache[name] += d.CacheEntries
	}
	for k, n := range queries {
		send(dnsQueries, prometheus.CounterValue, float64(n), k[0], k[1])
	}
	for name, n := range cache {
		send(dnsCache, prometheus.GaugeValue, float64(n), name)
	}
}
