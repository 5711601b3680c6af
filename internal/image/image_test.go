package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// testFacts is the host that images in tests are made for.
func testFacts() Facts {
	return Facts{
		OS: "linux", Architecture: "amd64", Variant: "v2", KernelRelease: "6.1.0-13-amd64",
		KernelConfig: map[string]string{"CONFIG_OVERLAY_FS": "m", "CONFIG_TUN": "y"},
	}
}

// needRoot skips where whiteouts cannot be made, unless the run promised that they can.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("REQUIRE_ROOT") == "1" {
		t.Fatal("unpacking needs root, and REQUIRE_ROOT=1 says that it is there")
	}
	t.Skip("unpacking needs root: chown, mknod, trusted attributes")
}

func openStore(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	if opts.Facts.OS == "" {
		opts.Facts = testFacts()
	}
	if opts.AuthFile == "" {
		opts.AuthFile = filepath.Join(t.TempDir(), "auth.json")
	}
	s, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	s.syncfs = func(string) error { return nil }
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// testRegistry serves a registry on loopback, behind any handlers given, and returns its address.
func testRegistry(t *testing.T, wrap ...func(http.Handler) http.Handler) string {
	t.Helper()
	h := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	for _, w := range wrap {
		h = w(h)
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// entry is one entry of a test archive.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}, body}
}

func dir(name string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}, ""}
}

func link(kind byte, name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777}, ""}
}

