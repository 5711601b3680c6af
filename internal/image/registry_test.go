package image

import (
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

func basicAuth(user, password string) func(http.Handler) http.Handler {
	return func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	}
}

func TestAuthentication(t *testing.T) {
	needRoot(t)
	host := testRegistry(t, basicAuth("ann", "secret"))
	img := imageOf(t, layerOf(t, file("f", "f")))
	publish(t, host+"/p", img, remote.WithAuth(&authn.Basic{Username: "ann", Password: "secret"}))
	auth := filepath.Join(t.TempDir(), "sub", "auth.json")
	store := openStore(t, t.TempDir(), Options{AuthFile: auth})
	ctx := t.Context()
	pull := func(c *Credentials) error {
		_, err := store.Pull(ctx, host+"/p", PullOptions{Policy: PullAlways, Auth: c})
		return err
	}
	if err := pull(nil); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("anonymous: %v", err)
	}
	if err := pull(&Credentials{Username: "ann", Password: "wrong"}); !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("wrong password: %v", err)
	}
	if err := pull(&Credentials{Username: "ann", Password: "secret"}); err != nil {
		t.Errorf("right password: %v", err)
	}
	if err := store.Login(ctx, host, Credentials{Username: "ann", Password: "wrong"}, LoginOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("log in with the wrong password: %v", err)
	}
	if _, err := os.Stat(auth); !os.IsNotExist(err) {
		t.Errorf("a refused log-in wrote the auth file: %v", err)
	}
	if err := os.MkdirAll(filepath.Dir(auth), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(auth, []byte(`{"auths":{"other.example":{"auth":"YTpi"}},"credsStore":"desktop"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := store.Login(ctx, host, Credentials{Username: "ann", Password: "secret"}, LoginOptions{}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(auth)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("auth file: %v %v", fi.Mode(), err)
	}
	wrong := &Credentials{Username: "ann", Password: "wrong"}
	if _, err := store.Pull(ctx, host+"/p", PullOptions{Policy: PullAlways, Fallback: wrong}); err != nil {
		t.Errorf("a fallback goes before the auth file: %v", err)
	}
	raw, err := os.ReadFile(auth)
	if err != nil || !strings.Contains(string(raw), "other.example") || !strings.Contains(string(raw), "desktop") {
		t.Errorf("other entries are lost: %s %v", raw, err)
	}
	if err := pull(nil); err != nil {
		t.Errorf("logged in: %v", err)
	}
	if _, err := store.Push(ctx, host+"/p", PushOptions{To: host + "/q"}); err != nil {
		t.Errorf("push logged in: %v", err)
	}
	if err := store.Logout(host); err != nil {
		t.Fatal(err)
	}
	if err := pull(nil); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("logged out: %v", err)
	}
	if _, err := store.Push(ctx, host+"/p", PushOptions{To: host + "/q"}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("push logged out: %v", err)
	}
	other, err := store.Pull(ctx, host+"/p", PullOptions{Policy: PullAlways, Fallback: &Credentials{Username: "ann", Password: "secret"}})
	if err != nil || other.ID == "" {
		t.Errorf("fallback: %v", err)
	}
	if err := store.Login(ctx, "not a host", Credentials{Username: "a"}, LoginOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("log in to nonsense: %v", err)
	}
	if err := os.WriteFile(auth, []byte(`{"credHelpers":{"`+host+`":"ecr-login"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := pull(nil); err == nil || !strings.Contains(err.Error(), "ecr-login") {
		t.Errorf("credential helper: %v", err)
	}
}

// What an administrator wrote is not ours to change, and logging out says that it is still there.
func TestLoginFile(t *testing.T) {
	needRoot(t)
	host := testRegistry(t, basicAuth("ann", "secret"))
	dir := t.TempDir()
	auth, login := filepath.Join(dir, "auth.json"), filepath.Join(dir, "login.json")
	store := openStore(t, t.TempDir(), Options{AuthFile: auth, LoginFile: login})
	if err := store.Login(t.Context(), host, Credentials{Username: "ann", Password: "secret"}, LoginOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(auth); !os.IsNotExist(err) {
		t.Errorf("the auth file was written: %v", err)
	}
	if fi, err := os.Stat(login); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("login file: %v %v", fi, err)
	}
	if err := os.WriteFile(auth, []byte(`{"auths":{"`+host+`":{"auth":"YTpi"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Logout(host); err == nil || !strings.Contains(err.Error(), auth) {
		t.Errorf("log out with other credentials left: %v", err)
	}
	if raw, err := os.ReadFile(login); err != nil || strings.Contains(string(raw), host) {
		t.Errorf("login file: %s %v", raw, err)
	}
}

func TestBearerToken(t *testing.T) {
	needRoot(t)
	var self string
	host := testRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/token":
				if u, p, _ := r.BasicAuth(); u != "ann" || p != "secret" {
					http.Error(w, "{}", http.StatusUnauthorized)
					return
				}
				_, _ = io.WriteString(w, `{"token":"t0ken"}`)
			case r.Header.Get("Authorization") != "Bearer t0ken":
				w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+self+`/token",service="test"`)
				http.Error(w, "{}", http.StatusUnauthorized)
			default:
				h.ServeHTTP(w, r)
			}
		})
	})
	self = host
	publish(t, host+"/p", imageOf(t, layerOf(t, file("f", "f"))), remote.WithAuth(&authn.Basic{Username: "ann", Password: "secret"}))
	store := openStore(t, t.TempDir(), Options{})
	if err := store.Login(t.Context(), host, Credentials{Username: "ann", Password: "no"}, LoginOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("log in with the wrong password: %v", err)
	}
	if err := store.Login(t.Context(), host, Credentials{Username: "ann", Password: "secret"}, LoginOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), host+"/p", PullOptions{}); err != nil {
		t.Error(err)
	}
}

