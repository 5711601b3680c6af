package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.key = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// dir makes a directory with a certificate of a, and the CA of trusted.
func (a *authority) dir(usage x509.ExtKeyUsage, ends time.Time, trusted *authority) string {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "somebody"}, NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: ends,
		ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	for name, block := range map[string]*pem.Block{
		caFile:   {Type: "CERTIFICATE", Bytes: trusted.cert.Raw},
		certFile: {Type: "CERTIFICATE", Bytes: der},
		keyFile:  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return dir
}

// TestRemote: who has no certificate for clients that the CA signed and that has not ended gets nothing.
func TestRemote(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	soon := time.Now().Add(time.Hour)
	dir := ours.dir(x509.ExtKeyUsageServerAuth, soon, ours)
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := ListenTLS(ctx, "127.0.0.1:0", dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(ctx, ln) }()
	ask := func(certs string) error {
		c, err := client.NewRemote("tcp://"+ln.Addr().String(), certs)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Info(t.Context())
		return err
	}
	good := ours.dir(x509.ExtKeyUsageClientAuth, soon, ours)
	if err := ask(good); err != nil {
		t.Errorf("with a good certificate: %v", err)
	}
	for name, certs := range map[string]string{
		"of another CA":            theirs.dir(x509.ExtKeyUsageClientAuth, soon, ours),
		"that ended":               ours.dir(x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Minute), ours),
		"that is a server's":       ours.dir(x509.ExtKeyUsageServerAuth, soon, ours),
		"that trusts another host": ours.dir(x509.ExtKeyUsageClientAuth, soon, theirs),
	} {
		var e *api.Error
		if err := ask(certs); !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Next, "certificate") {
			t.Errorf("with a certificate %s: %v, want a refusal that speaks of certificates", name, err)
		}
	}

	if err := os.WriteFile(filepath.Join(dir, caFile), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ask(good); err != nil {
		t.Errorf("while the files are broken, those from before hold: %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestListenTLSRefuses(t *testing.T) {
	ours := newAuthority(t)
	whole := func() string { return ours.dir(x509.ExtKeyUsageServerAuth, time.Now().Add(time.Hour), ours) }
	open, missing, rubbish := whole(), whole(), whole()
	if err := errors.Join(os.Chmod(filepath.Join(open, keyFile), 0o640), os.Remove(filepath.Join(missing, certFile)),
		os.WriteFile(filepath.Join(rubbish, caFile), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ addr, dir, want string }{
		"a name":         {"localhost:1", whole(), "write it like"},
		"no port":        {"127.0.0.1", whole(), "write it like"},
		"an open key":    {"127.0.0.1:0", open, "chmod 600"},
		"a missing file": {"127.0.0.1:0", missing, "there is no cert.pem"},
		"no CA":          {"127.0.0.1:0", rubbish, "no certificate in PEM"},
	} {
		ln, err := ListenTLS(t.Context(), tc.addr, tc.dir, slog.New(slog.DiscardHandler))
		if err == nil {
			ln.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
