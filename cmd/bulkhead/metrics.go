package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/dns"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/metrics"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// meters makes the metrics of the parts, which are wired after it.
func meters(p *parts) *metrics.Metrics {
	return metrics.New(metrics.Options{Version: version, Commit: commit, Sources: metrics.Sources{
		Endpoints:    func() ([]metrics.Endpoint, error) { return meteredEndpoints(p.engine, p.sw, p.dev) },
		Drops:        func() ([]metrics.Drop, error) { return meteredDrops(p.engine, p.sw) },
		Rules:        func() ([]metrics.Rule, error) { return meteredRules(p.engine, p.sw) },
		MissingFlows: func() (uint64, uint64, error) { return p.engine.MissingFlows() },
		DNS:          func() []metrics.DNS { return meteredDNS(p.engine, p.names) },
		Objects: func() map[string]int {
			i := p.engine.Info()
			return map[string]int{"network": i.Networks, "endpoint": i.Endpoints, "container": i.Containers, "running": i.Running, "image": i.Images}
		},
	}})
}

func networkName(e *engine.Engine, p *plan.Port) string {
	if sw := e.Switch(p); sw != nil {
		return sw.Name
	}
	return string(p.Network)
}

func meteredEndpoints(e *engine.Engine, sw *vswitch.Applier, dev *netdev.Netdev) ([]metrics.Endpoint, error) {
	var out []metrics.Endpoint
	for _, p := range e.Ports() {
		if p.Kind != plan.PortContainer && p.Kind != plan.PortMacvlan {
			continue
		}
		c, err := portCounters(sw, dev, p)
		if err != nil {
			return nil, err
		}
		out = append(out, metrics.Endpoint{
			ID: string(p.Endpoint), Name: engine.PortName(p), Network: networkName(e, p),
			RxPackets: c.RxPackets, RxBytes: c.RxBytes, RxDropped: c.RxDropped, TxPackets: c.TxPackets, TxBytes: c.TxBytes, TxDropped: c.TxDropped,
		})
	}
	return out, nil
}

func meteredDrops(e *engine.Engine, sw *vswitch.Applier) ([]metrics.Drop, error) {
	all, err := sw.Drops()
	if err != nil {
		return nil, err
	}
	networks := map[plan.PortID]string{}
	for _, p := range e.Ports() {
		networks[p.ID] = networkName(e, p)
	}
	var out []metrics.Drop
	for _, d := range all {
		out = append(out, metrics.Drop{Port: string(d.Port), Network: networks[d.Port], Reason: d.Reason.String(), Packets: d.Packets})
	}
	return out, nil
}

// meteredRules are those of all endpoints that have a policy. The flow table is passed once for all of them.
func meteredRules(e *engine.Engine, sw *vswitch.Applier) ([]metrics.Rule, error) {
	all, err := sw.AllRuleCounters()
	if err != nil {
		return nil, err
	}
	var out []metrics.Rule
	for _, p := range e.Ports() {
		if p.Kind != plan.PortContainer || p.Policy.Out == nil && p.Policy.In == nil {
			continue
		}
		for _, r := range e.PortRules(p, ruleCounts(all[p.ID])).Rules {
			out = append(out, metrics.Rule{
				EndpointID: string(p.Endpoint), Endpoint: engine.PortName(p), Network: networkName(e, p),
				Direction: r.Direction, Action: r.Action, ID: r.ID, Number: r.Number, Matches: r.Matches, Packets: r.Packets, Bytes: r.Bytes,
			})
		}
	}
	return out, nil
}

func meteredDNS(e *engine.Engine, names *dns.Resolver) []metrics.DNS {
	var out []metrics.DNS
	for _, p := range e.Ports() {
		if p.Kind != plan.PortResolver {
			continue
		}
		s, ok := names.Stats(p.Network)
		if !ok {
			continue
		}
		out = append(out, metrics.DNS{Network: networkName(e, p), CacheEntries: s.CacheEntries, Outcomes: map[string]uint64{
			"local": s.Local, "forwarded": s.Forwarded, "cached": s.Cached, "stale": s.Stale, "failed": s.Failed, "refused": s.Refused,
			"limited": s.Limited, "malformed": s.Malformed,
		}})
	}
	return out
}

// listenMetrics opens the TCP door for scrapes. It needs an address: one that everybody
// can reach has to be written out.
func listenMetrics(ctx context.Context, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return nil, fmt.Errorf("--metrics-listen %q: write ADDRESS:PORT, such as 127.0.0.1:9469", addr)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--metrics-listen: %w", err)
	}
	return ln, nil
}

// serveMetrics answers scrapes until ctx ends.
func serveMetrics(ctx context.Context, ln net.Listener, m *metrics.Metrics, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	log.Info("metrics are served", "address", ln.Addr().String())
	if err := srv.Serve(ln); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// routeOf is a route without its method; what is no route has one name.
func routeOf(pattern string) string {
	if _, path, ok := strings.Cut(pattern, " "); ok {
		return path
	}
	if strings.HasPrefix(pattern, "/hns/") {
		return pattern
	}
	return "other"
}
