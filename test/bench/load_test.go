package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

const benchCPUEnv = "BENCH_CPU"

// cpu is the one that servers and clients share.
func cpu(b *testing.B) string {
	b.Helper()
	if c := os.Getenv(benchCPUEnv); c != "" {
		return c
	}
	return configure(b).cpu
}

// serve starts a server of a kind and returns what stops it.
func serve(b *testing.B, in *testhost.Host, kind string, at netip.AddrPort) (stop func()) {
	b.Helper()
	c := self(b.Context(), in, "serve", cpu(b), at.String(), kind)
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		b.Fatalf("start a server in %s: %v", in.Name(), err)
	}
	ready := make([]byte, len("ready\n"))
	if _, err := out.Read(ready); err != nil || string(ready) != "ready\n" {
		b.Fatalf("the server in %s is not ready: %q, %v", in.Name(), ready, err)
	}
	return c.Kill
}

// ask runs a client for some time and returns its transactions per second.
func ask(b *testing.B, from *testhost.Host, kind string, at netip.AddrPort, d time.Duration) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d+10*time.Second)
	defer cancel()
	c := self(ctx, from, "ask", cpu(b), at.String(), kind, d.String())
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		b.Fatalf("%s from %s to %s: %v: %s", kind, from.Name(), at, err, stderr.String())
	}
	rate, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil || rate <= 0 {
		b.Fatalf("%s from %s to %s: %q, %v", kind, from.Name(), at, out, err)
	}
	return rate
}

// stream runs iperf3 on the CPU, over one or more connections, and returns Gbit/s as received.
func stream(b *testing.B, in, from *testhost.Host, listen, at netip.AddrPort, d time.Duration, connections int) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), d+20*time.Second)
	defer cancel()
	pinned := []string{"-c", cpu(b), "nice", "-n", "-20", "iperf3"}
	server := in.Command(ctx, "taskset", append(pinned, "-s", "-1", "-p", fmt.Sprint(listen.Port()))...)
	if err := server.Start(); err != nil {
		b.Fatalf("start iperf3 in %s: %v", in.Name(), err)
	}
	defer server.Kill()
	awaitListener(b, in, listen.Port())
	out, err := from.Command(ctx, "taskset", append(pinned, "-c", at.Addr().String(), "-p", fmt.Sprint(at.Port()),
		"-t", fmt.Sprintf("%.1f", d.Seconds()), "-C", "cubic", "-P", strconv.Itoa(connections), "-J")...).Output()
	if err != nil {
		b.Fatalf("iperf3 from %s to %s: %v: %s", from.Name(), at, err, out)
	}
	var result struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		}
	}
	if err := json.Unmarshal(out, &result); err != nil || result.End.Received.Rate == 0 {
		b.Fatalf("read the result of iperf3 from %s to %s: %v: %s", from.Name(), at, err, out)
	}
	return result.End.Received.Rate / 1e9
}

// awaitListener waits until somebody listens on a TCP port.
func awaitListener(b *testing.B, in *testhost.Host, port uint16) {
	b.Helper()
	want := fmt.Sprintf(":%04X 0", port)
	testhost.Eventually(b, 5*time.Second, func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			var table []byte
			var err error
			in.Do(func() { table, err = os.ReadFile("/proc/thread-self/net/" + file) })
			if err != nil {
				return err
			}
			if strings.Contains(string(table), want) {
				return nil
			}
		}
		return fmt.Errorf("%s: nobody listens on port %d", in.Name(), port)
	})
}

// path is one way from a client to a server.
type path struct {
	name         string
	client       *testhost.Host
	server       *testhost.Host
	at           netip.Addr // where the client sends to
	served, port uint16     // at the server, and as the client sees it
}

// The metrics of a path. What they are is told in docs/benchmarks.md.
const (
	metricRR      = "rr"
	metricCRR     = "crr"
	metricUDP     = "udp"
	metricNewPort = "udp, new port"
	metricStream  = "stream"
	metricStreams = "stream, 4"
)

// kind is what the traffic helpers call a metric.
func kind(metric string) string {
	if metric == metricNewPort {
		return "udpnew"
	}
	return metric
}

// measurePaths measures all paths round by round and adds them to the section, each beside the first one.
func measurePaths(b *testing.B, s settings, section *Section, paths []path, metrics ...string) {
	b.Helper()
	samples := map[string]map[string]series{}
	for _, m := range metrics {
		samples[m] = map[string]series{}
	}
	begun := time.Now()
	for i := 0; i < s.rounds && !s.enough(i, begun.Add(time.Duration(len(paths))*s.patience)); i++ {
		for _, m := range metrics {
			for _, p := range paths {
				samples[m][p.name] = append(samples[m][p.name], p.measure(b, s, m))
			}
		}
	}
	for _, m := range metrics {
		unit := "k/s"
		if m == metricStream || m == metricStreams {
			unit = "Gbit/s"
		}
		for _, p := range paths {
			section.add(m, p.name, unit, samples[m][p.name], paths[0].name)
		}
	}
}

func (p path) measure(b *testing.B, s settings, metric string) float64 {
	b.Helper()
	at := netip.AddrPortFrom(p.at, p.port)
	listen := netip.AddrPortFrom(netip.IPv4Unspecified(), p.served)
	switch metric {
	case metricStream:
		return stream(b, p.server, p.client, listen, at, s.stream, 1)
	case metricStreams:
		return stream(b, p.server, p.client, listen, at, s.stream, 4)
	}
	stop := serve(b, p.server, kind(metric), listen)
	defer stop()
	return ask(b, p.client, kind(metric), at, s.short) / 1000
}
