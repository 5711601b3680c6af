package overlay

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"time"
)

// A host that has lost etcd, because all members that it knows have moved, cannot ask anybody where they are. A token of its own cluster
// says so: it names the doors as they are now. The host shows its certificate there, and is told the members' addresses. That it belongs
// to the cluster is known by the CA, which is the same.

// isOurs tells that a token is of the cluster that this host is in.
func (c *Cluster) isOurs(t Token) bool {
	c.mu.Lock()
	own := c.cfg != nil && c.cfg.Own
	c.mu.Unlock()
	if !own {
		return false
	}
	b, err := os.ReadFile(c.file(fileCA))
	if err != nil {
		return false
	}
	ca, err := parseCert(b)
	return err == nil && fingerprint(ca) == t.CA
}

// findAgain has this host, which is in the cluster of a token, look for etcd where that says.
func (c *Cluster) findAgain(ctx context.Context, t Token, asMember bool) (Result, error) {
	if !c.change.TryLock() {
		return Result{}, errors.New("this host is joining or leaving a cluster just now: wait for that")
	}
	defer c.change.Unlock()
	c.mu.Lock()
	cfg, a := c.cfg, c.agent
	c.mu.Unlock()
	switch {
	case cfg == nil:
		return Result{}, errNotJoined
	case a != nil && a.Status().Connected, asMember && cfg.Member == nil:
		return Result{}, alreadyIn(cfg)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	ans, err := c.askWhere(ctx, t)
	if err != nil {
		return Result{}, err
	}
	if ans.Cluster != cfg.Cluster {
		return Result{}, fmt.Errorf("what answers there is of cluster %.40q, and this host of %s", string(ans.Cluster), cfg.Cluster)
	}
	next := *cfg
	next.Etcd.Endpoints = ans.Endpoints
	if len(ans.Endpoints) > 64 {
		return Result{}, errors.New("the answer is too large")
	}
	if err := next.Etcd.Check(time.Now()); err != nil {
		return Result{}, fmt.Errorf("where the members of etcd are: %w", err)
	}
	c.down()
	c.keepKnown(a, a)
	c.mu.Lock()
	next.Paths = c.cfg.Paths // what was found out meanwhile
	if err = c.save(&next); err == nil {
		c.cfg = &next
	}
	c.mu.Unlock()
	c.comeBack()
	if err != nil {
		return Result{}, fmt.Errorf("keep where the members of etcd are: %w", err)
	}
	c.log.Info("this host looks for etcd elsewhere", "endpoints", next.Etcd.Endpoints)
	if c.Agent() == nil {
		return Result{}, fmt.Errorf("be in the cluster again: %w", ErrAway)
	}
	if err := c.awaitAgent(ctx); err != nil {
		return Result{}, err
	}
	c.opt.Changed()
	return Result{Cluster: next.Cluster, Host: next.Host}, nil
}

func alreadyIn(cfg *config) error {
	return fmt.Errorf("this host is in cluster %s already: `bulkhead cluster leave` first", cfg.Cluster)
}

// askWhere asks the doors of a token, one after the other, where the members of etcd are.
func (c *Cluster) askWhere(ctx context.Context, t Token) (joinAnswer, error) {
	pool, err := readCAs(c.file(fileCA), time.Now())
	if err != nil {
		return joinAnswer{}, err
	}
	pair, err := readPair(c.file(fileCert), c.file(fileKey), time.Now())
	if err != nil {
		return joinAnswer{}, err
	}
	var errs []error
	for _, addr := range t.Addrs {
		ans, err := askDoor(ctx, addr, "where", struct{}{}, &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{*pair}})
		if err == nil {
			return ans, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	return joinAnswer{}, fmt.Errorf("no host of the cluster answers as the token says: %w", errors.Join(errs...))
}

// askDoor asks one something, by the certificate that this host has.
func askDoor(ctx context.Context, addr netip.AddrPort, what string, req any, cfg *tls.Config) (joinAnswer, error) {
	var ans joinAnswer
	ctx, cancel := context.WithTimeout(ctx, 4*opTimeout)
	defer cancel()
	tr := &http.Transport{TLSClientConfig: cfg, DialContext: (&net.Dialer{Timeout: opTimeout}).DialContext, TLSHandshakeTimeout: opTimeout, DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr.String()+"/v1/"+what, bytes.NewReader([]byte(encode(req))))
	if err != nil {
		return ans, err
	}
	res, err := (&http.Client{Transport: tr}).Do(r)
	if err != nil {
		return ans, Explain(err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotFound {
		return ans, errors.New("what answers there does not know this question: run the same version of Bulkhead on all hosts")
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxJoin)).Decode(&ans); err != nil {
		return ans, fmt.Errorf("read the answer: %w", err)
	}
	if ans.Error != "" || res.StatusCode != http.StatusOK {
		return ans, fmt.Errorf("it says: %.400s", ans.Error)
	}
	return ans, nil
}

// where tells a host of the cluster where the members of etcd are.
func (d *door) where(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	ans := joinAnswer{Cluster: d.cluster, Endpoints: d.endpoints(), Prefix: d.prefix}
	if _, err := certified(r.TLS); err != nil {
		d.log.Warn("a host was not told where etcd is", "from", r.RemoteAddr, "error", err)
		ans = joinAnswer{Error: err.Error()}
		w.WriteHeader(http.StatusForbidden)
	}
	_ = json.NewEncoder(w).Encode(ans)
}
