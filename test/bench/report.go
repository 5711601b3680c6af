// Package bench measures the product beside its limits and its peers, in one run on one machine: attach and detach
// beside raw netlink and the CNI plugins, run beside podman, the data path beside a bare veth pair, a bridge and plain
// routing. docs/benchmarks.md says how to read the figures.
//
// The measuring is in benchmarks, which `go test` runs only when asked (scripts/bench.sh does). They fail when something
// that is measured does not work, and never because of a figure.
//
//	one machine
//	┌──────────────────────────────────────────────────────────────────────────────────────┐
//	│ test process: orders, clock of the API calls, report                                 │
//	│    │ unix socket            │ pipe                │ pipe               │ pipe         │
//	│ ┌──┴───────────────┐  ┌─────┴──────────┐  ┌───────┴────────┐  ┌────────┴───────────┐  │
//	│ │ host "bulkhead"  │  │ host "raw"     │  │ host "cni"     │  │ traffic: server and│  │
//	│ │ the real daemon  │  │ worker process │  │ worker process │  │ client, same CPU   │  │
//	│ └──────────────────┘  └────────────────┘  └────────────────┘  └────────────────────┘  │
//	└──────────────────────────────────────────────────────────────────────────────────────┘
//
// A worker is this same binary, started inside a throwaway host (see internal/testhost): it holds the clock for what is
// not an API call, so that no way into the host is counted.
package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"
	"text/tabwriter"
)

// Report is everything that a run measured.
type Report struct {
	mu       sync.Mutex
	Time     string     `json:"time"`
	Version  string     `json:"version"`
	Machine  Machine    `json:"machine"`
	Quick    bool       `json:"quick"`
	Sections []*Section `json:"sections"`
	Aims     []Aim      `json:"aims"`
}

// Section is one group of measurements that were interleaved with each other.
type Section struct {
	Title   string   `json:"title"`
	Notes   []string `json:"notes,omitempty"`
	Results []Result `json:"results"`
}

// Result is one case under one metric.
type Result struct {
	Metric string  `json:"metric"`
	Case   string  `json:"case"`
	Unit   string  `json:"unit"`
	N      int     `json:"samples"`
	Median float64 `json:"median"`
	P95    float64 `json:"p95"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Ratio is Median by that of the case Of, in the same metric; 0 where there is none.
	Ratio float64 `json:"ratio,omitempty"`
	Of    string  `json:"ratio_of,omitempty"`
}

// Aim is a ratio or figure that we want to reach, and what it is in this run.
type Aim struct {
	What  string  `json:"what"`
	Value float64 `json:"value"`
	// Limit is a floor if AtLeast, else a ceiling.
	Limit   float64 `json:"limit"`
	AtLeast bool    `json:"at_least"`
	Unit    string  `json:"unit,omitempty"`
	Met     bool    `json:"met"`
}

// section adds a section.
func (r *Report) section(title string, notes ...string) *Section {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &Section{Title: title, Notes: notes}
	r.Sections = append(r.Sections, s)
	return s
}

// finish puts the sections into the order of their numbers, and notes how busy the machine has been.
func (r *Report) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.Sections, func(a, b *Section) int { return cmp.Compare(a.Title, b.Title) })
	r.Machine.LoadAfter = load()
}

// add adds a case and returns its median. of names the case that it is compared with; it must have been added before.
func (s *Section) add(metric, name, unit string, samples series, of string) float64 {
	q := Result{
		Metric: metric, Case: name, Unit: unit, N: len(samples), Median: samples.quantile(0.5), P95: samples.quantile(0.95),
		Min: samples.quantile(0), Max: samples.quantile(1),
	}
	if base := s.median(metric, of); base > 0 && of != name {
		q.Ratio, q.Of = q.Median/base, of
	}
	s.Results = append(s.Results, q)
	return q.Median
}

// median is that of a case that was added; 0 if there is none.
func (s *Section) median(metric, name string) float64 {
	i := slices.IndexFunc(s.Results, func(q Result) bool { return q.Metric == metric && q.Case == name })
	if i < 0 {
		return 0
	}
	return s.Results[i].Median
}

// atMost and atLeast hold a figure, or a ratio, against an aim. One that was not measured in this run is left out.
func (r *Report) atMost(what string, value, limit float64, unit string) {
	r.aim(Aim{What: what, Value: value, Limit: limit, Unit: unit, Met: value <= limit})
}

func (r *Report) atLeast(what string, value, limit float64) {
	r.aim(Aim{What: what, Value: value, Limit: limit, AtLeast: true, Unit: "x", Met: value >= limit})
}

func (r *Report) aim(a Aim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a.Value > 0 {
		r.Aims = append(r.Aims, a)
	}
}

// ratio is a by b, or 0 where one was not measured.
func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// series are samples of one case.
type series []float64

func (s series) quantile(q float64) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

// JSON writes the report for programs.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "bulkhead %s, %s\n%s\n", r.Version, r.Time, r.Machine)
	if r.Quick {
		fmt.Fprintln(t, "quick run: few samples, so expect a wide spread")
	}
	for _, s := range r.Sections {
		fmt.Fprintf(t, "\n%s\n", s.Title)
		fmt.Fprintln(t, "METRIC\tCASE\tMEDIAN\tP95\tMIN\tMAX\tN\tRATIO")
		last := ""
		for _, q := range s.Results {
			metric := q.Metric
			if metric == last {
				metric = ""
			}
			last = q.Metric
			fmt.Fprintf(t, "%s\t%s\t%s %s\t%s\t%s\t%s\t%d\t%s\n", metric, q.Case, number(q.Median), q.Unit, number(q.P95), number(q.Min), number(q.Max), q.N, q.ratioText())
		}
		for _, n := range s.Notes {
			fmt.Fprintln(t, "  "+n)
		}
	}
	if len(r.Aims) > 0 {
		fmt.Fprintln(t, "\naims\nWHAT\tVALUE\tAIM\t")
	}
	for _, a := range r.Aims {
		sign, verdict := "at most", "met"
		if a.AtLeast {
			sign = "at least"
		}
		if !a.Met {
			verdict = "MISSED"
		}
		fmt.Fprintf(t, "%s\t%s%s\t%s %s%s\t%s\n", a.What, number(a.Value), a.Unit, sign, number(a.Limit), a.Unit, verdict)
	}
	return t.Flush()
}

func (q Result) ratioText() string {
	if q.Of == "" {
		return ""
	}
	return fmt.Sprintf("%s of %s", number(q.Ratio), q.Of)
}

// number keeps three digits, which is more than the measurements repeat to.
func number(v float64) string {
	for _, step := range []struct {
		from   float64
		format string
	}{{1000, "%.0f"}, {100, "%.0f"}, {10, "%.1f"}, {1, "%.2f"}} {
		if cmp.Compare(v, step.from) >= 0 {
			return fmt.Sprintf(step.format, v)
		}
	}
	return fmt.Sprintf("%.3f", v)
}
