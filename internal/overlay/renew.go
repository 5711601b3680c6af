package overlay

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// Certificates of our own etcd are renewed when two thirds of their time are over, while everything runs: etcd and the client read the
// file for each connection. A host with a member signs its own; the others ask one of those, by TLS with the certificate that
// they still have. The key stays, so that the file of the certificate is all that changes, at once.

const (
	renewEvery = 6 * time.Hour
	renewAgain = 10 * time.Minute
)

// keepCertificate renews the host's certificate in time, until ctx ends.
func (c *Cluster) keepCertificate(ctx context.Context, r *running, cfg *config) {
	a := r.agent
	for said := ""; ; {
		if cfg.Member == nil && !slices.ContainsFunc(a.Hosts(), func(h Host) bool { return h.ID == cfg.Host }) { // nobody signs for one that is not there
			if !sleep(ctx, time.Second) {
				return
			}
			continue
		}
		wait := renewEvery
		err := c.renewIfDue(ctx, a, cfg, time.Now())
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		r.renewal = err
		c.mu.Unlock()
		if err != nil {
			wait = renewAgain
			if text := err.Error(); text != said {
				c.log.Warn("renew this host's certificate for etcd", "error", err)
				said = text
			}
		}
		if !sleep(ctx, jitter(wait)) {
			return
		}
	}
}

// due tells whether a certificate is in the last third of its time.
func due(cert *x509.Certificate, now time.Time) bool {
	return now.After(cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3))
}

func (c *Cluster) renewIfDue(ctx context.Context, a *Agent, cfg *config, now time.Time) error {
	pair, err := tls.LoadX509KeyPair(c.file(fileCert), c.file(fileKey))
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	if !due(pair.Leaf, now) {
		return nil
	}
	csr, err := requestAgain(&pair)
	if err != nil {
		return err
	}
	var cert []byte
	if cfg.Member != nil {
		cert, err = c.signOwn(csr, cfg, cfg.Member.Addrs, now)
	} else {
		cert, err = c.askRenewal(ctx, a, csr, pair)
	}
	if err != nil {
		return err
	}
	leaf, err := parseCert(cert)
	if err != nil || !sameKey(leaf, pair.Leaf) || !leaf.NotAfter.After(pair.Leaf.NotAfter) {
		return errors.New("what was signed is not a newer certificate of this host's key: see how long the CA's lasts")
	}
	if err := durable.WriteFile(c.file(fileCert), cert); err != nil {
		return err
	}
	c.log.Info("this host's certificate for etcd is renewed", "until", leaf.NotAfter.UTC().Format(time.DateOnly))
	return nil
}

// requestAgain asks for another certificate of a key.
func requestAgain(pair *tls.Certificate) ([]byte, error) {
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("its key is none of ours")
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: pair.Leaf.Subject.CommonName}}, key)
	if err != nil {
		return nil, fmt.Errorf("ask for a new one: %w", err)
	}
	return csr, nil
}

func sameKey(a, b *x509.Certificate) bool {
	key, ok := a.PublicKey.(*ecdsa.PublicKey)
	return ok && key.Equal(b.PublicKey)
}

// signOwn signs for this host, which has the CA's key because it has a member of etcd, with the addresses by which that is reached.
func (c *Cluster) signOwn(csr []byte, cfg *config, addrs []netip.Addr, now time.Time) ([]byte, error) {
	ca, _, err := c.authority()
	if err != nil {
		return nil, err
	}
	return ca.sign(csr, "host "+string(cfg.Host), addrs, now)
}

// renewal is what a host sends that has a certificate.
type renewal struct {
	CSR []byte `json:"csr"`
}

// askRenewal asks the hosts with members, one after the other.
func (c *Cluster) askRenewal(ctx context.Context, a *Agent, csr []byte, pair tls.Certificate) ([]byte, error) {
	pool, err := readCAs(c.file(fileCA), time.Now())
	if err != nil {
		return nil, err
	}
	errs := []error{errors.New("no host with a member of etcd has signed it")}
	for _, h := range a.Hosts() {
		if h.Join == 0 {
			continue
		}
		ans, err := askDoor(ctx, netip.AddrPortFrom(h.Addrs[0], h.Join), "renew", renewal{csr}, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}})
		if err == nil {
			return ans.Cert, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", h.Name, err))
	}
	return nil, errors.Join(errs...)
}

// renew signs again for a host that shows the certificate it has.
func (d *door) renew(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	var ans joinAnswer
	var req renewal
	err := json.NewDecoder(io.LimitReader(r.Body, maxJoin)).Decode(&req)
	if err == nil {
		ans.Cert, err = d.signAgain(r.Context(), r.TLS, req.CSR)
	}
	if err != nil {
		d.log.Warn("a certificate was not renewed", "from", r.RemoteAddr, "error", err)
		ans = joinAnswer{Error: err.Error()}
		w.WriteHeader(http.StatusForbidden)
	}
	_ = json.NewEncoder(w).Encode(ans)
}

// certified is the host whose certificate was shown.
func certified(conn *tls.ConnectionState) (hcn.GUID, error) {
	if conn == nil || len(conn.VerifiedChains) == 0 {
		return "", errors.New("no certificate of the cluster's was shown")
	}
	name := conn.PeerCertificates[0].Subject.CommonName
	id, err := hcn.ParseGUID(strings.TrimPrefix(name, "host "))
	if err != nil || name != "host "+string(id) {
		return "", fmt.Errorf("the certificate is of %.60q, which is no host", name)
	}
	return id, nil
}

func (d *door) signAgain(ctx context.Context, conn *tls.ConnectionState, csr []byte) ([]byte, error) {
	id, err := certified(conn)
	if err != nil {
		return nil, err
	}
	leave, err := enter(ctx, d.asking)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	k := keys{d.prefix}
	res, err := d.cli.Txn(ctx).Then(clientv3.OpGet(k.forgotten(id)), clientv3.OpGet(k.host(id), clientv3.WithKeysOnly())).Commit()
	if err != nil {
		return nil, fmt.Errorf("look whether the host is in the cluster: %w", Explain(err))
	}
	if kvs := res.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		return nil, forgottenError(kvs[0].Value)
	}
	if len(res.Responses[1].GetResponseRange().Kvs) == 0 { // it has left, or does not live
		return nil, fmt.Errorf("host %s is not in the cluster now", id)
	}
	return d.ca.sign(csr, "host "+string(id), nil, time.Now())
}