func TestMirrors(t *testing.T) {
	needRoot(t)
	var asked []string
	spy := func(name string) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/manifests/") && r.Method == http.MethodGet {
					asked = append(asked, name)
				}
				h.ServeHTTP(w, r)
			})
		}
	}
	broken := testRegistry(t, func(http.Handler) http.Handler { return http.NotFoundHandler() })
	mirror, origin := testRegistry(t, spy("mirror")), testRegistry(t, spy("origin"))
	img := imageOf(t, layerOf(t, file("f", "f")))
	publish(t, mirror+"/cache/team/app", img)
	publish(t, origin+"/team/app", img)
	publish(t, origin+"/team/rare", img)
	asked = nil
	store := openStore(t, t.TempDir(), Options{Registries: map[string]Registry{origin: {Mirrors: []string{broken, "http://" + mirror + "/cache"}}}})
	got, err := store.Pull(t.Context(), origin+"/team/app", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(asked, " ") != "mirror" || got.Names[0] != origin+"/team/app:latest" {
		t.Errorf("asked %v, named %v", asked, got.Names)
	}
	asked = nil
	if _, err := store.Pull(t.Context(), origin+"/team/rare", PullOptions{}); err != nil || strings.Join(asked, " ") != "mirror origin" {
		t.Errorf("asked %v: %v", asked, err)
	}
	_, err = store.Pull(t.Context(), origin+"/team/none", PullOptions{})
	for _, h := range []string{broken, mirror, origin} {
		if err == nil || !strings.Contains(err.Error(), "from "+h) {
			t.Errorf("error %v does not say what %s answered", err, h)
		}
	}
	if _, err := store.Pull(t.Context(), origin+"/team/none", PullOptions{Mirrors: []string{"a b"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bad mirror: %v", err)
	}
}

func TestPrivateCA(t *testing.T) {
	needRoot(t)
	srv := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	host := strings.TrimPrefix(srv.URL, "https://")
	publish(t, host+"/p", imageOf(t, layerOf(t, file("f", "f"))), remote.WithTransport(srv.Client().Transport))
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	without := openStore(t, t.TempDir(), Options{})
	if _, err := without.Pull(t.Context(), host+"/p", PullOptions{}); err == nil {
		t.Error("pulled from a registry with an unknown certificate")
	}
	with := openStore(t, t.TempDir(), Options{Registries: map[string]Registry{host: {CAFile: ca}}})
	if _, err := with.Pull(t.Context(), host+"/p", PullOptions{}); err != nil {
		t.Error(err)
	}
	bad := openStore(t, t.TempDir(), Options{Registries: map[string]Registry{host: {CAFile: os.Args[0]}}})
	if _, err := bad.Pull(t.Context(), host+"/p", PullOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a CA file without certificates: %v", err)
	}
}

type refuseAll struct{ t *testing.T }

func (r refuseAll) RoundTrip(req *http.Request) (*http.Response, error) {
	r.t.Errorf("sent %s", req.URL)
	return nil, errors.New("no")
}

func TestPlainHTTPNeedsPermission(t *testing.T) {
	for host, loopback := range map[string]bool{
		"10.0.0.5:5000": false, "registry.example": false, "192.168.1.1": false, "localhost.example:80": false,
		"localhost": true, "localhost:5000": true, "127.0.0.2:80": true, "[::1]:5000": true, "x.localhost:1": true,
	} {
		if isLoopback(host) != loopback {
			t.Errorf("isLoopback(%s) is %v", host, !loopback)
		}
		if loopback {
			continue
		}
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/", nil)
		resp, err := guard{inner: refuseAll{t}, registry: host}.RoundTrip(req)
		if !errors.Is(err, errPlainHTTP) {
			t.Errorf("%s: %v", host, err)
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
	}
}

// cutter breaks off the first answers to each blob half way, as a bad line does.
type cutter struct {
	h      http.Handler
	cuts   int // how many times
	ranges bool
	mu     sync.Mutex
	seen   map[string]int
	asked  []string // Range headers
}

func (c *cutter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.Contains(r.URL.Path, "/blobs/sha256:") || r.Method != http.MethodGet {
		c.h.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	rng := r.Header.Get("Range")
	r.Header.Del("Range")
	c.h.ServeHTTP(rec, r)
	body, status := rec.Body.Bytes(), http.StatusOK
	c.mu.Lock()
	n := c.seen[r.URL.Path]
	c.seen[r.URL.Path]++
	if rng != "" {
		c.asked = append(c.asked, rng)
	}
	c.mu.Unlock()
	if rng != "" && c.ranges {
		from, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rng, "bytes="), "-"))
		if err != nil || from > len(body) {
			http.Error(w, "bad range", http.StatusRequestedRangeNotSatisfiable)
			return
		}
		body, status = body[from:], http.StatusPartialContent
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if n < c.cuts {
		_, _ = w.Write(body[:len(body)/2])
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body)
}

func TestResume(t *testing.T) {
	needRoot(t)
	for _, ranges := range []bool{true, false} {
		c := &cutter{cuts: 2, ranges: ranges, seen: map[string]int{}}
		host := testRegistry(t, func(h http.Handler) http.Handler { c.h = h; return c })
		noise := make([]byte, 1<<20) // does not compress away
		_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
		body := string(noise)
		publish(t, host+"/p", imageOf(t, layerOf(t, file("f", body))))
		store := openStore(t, t.TempDir(), Options{})
		if _, err := store.Pull(t.Context(), host+"/p", PullOptions{}); err != nil {
			t.Fatalf("ranges %v: %v", ranges, err)
		}
		if len(c.asked) == 0 {
			t.Errorf("ranges %v: nothing was resumed", ranges)
		}
		lowers, err := store.Layers(t.Context(), host+"/p")
		if err != nil || readIn(t, lowers[0], "f") != body {
			t.Errorf("ranges %v: the content is not what was sent: %v", ranges, err)
		}
	}
}

func TestConcurrentPulls(t *testing.T) {
	needRoot(t)
	var blobs atomic.Int32
	host := testRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/sha256:") && r.Method == http.MethodGet {
				blobs.Add(1)
			}
			h.ServeHTTP(w, r)
		})
	})
	base := layerOf(t, file("base", strings.Repeat("b", 1<<16)))
	publish(t, host+"/a", imageOf(t, base, layerOf(t, file("a", "a"))))
	publish(t, host+"/b", imageOf(t, base, layerOf(t, file("b", "b"))))
	// One that fails beside the others: cleaning up after it must not take what they share.
	publish(t, host+"/bad", imageOf(t, base, layerOf(t, file("../bad", "x"))))
	store := openStore(t, t.TempDir(), Options{})
	var wg sync.WaitGroup
	for range 3 {
		for _, n := range []string{"/a", "/b", "/bad"} {
			wg.Go(func() {
				_, err := store.Pull(t.Context(), host+n, PullOptions{Policy: PullAlways})
				if (err != nil) != (n == "/bad") {
					t.Errorf("%s: %v", n, err)
				}
			})
		}
	}
	wg.Wait()
	imgs, err := store.List()
	if err != nil || len(imgs) != 2 {
		t.Fatalf("%d images, %v", len(imgs), err)
	}
	for _, n := range []string{"a", "b"} {
		lowers, err := store.Layers(t.Context(), host+"/"+n)
		if err != nil || readIn(t, lowers[0], n) != n {
			t.Errorf("%s: %v", n, err)
		}
	}
	if _, err := store.Prune(PruneOptions{}); err != nil {
		t.Fatal(err)
	}
	if es, err := os.ReadDir(store.tmpDir()); err != nil || len(es) != 0 {
		t.Errorf("left in tmp: %v %v", es, err)
	}
	// Base, a, b and their configs once each; the failing one fetches its own again each time.
	if n := blobs.Load(); n > 5+3*3 {
		t.Errorf("%d blobs were fetched", n)
	}
}