func archive(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		hdr := e.Header
		if err := tw.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	raw := archive(t, entries...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func imageOf(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return withConfig(t, img, func(*v1.ConfigFile) {})
}

func withConfig(t *testing.T, img v1.Image, edit func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", "amd64"
	edit(cf)
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func publish(t *testing.T, ref string, img v1.Image, opts ...remote.Option) string {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img, opts...); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// snapshot lists every file of a store but its lock, to show that something left it unchanged.
func snapshot(t *testing.T, root string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		line := rel
		if rel == "oci/index.json" {
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + digestOf(raw)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func readIn(t *testing.T, root, p string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, p))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestPullUnpackAndInspect(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	img := withConfig(t, imageOf(t,
		layerOf(t, dir("etc", 0o755), file("etc/one", "1"), dir("tmp", 0o1777), link(tar.TypeSymlink, "bin", "usr/bin"), dir("usr", 0o755), dir("usr/bin", 0o711), dir("old", 0o755), file("old/x", "x")),
		layerOf(t, file("etc/.wh.one", ""), file("etc/two", "2"), file("tmp/left", "l"), file("bin/tool", "t"), file("old/.wh..wh..opq", ""), file("old/y", "y")),
	), func(cf *v1.ConfigFile) {
		cf.Config = v1.Config{Cmd: []string{"serve"}, Env: []string{"A=b"}, User: "www", ExposedPorts: map[string]struct{}{"80/tcp": {}, "443/tcp": {}}}
	})
	id := publish(t, host+"/web:v1", img)

	store := openStore(t, t.TempDir(), Options{})
	var steps []Progress
	got, err := store.Pull(t.Context(), host+"/web:v1", PullOptions{Progress: func(p Progress) { steps = append(steps, p) }})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != id || !slices.Equal(got.Names, []string{host + "/web:v1"}) {
		t.Errorf("got ID %s names %v, want %s", got.ID, got.Names, id)
	}
	if want := []string{"443/tcp", "80/tcp"}; !slices.Equal(got.Config.ExposedPorts, want) || got.Config.User != "www" {
		t.Errorf("config: %+v", got.Config)
	}
	for _, ph := range []Phase{PhaseResolving, PhaseDownloading, PhaseVerifying, PhaseUnpacking, PhaseDone} {
		if !slices.ContainsFunc(steps, func(p Progress) bool { return p.Phase == ph }) {
			t.Errorf("no progress for phase %s", ph)
		}
	}
	if last := steps[len(steps)-1]; last.Layer != "" || last.Phase != PhaseDone {
		t.Errorf("last step is %+v", last)
	}

	lowers, err := store.Layers(t.Context(), id[:20])
	if err != nil {
		t.Fatal(err)
	}
	if len(lowers) != 2 {
		t.Fatalf("lower directories: %v", lowers)
	}
	top, base := lowers[0], lowers[1]
	if readIn(t, base, "etc/one") != "1" || readIn(t, top, "etc/two") != "2" {
		t.Error("layers are not topmost first")
	}
	// A parent that the archive leaves out looks like the one below; a link below is followed.
	for p, mode := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky | os.ModeDir, "usr/bin": 0o711 | os.ModeDir} {
		fi, err := os.Lstat(filepath.Join(top, p))
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode() != mode {
			t.Errorf("%s has mode %v, want %v as in the layer below", p, fi.Mode(), mode)
		}
	}
	if readIn(t, top, "usr/bin/tool") != "t" {
		t.Error("bin/tool did not follow bin -> usr/bin of the layer below")
	}
	if _, err := os.Lstat(filepath.Join(top, "bin")); !os.IsNotExist(err) {
		t.Errorf("a directory bin hides the link below: %v", err)
	}
	fi, err := os.Lstat(filepath.Join(top, "etc/one"))
	if err != nil || !isWhiteout(fi) {
		t.Errorf("etc/one is not an overlayfs whiteout: %v %v", fi, err)
	}
	if !isOpaque(filepath.Join(top, "old")) {
		t.Error("old is not opaque")
	}
	var buf [16]byte
	if n, err := unix.Lgetxattr(filepath.Join(top, "etc"), "trusted.overlay.opaque", buf[:]); err == nil {
		t.Errorf("etc is opaque: %q", buf[:n])
	}
}

func TestPullPolicyAndNames(t *testing.T) {
	needRoot(t)
	var requests atomic.Int32
	host := testRegistry(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { requests.Add(1); h.ServeHTTP(w, r) })
	})
	first := publish(t, host+"/a:latest", imageOf(t, layerOf(t, file("v", "1"))))
	store := openStore(t, t.TempDir(), Options{})
	ctx := t.Context()

	if _, err := store.Pull(ctx, host+"/a", PullOptions{Policy: PullNever}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("never: %v, want ErrNotFound", err)
	}
	if _, err := store.Pull(ctx, host+"/a", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	second := publish(t, host+"/a:latest", imageOf(t, layerOf(t, file("v", "2"))))
	before := requests.Load()
	if img, err := store.Pull(ctx, host+"/a", PullOptions{Policy: PullMissing}); err != nil || img.ID != first || requests.Load() != before {
		t.Errorf("missing: %v %v, %d requests", img.ID, err, requests.Load()-before)
	}
	if img, err := store.Pull(ctx, host+"/a", PullOptions{Policy: PullAlways}); err != nil || img.ID != second {
		t.Errorf("always: %v %v", img.ID, err)
	}
	// The first image lost its name but stays until it is pruned; by digest it is there without asking.
	if img, err := store.Inspect(first); err != nil || len(img.Names) != 0 {
		t.Errorf("nameless image: %+v %v", img, err)
	}
	if img, err := store.Pull(ctx, host+"/a@"+second, PullOptions{Policy: PullNever}); err != nil || img.ID != second {
		t.Errorf("by digest of a tagged image: %v %v", img.ID, err)
	}
	if img, err := store.Pull(ctx, host+"/a:anything@"+first, PullOptions{}); err != nil || img.ID != first {
		t.Errorf("by digest: %v %v", img.ID, err)
	}
	if _, err := store.Pull(ctx, host+"/a:nope", PullOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown tag: %v", err)
	}
	for _, bad := range []string{"", "UPPER/x", "a b", host + "/a@sha256:12", "../x"} {
		if _, err := store.Pull(ctx, bad, PullOptions{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("name %q: %v, want ErrInvalid", bad, err)
		}
	}
	if _, err := store.Pull(ctx, host+"/a", PullOptions{Policy: "sometimes"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("policy: %v", err)
	}
}

func TestEmptyReference(t *testing.T) {
	if _, err := ParseReference(""); !errors.Is(err, ErrInvalid) || !strings.HasSuffix(err.Error(), "write one like debian:12") {
		t.Errorf("got %v", err)
	}
}

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"debian":                       "docker.io/library/debian:latest",
		"debian:12":                    "docker.io/library/debian:12",
		"user/app":                     "docker.io/user/app:latest",
		"docker.io/debian":             "docker.io/library/debian:latest",
		"localhost:5000/x":             "localhost:5000/x:latest",
		"ghcr.io/o/r:v1@sha256:" + hex: "ghcr.io/o/r@sha256:" + hex,
		"[::1]:5000/x:1":               "[::1]:5000/x:1",
	} {
		if got, err := ParseReference(in); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", in, got, err, want)
		}
	}
}

func TestIndexPicksPlatform(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	build := func(arch, variant string) mutate.IndexAddendum {
		img := withConfig(t, imageOf(t, layerOf(t, file("arch", arch+variant))), func(cf *v1.ConfigFile) { cf.Architecture, cf.Variant = arch, variant })
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch, Variant: variant}}}
	}
	put := func(tag string, adds ...mutate.IndexAddendum) {
		r, err := name.ParseReference(host + "/multi:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(r, mutate.AppendManifests(empty.Index, adds...)); err != nil {
			t.Fatal(err)
		}
	}
	put("all", build("arm64", ""), build("amd64", ""), build("amd64", "v2"), build("amd64", "v4"))
	put("arm", build("arm64", "v8"), build("arm", "v7"))
	store := openStore(t, t.TempDir(), Options{})
	img, err := store.Pull(t.Context(), host+"/multi:all", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if img.Architecture != "amd64" || img.Variant != "v2" {
		t.Errorf("picked %s/%s for a host at v2", img.Architecture, img.Variant)
	}
	before := snapshot(t, store.dir)
	_, err = store.Pull(t.Context(), host+"/multi:arm", PullOptions{})
	var ie *IncompatibleError
	if !errors.As(err, &ie) || ie.Field != "platform" || !strings.Contains(ie.Wanted, "linux/arm64/v8") {
		t.Errorf("got %v, want an IncompatibleError that lists the platforms", err)
	}
	if after := snapshot(t, store.dir); after != before {
		t.Errorf("store changed:\n%s\n%s", before, after)
	}
}

