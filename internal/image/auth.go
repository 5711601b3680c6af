package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
)

// DefaultAuthFile holds registry credentials unless told otherwise.
const DefaultAuthFile = "/etc/bulkhead/auth.json"

// Credentials prove who we are to a registry: user and password, or a token.
type Credentials struct {
	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// IdentityToken is exchanged for access tokens at the registry's token server.
	IdentityToken string `json:"identityToken,omitempty"`
	// RegistryToken is sent to the registry as it is.
	RegistryToken string `json:"registryToken,omitempty"`
}

// String hides the secrets, so that credentials in a log line or error do no harm.
func (c Credentials) String() string { return "credentials of " + quoteEmpty(c.Username) }

func (c Credentials) authenticator() authn.Authenticator {
	return authn.FromConfig(authn.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	})
}

// authFile is the part of Docker's config.json that is about credentials. Other fields are kept as they are.
type authFile struct {
	rest  map[string]json.RawMessage
	auths map[string]authn.AuthConfig
}

func readAuthFile(path string) (authFile, error) {
	f := authFile{rest: map[string]json.RawMessage{}, auths: map[string]authn.AuthConfig{}}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("read credentials: %w", err)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		return f, nil
	}
	if err := json.Unmarshal(raw, &f.rest); err != nil {
		return f, fmt.Errorf("read credentials in %s: %w", path, err)
	}
	if auths, ok := f.rest["auths"]; ok {
		if err := json.Unmarshal(auths, &f.auths); err != nil {
			return f, fmt.Errorf("read credentials in %s: %w", path, err)
		}
	}
	return f, nil
}

// of finds a registry's credentials.
func (f authFile) of(host string) (authn.AuthConfig, bool) {
	for _, k := range authKeys(host) {
		if c, ok := f.auths[k]; ok && c != (authn.AuthConfig{}) {
			return c, true
		}
	}
	return authn.AuthConfig{}, false
}

// authKeys lists the keys under which tools keep a registry's credentials, best first.
func authKeys(host string) []string {
	keys := []string{host, "https://" + host, "http://" + host, "https://" + host + "/v2/", "https://" + host + "/v1/"}
	if host == dockerHub {
		keys = append([]string{"https://index.docker.io/v1/", "index.docker.io"}, keys...)
	}
	return keys
}

// credentials looks for a registry's in the auth files; nil for none.
func (s *Store) credentials(host string) (authn.Authenticator, error) {
	for _, path := range []string{s.opts.LoginFile, s.opts.AuthFile} {
		if auth, err := s.credentialsIn(path, host); auth != nil || err != nil {
			return auth, err
		}
	}
	return nil, nil
}

func (s *Store) credentialsIn(path, host string) (authn.Authenticator, error) {
	f, err := readAuthFile(path)
	if err != nil {
		return nil, err
	}
	if c, ok := f.of(host); ok {
		return authn.FromConfig(c), nil
	}
	var helpers map[string]string
	if raw, ok := f.rest["credHelpers"]; ok {
		if err := json.Unmarshal(raw, &helpers); err != nil {
			return nil, fmt.Errorf("read credentials in %s: credHelpers: %w", path, err)
		}
	}
	if h := helpers[host]; h != "" {
		return nil, fmt.Errorf("read credentials in %s: credential helper %q for %s is not supported: log in instead", path, h, host)
	}
	if _, ok := f.rest["credsStore"]; ok {
		s.log.Warn("credential store is not supported, log in instead", "file", path, "registry", host)
	}
	return nil, nil
}

// Login checks credentials with a registry and keeps them in the login file, readable for its owner only.
func (s *Store) Login(ctx context.Context, registry string, c Credentials, opts LoginOptions) error {
	if err := s.login(ctx, registry, c, opts); err != nil {
		return fmt.Errorf("log in to %s: %w", registry, err)
	}
	return nil
}

// LoginOptions say how to reach the registry.
type LoginOptions struct {
	PlainHTTP bool // allow HTTP without TLS
}

func (s *Store) login(ctx context.Context, registry string, c Credentials, opts LoginOptions) error {
	if c == (Credentials{}) {
		return fmt.Errorf("%w: no user name, password or token given", ErrInvalid)
	}
	ref, err := parseReference(registry + "/login") // any repository: only the registry part counts
	if err != nil || ref.host != registry {
		return fmt.Errorf("%w: %q is not a registry such as registry.example or localhost:5000", ErrInvalid, registry)
	}
	src := source{ref: ref, plain: opts.PlainHTTP || s.opts.Registries[registry].PlainHTTP, auth: &c}
	conn, err := s.connect(ctx, src)
	if err != nil {
		return err
	}
	defer conn.close()
	resp, err := conn.get(ctx, "/v2/", nil, http.StatusOK)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	return s.editAuthFile(func(auths map[string]authn.AuthConfig) {
		dropHost(auths, registry)
		auths[authKeys(registry)[0]] = authn.AuthConfig{
			Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
		}
	})
}

// Logout forgets a registry's credentials; having none is success. Those of an auth file that is not ours to write stay, and
// are told of: who logs out believes that they are gone.
func (s *Store) Logout(registry string) error {
	f, err := readAuthFile(s.opts.LoginFile)
	if _, has := f.of(registry); has {
		err = s.editAuthFile(func(auths map[string]authn.AuthConfig) { dropHost(auths, registry) })
	}
	if err != nil {
		return fmt.Errorf("log out of %s: %w", registry, err)
	}
	if s.opts.AuthFile == s.opts.LoginFile {
		return nil
	}
	if f, err := readAuthFile(s.opts.AuthFile); err != nil {
		return fmt.Errorf("log out of %s: %w", registry, err)
	} else if _, has := f.of(registry); has {
		return fmt.Errorf("log out of %s: %w: %s has credentials for it as well: remove them there", registry, ErrInUse, s.opts.AuthFile)
	}
	return nil
}

func dropHost(auths map[string]authn.AuthConfig, host string) {
	for _, k := range authKeys(host) {
		delete(auths, k)
	}
}

// editAuthFile rewrites the file by a rename in its own directory.
func (s *Store) editAuthFile(edit func(map[string]authn.AuthConfig)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := readAuthFile(s.opts.LoginFile)
	if err != nil {
		return err
	}
	edit(f.auths)
	if f.rest["auths"], err = json.Marshal(f.auths); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(f.rest, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(s.opts.LoginFile)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".auth-") // made with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(append(raw, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return install(tmp.Name(), s.opts.LoginFile)
}
