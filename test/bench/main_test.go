package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// report collects what the benchmarks of this run measure; TestMain writes it.
var report = &Report{}

func TestMain(m *testing.M) {
	if code, ok := RunRole(); ok {
		os.Exit(code)
	}
	code := m.Run()
	if err := writeReport(os.Getenv("BENCH_OUT")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

// writeReport writes bench.txt and bench.json into a directory, if anything was measured.
func writeReport(dir string) error {
	if dir == "" || len(report.Sections) == 0 {
		return nil
	}
	report.finish()
	for name, write := range map[string]func(f *os.File) error{
		"bench.txt":  func(f *os.File) error { return report.Text(f) },
		"bench.json": func(f *os.File) error { return report.JSON(f) },
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := write(f); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// settings are how much to measure.
type settings struct {
	binary string
	quick  bool
	// points are the numbers of standing endpoints, ascending.
	points []int
	// samples per point, of the API and raw netlink, and of the CNI plugins.
	samples, cniSamples int
	// cniMost is the most standing endpoints that the plugins are measured at: making those takes their time.
	cniMost int
	// rounds of the data path and of run, and how long one measurement takes.
	rounds, runs  int
	short, stream time.Duration
	cpu           string
	// patience bounds a series of samples on a machine that is slow or busy; it then has fewer, but never less than three.
	patience time.Duration
}

// configure reads the environment: BENCH_BINARY, BENCH_QUICK=1, BENCH_MAX.
func configure(b *testing.B) settings {
	b.Helper()
	s := settings{
		binary: os.Getenv("BENCH_BINARY"), points: []int{1, 10, 100, 300, 1000}, samples: 40, cniSamples: 12, cniMost: 100,
		rounds: 7, runs: 12, short: 600 * time.Millisecond, stream: time.Second, patience: 20 * time.Second, cpu: strconv.Itoa(runtime.NumCPU() - 1),
	}
	if s.binary == "" {
		b.Skip("BENCH_BINARY names no binary to measure: run make bench")
	}
	if os.Getenv("BENCH_QUICK") == "1" {
		s.quick, s.points, s.samples, s.cniSamples, s.cniMost = true, []int{1, 10, 100}, 10, 3, 10
		s.rounds, s.runs, s.short, s.patience = 3, 3, 300*time.Millisecond, 4*time.Second
	}
	if text := os.Getenv("BENCH_MAX"); text != "" {
		most, err := strconv.Atoi(text)
		if err != nil || most < 1 {
			b.Fatalf("BENCH_MAX=%s: give the most standing endpoints, at least 1", text)
		}
		s.limit(most)
	}
	report.Quick = s.quick
	if report.Time == "" {
		report.Time, report.Machine = time.Now().UTC().Format(time.RFC3339), thisMachine(b.TempDir())
		report.Version = version(b, s.binary)
	}
	return s
}

// enough tells that a series with n samples, begun at a time, has had its share of the run.
func (s *settings) enough(n int, begun time.Time) bool {
	return n >= 3 && time.Since(begun) > s.patience
}

// limit leaves out the points above most, and makes most the last.
func (s *settings) limit(most int) {
	var points []int
	for _, p := range s.points {
		if p < most {
			points = append(points, p)
		}
	}
	s.points = append(points, most)
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func TestLimit(t *testing.T) {
	s := settings{points: []int{1, 10, 100}}
	s.limit(50)
	if got := fmt.Sprint(s.points); got != "[1 10 50]" {
		t.Errorf("limit 50: %s", got)
	}
}

func TestEnough(t *testing.T) {
	s := settings{patience: time.Second}
	for _, tc := range []struct {
		n    int
		ago  time.Duration
		want bool
	}{{2, time.Hour, false}, {3, time.Hour, true}, {3, 0, false}} {
		if got := s.enough(tc.n, time.Now().Add(-tc.ago)); got != tc.want {
			t.Errorf("%d samples in %s: %v, want %v", tc.n, tc.ago, got, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	r := &Report{Version: "v1", Time: "now", Quick: true}
	s := r.section("Attach", "a note")
	s.add("attach", "raw", "ms", series{3, 1, 2}, "")
	ours := s.add("attach", "bulkhead", "ms", series{4, 4, 4, 4}, "raw")
	if ours != 4 {
		t.Errorf("median %v, want 4", ours)
	}
	r.atMost("attach by raw", s.Results[1].Ratio, 1.5, "x")
	r.atLeast("cni by attach", 25, 20)
	r.atLeast("not measured", 0, 1)
	var b strings.Builder
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"attach  raw       2.00 ms  3.00  1.00  3.00  3", "2.00 of raw", "MISSED", "met", "a note",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "not measured") {
		t.Errorf("shows an aim that was not measured:\n%s", b.String())
	}
}

func TestQuantile(t *testing.T) {
	s := series{5, 1, 4, 2, 3}
	for q, want := range map[float64]float64{0: 1, 0.5: 3, 1: 5} {
		if got := s.quantile(q); got != want {
			t.Errorf("quantile %v = %v, want %v", q, got, want)
		}
	}
	if got := (series{}).quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}
