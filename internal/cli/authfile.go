package cli

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// hub is the registry of names that do not say one.
const hub = "docker.io"

// authFiles are where other tools keep the caller's credentials, the one that
// their own variables name before the usual places.
func (a *app) authFiles() []string {
	var out []string
	add := func(dir string, more ...string) {
		if filepath.IsAbs(dir) {
			out = append(out, filepath.Join(append([]string{dir}, more...)...))
		}
	}
	add(a.env("REGISTRY_AUTH_FILE"))
	add(a.env("XDG_RUNTIME_DIR"), "containers", "auth.json")
	add(a.env("HOME"), ".config", "containers", "auth.json")
	if dir := a.env("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else {
		add(a.env("HOME"), ".docker", "config.json")
	}
	return out
}

// storedAuth finds the credentials that the caller's files have for an image's
// registry, nil for none. They go to the daemon with the one request, over its
// socket, for that registry alone, and only for when it has none of its own; so a
// file that cannot be read says so and does no harm.
func (a *app) storedAuth(ref string) (*api.RegistryAuth, error) {
	for _, path := range a.authFiles() {
		auths, err := readAuths(path)
		if err != nil {
			fmt.Fprintln(a.Stderr, "warning:", cleanLines(err.Error()))
			continue
		}
		for _, key := range authKeys(ref) {
			entry, ok := auths[key]
			if !ok {
				continue
			}
			auth, err := entry.decode()
			if err != nil {
				return nil, fmt.Errorf("read credentials of %s in %s: %w", key, path, err)
			}
			if auth != nil {
				return auth, nil
			}
		}
	}
	return nil, nil
}

// authEntry is one registry in such a file. What a credential helper keeps has an
// empty entry.
type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

func readAuths(path string) (map[string]authEntry, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var doc struct {
		Auths map[string]authEntry `json:"auths"`
	}
	if err == nil && len(b) > 0 {
		err = json.Unmarshal(b, &doc)
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials in %s: %w", path, err)
	}
	return doc.Auths, nil
}

func (e authEntry) decode() (*api.RegistryAuth, error) {
	if e == (authEntry{}) {
		return nil, nil
	}
	auth := &api.RegistryAuth{
		Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, Token: e.RegistryToken, Fallback: true,
	}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			return nil, errors.New("auth is not base64")
		}
		var ok bool
		if auth.Username, auth.Password, ok = strings.Cut(strings.TrimRight(string(b), "\x00"), ":"); !ok {
			return nil, errors.New("auth is not USER:PASSWORD in base64")
		}
	}
	return auth, nil
}

// authKeys lists the keys under which the tools keep what is for an image: its
// repository and what is above it, as Podman does, then the registry in the forms
// that Docker has used.
func authKeys(ref string) []string {
	ref, _, _ = strings.Cut(ref, "@")
	host, path, ok := strings.Cut(ref, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, path = hub, ref
	}
	if i := strings.LastIndexByte(path, ':'); i > strings.LastIndexByte(path, '/') {
		path = path[:i]
	}
	var keys []string
	for path != "" {
		keys = append(keys, host+"/"+path)
		path = path[:max(0, strings.LastIndexByte(path, '/'))]
	}
	if host == hub || host == "index.docker.io" {
		keys = append(keys, "https://index.docker.io/v1/", "index.docker.io", hub)
	}
	return append(keys, host, "https://"+host, "http://"+host, "https://"+host+"/v2/", "https://"+host+"/v1/")
}
