package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

func device(kind byte, name string, major, minor int64) entry {
	return entry{tar.Header{Name: name, Typeflag: kind, Devmajor: major, Devminor: minor, Mode: 0o666}, ""}
}

func TestHostileArchives(t *testing.T) {
	needRoot(t)
	outside := filepath.Join(t.TempDir(), "outside")
	many := make([]entry, 60)
	for i := range many {
		many[i] = file(fmt.Sprint("f", i), "")
	}
	host := testRegistry(t)
	store := openStore(t, t.TempDir(), Options{Limits: Limits{LayerBytes: 1 << 20, ImageBytes: 3 << 19, Files: 50, Layers: 4}})
	before := snapshot(t, store.dir)
	big := file("big", strings.Repeat("\x00", 1<<20+1))
	half := file("half", strings.Repeat("\x00", 3<<18))
	for name, tc := range map[string]struct {
		layers [][]entry
		want   []string // all in the error
	}{
		"dotdot":            {[][]entry{{file("../../evil", "x")}}, []string{`"../../evil"`, "leaves the root"}},
		"dotdot-inside":     {[][]entry{{file("a/../../evil", "x")}}, []string{"leaves the root"}},
		"absolute":          {[][]entry{{file(outside, "x")}}, []string{outside, "absolute path"}},
		"symlink-out":       {[][]entry{{link(tar.TypeSymlink, "a/l", "../../etc"), file("a/l/evil", "x")}}, []string{`"a/l"`, "symbolic link", "out of the root"}},
		"hardlink-out":      {[][]entry{{link(tar.TypeLink, "h", "../../../etc/passwd")}}, []string{"hard link", "out of the root"}},
		"hardlink-absolute": {[][]entry{{link(tar.TypeLink, "h", "/etc/passwd")}}, []string{"hard link", "/etc/passwd"}},
		"hardlink-missing":  {[][]entry{{link(tar.TypeLink, "h", "etc/passwd")}}, []string{"hard link", "not in this layer"}},
		"char-device":       {[][]entry{{device(tar.TypeChar, "etc/mem", 1, 1)}}, []string{`"etc/mem"`, "device node 1:1"}},
		"block-device":      {[][]entry{{device(tar.TypeBlock, "disk", 8, 0)}}, []string{"device node 8:0"}},
		"block-zero":        {[][]entry{{device(tar.TypeBlock, "disk", 0, 0)}}, []string{"device node 0:0"}},
		"device-dotdev":     {[][]entry{{device(tar.TypeBlock, "dev/../disk", 8, 0)}}, []string{"device node 8:0"}},
		"root-as-link":      {[][]entry{{link(tar.TypeSymlink, "./", "/etc")}}, []string{"root directory"}},
		"unknown-kind":      {[][]entry{{entry{tar.Header{Name: "x", Typeflag: 'Z'}, ""}}}, []string{"unknown kind"}},
		"whiteout-empty":    {[][]entry{{file(".wh.", "")}}, []string{`".wh."`, "whiteout of no file"}},
		"whiteout-dot":      {[][]entry{{file("a/.wh..", "")}}, []string{`"a/.wh.."`, "whiteout of no file"}},
		"whiteout-dotdot":   {[][]entry{{file(".wh...", "")}}, []string{`".wh..."`, "whiteout of no file"}},
		"long-name":         {[][]entry{{file("a/"+strings.Repeat("n", 256)+"/b", "")}}, []string{"a name of 256 bytes"}},
		"large-layer":       {[][]entry{{big}}, []string{`"big"`, "more than 1048576 bytes"}},
		"large-image":       {[][]entry{{half}, {half}, {half}}, []string{"image unpacks to more than"}},
		"many-files":        {[][]entry{many}, []string{"more than 50 files"}},
		"many-layers":       {[][]entry{{}, {}, {}, {}, {}}, []string{"5 layers", "at most 4"}},
	} {
		t.Run(name, func(t *testing.T) {
			layers := make([]v1.Layer, len(tc.layers))
			for i, entries := range tc.layers {
				layers[i] = layerOf(t, entries...)
			}
			img := imageOf(t, layers...)
			ref := host + "/hostile/" + name
			publish(t, ref, img)
			_, err := store.Pull(t.Context(), ref, PullOptions{})
			if err == nil {
				t.Fatal("pulled")
			}
			want := append([]string{ref}, tc.want...)
			if name != "many-layers" {
				d, derr := layers[len(layers)-1].Digest()
				if derr != nil {
					t.Fatal(derr)
				}
				want = append(want, d.String())
			}
			for _, w := range want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if name != "root-as-link" && !errors.Is(err, ErrRefused) {
				t.Errorf("error %v is not ErrRefused", err)
			}
			if after := snapshot(t, store.dir); after != before {
				t.Errorf("store changed:\n%s\nwas:\n%s", after, before)
			}
		})
	}
	if _, err := os.Lstat(outside); !os.IsNotExist(err) {
		t.Errorf("something was written outside of the root: %v", err)
	}
}

