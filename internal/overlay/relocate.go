package overlay

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/internal/durable"
)

// A host with a member of our own etcd that gets another address takes the member along. It has listened where the host is no more, is
// known there to the other members, and has a certificate for there. What is kept says where the member was and where the host is; while
// those differ, the next start moves the member, however often that is cut:
//
//  1. a certificate for the new address, of the same key; with the old one in place, nobody would believe the member there;
//  2. the new address in what is kept, after which only the rest is left to do;
//  3. the process is ended if it still listens at the old address, and started at the new one. It dials the others, so they have its vote
//     again, though they cannot dial it. That it tells itself where clients find it is etcd's own doing;
//  4. the other members are told where to find it, which takes most of them. Whether they know is asked at every start.
//
// Hosts see in the host's own record that it has moved, ask the members, and keep where all are. A host that knows no other member than one
// that has moved cannot ask anybody.

// relocate does the first half where it is due. Locked: c.change.
func (c *Cluster) relocate(cfg *config, now time.Time) (*config, error) {
	if !cfg.lostMember() {
		return cfg, nil
	}
	if err := c.certifyAt(cfg, now); err != nil {
		return nil, fmt.Errorf("have a certificate for the new address of this host's member of etcd: %w", err)
	}
	m := *cfg.Member
	m.Addrs = cfg.Addrs
	m.Initial = strings.Join(replaced(strings.Split(m.Initial, ","), m.Name+"="+cfg.Member.peer(), m.Name+"="+m.peer()), ",")
	c.mu.Lock()
	defer c.mu.Unlock()
	next := *cfg
	next.Member = &m
	next.Etcd.Endpoints = replaced(cfg.Etcd.Endpoints, cfg.Member.client(), m.client())
	if err := c.save(&next); err != nil {
		return nil, fmt.Errorf("keep the new address of this host's member of etcd: %w", err)
	}
	c.log.Info("this host's member of etcd moves with the host", "was", cfg.Member.Addrs[0], "is", m.Addrs[0])
	c.cfg = &next
	return &next, nil
}

func replaced(list []string, old, by string) []string {
	out := slices.Clone(list)
	for i := range out {
		if out[i] == old {
			out[i] = by
		}
	}
	return out
}

// certifyAt has the host's certificate name the addresses that the host has now.
func (c *Cluster) certifyAt(cfg *config, now time.Time) error {
	pair, err := tls.LoadX509KeyPair(c.file(fileCert), c.file(fileKey))
	if err != nil {
		return fmt.Errorf("read the old one: %w", err)
	}
	csr, err := requestAgain(&pair)
	if err != nil {
		return err
	}
	cert, err := c.signOwn(csr, cfg, cfg.Addrs, now)
	if err != nil {
		return err
	}
	return durable.WriteFile(c.file(fileCert), cert)
}

// tellMembers has the members of etcd know where this host's is, until they do.
func (c *Cluster) tellMembers(ctx context.Context, r *running, m *memberConfig) {
	for said := ""; ; {
		other, err := tellMember(ctx, r.cli, m)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		if r.untold = nil; other {
			r.untold = err
		}
		c.mu.Unlock()
		if err == nil {
			return
		}
		if text := err.Error(); other && text != said {
			c.log.Warn("tell the members of etcd where this host's is", "address", m.peer(), "error", err)
			said = text
		}
		if !sleep(ctx, jitter(2*time.Second)) {
			return
		}
	}
}

// tellMember tells them if they do not know; other: that was so.
func tellMember(ctx context.Context, cli *clientv3.Client, m *memberConfig) (other bool, err error) {
	tctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	list, err := cli.MemberList(tctx)
	if err != nil {
		return false, Explain(err)
	}
	for _, o := range list.Members {
		if o.Name != m.Name || slices.Equal(o.PeerURLs, []string{m.peer()}) {
			continue
		}
		err := patiently(ctx, func() error {
			tctx, cancel := context.WithTimeout(ctx, opTimeout)
			defer cancel()
			_, err := cli.MemberUpdate(tctx, o.ID, []string{m.peer()})
			return err
		})
		return true, Explain(err)
	}
	return false, nil
}
