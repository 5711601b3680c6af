package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// daemon is a daemon with canned documents (testdata/host.json). It writes down
// what it is asked to change, and does not change it.
type daemon struct {
	t      *testing.T
	socket string

	Info          api.Info
	Networks      []hcn.HostComputeNetwork
	Endpoints     []hcn.HostComputeEndpoint
	Namespaces    []hcn.HostComputeNamespace
	LoadBalancers []hcn.HostComputeLoadBalancer
	Containers    []api.Container
	Images        []api.Image
	Addresses     []api.Address
	Published     []api.Published
	Doctor        []api.Check
	Events        []api.Event
	Drops         []api.DropLine
	Flows         []api.FlowLine
	Rules         []api.EndpointRules
	Explained     api.Explanation
	Plan          api.Plan
	Cluster       api.Cluster
	Attachments   []api.Attachment
	Hosts         []api.Host

	// fail answers a request, by method and path, with an error.
	fail map[string]error
	// exit is how the container ends; process is what it does with its streams.
	exit    api.WaitResult
	process func(in io.Reader, out *api.FrameWriter)
	logs    []api.LogLine
	pull    []api.ImageProgress
	inner   *daemon // of a host of containers
	// pcapng is the answer to a capture; it may break off.
	pcapng       []byte
	pcapngBreaks bool

	mu       sync.Mutex
	requests []string
	once     sync.Once
	started  chan struct{} // closed when the container is started
}

func (d *daemon) start() { d.once.Do(func() { close(d.started) }) }

func newDaemon(t *testing.T) *daemon {
	t.Helper()
	d := &daemon{t: t, fail: map[string]error{}, started: make(chan struct{})}
	b, err := os.ReadFile("testdata/host.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, d); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cli") //nolint:usetesting // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d.socket = filepath.Join(dir, "s")
	ln, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: d.routes(), ReadHeaderTimeout: time.Minute}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { srv.Close() })
	return d
}