// Links and nodes that ordinary images have must not be taken for an attack, and stay in the root.
func TestHarmlessOddities(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	host := testRegistry(t)
	publish(t, host+"/odd", imageOf(t, layerOf(t,
		dir("./", 0o755), dir("dev", 0o755), device(tar.TypeChar, "dev/null", 1, 3), device(tar.TypeChar, "gone", 0, 0),
		link(tar.TypeSymlink, "out", outside), file("out/inside", "x"),
		file("a", "a"), link(tar.TypeLink, "b", "a"),
		entry{tar.Header{Name: "su", Typeflag: tar.TypeReg, Mode: 0o4755}, ""},
		entry{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		entry{tar.Header{Name: "attrs", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.security.selinux": "label", "SCHILY.xattr.user.note": "n",
		}}, ""},
	)))
	store := openStore(t, t.TempDir(), Options{})
	if _, err := store.Pull(t.Context(), host+"/odd", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	lowers, err := store.Layers(t.Context(), host+"/odd")
	if err != nil {
		t.Fatal(err)
	}
	root := lowers[0]
	if es, err := os.ReadDir(outside); err != nil || len(es) != 0 {
		t.Errorf("written outside of the root: %v %v", es, err)
	}
	if readIn(t, filepath.Join(root, outside), "inside") != "x" {
		t.Error("a file behind a link is not inside the root")
	}
	if _, err := os.Lstat(filepath.Join(root, "dev/null")); !os.IsNotExist(err) {
		t.Errorf("dev/null: %v", err)
	}
	if fi, err := os.Lstat(filepath.Join(root, "gone")); err != nil || !isWhiteout(fi) {
		t.Errorf("gone: %v %v", fi, err)
	}
	if fi, err := os.Lstat(filepath.Join(root, "su")); err != nil || fi.Mode()&os.ModeSetuid == 0 {
		t.Errorf("su lost its setuid bit: %v %v", fi, err)
	}
	if isOpaque(filepath.Join(root, "attrs")) {
		t.Error("an archive could set overlayfs's own attribute")
	}
	var buf [8]byte
	if n, err := unix.Lgetxattr(filepath.Join(root, "attrs"), "user.note", buf[:]); err != nil || string(buf[:n]) != "n" {
		t.Errorf("user.note: %q %v", buf[:n], err)
	}
}

// fakeRegistry serves documents and blobs by path, whatever they are.
type fakeRegistry struct {
	host  string
	files map[string][]byte
	types map[string]string
}

func newFake(t *testing.T) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{files: map[string][]byte{}, types: map[string]string{}}
	f.host = testRegistry(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, ok := f.files[r.URL.Path]
			switch {
			case r.URL.Path == "/v2/":
			case !ok:
				http.Error(w, "{}", http.StatusNotFound)
			default:
				w.Header().Set("Content-Type", f.types[r.URL.Path])
				_, _ = w.Write(body)
			}
		})
	})
	return f
}

func (f *fakeRegistry) blob(content []byte) v1.Descriptor {
	h, _ := v1.NewHash(digestOf(content))
	f.files["/v2/x/blobs/"+h.String()] = content
	return v1.Descriptor{Digest: h, Size: int64(len(content))}
}