func TestCancel(t *testing.T) {
	needRoot(t)
	entered := make(chan struct{})
	host := testRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/sha256:") && r.Method == http.MethodGet {
				close(entered)
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	publish(t, host+"/p", imageOf(t, layerOf(t, file("f", "f"))))
	store := openStore(t, t.TempDir(), Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	before := snapshot(t, store.dir)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	if _, err := store.Pull(ctx, host+"/p", PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if after := snapshot(t, store.dir); after != before {
		t.Errorf("store changed:\n%s\nwas:\n%s", after, before)
	}
}

// TestUnreached: a registry that cannot be reached is told of in words, not in the library's list of attempts.
func TestUnreached(t *testing.T) {
	needRoot(t)
	store := openStore(t, t.TempDir(), Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		t.Fatal(err)
	}
	closed := ln.Addr().String()
	ln.Close()
	stranger := httptest.NewTLSServer(http.NotFoundHandler())
	defer stranger.Close()
	for host, want := range map[string]string{
		closed: "reach registry " + closed + ": nobody answers at " + closed + " (connection refused): check the port, and that the registry runs",
		strings.TrimPrefix(stranger.URL, "https://"): "its certificate is signed by nobody that this host trusts",
	} {
		_, err := store.Pull(t.Context(), host+"/p", PullOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "Get ") {
			t.Errorf("%s: %v", host, err)
		}
	}
}

// TestUnreachedWithoutTLS: what answers a TLS handshake with something else is told of with the flag that helps.
func TestUnreachedWithoutTLS(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("what?\r\n"))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+ln.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		t.Fatal("it spoke TLS")
	}
	if got := registryError(err).Error(); !strings.Contains(got, "does not speak TLS") || !strings.Contains(got, "--plain-http") {
		t.Errorf("got %q", got)
	}
}