func (d *daemon) routes() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, v func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { d.answer(w, r, v) })
	}
	change := func(pattern string, v func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			d.note(r, body)
			d.answer(w, r, v)
		})
	}
	get("/v1/info", func(*http.Request) (any, error) { return d.Info, nil })
	get("/v1/containers", func(*http.Request) (any, error) { return d.Containers, nil })
	get("/v1/attachments", func(*http.Request) (any, error) { return d.Attachments, nil })
	get("/v1/containers/{ref}", func(r *http.Request) (any, error) { return d.container(r.PathValue("ref")) })
	get("/v1/images", func(*http.Request) (any, error) { return d.Images, nil })
	get("/v1/images/{ref...}", func(r *http.Request) (any, error) { return d.image(r.PathValue("ref")) })
	get("/v1/addresses", func(*http.Request) (any, error) { return d.Addresses, nil })
	get("/v1/nics", func(*http.Request) (any, error) {
		return []api.NIC{
			{Name: "eth1", ID: "11111111-AAAA-5000-8000-000000000001", Index: 3, MAC: "02:00:00:00:00:01", MTU: 1500, State: "up", Addresses: []string{"192.0.2.7/24", "2001:db8::7/64"}, Networks: []string{"lan"}},
			{Name: "eth2", ID: "11111111-AAAA-5000-8000-000000000002", Index: 4, MAC: "02:00:00:00:00:02", MTU: 1500, State: "no carrier", Problem: "it is a member of bond0, which takes its frames (bond0 can be the uplink)"},
		}, nil
	})
	get("/v1/published", func(*http.Request) (any, error) { return d.Published, nil })
	get("/v1/doctor", func(*http.Request) (any, error) { return d.Doctor, nil })
	get("/v1/containers/{ref}/stats", d.stats)
	mux.HandleFunc("GET /v1/events", d.events)
	get("/v1/hosts", func(*http.Request) (any, error) { return d.Hosts, nil })
	get("/v1/hosts/{ref}", func(r *http.Request) (any, error) {
		d.note(r, nil)
		h := d.Hosts[0]
		if len(d.Hosts) > 1 {
			d.Hosts = d.Hosts[1:] // it goes on
		}
		return h, nil
	})
	mux.HandleFunc("POST /v1/hosts/{ref}/api", d.connectHost)
	mux.HandleFunc("GET /v1/drops", d.readDrops)
	mux.HandleFunc("GET /v1/flows", d.readFlows)
	get("/v1/explain", func(r *http.Request) (any, error) {
		d.note(r, nil)
		x := d.Explained
		x.Reachable = r.URL.Query().Get("to") == "db"
		if r.URL.Query().Get("to") == "faulty" {
			x.Paths[0].Disagreements = []string{"the loaded program drops it"}
		}
		return x, nil
	})
	change("POST /v1/networks", func(*http.Request) (any, error) {
		return api.Tentative{Network: hcn.HostComputeNetwork{Name: "lan", ID: "11111111-AAAA-4000-8000-000000000001"}, ConfirmBy: time.Date(2026, 1, 31, 12, 2, 0, 0, time.UTC)}, nil
	})
	get("/v1/confirmations", func(*http.Request) (any, error) {
		return []api.Unconfirmed{{Network: "11111111-AAAA-4000-8000-000000000001", Name: "lan"}}, nil
	})
	change("POST /v1/confirmations/{network}", func(*http.Request) (any, error) { return nil, nil })
	for _, method := range []string{http.MethodPost, http.MethodDelete} {
		change(method+" /v1/plan/{change...}", func(r *http.Request) (any, error) {
			if strings.HasSuffix(r.URL.Path, "/modify") {
				return api.Plan{Objects: []api.PlanObject{}}, nil
			}
			return d.Plan, nil
		})
	}
	get("/v1/cluster", func(*http.Request) (any, error) { return d.Cluster, nil })
	for _, path := range []string{"init", "join"} {
		change("POST /v1/cluster/"+path, func(*http.Request) (any, error) {
			return api.ClusterJoined{Cluster: "11111111-CCCC-4000-8000-000000000001", Token: "bulkhead1.abc", Founded: true}, nil
		})
	}
	change("POST /v1/cluster/tokens", func(*http.Request) (any, error) { return api.ClusterToken{Token: "bulkhead1.def"}, nil })
	change("POST /v1/cluster/networks", func(*http.Request) (any, error) {
		return hcn.HostComputeNetwork{Name: "blue", ID: "44444444-CCCC-4000-8000-000000000001"}, nil
	})
	change("POST /v1/cluster/leave", func(*http.Request) (any, error) { return nil, nil })
	change("DELETE /v1/cluster/hosts/{host}", func(*http.Request) (any, error) { return nil, nil })
	get("/v1/rules/{ref}", func(*http.Request) (any, error) { return d.Rules, nil })
	mux.HandleFunc("GET /v1/capture", d.sendCapture)
	mux.HandleFunc("GET /v1/containers/{ref}/logs", d.readLogs)
	mux.HandleFunc("POST /v1/containers/{ref}/attach", d.attach)
	mux.HandleFunc("POST /v1/containers/{ref}/exec", d.attach)
	mux.HandleFunc("POST /v1/images", d.pullImage)
	mux.HandleFunc("POST /v1/images/push", d.pullImage)
	hcnKind(d, mux, "networks", func() []hcn.HostComputeNetwork { return d.Networks }, func(o hcn.HostComputeNetwork) hcn.GUID { return o.ID },
		func(f hcn.Filter, o *hcn.HostComputeNetwork) bool { return f.MatchNetwork(o) }, hcn.ErrNetworkNotFound)
	hcnKind(d, mux, "endpoints", func() []hcn.HostComputeEndpoint { return d.Endpoints }, func(o hcn.HostComputeEndpoint) hcn.GUID { return o.ID },
		func(f hcn.Filter, o *hcn.HostComputeEndpoint) bool { return f.MatchEndpoint(o) }, hcn.ErrEndpointNotFound)
	hcnKind(d, mux, "namespaces", func() []hcn.HostComputeNamespace { return d.Namespaces }, func(o hcn.HostComputeNamespace) hcn.GUID { return o.ID },
		func(f hcn.Filter, o *hcn.HostComputeNamespace) bool { return f.MatchNamespace(o) }, hcn.ErrElementNotFound)
	hcnKind(d, mux, "loadbalancers", func() []hcn.HostComputeLoadBalancer { return d.LoadBalancers }, func(o hcn.HostComputeLoadBalancer) hcn.GUID { return o.ID },
		func(f hcn.Filter, o *hcn.HostComputeLoadBalancer) bool { return f.MatchLoadBalancer(o) }, hcn.ErrElementNotFound)
	change("POST /v1/containers", func(*http.Request) (any, error) {
		return api.ContainerCreated{ID: strings.Repeat("f", 64), Name: "made", Warnings: []string{"no swap limit"}}, nil
	})
	change("POST /v1/containers/{ref}/wait", func(*http.Request) (any, error) {
		<-d.started
		return d.exit, nil
	})
	change("POST /v1/containers/{ref}/start", func(r *http.Request) (any, error) {
		if d.fail[r.Method+" "+r.URL.Path] == nil {
			d.start()
		}
		return nil, nil
	})
	change("POST /v1/containers/{ref}/isolation", func(*http.Request) (any, error) {
		return api.IsolationChange{Name: "web", Isolation: "vm", Changed: true, Restarted: true, Warnings: []string{"it is emulated"}}, nil
	})
	change("POST /v1/containers/{ref}/publish", func(*http.Request) (any, error) { return []string{"0.0.0.0:53->53/udp"}, nil })
	change("POST /v1/images/prune", func(*http.Request) (any, error) { return []string{"sha256:00"}, nil })
	change("POST /v1/images/import", func(*http.Request) (any, error) { return d.Images[0], nil })
	change("/", func(*http.Request) (any, error) { return nil, nil })
	return mux
}

