package metrics

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

// full is Metrics where everything has happened.
func full(o Options) *Metrics {
	m := New(o)
	m.Pass(false, time.Millisecond)
	m.Pass(true, time.Millisecond)
	m.Commit(time.Millisecond, nil)
	m.Repair("link")
	m.Repair("something with a name 4711")
	m.Pull(errors.New("no"))
	m.Request(http.MethodGet, "/v1/info", 200)
	m.Request("BREW", "other", 405)
	return m
}

func scrape(t *testing.T, m *Metrics) []string {
	t.Helper()
	rec := httptest.NewRecorder()
	m.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return strings.Split(rec.Body.String(), "\n")
}

func having(lines []string, prefix string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !strings.HasPrefix(l, prefix) })
}

func sources(endpoints *[]Endpoint, drops *[]Drop) Sources {
	return Sources{
		Endpoints:    func() ([]Endpoint, error) { return *endpoints, nil },
		Drops:        func() ([]Drop, error) { return *drops, nil },
		MissingFlows: func() (uint64, uint64, error) { return 4, 9, nil },
		DNS:          func() []DNS { return []DNS{{"nat", map[string]uint64{"local": 3}, 7}} },
		Objects:      func() map[string]int { return map[string]int{"network": 1} },
	}
}

// TestReference holds docs/metrics.md to the list, and the list to what a scrape gives.
func TestReference(t *testing.T) {
	const path = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(path, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Reference(), string(doc)); d != "" {
		t.Errorf("%s is out of date (go test ./internal/metrics -update): %s", path, d)
	}
	want := map[string]string{}
	for _, m := range all() {
		want[m.name] = m.kind
	}
	got := map[string]string{}
	src := sources(&[]Endpoint{{ID: "1"}}, &[]Drop{{Reason: "martian"}})
	src.Rules = func() ([]Rule, error) { return []Rule{{ID: "r"}}, nil }
	lines := scrape(t, full(Options{Sources: src}))
	for _, l := range having(lines, "# TYPE bulkhead_") {
		f := strings.Fields(l)
		got[f[2]] = f[3]
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("listed, and scraped: %s", d)
	}
}

func TestValues(t *testing.T) {
	endpoints := []Endpoint{{"ID1", "web", "nat", 1, 2, 3, 4, 5, 6}}
	drops := []Drop{{"p1", "nat", "martian", 5}, {"p2", "nat", "martian", 2}}
	lines := scrape(t, full(Options{Version: "1.2", Commit: "abc", Sources: sources(&endpoints, &drops)}))
	for _, want := range []string{
		`bulkhead_endpoint_receive_packets_total{endpoint="web",id="ID1",network="nat"} 1`,
		`bulkhead_endpoint_receive_bytes_total{endpoint="web",id="ID1",network="nat"} 2`,
		`bulkhead_endpoint_receive_dropped_packets_total{endpoint="web",id="ID1",network="nat"} 3`,
		`bulkhead_endpoint_transmit_packets_total{endpoint="web",id="ID1",network="nat"} 4`,
		`bulkhead_endpoint_transmit_bytes_total{endpoint="web",id="ID1",network="nat"} 5`,
		`bulkhead_endpoint_transmit_dropped_packets_total{endpoint="web",id="ID1",network="nat"} 6`,
		`bulkhead_drops_packets_total{network="nat",reason="martian"} 7`,
		`bulkhead_dns_queries_total{network="nat",outcome="local"} 3`,
		`bulkhead_dns_cache_entries{network="nat"} 7`,
		`bulkhead_flow_log_missing_total{why="lost"} 4`,
		`bulkhead_flow_log_missing_total{why="skipped"} 9`,
		`bulkhead_objects{kind="network"} 1`,
		`bulkhead_repairs_total{object="link"} 1`,
		`bulkhead_repairs_total{object="other"} 1`,
		`bulkhead_image_pulls_total{outcome="error"} 1`,
		`bulkhead_api_requests_total{code="200",method="GET",route="/v1/info"} 1`,
		`bulkhead_api_requests_total{code="405",method="other",route="other"} 1`,
		`bulkhead_engine_pass_seconds_count{kind="resync"} 1`,
		`bulkhead_store_commit_seconds_count{outcome="ok"} 1`,
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line is %s", want)
		}
	}
	if len(having(lines, `bulkhead_build_info{commit="abc",goversion="go`)) != 1 {
		t.Error("no build info")
	}
}

