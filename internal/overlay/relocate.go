package overlay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
//  4. the other members are told where to find it, which takes most of them. Whether they know is asked at every start. Where etcd knows
//     another member at the new address, as when two swap theirs, it gives up the old one until the other has moved.
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
		err := updateMember(ctx, cli, o.ID, m.peer())
		if errors.Is(err, rpctypes.ErrPeerURLExist) {
			err = parkMember(ctx, cli, o, list.Members, m.peer())
		}
		return true, Explain(err)
	}
	return false, nil
}

func updateMember(ctx context.Context, cli *clientv3.Client, id uint64, peer string) error {
	return patiently(ctx, func() error {
		tctx, cancel := context.WithTimeout(ctx, opTimeout)
		defer cancel()
		_, err := cli.MemberUpdate(tctx, id, []string{peer})
		return err
	})
}

// parkMember gives up the address at which the others know this member, where another one is known at that which it has now. That one moves
// too, maybe to just the address given up: etcd knows no two members at one, so neither could be told before the other.
func parkMember(ctx context.Context, cli *clientv3.Client, own *etcdserverpb.Member, all []*etcdserverpb.Member, peer string) error {
	for _, o := range all {
		if o.ID != own.ID && slices.Contains(o.PeerURLs, peer) {
			parked := "https://" + own.Name + ".moving.invalid:1"
			if !slices.Equal(own.PeerURLs, []string{parked}) {
				if err := updateMember(ctx, cli, own.ID, parked); err != nil {
					return err
				}
			}
			return fmt.Errorf("member %s is known to etcd at this address: waiting for it to tell where it is; if its host will not come back, `bulkhead cluster forget` it", o.Name)
		}
	}
	return errors.New("another member of etcd was known at this address just now")
}