// hcnKind serves a kind of HCN objects as the daemon does: lists are of GUIDs.
func hcnKind[T any](d *daemon, mux *http.ServeMux, kind string, all func() []T, id func(T) hcn.GUID,
	match func(hcn.Filter, *T) bool, missing hcn.ErrorCode,
) {
	mux.HandleFunc("GET /hcn/v2/"+kind, func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(r *http.Request) (any, error) {
			q, err := hcn.ParseQuery(r.URL.Query().Get("query"))
			if err != nil {
				return nil, err
			}
			f, err := q.Parse()
			ids := []hcn.GUID{}
			for _, o := range all() {
				if match(f, &o) {
					ids = append(ids, id(o))
				}
			}
			return ids, err
		})
	})
	mux.HandleFunc("GET /hcn/v2/"+kind+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.answer(w, r, func(r *http.Request) (any, error) {
			for _, o := range all() {
				if string(id(o)) == r.PathValue("id") {
					return o, nil
				}
			}
			return nil, hcn.Errorf(missing, "no %s has the ID %s", kind, r.PathValue("id"))
		})
	})
	mux.HandleFunc("POST /hcn/v2/"+kind, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		d.note(r, body)
		d.answer(w, r, func(*http.Request) (any, error) {
			doc := map[string]any{}
			err := json.Unmarshal(body, &doc)
			doc["ID"] = "99999999-0000-4000-8000-000000000009"
			return doc, err
		})
	})
}

// note writes a request down. What is random in it is replaced.
func (d *daemon) note(r *http.Request, body []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	line := r.Method + " " + r.URL.RequestURI()
	if r.Header.Get("Content-Type") == "application/x-tar" {
		line += fmt.Sprintf(" and %d bytes", len(body))
	} else if len(body) > 0 {
		line += " " + strings.TrimSpace(string(body))
	}
	d.requests = append(d.requests, line)
}

func (d *daemon) noted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.requests...)
}

func (d *daemon) answer(w http.ResponseWriter, r *http.Request, get func(*http.Request) (any, error)) {
	v, err := get(r)
	if planned := d.fail[r.Method+" "+r.URL.Path]; planned != nil {
		err = planned
	}
	if err != nil {
		status := http.StatusInternalServerError
		if e, ok := err.(interface{ HTTPStatus() int }); ok {
			status = e.HTTPStatus()
		}
		w.WriteHeader(status)
		v = err
	} else if v == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		d.t.Errorf("answer %s: %v", r.URL.Path, err)
	}
}

func (d *daemon) container(ref string) (any, error) {
	for _, c := range d.Containers {
		if c.Name == ref || strings.HasPrefix(c.ID, ref) {
			return c, nil
		}
	}
	return nil, api.Errorf(api.KindNotFound, "no container is called %q", ref).Hint("bulkhead ps -a")
}

func (d *daemon) image(ref string) (any, error) {
	for _, i := range d.Images {
		if i.ID == ref || slices.Contains(i.Names, ref) {
			return i, nil
		}
	}
	return nil, api.Errorf(api.KindNotFound, "no image is called %q", ref)
}

