package overlay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

// Etcd says how etcd is reached. The files are read again for each connection, so that certificates can be renewed in place.
type Etcd struct {
	Endpoints []string `json:"endpoints"`
	Prefix    string   `json:"prefix"`
	CACert    string   `json:"cacert"`
	Cert      string   `json:"cert"`
	Key       string   `json:"key"`
}

// maxMessage bounds what one answer of etcd may have. A page of a snapshot that has more is asked for in parts.
const maxMessage = 16 << 20

// Check says what is wrong with it, as far as can be said without a connection.
func (e *Etcd) Check(now time.Time) error {
	if len(e.Endpoints) == 0 {
		return errors.New("no address of etcd is given: name at least one, such as https://192.0.2.1:2379")
	}
	for _, ep := range e.Endpoints {
		u, err := url.Parse(ep)
		if err != nil || u.Host == "" || u.Port() == "" {
			return fmt.Errorf("%q is no address of etcd: write it like https://192.0.2.1:2379", ep)
		}
		if u.Scheme != "https" {
			return fmt.Errorf("%q: etcd is only used by https with client certificates, because who can write there can direct the traffic of all hosts", ep)
		}
	}
	if err := CheckPrefix(e.Prefix); err != nil {
		return err
	}
	_, err := e.tls(now)
	return err
}

// tls reads the files.
func (e *Etcd) tls(now time.Time) (*tls.Config, error) {
	pool, err := readCAs(e.CACert, now)
	if err != nil {
		return nil, err
	}
	if _, err := readPair(e.Cert, e.Key, now); err != nil {
		return nil, err
	}
	return &tls.Config{
		RootCAs: pool, MinVersion: tls.VersionTLS12,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return readPair(e.Cert, e.Key, time.Now())
		},
	}, nil
}

func readCAs(path string, now time.Time) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the CA certificate: %w", err)
	}
	pool, n := x509.NewCertPool(), 0
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		if now.After(c.NotAfter) {
			return nil, fmt.Errorf("the CA certificate %s expired at %s: get a new one from whoever runs etcd", path, c.NotAfter.UTC().Format(time.RFC3339))
		}
		pool.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return pool, nil
}

func readPair(cert, key string, now time.Time) (*tls.Certificate, error) {
	p, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("read the client certificate %s and its key %s: %w", cert, key, err)
	}
	leaf := p.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("the client certificate %s expired at %s: renew it", cert, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("the client certificate %s is valid from %s only: see this host's clock", cert, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return &p, nil
}

// Dial makes a client. It connects when it is used.
func Dial(e Etcd) (*clientv3.Client, error) {
	if err := e.Check(time.Now()); err != nil {
		return nil, err
	}
	cfg, err := e.tls(time.Now())
	if err != nil {
		return nil, err
	}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: e.Endpoints, TLS: cfg, DialTimeout: opTimeout, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		MaxCallRecvMsgSize: maxMessage, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(freshCredentials{e, credentials.NewTLS(cfg)}), grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 2 * time.Second,
		})},
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of etcd: %w", err)
	}
	return cli, nil
}

// freshCredentials read the files for each connection: a CA that signs from now on, too, counts at the next one.
type freshCredentials struct {
	etcd Etcd
	credentials.TransportCredentials
}

// ClientHandshake begins TLS with what the files hold now.
func (f freshCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cfg, err := f.etcd.tls(time.Now())
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(cfg).ClientHandshake(ctx, authority, conn)
}

// Clone is a copy, as gRPC wants.
func (f freshCredentials) Clone() credentials.TransportCredentials {
	return freshCredentials{f.etcd, f.TransportCredentials.Clone()}
}

// Explain says what the errors of etcd's client mean for people. The cause stays in the chain.
func Explain(err error) error {
	if err == nil || errors.Is(err, ErrAway) {
		return err
	}
	text := err.Error()
	hint := ""
	switch {
	case strings.Contains(text, "certificate has expired"):
		hint = "a certificate of etcd's has expired: renew it there"
	case strings.Contains(text, "certificate signed by unknown authority"):
		hint = "etcd's certificate is not of the CA that was given: see --cacert, or whether something else answers at that address"
	case strings.Contains(text, "cannot validate certificate"), strings.Contains(text, "certificate is valid for"):
		hint = "etcd's certificate does not name the address it was reached by: use a name that it has, or have one made with that address"
	case strings.Contains(text, "bad certificate"), strings.Contains(text, "certificate required"), strings.Contains(text, "unknown certificate"):
		hint = "etcd does not accept this host's client certificate: see --cert and --key"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		hint = "what answers there speaks no TLS: see the address"
	case errors.Is(err, rpctypes.ErrPermissionDenied), strings.Contains(text, "permission denied"):
		hint = "etcd's access rules forbid it: the client certificate's user needs to read and write below the prefix"
	case errors.Is(err, rpctypes.ErrNoSpace), strings.Contains(text, "database space exceeded"):
		hint = "etcd has used up its space: `etcdctl defrag` and `etcdctl alarm disarm`, or give it a larger quota"
	case strings.Contains(text, "connection refused"):
		hint = "nothing listens there: see the address and whether etcd runs"
	case status.Code(err) == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.Unavailable:
		hint = "no answer: see whether etcd runs with most of its members, and whether the way to it is open"
	}
	if hint == "" {
		return err
	}
	return fmt.Errorf("%s (%w)", hint, err)
}

// Why says what is wrong between this host and etcd, by one connection to each address: nil if one of them answers. The client itself goes on
// trying, and says no more than that the time is over.
func Why(ctx context.Context, e Etcd) error {
	cfg, err := e.tls(time.Now())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var errs []error
	for _, ep := range e.Endpoints {
		u, err := url.Parse(ep)
		if err == nil {
			err = greet(ctx, u.Host, cfg)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", ep, Explain(err)))
	}
	return errors.Join(errs...)
}

// greet begins HTTP/2: a server that does not like our certificate says so only when it is read from (TLS 1.3).
func greet(ctx context.Context, addr string, cfg *tls.Config) error {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{"h2"}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	// The preface of HTTP/2 and an empty frame of settings.
	if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// because adds to an error that says that the time is over what Why finds, while ctx lasts: it is not the one whose time is over.
func because(ctx context.Context, e Etcd, err error) error {
	if err == nil || !silent(err) {
		return err
	}
	if why := Why(ctx, e); why != nil && ctx.Err() == nil {
		return unreachable{why}
	}
	return err
}

// unreachable says why etcd is not there.
type unreachable struct{ why error }

func (u unreachable) Error() string { return "etcd cannot be reached: " + u.why.Error() }
func (u unreachable) Unwrap() error { return u.why }

// silent errors do not say why nobody answered.
func silent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded || status.Code(err) == codes.Unavailable
}
