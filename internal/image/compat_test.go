package image

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestCheck(t *testing.T) {
	arm := Facts{OS: "linux", Architecture: "arm", Variant: "v7"}
	noConfig := testFacts()
	noConfig.KernelConfig = nil
	for name, tc := range map[string]struct {
		img   Image
		facts Facts
		want  string // field of the refusal, "" for none
		have  string
	}{
		"plain":            {Image{OS: "linux", Architecture: "amd64"}, testFacts(), "", ""},
		"uname-name":       {Image{OS: "linux", Architecture: "x86_64"}, testFacts(), "", ""},
		"windows":          {Image{OS: "windows", Architecture: "amd64"}, testFacts(), "os", "linux"},
		"no-os":            {Image{Architecture: "amd64"}, testFacts(), "os", "linux"},
		"no-arch":          {Image{OS: "linux"}, testFacts(), "architecture", "amd64"},
		"arch":             {Image{OS: "linux", Architecture: "s390x"}, testFacts(), "architecture", "amd64"},
		"variant-lower":    {Image{OS: "linux", Architecture: "amd64", Variant: "v1"}, testFacts(), "", ""},
		"variant-higher":   {Image{OS: "linux", Architecture: "amd64", Variant: "v3"}, testFacts(), "variant", "v2"},
		"variant-nonsense": {Image{OS: "linux", Architecture: "amd64", Variant: "turbo"}, testFacts(), "variant", "v2"},
		"arm-older":        {Image{OS: "linux", Architecture: "arm", Variant: "v6"}, arm, "", ""},
		"arm-newer":        {Image{OS: "linux", Architecture: "arm", Variant: "v8"}, arm, "variant", "v7"},
		"min-ok":           {demand(KernelMinVersion, "5.15"), testFacts(), "", ""},
		"min-same":         {demand(KernelMinVersion, "6.1.0"), testFacts(), "", ""},
		"min-new":          {demand(KernelMinVersion, "6.2"), testFacts(), KernelMinVersion, "kernel 6.1.0-13-amd64"},
		"min-not-text":     {demand(KernelMinVersion, "6.10"), testFacts(), KernelMinVersion, "kernel 6.1.0-13-amd64"},
		"min-nonsense":     {demand(KernelMinVersion, "new"), testFacts(), KernelMinVersion, "kernel 6.1.0-13-amd64"},
		"min-empty":        {demand(KernelMinVersion, ""), testFacts(), KernelMinVersion, "kernel 6.1.0-13-amd64"},
		"max-series":       {demand(KernelMaxVersion, "6.1"), Facts{OS: "linux", Architecture: "amd64", KernelRelease: "6.1.99"}, "", ""},
		"max-old":          {demand(KernelMaxVersion, "5.15"), testFacts(), KernelMaxVersion, "kernel 6.1.0-13-amd64"},
		"config-set":       {demand(KernelConfig, "CONFIG_OVERLAY_FS, CONFIG_TUN=y"), testFacts(), "", ""},
		"config-value":     {demand(KernelConfig, "CONFIG_OVERLAY_FS=y"), testFacts(), KernelConfig, "CONFIG_OVERLAY_FS=m"},
		"config-unset":     {demand(KernelConfig, "CONFIG_TUN CONFIG_KVM"), testFacts(), KernelConfig, "CONFIG_KVM=n"},
		"config-no":        {demand(KernelConfig, "CONFIG_KVM=n"), testFacts(), "", ""},
		"config-not-no":    {demand(KernelConfig, "CONFIG_TUN=n"), testFacts(), KernelConfig, "CONFIG_TUN=y"},
		"config-nonsense":  {demand(KernelConfig, "TUN"), testFacts(), KernelConfig, "no such kind of option"},
		"config-unknown":   {demand(KernelConfig, "CONFIG_TUN"), noConfig, KernelConfig, "a kernel whose configuration cannot be read"},
		"unknown-demand":   {demand("net.bulkhead.kernel.flavour", "rt"), testFacts(), "net.bulkhead.kernel.flavour", "no way to check it"},
		"other-annotation": {demand("net.bulkhead.note", "x"), testFacts(), "", ""},
		"label-too": {Image{
			OS: "linux", Architecture: "amd64", Annotations: map[string]string{KernelMinVersion: "5.4"},
			Config: Config{Labels: map[string]string{KernelMinVersion: "6.12"}},
		}, testFacts(), KernelMinVersion, "kernel 6.1.0-13-amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			err := errors.Join(CheckPlatform(tc.img, tc.facts), CheckKernel(tc.img, tc.facts))
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var ie *IncompatibleError
			if !errors.As(err, &ie) {
				t.Fatalf("got %v, want an IncompatibleError", err)
			}
			if ie.Field != tc.want || ie.Have != tc.have || ie.Advice == "" || ie.Wanted == "" {
				t.Errorf("got %+v, want field %s, have %s", ie, tc.want, tc.have)
			}
		})
	}
}