// TestBounded has more of everything than there are places, and counters that go on,
// begin anew and go away: no counter goes back.
func TestBounded(t *testing.T) {
	var endpoints []Endpoint
	var drops []Drop
	for i := range 1000 {
		id := fmt.Sprintf("%04d", i)
		endpoints = append(endpoints, Endpoint{ID: id, Name: "e" + id, Network: "n" + id, RxPackets: 10})
		drops = append(drops, Drop{"p" + id, "n" + id, "martian", 1})
	}
	m := New(Options{MaxEndpoints: 10, MaxNetworks: 5, Sources: sources(&endpoints, &drops)})
	check := func(when, endpointsOther, dropsOther string) {
		t.Helper()
		lines := scrape(t, m)
		rx, dr := having(lines, rxPackets.name+"{"), having(lines, dropsTotal.name+"{")
		if len(rx) > 11 || len(dr) > 6 || len(having(lines, "bulkhead_")) > 150 {
			t.Errorf("%s: %d endpoints, %d networks, %d series", when, len(rx), len(dr), len(having(lines, "bulkhead_")))
		}
		for _, want := range []string{
			`bulkhead_endpoint_receive_packets_total{endpoint="other",id="",network="other"} ` + endpointsOther,
			`bulkhead_drops_packets_total{network="other",reason="martian"} ` + dropsOther,
		} {
			if !slices.Contains(lines, want) {
				t.Errorf("%s: no line is %s, but %v and %v", when, want, rx[len(rx)-1], dr[len(dr)-1])
			}
		}
	}
	check("at first", "9900", "995")
	for i := range endpoints {
		endpoints[i].RxPackets, drops[i].Packets = 11, 3
	}
	check("later", "10890", "2985")
	endpoints[999].RxPackets, drops[999].Packets = 4, 1 // made anew
	check("anew", "10894", "2986")
	endpoints, drops = endpoints[:500], drops[:500]
	check("half are gone", "10894", "2986")
}

// TestRules has more rules than there are places. Two with one Id are one series, one without is its number, and what has no
// place is summed without ever going back.
func TestRules(t *testing.T) {
	rule := func(endpoint, id string, number uint32, n uint64) Rule {
		return Rule{endpoint, endpoint + "-name", "nat", "in", "Block", id, number, n, n * 10, n * 100}
	}
	rules := []Rule{rule("1", "no-web", 7, 1), rule("1", "no-web", 8, 2), rule("1", "", 0xab, 3), rule("2", "a", 9, 4), rule("2", "b", 10, 5)}
	ends := []Endpoint{{ID: "1", Name: "1-name", Network: "nat"}}
	src := sources(&ends, &[]Drop{})
	src.Rules = func() ([]Rule, error) { return rules, nil }
	m := New(Options{MaxRules: 2, Sources: src})
	check := func(when string, want ...string) {
		t.Helper()
		got := having(scrape(t, m), "bulkhead_rule_packets_total{")
		slices.Sort(got)
		slices.Sort(want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", when, d)
		}
	}
	const (
		number = `bulkhead_rule_packets_total{action="Block",direction="in",endpoint="1-name",id="1",network="nat",rule="000000ab"} 30`
		web    = `bulkhead_rule_packets_total{action="Block",direction="in",endpoint="1-name",id="1",network="nat",rule="no-web"} 30`
		rest   = `bulkhead_rule_packets_total{action="other",direction="other",endpoint="other",id="",network="other",rule="other"} `
	)
	check("at first", number, web, rest+"90")
	rules[4].Packets += 5
	check("later", number, web, rest+"95")
	rules = rules[:3]
	check("those without a place are gone", number, web, rest+"95")
}