func (f *fakeRegistry) manifest(t *testing.T, m any) {
	t.Helper()
	raw, ok := m.([]byte)
	if !ok {
		var err error
		if raw, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	f.files["/v2/x/manifests/latest"] = raw
	f.types["/v2/x/manifests/latest"] = string(types.OCIManifestSchema1)
}

func gz(t *testing.T, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestHostileRegistry(t *testing.T) {
	needRoot(t)
	plain := archive(t, file("f", "content"))
	diff, err := v1.NewHash(digestOf(plain))
	if err != nil {
		t.Fatal(err)
	}
	other, err := v1.NewHash(digestOf([]byte("other")))
	if err != nil {
		t.Fatal(err)
	}
	config := func(diffs ...v1.Hash) []byte {
		raw, err := json.Marshal(v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers", DiffIDs: diffs}})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, tc := range map[string]struct {
		edit func(f *fakeRegistry, m *v1.Manifest)
		want string
	}{
		"good": {func(*fakeRegistry, *v1.Manifest) {}, ""},
		"layer-swapped": {func(f *fakeRegistry, m *v1.Manifest) {
			f.files["/v2/x/blobs/"+m.Layers[0].Digest.String()] = bytes.Repeat([]byte("x"), int(m.Layers[0].Size))
		}, "wrong content"},
		"layer-longer":   {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers[0].Size-- }, "the manifest says"},
		"layer-shorter":  {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers[0].Size++ }, "the manifest says"},
		"layer-negative": {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers[0].Size = -5 }, "-5 bytes"},
		"layer-huge":     {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers[0].Size = 1 << 60 }, "the limit is"},
		"layer-missing":  {func(f *fakeRegistry, m *v1.Manifest) { delete(f.files, "/v2/x/blobs/"+m.Layers[0].Digest.String()) }, "no such image"},
		"layer-type":     {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers[0].MediaType = "text/plain" }, `unknown media type "text/plain"`},
		"diff-id":        {func(f *fakeRegistry, m *v1.Manifest) { m.Config = cfgDesc(f.blob(config(other))) }, "wrong content: the archive's digest"},
		"diff-count":     {func(f *fakeRegistry, m *v1.Manifest) { m.Config = cfgDesc(f.blob(config(diff, diff))) }, "lists 1 layers, but config"},
		"config-swapped": {func(f *fakeRegistry, m *v1.Manifest) {
			f.files["/v2/x/blobs/"+m.Config.Digest.String()] = bytes.Repeat([]byte(" "), int(m.Config.Size))
		}, "wrong content"},
		"config-huge": {func(_ *fakeRegistry, m *v1.Manifest) { m.Config.Size = 5 << 20 }, "the limit is 4194304"},
		"config-json": {func(f *fakeRegistry, m *v1.Manifest) { m.Config = cfgDesc(f.blob([]byte("[]"))) }, "not valid"},
		"config-type": {func(_ *fakeRegistry, m *v1.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }, "not a container image"},
		"no-layers":   {func(_ *fakeRegistry, m *v1.Manifest) { m.Layers = nil }, "no layers"},
		"not-an-archive": {func(f *fakeRegistry, m *v1.Manifest) {
			m.Layers[0] = layerDesc(f.blob(gz(t, bytes.Repeat([]byte("junk"), 999))))
		}, "damaged"},
		"gzip-cut": {func(f *fakeRegistry, m *v1.Manifest) {
			b := gz(t, plain)
			m.Layers[0] = layerDesc(f.blob(b[:len(b)-10]))
		}, "damaged"},
		"gzip-bomb": {func(f *fakeRegistry, m *v1.Manifest) {
			m.Layers[0] = layerDesc(f.blob(gz(t, append(bytes.Clone(plain), make([]byte, 8<<20)...))))
		}, "limit"},
		"index-and-image": {func(f *fakeRegistry, m *v1.Manifest) { m.Annotations = map[string]string{"both": ""} }, "an image and an index"},
		"huge-manifest": {func(_ *fakeRegistry, m *v1.Manifest) {
			m.Annotations = map[string]string{"a": strings.Repeat("a", 4<<20)}
		}, "larger than 4194304"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: cfgDesc(f.blob(config(diff))), Layers: []v1.Descriptor{layerDesc(f.blob(gz(t, plain)))}}
			tc.edit(f, &m)
			f.manifest(t, m)
			if name == "index-and-image" {
				raw := f.files["/v2/x/manifests/latest"]
				f.manifest(t, append(raw[:len(raw)-1], []byte(`,"manifests":[]}`)...))
			}
			store := openStore(t, t.TempDir(), Options{Limits: Limits{LayerBytes: 1 << 20, Files: 1000}})
			before := snapshot(t, store.dir)
			_, err := store.Pull(t.Context(), f.host+"/x", PullOptions{})
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), f.host+"/x:latest") {
				t.Errorf("got %v, want the image's name and %q", err, tc.want)
			}
			if after := snapshot(t, store.dir); after != before {
				t.Errorf("store changed:\n%s\nwas:\n%s", after, before)
			}
		})
	}
}

