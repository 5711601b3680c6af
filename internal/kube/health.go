package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// health tells kubelet and load balancers outside whether changes are followed, with the paths and answers of kube-proxy.
type health struct {
	tooLate time.Duration
	now     func() time.Time

	mu              sync.Mutex
	last            time.Time // the last round that did all
	waiting, during time.Time // since when there are changes that no round, or only the one that runs, has taken
	gone            bool      // the node is about to go
}

func (h *health) queued() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting.IsZero() {
		h.waiting = h.now()
	}
}

func (h *health) begin() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.during.IsZero() {
		h.during = h.waiting
	}
	h.waiting = time.Time{}
}

func (h *health) done() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last, h.during = h.now(), time.Time{}
}

func (h *health) eligible(ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = !ok
}

// healthy tells that there was a round, and that none is late.
func (h *health) healthy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	late := func(since time.Time) bool { return !since.IsZero() && h.now().Sub(since) > h.tooLate }
	return !h.last.IsZero() && !late(h.waiting) && !late(h.during)
}

func (h *health) answer(w http.ResponseWriter, withNode bool) {
	ok := h.healthy()
	h.mu.Lock()
	body := map[string]any{"lastUpdated": h.last, "currentTime": h.now()}
	if withNode {
		body["nodeEligible"] = !h.gone
		ok = ok && !h.gone
	}
	h.mu.Unlock()
	reply(w, ok, body)
}

func reply(w http.ResponseWriter, ok bool, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !ok {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body) // whoever asked is gone
}

func (h *health) serve(ctx context.Context, l net.Listener, failed chan<- error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { h.answer(w, false) })
	serve(ctx, l, mux, failed)
}

func serve(ctx context.Context, l net.Listener, handler http.Handler, failed chan<- error) {
	if l == nil {
		return
	}
	s := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
	context.AfterFunc(ctx, func() { _ = s.Close() })
	go func() {
		if err := s.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("listen on %s: %w", l.Addr(), err)
		}
	}()
}

// checks are the ports of the node that tell load balancers outside whether the node has endpoints of a Service whose external traffic
// stays on its node.
type checks struct {
	log     *slog.Logger
	healthy func() bool
	open    map[uint16]*check
}

type check struct {
	mu     sync.Mutex
	is     healthCheck
	server *http.Server
}

// set makes the ports exactly these. One that something else holds is tried again the next time.
func (c *checks) set(want map[uint16]healthCheck) {
	for port, k := range c.open {
		if _, ok := want[port]; !ok {
			_ = k.server.Close()
			delete(c.open, port)
		}
	}
	for port, is := range want {
		k := c.open[port]
		if k == nil {
			l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", fmt.Sprintf(":%d", port))
			if err != nil {
				c.log.Warn("a health check's port is not there", "service", is.service.String(), "error", err)
				continue
			}
			k = &check{}
			k.server = &http.Server{Handler: c.handler(k), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}
			c.open[port] = k
			go func() { _ = k.server.Serve(l) }() // it ends when it is closed
		}
		k.mu.Lock()
		k.is = is
		k.mu.Unlock()
	}
}

func (c *checks) handler(k *check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		k.mu.Lock()
		is := k.is
		k.mu.Unlock()
		ok := c.healthy()
		reply(w, ok && is.local > 0, map[string]any{
			"service": map[string]string{"namespace": is.service.Namespace, "name": is.service.Name}, "localEndpoints": is.local, "serviceProxyHealthy": ok,
		})
	})
}
