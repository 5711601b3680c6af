package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// dialTimeout bounds the way to a daemon elsewhere, the exchange of certificates included.
const dialTimeout = 15 * time.Second

// NewRemote makes a client of a daemon elsewhere, given as tcp://HOST:PORT. The directory certs holds this side's cert.pem and
// key.pem, and the ca.pem that signed the daemon's certificate, which must name HOST. It does not connect yet.
func NewRemote(address, certs string) (*Client, error) {
	target := strings.TrimPrefix(address, "tcp://")
	host, port, err := net.SplitHostPort(target)
	if err != nil || host == "" || port == "" {
		return nil, api.Errorf(api.KindInvalid, "daemon %q: it is not HOST:PORT", address).Hint("write it like tcp://host.example:2376")
	}
	if certs == "" {
		return nil, api.Errorf(api.KindInvalid, "daemon %s: a daemon elsewhere is reached with a certificate only", address).
			Hint("name a directory with ca.pem, cert.pem and key.pem")
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem"))
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "read cert.pem and key.pem of %s: %w", certs, err).
			Hint("put a certificate for this client there, signed by the daemon's CA")
	}
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(filepath.Join(certs, "ca.pem"))
	if err != nil {
		return nil, api.Errorf(api.KindInvalid, "read the daemon's CA: %w", err).Hint("put its certificate there")
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, api.Errorf(api.KindInvalid, "%s holds no certificate in PEM", filepath.Join(certs, "ca.pem")).
			Hint("put the certificate of the daemon's CA there")
	}
	return newClient(target, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: pool, Certificates: []tls.Certificate{cert},
	}), nil
}

func (c *Client) dialTLS(ctx context.Context) (net.Conn, error) {
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: c.tls}
	bounded, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.DialContext(bounded, "tcp", c.socket)
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, c.refused(err)
}

// refused says what to do about a daemon elsewhere that cannot be reached, or about a certificate that one side does not take.
func (c *Client) refused(err error) *api.Error {
	e := api.Errorf(api.KindUnavailable, "connect to the daemon at %s: %w", c.socket, err)
	var certificate *tls.CertificateVerificationError
	switch {
	case alerted(err):
		return e.Hint("the daemon does not take this client's certificate: have its CA sign one for client authentication")
	case errors.As(err, &certificate):
		return e.Hint("the daemon's certificate must name this host and be signed by ca.pem's CA")
	case errors.Is(err, syscall.ECONNREFUSED):
		return e.Hint("start the daemon there with --listen and --certs, or name another address")
	}
	return e.Hint("see whether the address is right, and whether a firewall is between")
}

// alerted tells whether the other side ended the connection with an alert of TLS. In TLS 1.3 a client is done before the daemon
// has looked at its certificate, so a refusal comes with the first answer.
func alerted(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