func cfgDesc(d v1.Descriptor) v1.Descriptor   { d.MediaType = types.OCIConfigJSON; return d }
func layerDesc(d v1.Descriptor) v1.Descriptor { d.MediaType = types.OCILayer; return d }

// inMountNamespace runs the calling test again in a mount namespace of its own, and is true in there.
func inMountNamespace(t *testing.T) bool {
	t.Helper()
	needRoot(t)
	if os.Getenv("IMAGE_TEST_MOUNTS") != "" {
		return true
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-m", "--propagation", "private", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), "IMAGE_TEST_MOUNTS=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("in the mount namespace: %v\n%s", err, out)
	}
	return false
}

func mount(t *testing.T, kind, at, data string) {
	t.Helper()
	if err := unix.Mount(kind, at, kind, 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// The kernel's own view of the layers, which is what a container sees.
func TestOverlayMount(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	host := testRegistry(t)
	publish(t, host+"/o", imageOf(t,
		layerOf(t, dir("tmp", 0o1777), file("keep", "base"), file("gone", "x"), dir("old", 0o755), file("old/x", "x"),
			link(tar.TypeSymlink, "bin", "usr/bin"), dir("usr", 0o755), dir("usr/bin", 0o755), file("usr/bin/sh", "sh"),
			dir("swap", 0o755), file("swap/x", "x")),
		layerOf(t, file(".wh.gone", ""), file("old/.wh..wh..opq", ""), file("old/y", "y"), file("tmp/f", "f"),
			file("bin/tool", "tool"), file(".wh.swap", ""), file("swap/deep/y", "y")),
		layerOf(t, file("keep", "top")),
	))
	store := openStore(t, t.TempDir(), Options{})
	if _, err := store.Pull(t.Context(), host+"/o", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	lowers, err := store.Layers(t.Context(), host+"/o")
	if err != nil {
		t.Fatal(err)
	}
	merged := t.TempDir()
	mount(t, "overlay", merged, "lowerdir="+strings.Join(lowers, ":"))
	for p, want := range map[string]string{"keep": "top", "old/y": "y", "tmp/f": "f", "usr/bin/sh": "sh", "bin/tool": "tool", "swap/deep/y": "y"} {
		if got := readIn(t, merged, p); got != want {
			t.Errorf("%s holds %q, want %q", p, got, want)
		}
	}
	for _, p := range []string{"gone", "old/x", "swap/x"} {
		if _, err := os.Lstat(filepath.Join(merged, p)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", p, err)
		}
	}
	if fi, err := os.Stat(filepath.Join(merged, "tmp")); err != nil || fi.Mode() != os.ModeDir|os.ModeSticky|0o777 {
		t.Errorf("tmp: %v %v", fi.Mode(), err)
	}
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	d := t.TempDir()
	mount(t, "tmpfs", d, "size=2m")
	host := testRegistry(t)
	publish(t, host+"/small", imageOf(t, layerOf(t, file("f", "f"))))
	publish(t, host+"/zeros", imageOf(t, layerOf(t, file("f", strings.Repeat("\x00", 3<<20)))))
	noise := make([]byte, 3<<20)
	f, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.ReadFull(f, noise); err != nil {
		t.Fatal(err)
	}
	publish(t, host+"/noise", imageOf(t, layerOf(t, file("f", string(noise)))))
	store := openStore(t, filepath.Join(d, "images"), Options{})
	if _, err := store.Pull(t.Context(), host+"/small", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, store.dir)
	for _, n := range []string{"/zeros", "/noise"} { // full while unpacking, and while fetching
		if _, err := store.Pull(t.Context(), host+n, PullOptions{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v, want no space left", n, err)
		}
		if after := snapshot(t, store.dir); after != before {
			t.Errorf("%s: store changed:\n%s\nwas:\n%s", n, after, before)
		}
	}
	if err := unix.Mount("", d, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=2m"); err != nil {
		// The store's lock is open for writing, which keeps the file system writable.
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", d, "", unix.MS_REMOUNT|unix.MS_RDONLY, "size=2m"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(filepath.Join(d, "images"), Options{Facts: testFacts()}); !errors.Is(err, unix.EROFS) {
		t.Errorf("open on a read-only disk: %v", err)
	}
}
