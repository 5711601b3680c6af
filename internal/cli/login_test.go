package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bulkhead-net/bulkhead/api"
)

func TestStoredAuth(t *testing.T) {
	home := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(home, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(".docker/config.json", `{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOmh1Yg=="},"reg.example:5000":{"auth":"YW5uOnM6YQ=="},
		"helped.example":{}},"credsStore":"desktop"}`)
	write(".config/containers/auth.json", `{"auths":{"pod.example/team":{"auth":"dGVhbTp0"},"pod.example":{"identitytoken":"abc"}}}`)
	env := map[string]string{"HOME": home}
	a := &app{Deps: Deps{Stderr: os.Stderr, Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}}
	basic := func(user, password string) *api.RegistryAuth {
		return &api.RegistryAuth{Username: user, Password: password, Fallback: true}
	}
	for _, tc := range []struct {
		ref  string
		want *api.RegistryAuth
	}{
		{"reg.example:5000/a/b:1", basic("ann", "s:a")},
		{"reg.example/a/b:1", nil}, // another port is another registry
		{"reg.example:5000.evil/a", nil},
		{"debian", basic("hub", "hub")},
		{"docker.io/library/debian@sha256:00", basic("hub", "hub")},
		{"helped.example/a", nil},
		{"pod.example/team/web:2", basic("team", "t")},
		{"pod.example/other/web", &api.RegistryAuth{IdentityToken: "abc", Fallback: true}},
		{"", basic("hub", "hub")},
	} {
		got, err := a.storedAuth(tc.ref)
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", tc.ref, err, diff)
		}
	}
	write(".docker/config.json", `{"auths":{"reg.example":{"auth":"*"}}}`)
	if _, err := a.storedAuth("reg.example/a"); err == nil {
		t.Error("what is no base64 was taken")
	}
}
