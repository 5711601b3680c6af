package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// source is one place an image can come from: a mirror or the registry itself.
type source struct {
	ref      reference
	plain    bool         // plain HTTP is allowed
	auth     *Credentials // nil: look in the auth files
	fallback *Credentials // if those have none
}

// sources lists where to look for an image, in order.
func (s *Store) sources(ref reference, opts PullOptions) ([]source, error) {
	known := s.opts.Registries[ref.host]
	mirrors := opts.Mirrors
	if mirrors == nil {
		mirrors = known.Mirrors
	}
	var out []source
	for _, m := range mirrors {
		addr, plain := strings.CutPrefix(m, "http://")
		addr = strings.TrimSuffix(strings.TrimPrefix(addr, "https://"), "/")
		host, prefix, _ := strings.Cut(addr, "/")
		at := reference{host: host, repo: strings.TrimPrefix(prefix+"/"+ref.repo, "/"), tag: ref.tag, digest: ref.digest}
		if _, err := name.NewRepository(at.repository()); err != nil || host == "" {
			return nil, fmt.Errorf("%w: mirror %q is not of the form host[:port][/prefix]", ErrInvalid, m)
		}
		out = append(out, source{ref: at, plain: plain || s.opts.Registries[host].PlainHTTP})
	}
	origin := source{ref: ref, plain: opts.PlainHTTP || known.PlainHTTP, auth: opts.Auth, fallback: opts.Fallback}
	return append(out, origin), nil
}

// conn talks to one repository of a registry.
type conn struct {
	repo   name.Repository
	base   *http.Transport
	client *http.Client
}

func (c *conn) close() { c.base.CloseIdleConnections() }

// connect does the registry's handshake: TLS or not, and which kind of credentials it wants.
func (s *Store) connect(ctx context.Context, src source) (*conn, error) {
	repo, err := src.repository()
	if err != nil {
		return nil, err
	}
	auth, err := s.authenticator(src)
	if err != nil {
		return nil, err
	}
	base, err := s.transport(src.ref.host)
	if err != nil {
		return nil, err
	}
	rt := retrying(guard{inner: base, registry: repo.RegistryStr(), plain: src.plain || isLoopback(src.ref.host)})
	authed, err := transport.NewWithContext(ctx, repo.Registry, auth, rt, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		base.CloseIdleConnections()
		return nil, fmt.Errorf("reach registry %s: %w", src.ref.host, registryError(err))
	}
	return &conn{repo: repo, base: base, client: &http.Client{Transport: authed}}, nil
}

// authenticator finds what to tell a registry.
func (s *Store) authenticator(src source) (authn.Authenticator, error) {
	if src.auth != nil {
		return src.auth.authenticator(), nil
	}
	auth, err := s.credentials(src.ref.host)
	if err == nil && auth == nil && src.fallback != nil {
		return src.fallback.authenticator(), nil
	}
	if err == nil && auth == nil {
		auth = authn.Anonymous
	}
	return auth, err
}