func TestSharedLayersRemoveAndPrune(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	base := layerOf(t, file("base", "b"))
	one := publish(t, host+"/one", imageOf(t, base, layerOf(t, file("one", "1"))))
	two := publish(t, host+"/two", imageOf(t, base, layerOf(t, file("two", "2"))))
	dirName := t.TempDir()
	store := openStore(t, dirName, Options{})
	ctx := t.Context()
	for _, n := range []string{"/one", "/two"} {
		if _, err := store.Pull(ctx, host+n, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	count := func(dir string) int {
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	if n := count(store.LayersDir()); n != 3 {
		t.Errorf("%d layers on disk, want 3: the base is shared", n)
	}
	if _, err := store.Tag(one, "mine:v1"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Remove(one[:19], RemoveOptions{}); !errors.Is(err, ErrNames) || !strings.Contains(err.Error(), "mine:v1") {
		t.Errorf("ID with two names: %v", err)
	}
	if r, err := store.Remove("mine:v1", RemoveOptions{InUse: []string{one}}); err != nil || len(r.Images) != 0 {
		t.Errorf("remove one of two names: %+v %v", r, err)
	}
	if _, err := store.Remove(host+"/one", RemoveOptions{InUse: []string{one}, Force: true}); !errors.Is(err, ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	r, err := store.Remove(host+"/one", RemoveOptions{InUse: []string{two}})
	if err != nil || !slices.Equal(r.Images, []string{one}) || r.Bytes == 0 {
		t.Errorf("remove: %+v %v", r, err)
	}
	if n := count(store.LayersDir()); n != 2 {
		t.Errorf("%d layers on disk, want 2", n)
	}
	lowers, err := store.Layers(ctx, host+"/two")
	if err != nil || readIn(t, lowers[1], "base") != "b" {
		t.Errorf("the shared layer is gone: %v", err)
	}
	if _, err := store.Remove(host+"/one", RemoveOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("remove again: %v", err)
	}
	if r, err := store.Prune(PruneOptions{}); err != nil || len(r.Images) != 0 {
		t.Errorf("prune took an image with a name: %+v %v", r, err)
	}
	if r, err := store.Prune(PruneOptions{All: true, InUse: []string{two}}); err != nil || len(r.Images) != 0 {
		t.Errorf("prune took an image in use: %+v %v", r, err)
	}
	if r, err := store.Prune(PruneOptions{All: true}); err != nil || !slices.Equal(r.Images, []string{two}) {
		t.Errorf("prune all: %+v %v", r, err)
	}
	if b, l := count(store.blobDir()), count(store.LayersDir()); b != 0 || l != 0 {
		t.Errorf("left over: %d blobs, %d layers", b, l)
	}
}

func TestPushImportRoundTrip(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	a := openStore(t, t.TempDir(), Options{})
	raw := archive(t, dir("./", 0o755), dir("./etc", 0o755), file("./etc/hostname", "x"))
	cfg := Config{Cmd: []string{"/init"}, Labels: map[string]string{KernelMinVersion: "5.15"}, ExposedPorts: []string{"80/tcp"}}
	img, err := a.Import(t.Context(), bytes.NewReader(raw), "mine", ImportOptions{Config: cfg})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Push(t.Context(), img.ID, PushOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("push of an ID to nowhere: %v", err)
	}
	var uploaded bool
	digest, err := a.Push(t.Context(), "mine", PushOptions{To: host + "/mine:v2", Progress: func(p Progress) { uploaded = uploaded || p.Phase == PhaseUploading }})
	if err != nil || digest != img.ID || !uploaded {
		t.Fatalf("push: %s %v, progress %v", digest, err, uploaded)
	}
	b := openStore(t, t.TempDir(), Options{})
	back, err := b.Pull(t.Context(), host+"/mine:v2", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if back.ID != img.ID || !slices.Equal(back.Config.Cmd, cfg.Cmd) || !slices.Equal(back.Config.ExposedPorts, cfg.ExposedPorts) {
		t.Errorf("came back as %+v", back)
	}
	lowers, err := b.Layers(t.Context(), back.ID)
	if err != nil || readIn(t, lowers[0], "etc/hostname") != "x" {
		t.Error(err)
	}
	// A compressed archive is kept byte for byte.
	zipped, err := layerOf(t, file("z", "z")).Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(zipped)
	if err != nil {
		t.Fatal(err)
	}
	img, err = b.Import(t.Context(), bytes.NewReader(blob), "zipped", ImportOptions{})
	if err != nil || img.Layers[0].Digest != digestOf(blob) {
		t.Errorf("import of gzip: %+v %v", img.Layers, err)
	}
	before := snapshot(t, b.dir)
	for what, in := range map[string][]byte{"empty": nil, "garbage": bytes.Repeat([]byte("no"), 4000), "cut": blob[:len(blob)-9], "short": raw[:700]} {
		if _, err := b.Import(t.Context(), bytes.NewReader(in), "bad", ImportOptions{}); !errors.Is(err, ErrRefused) {
			t.Errorf("import of %s: %v, want ErrRefused", what, err)
		}
	}
	if after := snapshot(t, b.dir); after != before {
		t.Errorf("store changed:\n%s\n%s", before, after)
	}
}

func TestDamagedStore(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	d := t.TempDir()
	store := openStore(t, d, Options{})
	good := publish(t, host+"/good", imageOf(t, layerOf(t, file("g", "g"))))
	bad := publish(t, host+"/bad", imageOf(t, layerOf(t, file("b", "b"))))
	for _, n := range []string{"/good", "/bad"} {
		if _, err := store.Pull(t.Context(), host+n, PullOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(store.blobFile(bad), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	imgs, err := store.List()
	if err != nil || len(imgs) != 1 || imgs[0].ID != good {
		t.Errorf("list: %v %v", imgs, err)
	}
	if _, err := store.Prune(PruneOptions{}); err != nil {
		t.Errorf("prune: %v", err)
	}
	if _, err := store.Remove(host+"/bad", RemoveOptions{}); err != nil {
		t.Errorf("a damaged image cannot be removed: %v", err)
	}
	if err := os.WriteFile(store.indexFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d, Options{Facts: testFacts()}); err == nil || !strings.Contains(err.Error(), "index.json") {
		t.Errorf("open with a broken table: %v", err)
	}
	if _, err := os.Stat(store.blobFile(good)); err != nil {
		t.Errorf("a broken table made us delete blobs: %v", err)
	}
}

func TestLeftoversAndLock(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	d := t.TempDir()
	store := openStore(t, d, Options{})
	publish(t, host+"/a", imageOf(t, layerOf(t, file("f", "f"))))
	if _, err := store.Pull(t.Context(), host+"/a", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(d, Options{Facts: testFacts()}); !errors.Is(err, ErrLocked) {
		t.Errorf("second open: %v, want ErrLocked", err)
	}
	want := snapshot(t, d)
	// What a killed pull leaves: a partial blob and layer in tmp, a whole blob and layer no image has.
	for p, content := range map[string]string{
		"tmp/blob-1": "half", "tmp/layer-1/diff/etc/x": "half", "oci/blobs/sha256/" + strings.Repeat("a", 64): "whole",
		"layers/" + strings.Repeat("b", 24) + "/diff/x": "whole", "layers/" + strings.Repeat("c", 24) + "/layer.json": "{",
	} {
		full := filepath.Join(d, p)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store = openStore(t, d, Options{})
	if got := snapshot(t, d); got != want {
		t.Errorf("after reopening:\n%s\nwant:\n%s", got, want)
	}
	// An unpacked layer that vanished is made again from its blob.
	if err := os.RemoveAll(store.LayersDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(store.LayersDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	lowers, err := store.Layers(t.Context(), host+"/a")
	if err != nil || readIn(t, lowers[0], "f") != "f" {
		t.Errorf("layers: %v %v", lowers, err)
	}
}
