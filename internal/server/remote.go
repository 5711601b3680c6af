package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

// The files of a directory of certificates, named as Docker's clients and daemons name theirs.
const (
	caFile   = "ca.pem"   // who may sign the other side
	certFile = "cert.pem" // this side, with what is between it and its CA
	keyFile  = "key.pem"
)

// maxRemote bounds the connections of remote clients, those that have shown no certificate yet among them.
const maxRemote = 256

// ListenTLS listens for remote clients at ADDRESS:PORT. Both sides show a certificate (TLS 1.3), and whoever has one that
// dir's ca.pem signed for client authentication may do what root may. The files are read anew when they change, so
// certificates may be renewed under a running daemon; broken ones leave the last good ones in force, and are logged.
func ListenTLS(ctx context.Context, addr, dir string, log *slog.Logger) (net.Listener, error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("listen on %q: write it like 192.0.2.1:2376 or [2001:db8::1]:2376", addr)
	}
	k := &keyring{dir: dir, log: log}
	if _, err := k.config(); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	log.Info("listening for remote clients with a certificate", "address", ln.Addr().String(), "certificates", dir)
	return tls.NewListener(netutil.LimitListener(ln, maxRemote), &tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.config() },
	}), nil
}

// keyring holds what was read from a directory of certificates, until one of its files changes.
type keyring struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex
	state [3]fileState
	good  *tls.Config
}

type fileState struct {
	modified time.Time
	size     int64
}

func (k *keyring) config() (*tls.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	state, err := k.stat()
	if err == nil && k.good != nil && state == k.state {
		return k.good, nil
	}
	var c *tls.Config
	if err == nil {
		c, err = k.load()
	}
	switch {
	case err == nil:
		k.good = c
	case k.good == nil:
		return nil, err
	case state != k.state:
		k.log.Error("the certificates are broken; those from before stay in force", "error", err)
	}
	k.state = state
	return k.good, nil
}

func (k *keyring) stat() (out [3]fileState, err error) {
	for i, name := range []string{caFile, certFile, keyFile} {
		info, err := os.Stat(filepath.Join(k.dir, name))
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("there is no %s in %s: put ca.pem, cert.pem and key.pem there", name, k.dir)
			}
			return out, err
		}
		if name == keyFile && info.Mode().Perm()&0o077 != 0 {
			return out, fmt.Errorf("%s can be read by others than its owner: chmod 600 it", filepath.Join(k.dir, name))
		}
		out[i] = fileState{info.ModTime(), info.Size()}
	}
	return out, nil
}

func (k *keyring) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(k.dir, certFile), filepath.Join(k.dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("read %s and %s of %s: %w", certFile, keyFile, k.dir, err)
	}
	pem, err := os.ReadFile(filepath.Join(k.dir, caFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", filepath.Join(k.dir, caFile))
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		NextProtos:   []string{"http/1.1"}, // streams take the connection over, which HTTP/2 has no way for
		// A resumed session would outlive a CA that is taken away.
		SessionTicketsDisabled: true,
	}, nil
}
