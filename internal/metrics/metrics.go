// Package metrics shows what the daemon and its switches do to Prometheus.
//
// Counters of the data path are read when somebody scrapes, not before. The number of
// series is bounded whatever users create: the first so many endpoints and networks have
// series of their own, the rest is summed under the name "other".
package metrics

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Endpoint is an endpoint's counters, seen from the endpoint.
type Endpoint struct {
	ID, Name, Network             string
	RxPackets, RxBytes, RxDropped uint64
	TxPackets, TxBytes, TxDropped uint64
}

// Drop is a counter of one port and reason.
type Drop struct {
	Port, Network, Reason string
	Packets               uint64
}

// Rule is what a rule of an endpoint's policy counted. Its number is the switch's, and is never used again.
type Rule struct {
	// EndpointID, Endpoint and Network as in Endpoint; ID as its author gave it, or the number where there is none.
	EndpointID, Endpoint, Network string
	Direction, Action, ID         string
	Number                        uint32
	Matches, Packets, Bytes       uint64
}

// DNS is what a network's resolver did.
type DNS struct {
	Network string
	// Outcomes count questions, by how they ended.
	Outcomes     map[string]uint64
	CacheEntries int
}

// Sources are asked at each scrape. Nil ones have no series.
type Sources struct {
	Endpoints func() ([]Endpoint, error)
	Drops     func() ([]Drop, error)
	Rules     func() ([]Rule, error)
	DNS       func() []DNS
	// MissingFlows are ended flows that the log does not have.
	MissingFlows func() (lost, skipped uint64, err error)
	Objects      func() map[string]int
}

// Options are what Metrics needs.
type Options struct {
	Version, Commit string
	Sources         Sources
	// MaxEndpoints, MaxNetworks and MaxRules have series of their own; 0: 500, 100 and 1,000.
	MaxEndpoints, MaxNetworks, MaxRules int
}

// The bounds where none are given.
const (
	defaultEndpoints = 500
	defaultNetworks  = 100
	defaultRules     = 1000
)

// Metrics takes what happens, and answers scrapes.
type Metrics struct {
	reg     *prometheus.Registry
	passes  *prometheus.HistogramVec
	commits *prometheus.HistogramVec
	repairs *prometheus.CounterVec
	pulls   *prometheus.CounterVec
	calls   *prometheus.CounterVec
}

// New makes the registry.
func New(o Options) *Metrics {
	if o.MaxEndpoints == 0 {
		o.MaxEndpoints = defaultEndpoints
	}
	if o.MaxNetworks == 0 {
		o.MaxNetworks = defaultNetworks
	}
	if o.MaxRules == 0 {
		o.MaxRules = defaultRules
	}
	m := &Metrics{
		reg: prometheus.NewRegistry(), passes: histogram(passSeconds), commits: histogram(commitSeconds),
		repairs: counter(repairsTotal), pulls: counter(pullsTotal), calls: counter(requestsTotal),
	}
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: buildInfo.name, Help: buildInfo.help}, buildInfo.labels)
	build.WithLabelValues(o.Version, o.Commit, runtime.Version()).Set(1)
	m.reg.MustRegister(m.passes, m.commits, m.repairs, m.pulls, m.calls, build, newScraper(o),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, Registry: m.reg})
}

func outcome(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}

// Pass is one pass of the loop: of what changed, or a comparison of everything.
func (m *Metrics) Pass(resync bool, took time.Duration) {
	kind := "change"
	if resync {
		kind = "resync"
	}
	m.passes.WithLabelValues(kind).Observe(took.Seconds())
}

// Commit is one write of the store.
func (m *Metrics) Commit(took time.Duration, err error) {
	m.commits.WithLabelValues(outcome(err)).Observe(took.Seconds())
}

// repairedKinds are what a repair can be of. Others would be names, without a bound.
func repairedKinds() []string {
	return []string{"link", "port", "network", "namespace", "address", "route", "sysctl", "neighbour", "table", "chain", "map", "program", "entry"}
}

// Repair is something that somebody else had changed.
func (m *Metrics) Repair(object string) {
	if !slices.Contains(repairedKinds(), object) {
		object = other
	}
	m.repairs.WithLabelValues(object).Inc()
}

// Pull is an image brought from a registry, or not.
func (m *Metrics) Pull(err error) { m.pulls.WithLabelValues(outcome(err)).Inc() }

// Request is a call of the API. The route is a pattern, never a path.
func (m *Metrics) Request(method, route string, status int) {
	if !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodDelete}, method) {
		method = other
	}
	m.calls.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
}
