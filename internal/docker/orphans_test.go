package docker

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/hcn"
)

// worlds are a daemon and a dockerd that know their networks and little else.
type worlds struct {
	mu       sync.Mutex
	networks map[hcn.GUID]hcn.HostComputeNetwork
	on       map[hcn.GUID]hcn.GUID // endpoints by network
	docker   []string
}

func (w *worlds) have() (ids []hcn.GUID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.networks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (w *worlds) daemon(t *testing.T) http.Handler {
	answer := func(rw http.ResponseWriter, v any) {
		rw.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(rw).Encode(v); err != nil {
			t.Error(err)
		}
	}
	m := http.NewServeMux()
	m.HandleFunc("GET /hcn/v2/networks", func(rw http.ResponseWriter, _ *http.Request) { answer(rw, w.have()) })
	m.HandleFunc("GET /hcn/v2/networks/{id}", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		answer(rw, w.networks[hcn.GUID(r.PathValue("id"))])
	})
	m.HandleFunc("DELETE /hcn/v2/networks/{id}", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.networks, hcn.GUID(r.PathValue("id")))
		answer(rw, nil)
	})
	m.HandleFunc("GET /hcn/v2/endpoints", func(rw http.ResponseWriter, _ *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		ids := []hcn.GUID{}
		for _, e := range w.on {
			ids = append(ids, e)
		}
		answer(rw, ids)
	})
	m.HandleFunc("GET /hcn/v2/endpoints/{id}", func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for n, e := range w.on {
			if e == hcn.GUID(r.PathValue("id")) {
				answer(rw, hcn.HostComputeEndpoint{ID: e, HostComputeNetwork: n})
			}
		}
	})
	return m
}

// serveAt serves at a socket.
func serveAt(t *testing.T, path string, h http.Handler) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(ln) }()
	t.Cleanup(func() { s.Close() })
}

// TestOrphans: of what was made for Docker before dockerd's start, what it does not list goes; what it lists, what has endpoints, what it
// asks for again and what is another's stays. Where the API is not the caller's, all stays.
func TestOrphans(t *testing.T) {
	for name, foreign := range map[string]bool{"the caller's API": false, "another's API": true} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "docker") //nolint:usetesting // t.TempDir is too long for a socket's address
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			w := &worlds{networks: map[hcn.GUID]hcn.HostComputeNetwork{}, on: map[hcn.GUID]hcn.GUID{}, docker: []string{"listed"}}
			for _, id := range []string{"orphan", "listed", "used", "again"} {
				w.networks[networkID(id)] = hcn.HostComputeNetwork{ID: networkID(id), Name: "docker-" + id, Owner: owner}
			}
			w.networks[hcn.GUID("AAAAAAAA-0000-4000-8000-0000000000AA")] = hcn.HostComputeNetwork{ID: hcn.GUID("AAAAAAAA-0000-4000-8000-0000000000AA"), Name: "pods"}
			w.on[networkID("used")] = "EEEEEEEE-0000-4000-8000-0000000000EE"
			serveAt(t, filepath.Join(dir, "daemon"), w.daemon(t))
			asked := make(chan struct{}, 16)
			serveAt(t, filepath.Join(dir, "docker"), http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/networks" {
					http.NotFound(rw, r)
					return
				}
				var list []map[string]string
				for _, id := range w.docker {
					list = append(list, map[string]string{"Id": id})
				}
				_ = json.NewEncoder(rw).Encode(list)
				asked <- struct{}{}
			}))
			c, err := client.New("unix://" + filepath.Join(dir, "daemon"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			d, err := New(Options{Daemon: c, State: filepath.Join(dir, "docker.json"), Docker: filepath.Join(dir, "docker"), Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			if err := d.networks.set("orphan", &network{ID: networkID("orphan"), Made: true}); err != nil {
				t.Fatal(err)
			}
			d.again = 200 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			d.ctx = ctx
			pid := os.Getpid()
			if foreign {
				pid = os.Getppid()
			}
			if _, err := d.activate(context.WithValue(ctx, peerKey{}, pid), &none{}); err != nil {
				t.Fatal(err)
			}
			<-asked
			d.orphans.claim(networkID("again")) // as its creation does
			d.searches.Wait()
			want := []hcn.GUID{networkID("listed"), networkID("used"), networkID("again"), "AAAAAAAA-0000-4000-8000-0000000000AA"}
			if foreign {
				want = append(want, networkID("orphan"))
			}
			slices.Sort(want)
			if got := w.have(); !slices.Equal(got, want) {
				t.Errorf("there are %v, want %v", got, want)
			}
			if _, err := d.networks.find("orphan"); (err == nil) != foreign {
				t.Errorf("the network that went is known: %v", err)
			}
		})
	}
}

// TestPeer: the process that calls is known by its connection.
func TestPeer(t *testing.T) {
	dir, err := os.MkdirTemp("", "docker") //nolint:usetesting // t.TempDir is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	d := alone(t)
	ln, err := net.Listen("unix", filepath.Join(dir, "plugin"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	if pid, _ := withPeer(t.Context(), at).Value(peerKey{}).(int); pid != os.Getpid() {
		t.Errorf("the caller is process %d, want %d", pid, os.Getpid())
	}
	if !holds(os.Getpid(), ln.Addr().String()) {
		t.Error("this process listens, and it is said that it does not")
	}
	if holds(os.Getpid(), filepath.Join(dir, "other")) || holds(1<<22, ln.Addr().String()) {
		t.Error("who does not listen is said to")
	}
	if code, got := ask(d, "/Plugin.Activate", ""); code != http.StatusOK || !strings.Contains(got, "NetworkDriver") {
		t.Errorf("%d %s", code, got)
	}
}