// stats move on by half a second of processor time with each reading.
func (d *daemon) stats(r *http.Request) (any, error) {
	c, err := d.container(r.PathValue("ref"))
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests = append(d.requests, "stats")
	n := len(d.requests)
	return api.Stats{
		ID: c.(api.Container).ID, Name: c.(api.Container).Name, Time: time.Unix(int64(n), 0), CPUNanos: uint64(n) * 5e8,
		MemoryUsage: 12 << 20, MemoryLimit: 512 << 20, Pids: 4, BlockRead: 1000, BlockWrite: 2000000,
		Networks: []api.NetworkStats{{
			Endpoint: "AAAA0001-0000-4000-8000-000000000001", Interface: "eth0", BytesReceived: 1234567 + uint64(n)*250000, BytesSent: 890,
			PacketsReceived: 4000 + uint64(n)*100, PacketsSent: 7, DroppedIncoming: 2, DroppedOutgoing: 1,
			DropReasons: map[string]uint64{"dad": 1, "source-mac": 2, "membership": 2},
		}},
	}, nil
}

func (d *daemon) events(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	w.Header().Set("Content-Type", "text/event-stream")
	fmt.Fprint(w, "id: 6\n\n")
	for _, e := range d.Events {
		b, _ := json.Marshal(e)
		fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.Seq, e.Kind, b)
	}
}

func (d *daemon) readDrops(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, l := range d.Drops {
		_ = json.NewEncoder(w).Encode(l)
	}
}

func (d *daemon) readFlows(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, l := range d.Flows {
		_ = json.NewEncoder(w).Encode(l)
	}
}

func (d *daemon) readLogs(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, l := range d.logs {
		_ = json.NewEncoder(w).Encode(l)
	}
}

func (d *daemon) pullImage(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.note(r, body)
	if err := d.fail[r.Method+" "+r.URL.Path]; err != nil {
		d.answer(w, r, func(*http.Request) (any, error) { return nil, err })
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	for _, m := range append(d.pull, api.ImageProgress{Phase: "done", Done: &d.Images[0]}) {
		_ = json.NewEncoder(w).Encode(m)
	}
}

// attach speaks the stream protocol of attach and exec. A container writes only
// once it is started, as a real one does.
func (d *daemon) attach(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	d.note(r, body)
	var spec api.ExecSpec
	if len(body) > 0 && json.Unmarshal(body, &spec) == nil && spec.Detach {
		d.answer(w, r, func(*http.Request) (any, error) { return api.WaitResult{}, nil })
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		d.t.Error(err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.UpgradeProtocol)
	out := api.NewFrameWriter(conn)
	gone := make(chan struct{})
	in := d.stdinOf(rw.Reader, gone)
	if strings.HasSuffix(r.URL.Path, "/attach") {
		select {
		case <-d.started:
		case <-gone:
			return
		}
	}
	if d.process != nil {
		d.process(in, out)
	}
	last := api.WaitResult{}
	if strings.HasSuffix(r.URL.Path, "/exec") {
		last = d.exit
	}
	_ = out.WriteJSON(api.ChannelExit, last)
}

// connectHost hands a connection on to the inner daemon.
func (d *daemon) connectHost(w http.ResponseWriter, r *http.Request) {
	d.note(r, nil)
	if d.inner == nil {
		d.answer(w, r, func(*http.Request) (any, error) {
			return nil, api.Errorf(api.KindNotFound, "host %q does not exist", r.PathValue("ref")).Hint("bulkhead host ls")
		})
		return
	}
	there, err := net.Dial("unix", d.inner.socket)
	if err != nil {
		d.t.Error(err)
		return
	}
	defer there.Close()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		d.t.Error(err)
		return
	}
	defer conn.Close()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", api.HostProtocol)
	go func() { _, _ = io.Copy(there, rw) }()
	_, _ = io.Copy(conn, there)
}

// stdinOf makes a reader of the frames of standard input. gone is closed when the
// client leaves.
func (d *daemon) stdinOf(r *bufio.Reader, gone chan struct{}) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		defer close(gone)
		for {
			channel, payload, err := api.ReadFrame(r, nil)
			switch {
			case err != nil:
				pw.CloseWithError(err)
				return
			case channel == api.ChannelStdin:
				_, _ = pw.Write(payload)
			case channel == api.ChannelCloseStdin:
				pw.Close()
			case channel == api.ChannelResize:
				d.mu.Lock()
				d.requests = append(d.requests, "resize "+string(payload))
				d.mu.Unlock()
			}
		}
	}()
	return pr
}
