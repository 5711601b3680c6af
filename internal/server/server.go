// Package server is the door of the daemon: HTTP routes over a unix socket, the OpenAPI document that describes them, event
// streams, and what an error looks like on the wire.
//
// Two families of routes share the door. /hcn/v2 and /hns/v1 speak the documents and error records of the Host Compute Network
// API, for clients that were made for it; /v1 is ours alone and speaks the types of package api. Handlers decode, ask the
// Backend and encode: they decide nothing.
//
// Huma holds the schemas and the OpenAPI document. Decoding and errors are our own, because HCN prescribes both: unknown members
// are ignored and named, names match in any letter case, and every failure, also one of a path or a query, is an error record.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

const (
	// maxBody bounds a document. The largest real ones, ten thousand rules or a set of a hundred thousand addresses, are half of it.
	maxBody = 4 << 20
	// bodyTimeout is how long a client may take to send a document, or one piece of a streamed body.
	bodyTimeout = 30 * time.Second
	// writeTimeout is how long the reader of a stream may take for the last of it when the daemon stops.
	writeTimeout = 2 * time.Second
	// grace is how long calls in flight may go on when the daemon stops.
	grace = 10 * time.Second
)

// Options are what a server needs.
type Options struct {
	Backend Backend
	// Cluster is nil for a daemon that takes part in none.
	Cluster Cluster
	Log     *slog.Logger
	// Version of the daemon, for the OpenAPI document.
	Version string
	// Ready is closed when the backend knows everything it has stored. Until then calls are answered with "try again": a
	// client takes "not found" as licence to forget and create anew. Nil: ready at once.
	Ready <-chan struct{}
	// Metrics answers /v1/metrics; nil: nothing does.
	Metrics http.Handler
	// Observe is told of every call, with the pattern of its route ("GET /v1/info"; "" for what is no route); nil: nobody is.
	Observe func(r *http.Request, pattern string, status int)
	// Heartbeat is the time between comments on a quiet event stream; 15 s when 0.
	Heartbeat time.Duration
}

// Server answers the API.
type Server struct {
	backend   Backend
	cluster   Cluster
	log       *slog.Logger
	ready     <-chan struct{}
	heartbeat time.Duration
	metrics   http.Handler
	observe   func(r *http.Request, pattern string, status int)
	api       huma.API
	mux       *http.ServeMux
	kinds     map[string]kind

	stopping chan struct{} // closed when streams must end
	stop     sync.Once
	streams  sync.WaitGroup // connections that net/http has handed over to us
}

// New makes a server. Every path in it is served by Handler; Serve does so on a listener.
func New(o Options) *Server {
	s := &Server{
		backend: o.Backend, cluster: o.Cluster, log: o.Log, ready: o.Ready, heartbeat: o.Heartbeat, metrics: o.Metrics, observe: o.Observe,
		mux: http.NewServeMux(), stopping: make(chan struct{}),
	}
	if s.heartbeat == 0 {
		s.heartbeat = 15 * time.Second
	}
	s.api = newAPI(s.mux, o.Version)
	s.kinds = s.hcnKinds()
	s.hcnRoutes()
	s.hnsRoutes()
	s.containerRoutes()
	s.hostRoutes()
	s.networkingRoutes()
	s.compartmentRoutes()
	s.attachmentRoutes()
	s.imageRoutes()
	s.volumeRoutes()
	s.reportRoutes()
	s.observeRoutes()
	s.confirmRoutes()
	s.clusterRoutes()
	s.planRoutes()
	s.metricsRoute()
	s.eventRoutes()
	s.mux.HandleFunc("/", s.noRoute)
	return s
}

// Serve answers on ln until ctx ends. Then streams are ended, calls in flight get some time to finish, and nil is returned.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	hs := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext:       withPeer,
	}
	if l, ok := ln.(*Listener); ok {
		l.announce(s.log)
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(ln) }()
	select {
	case err := <-served:
		s.endStreams()
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	s.endStreams()
	// The context that ended cannot bound the shutdown that its end asks for.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	err := hs.Shutdown(bounded)
	if err != nil {
		err = errors.Join(err, hs.Close())
	}
	if serveErr := <-served; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	s.streams.Wait()
	if err != nil {
		return fmt.Errorf("stop serving the API: %w", err)
	}
	return nil
}

func (s *Server) endStreams() { s.stop.Do(func() { close(s.stopping) }) }

// streamContext is the context of a call that would hold the daemon up when it stops: a stream or a wait. It ends with the
// daemon too. A reader may be as slow as it likes, as somebody who scrolls back in a terminal is; only once the context has ended
// must it take what is left soon.
func (s *Server) streamContext(w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	rc := http.NewResponseController(w)
	dropDeadline := context.AfterFunc(ctx, func() {
		_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // there is none without a connection, as in tests
	})
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() { dropDeadline(); cancel() }
}

func (s *Server) isReady() bool {
	if s.ready == nil {
		return true
	}
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

func (s *Server) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}
