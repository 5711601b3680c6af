package overlay

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// A host that joins has nothing but the token. It asks one of the addresses in it by TLS, accepts only a certificate that the CA with
// the token's fingerprint has signed, and only then shows the secret. It gets its certificate for etcd, signed for the key that
// it made and keeps.

// joinRequest is what a host asks for.
type joinRequest struct {
	Token   string       `json:"token"`
	Secret  string       `json:"secret"`
	Host    hcn.GUID     `json:"host"`
	Name    string       `json:"name"`
	Addrs   []netip.Addr `json:"addrs"`
	CSR     []byte       `json:"csr"`
	Version string       `json:"version"`
	Schema  int          `json:"schema"`
	// Member asks to become a member of etcd that others reach at Peer.
	Member bool   `json:"member,omitempty"`
	Peer   string `json:"peer,omitempty"`
}

// joinAnswer is what it gets.
type joinAnswer struct {
	Error     string   `json:"error,omitempty"`
	CA        []byte   `json:"ca,omitempty"`
	Cert      []byte   `json:"cert,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
	Prefix    string   `json:"prefix,omitempty"`
	Cluster   hcn.GUID `json:"cluster,omitempty"`
	// For a member: what it starts with, its ID, and the CA's key.
	Initial string `json:"initial,omitempty"`
	Member  uint64 `json:"member,omitempty"`
	CAKey   []byte `json:"caKey,omitempty"`
}

// maxJoin bounds both.
const maxJoin = 256 << 10

// door lets hosts join. Every member of our own etcd has one.
type door struct {
	ca        *authority
	caKey     []byte
	pair      func() (*tls.Certificate, error) // of the host, with the CA's
	cli       *clientv3.Client
	prefix    string
	endpoints func() []string
	cluster   hcn.GUID
	version   string
	log       *slog.Logger
	// asking bounds how many tokens are looked up at a time, adding those who make room for a member: etcd takes one learner at a time.
	asking, adding chan struct{}
}

func (d *door) serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/join", d.join)
	mux.HandleFunc("POST /v1/renew", d.renew)
	mux.HandleFunc("POST /v1/where", d.where)
	hosts := x509.NewCertPool()
	hosts.AddCert(d.ca.cert)
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 40 * time.Second, IdleTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		TLSConfig: &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return d.pair() }, MinVersion: tls.VersionTLS13,
			ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: hosts,
		},
		ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- srv.ServeTLS(newTurnstile(ln), "", "") }()
	select {
	case err := <-done:
		return fmt.Errorf("let hosts join: %w", err)
	case <-ctx.Done():
		srv.Close()
		<-done //nolint:errcheck // it says that it was closed
		return ctx.Err()
	}
}

// errBusy: another address may have time.
var errBusy = errors.New("too many hosts join here just now: try again in a moment")

// enter waits for a place. The request was read before: who is slow has none.
func enter(ctx context.Context, places chan struct{}) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, learnerTime)
	defer cancel()
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, errBusy
	}
}

func (d *door) join(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	var req joinRequest
	err := json.NewDecoder(io.LimitReader(r.Body, maxJoin)).Decode(&req)
	var ans joinAnswer
	status := http.StatusBadRequest
	if err == nil {
		ans, err = d.answer(r.Context(), &req)
		switch {
		case errors.Is(err, errToken):
			status = http.StatusForbidden
			sleep(r.Context(), 500*time.Millisecond) // guessing is slow
		case errors.Is(err, errBusy):
			status = http.StatusServiceUnavailable
		}
	}
	if err != nil {
		d.log.Warn("a host was refused", "from", r.RemoteAddr, "error", err)
		ans = joinAnswer{Error: err.Error()}
		w.WriteHeader(status)
	}
	_ = json.NewEncoder(w).Encode(ans)
}

func (d *door) answer(ctx context.Context, req *joinRequest) (joinAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*opTimeout)
	defer cancel()
	leave, err := enter(ctx, d.asking)
	if err != nil {
		return joinAnswer{}, err
	}
	err = checkToken(ctx, d.cli, d.prefix, req.Token, req.Secret)
	leave()
	if err != nil {
		return joinAnswer{}, err
	}
	if req.Schema != Schema {
		return joinAnswer{}, fmt.Errorf("%w: this cluster has version %d (Bulkhead %s), the host that wants to join speaks version %d (Bulkhead %s): run the same version on all hosts",
			ErrSchema, Schema, d.version, req.Schema, clip(req.Version))
	}
	h := Host{ID: req.Host, Name: req.Name, Addrs: req.Addrs, Version: req.Version}
	if id, err := hcn.ParseGUID(string(req.Host)); err != nil || id.IsZero() || id != req.Host {
		return joinAnswer{}, errors.New("the host's ID is none")
	}
	if err := h.check(); err != nil {
		return joinAnswer{}, fmt.Errorf("the host describes itself: %w", err)
	}
	var serves []netip.Addr
	if req.Member {
		serves = req.Addrs
	}
	cert, err := d.ca.sign(req.CSR, "host "+string(req.Host), serves, time.Now())
	if err != nil {
		return joinAnswer{}, err
	}
	ans := joinAnswer{CA: certPEMOf(d.ca.cert.Raw), Cert: cert, Endpoints: d.endpoints(), Prefix: d.prefix, Cluster: d.cluster}
	if req.Member {
		if err := d.addMember(ctx, req, &ans); err != nil {
			return joinAnswer{}, err
		}
	}
	d.log.Info("a host joins", "host", req.Host, "name", req.Name, "member", req.Member)
	return ans, nil
}

// addMember makes room in etcd for a member that starts next. It has no vote until it has caught up and says so itself: a host that
// fails half way costs the others nothing.
func (d *door) addMember(ctx context.Context, req *joinRequest, ans *joinAnswer) error {
	if !strings.HasPrefix(req.Peer, "https://") || len(req.Peer) > 128 {
		return errors.New("no address at which the members of etcd would reach the new one")
	}
	leave, err := enter(ctx, d.adding)
	if err != nil {
		return err
	}
	defer leave()
	list, err := d.cli.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("list the members of etcd: %w", Explain(err))
	}
	never := map[uint64]bool{} // those that have not started; they may be about to
	for _, m := range list.Members {
		if len(m.PeerURLs) == 1 && m.PeerURLs[0] == req.Peer && m.IsLearner { // left by an attempt that was cut
			if _, err := d.cli.MemberRemove(ctx, m.ID); err != nil {
				return fmt.Errorf("remove a member that never came: %w", Explain(err))
			}
		} else if m.IsLearner && m.Name == "" {
			never[m.ID] = true
		}
	}
	var res *clientv3.MemberAddResponse
	add := func() error {
		tctx, cancel := context.WithTimeout(ctx, learnerTime)
		defer cancel()
		return patiently(tctx, func() (err error) {
			if res, err = d.cli.MemberAddAsLearner(ctx, []string{req.Peer}); errors.Is(err, rpctypes.ErrMemberNotFound) {
				return errSameSecond
			}
			return err
		})
	}
	err = add()
	if errors.Is(err, rpctypes.ErrTooManyLearners) && len(never) > 0 {
		if err = d.dropLearners(ctx, never); err == nil {
			err = add()
		}
	}
	if err != nil {
		return fmt.Errorf("add a member to etcd: %w: see `bulkhead cluster status` for members that do not answer", Explain(err))
	}
	var initial []string
	for _, m := range res.Members {
		name := m.Name
		if m.ID == res.Member.ID {
			name = memberName(req.Host)
		}
		for _, u := range m.PeerURLs {
			initial = append(initial, name+"="+u)
		}
	}
	ans.Initial, ans.Member, ans.CAKey = strings.Join(initial, ","), res.Member.ID, d.caKey
	return nil
}

// errSameSecond is what "member not found" means where one is added: etcd makes a member's ID of its address and the second, and takes none
// again that was removed. An attempt that fails at once, and is made again, has to be so in another second.
var errSameSecond = errors.New("a member at its address was removed this very second")

// learnerTime is how long a learner is waited for, of which etcd has one at a time: between room for it and its start is a moment.
const learnerTime = 10 * time.Second

// dropLearners removes members that have not started in all that time.
func (d *door) dropLearners(ctx context.Context, which map[uint64]bool) error {
	list, err := d.cli.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range list.Members {
		if !which[m.ID] || !m.IsLearner || m.Name != "" {
			continue
		}
		d.log.Warn("a member of etcd that never came is removed", "peer", m.PeerURLs)
		if err := removeMember(ctx, d.cli, m.ID); err != nil {
			return err
		}
	}
	return nil
}

func memberName(host hcn.GUID) string { return "bulkhead-" + host.Lower() }

func clip(s string) string { return s[:min(len(s), 64)] }

// ask sends a join request to the addresses of a token, one after the other.
func ask(ctx context.Context, t Token, req joinRequest) (joinAnswer, error) {
	var errs []error
	for _, addr := range t.Addrs {
		ans, final, err := askOne(ctx, addr, t, req)
		if err == nil {
			return ans, nil
		}
		if final {
			return joinAnswer{}, err
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return joinAnswer{}, fmt.Errorf("no host of the cluster answers as the token says: %w", errors.Join(errs...))
}

// askOne is final when another address would say the same.
func askOne(ctx context.Context, addr netip.AddrPort, t Token, req joinRequest) (ans joinAnswer, final bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 35*time.Second)
	defer cancel()
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, // VerifyConnection holds it to the token instead
			VerifyConnection: func(s tls.ConnectionState) error { return verifyDoor(s.PeerCertificates, t.CA, addr.Addr()) },
		},
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second, DisableKeepAlives: true, Proxy: nil,
	}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr.String()+"/v1/join", bytes.NewReader([]byte(encode(req))))
	if err != nil {
		return ans, true, err
	}
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return ans, false, Explain(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(io.LimitReader(res.Body, maxJoin)).Decode(&ans); err != nil {
		return ans, false, fmt.Errorf("read the answer: %w", err)
	}
	if ans.Error != "" || res.StatusCode != http.StatusOK {
		return ans, res.StatusCode != http.StatusServiceUnavailable, fmt.Errorf("the cluster says: %.400s", ans.Error)
	}
	return ans, true, nil
}

// verifyDoor accepts a certificate for an address that the CA of a token has signed.
func verifyDoor(certs []*x509.Certificate, ca string, addr netip.Addr) error {
	pool, inter := x509.NewCertPool(), false
	for _, c := range certs {
		if fingerprint(c) == ca {
			pool.AddCert(c)
			inter = true
		}
	}
	if !inter {
		return errors.New("what answers there does not belong to the cluster of the token (its CA has another fingerprint): see that the token is of this cluster")
	}
	_, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: addr.Unmap().String(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	if err != nil {
		return fmt.Errorf("the certificate of what answers there: %w", err)
	}
	return nil
}
