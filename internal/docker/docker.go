package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

const (
	// maxRequest bounds what Docker may send. A container with a thousand published ports is far below it.
	maxRequest = 1 << 20
	// patience is how long an operation may take: dockerd waits for a minute.
	patience = 45 * time.Second
	// mediaType of the protocol's answers.
	mediaType = "application/vnd.docker.plugins.v1.2+json"
	owner     = "docker"
	runtime   = "docker"
)

// Options of a driver.
type Options struct {
	// Daemon is the client of the API.
	Daemon *client.Client
	// State is the file that keeps which network of Docker's is which of the daemon's.
	State string
	// Docker is the unix socket of dockerd's API, which is asked for the names of containers; "" for nobody.
	Docker string
	Log    *slog.Logger
}

// Driver answers dockerd.
type Driver struct {
	Options
	networks *networks
	pools    *pools
	dockerd  *http.Client
	ctx      context.Context //nolint:containedctx // of the searches for names, which outlive a request
	searches sync.WaitGroup
	orphans  orphans
	again    time.Duration // how much later dockerd is asked once more what it has
}

// New makes a driver.
func New(o Options) (*Driver, error) {
	n, err := openNetworks(o.State)
	if err != nil {
		return nil, err
	}
	d := &Driver{Options: o, networks: n, pools: newPools(), again: twice}
	d.dockerd = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", o.Docker)
		},
		DisableKeepAlives: true,
	}}
	return d, nil
}

// Serve answers on ln, which only root can reach, until ctx ends.
func (d *Driver) Serve(ctx context.Context, ln net.Listener) error {
	d.ctx = ctx
	defer d.searches.Wait()
	d.nameAgain()
	s := &http.Server{
		Handler: d.Handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelDebug), ConnContext: withPeer,
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve Docker: %w", err)
	case <-ctx.Done():
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := s.Shutdown(bounded)
	if err != nil {
		err = errors.Join(err, s.Close())
	}
	if served := <-served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// none is an answer without a word.
type none struct{}

// Handler has all paths of the protocol.
func (d *Driver) Handler() http.Handler {
	m := http.NewServeMux()
	fixed := func(v any) func(context.Context, *none) (any, error) {
		return func(context.Context, *none) (any, error) { return v, nil }
	}
	handle(d, m, "/Plugin.Activate", d.activate)

	const nw = "/NetworkDriver."
	handle(d, m, nw+"GetCapabilities", fixed(map[string]string{"Scope": "local", "ConnectivityScope": "local"}))
	handle(d, m, nw+"CreateNetwork", d.createNetwork)
	handle(d, m, nw+"DeleteNetwork", d.deleteNetwork)
	handle(d, m, nw+"CreateEndpoint", d.createEndpoint)
	handle(d, m, nw+"EndpointOperInfo", d.operInfo)
	handle(d, m, nw+"DeleteEndpoint", d.deleteEndpoint)
	handle(d, m, nw+"Join", d.join)
	handle(d, m, nw+"Leave", d.leave)
	handle(d, m, nw+"ProgramExternalConnectivity", d.publish)
	handle(d, m, nw+"RevokeExternalConnectivity", d.unpublish)
	// What dockerd finds out about a cluster is Swarm's: this driver's networks are the host's.
	handle(d, m, nw+"DiscoverNew", fixed(none{}))
	handle(d, m, nw+"DiscoverDelete", fixed(none{}))
	for _, swarm := range []string{"AllocateNetwork", "FreeNetwork"} {
		handle(d, m, nw+swarm, func(context.Context, *none) (any, error) {
			return nil, errors.New("networks of Swarm are not supported: this driver's scope is local")
		})
	}

	const ipam = "/IpamDriver."
	handle(d, m, ipam+"GetCapabilities", fixed(map[string]bool{"RequiresMACAddress": false, "RequiresRequestReplay": false}))
	handle(d, m, ipam+"GetDefaultAddressSpaces", fixed(map[string]string{"LocalDefaultAddressSpace": "bulkhead", "GlobalDefaultAddressSpace": "bulkhead-global"}))
	handle(d, m, ipam+"RequestPool", d.requestPool)
	handle(d, m, ipam+"ReleasePool", d.releasePool)
	handle(d, m, ipam+"RequestAddress", d.requestAddress)
	handle(d, m, ipam+"ReleaseAddress", d.releaseAddress)
	return m
}

func handle[T any](d *Driver, m *http.ServeMux, path string, fn func(context.Context, *T) (any, error)) {
	m.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		answer, err := call(ctx, w, r, fn)
		w.Header().Set("Content-Type", mediaType)
		if err != nil {
			d.Log.Info("refuse Docker", "call", path, "error", err)
			w.WriteHeader(http.StatusInternalServerError) // dockerd reads Err of any status but 200
			answer = map[string]string{"Err": explain(err)}
		}
		_ = json.NewEncoder(w).Encode(answer) // dockerd may be gone
	})
}

func call[T any](ctx context.Context, w http.ResponseWriter, r *http.Request, fn func(context.Context, *T) (any, error)) (any, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	in := new(T)
	if len(body) > 0 {
		if err := json.Unmarshal(body, in); err != nil {
			return nil, fmt.Errorf("read the request: %w", err)
		}
	}
	answer, err := fn(ctx, in)
	if err == nil && answer == nil {
		answer = none{}
	}
	return answer, err
}

// explain tells an error with what to do about it.
func explain(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok && e.Next != "" {
		return "bulkhead: " + err.Error() + " (" + e.Next + ")"
	}
	return "bulkhead: " + err.Error()
}