func demand(key, value string) Image {
	return Image{OS: "linux", Architecture: "amd64", Annotations: map[string]string{key: value}}
}

// TestPullRefusesIncompatible: one for another processor runs nowhere here; one for another kernel may, in a VM.
func TestPullRefusesIncompatible(t *testing.T) {
	needRoot(t)
	host := testRegistry(t)
	other := withConfig(t, imageOf(t, layerOf(t, file("f", "f"))), func(cf *v1.ConfigFile) { cf.Architecture = "s390x" })
	publish(t, host+"/other", other)
	newer := withConfig(t, imageOf(t, layerOf(t, file("f", "f"))), func(cf *v1.ConfigFile) {
		cf.Config.Labels = map[string]string{KernelMinVersion: "6.12"}
	})
	publish(t, host+"/new", newer)
	store := openStore(t, t.TempDir(), Options{})
	before := snapshot(t, store.dir)
	var ie *IncompatibleError
	if _, err := store.Pull(t.Context(), host+"/other", PullOptions{}); !errors.As(err, &ie) || ie.Field != "architecture" {
		t.Errorf("got %v, want an IncompatibleError", err)
	}
	if after := snapshot(t, store.dir); after != before {
		t.Errorf("store changed:\n%s\nwas:\n%s", after, before)
	}
	img, err := store.Pull(t.Context(), host+"/new", PullOptions{})
	if err != nil {
		t.Errorf("for another kernel: %v", err)
	}
	if err := CheckKernel(img, store.Facts()); !errors.As(err, &ie) || !strings.Contains(ie.Error(), "--isolation vm") {
		t.Errorf("on this one: %v", err)
	}
}

func TestHostFacts(t *testing.T) {
	f, err := HostFacts()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseVersion(f.KernelRelease); err != nil {
		t.Error(err)
	}
	if err := CheckKernel(demand(KernelMinVersion, "4.0"), Facts{OS: f.OS, Architecture: "amd64", KernelRelease: f.KernelRelease}); err != nil {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	text := "# CONFIG_KVM is not set\nCONFIG_TUN=m\nCONFIG_DEFAULT_HOSTNAME=\"(none)\"\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := readKernelConfig("/nonexistent.gz", path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"CONFIG_TUN": "m", "CONFIG_DEFAULT_HOSTNAME": "(none)"}, got); d != "" {
		t.Error(d)
	}
	if _, err := readKernelConfig("/nonexistent.gz"); err == nil {
		t.Error("no error for a configuration that is not there")
	}
}

// FuzzDocuments feeds manifests, configs and demands that nobody checked.
func FuzzDocuments(f *testing.F) {
	zero := strings.Repeat("0", 64)
	manifest := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + zero + `","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:` + zero + `","size":1}],"annotations":{"net.bulkhead.kernel.config":"CONFIG_TUN=y"}}`
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:` + zero + `"]},"config":{"Labels":{"net.bulkhead.kernel.min-version":"5.15"}}}`
	index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + zero + `","size":1,"platform":{"os":"linux","architecture":"arm","variant":"v7"}}]}`
	f.Add([]byte(manifest), []byte(config), "6.1.0", "debian")
	f.Add([]byte(index), []byte(`{}`), "6", "localhost:5000/x@sha256:"+zero)
	f.Add([]byte(`{"layers":null}`), []byte(`[]`), "..", "a:b:c")
	f.Fuzz(func(t *testing.T, rawManifest, rawConfig []byte, release, ref string) {
		if full, err := ParseReference(ref); err == nil {
			again, err := ParseReference(full)
			if err != nil || again != full {
				t.Errorf("%q is completed to %q, that to %q: %v", ref, full, again, err)
			}
		}
		doc, err := parseDocument(rawManifest, "")
		if err != nil {
			return
		}
		facts := testFacts()
		facts.KernelRelease = release
		if doc.Config == nil {
			d, err := pick(doc.Manifests, facts)
			if err == nil && d.Platform != nil && checkPlatform(d.Platform.OS, d.Platform.Architecture, d.Platform.Variant, facts) != nil {
				t.Errorf("picked %v for %+v", d.Platform, facts)
			}
			return
		}
		img, err := decodeImage(rawManifest, rawConfig, doc, Limits{}.withDefaults())
		if err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Errorf("%v is not ErrRefused", err)
			}
			return
		}
		if len(img.Layers) == 0 || len(img.Layers) > 120 {
			t.Errorf("%d layers", len(img.Layers))
		}
		for _, l := range img.Layers {
			if n := layerName(l.ChainID); len(n) != 24 || !isHex(n) {
				t.Errorf("layer would be kept as %q", n)
			}
		}
		if err := CheckKernel(img, facts); err != nil {
			if _, ok := errors.AsType[*IncompatibleError](err); !ok {
				t.Errorf("%v is not an IncompatibleError", err)
			}
		}
		if _, err := json.Marshal(img); err != nil {
			t.Error(err)
		}
	})
}