func (src source) repository() (name.Repository, error) {
	var opts []name.Option
	if src.plain || isLoopback(src.ref.host) {
		opts = append(opts, name.Insecure) // TLS is still tried first
	}
	repo, err := name.NewRepository(src.ref.repository(), opts...)
	if err != nil {
		return repo, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return repo, nil
}

func (s *Store) transport(host string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
	}
	caFile := s.opts.Registries[host].CAFile
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read certificates for %s: %w", host, err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%w: %s has no PEM certificate in it", ErrInvalid, caFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

func retrying(rt http.RoundTripper) http.RoundTripper {
	return transport.NewRetry(rt,
		transport.WithRetryBackoff(remote.Backoff{Duration: 250 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
		transport.WithRetryStatusCodes(http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout))
}

// guard refuses plain HTTP where nobody allowed it. The library would fall back to it on its own for
// private addresses, and so could be made to send a password in the clear.
type guard struct {
	inner    http.RoundTripper
	registry string
	plain    bool
}

var errPlainHTTP = errors.New("plain HTTP is not allowed to this registry: give it TLS, or allow plain HTTP (--plain-http of pull and push)")

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain {
		return nil, fmt.Errorf("%s: %w", req.URL.Host, errPlainHTTP)
	}
	return g.inner.RoundTrip(req)
}

// get asks for a path of the registry and checks the status.
func (c *conn) get(ctx context.Context, path string, header http.Header, ok ...int) (*http.Response, error) {
	u := url.URL{Scheme: c.repo.Scheme(), Host: c.repo.RegistryStr(), Path: path}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, registryError(err)
	}
	if err := transport.CheckError(resp, ok...); err != nil {
		return nil, errors.Join(registryError(err), resp.Body.Close())
	}
	return resp, nil
}

// manifest fetches the document a tag or digest stands for. A digest is verified.
func (c *conn) manifest(ctx context.Context, identifier string) ([]byte, string, error) {
	accept := http.Header{"Accept": {strings.Join([]string{
		string(types.OCIImageIndex), string(types.DockerManifestList), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2),
	}, ",")}}
	resp, err := c.get(ctx, "/v2/"+c.repo.RepositoryStr()+"/manifests/"+identifier, accept, http.StatusOK)
	if err != nil {
		return nil, "", fmt.Errorf("fetch manifest %s: %w", identifier, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, "", fmt.Errorf("fetch manifest %s: %w", identifier, err)
	}
	if len(raw) > maxDocument {
		return nil, "", refused("manifest %s is larger than %d bytes", identifier, maxDocument)
	}
	if strings.HasPrefix(identifier, "sha256:") && digestOf(raw) != identifier {
		return nil, "", refused("manifest %s has the wrong content: its digest is %s", identifier, digestOf(raw))
	}
	return raw, resp.Header.Get("Content-Type"), nil
}

// registryError adds the sentinel that callers branch on to an answer of a registry, and says of none in words what is wrong.
func registryError(err error) error {
	var te *transport.Error
	if !errors.As(err, &te) {
		return unreached(err)
	}
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w (log in, or check the name): %w", ErrUnauthorized, err)
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return unreached(err)
}

// unreached says why there was no answer. The library joins what became of both schemes into one text, with a URL before each.
func unreached(err error) error {
	var (
		resolve *net.DNSError
		dial    *net.OpError
		issuer  x509.UnknownAuthorityError
		host    x509.HostnameError
		noTLS   tls.RecordHeaderError
	)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &resolve) && resolve.IsNotFound:
		return fmt.Errorf("nobody knows the name %.253s: check it, and this host's resolvers", resolve.Name)
	case errors.As(err, &resolve):
		return fmt.Errorf("ask for the address of %.253s: %s: check this host's resolvers", resolve.Name, resolve.Err)
	case errors.As(err, &issuer):
		return errors.New("its certificate is signed by nobody that this host trusts: install the authority's certificate on this host (update-ca-certificates)")
	case errors.As(err, &host):
		return fmt.Errorf("its certificate is for another name: %w", host)
	case errors.As(err, &noTLS):
		return fmt.Errorf("it does not speak TLS (%w): check the port; a registry without TLS needs --plain-http of pull and push", noTLS)
	case errors.Is(err, http.ErrSchemeMismatch):
		return errPlainHTTP
	case errors.As(err, &dial) && dial.Op == "dial" && dial.Timeout():
		return fmt.Errorf("%s does not answer: check the route and the firewalls to it", dial.Addr)
	case errors.As(err, &dial) && dial.Op == "dial":
		var reason syscall.Errno
		if !errors.As(dial, &reason) {
			return err
		}
		return fmt.Errorf("nobody answers at %s (%w): check the port, and that the registry runs", dial.Addr, reason)
	}
	return err
}
