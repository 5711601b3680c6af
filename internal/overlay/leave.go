package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// Leave takes the host out of its cluster. force does so even if the cluster cannot be told, or breaks by it.
func (c *Cluster) Leave(ctx context.Context, force bool) error {
	if !c.change.TryLock() {
		return errors.New("this host is joining or leaving a cluster just now: wait for that")
	}
	defer c.change.Unlock()
	c.mu.Lock()
	cfg, r, a := c.cfg, c.run, c.agent
	c.mu.Unlock()
	if cfg == nil {
		return errNotJoined
	}
	ctx, cancel := context.WithTimeout(ctx, 8*opTimeout)
	defer cancel()
	if !force {
		if r == nil || !a.Status().Connected {
			why := "it is not connected"
			if a != nil {
				why = a.Status().Problem
			}
			return fmt.Errorf("the cluster cannot be told that this host leaves (%s): wait until it is back, or leave with --force and `bulkhead cluster forget %s` on another host", why, cfg.Name)
		}
		if err := c.mayGo(ctx, cfg, r); err != nil {
			return err
		}
	}
	if a != nil && r != nil {
		if err := c.retireForGood(ctx, cfg, r, a); err != nil && !force {
			c.down()
			return errors.Join(fmt.Errorf("leave the cluster: %w", err), c.up(cfg))
		} else if err != nil {
			c.log.Warn("leave the cluster by force", "error", err)
		}
	}
	// Without this file the host is in no cluster, whatever cuts the rest short.
	if err := os.Remove(c.file(fileConfig)); err != nil {
		return fmt.Errorf("forget the cluster: %w", err)
	}
	c.down()
	EndMember(c.opt.Dir, c.opt.RunDir)
	c.mu.Lock()
	c.cfg, c.agent = nil, nil
	c.mu.Unlock()
	c.opt.Changed()
	if err := os.RemoveAll(c.opt.Dir); err != nil {
		return fmt.Errorf("remove the cluster's files: %w", err)
	}
	return nil
}

// mayGo refuses to take the last member of etcd away from hosts that need it.
func (c *Cluster) mayGo(ctx context.Context, cfg *config, r *running) error {
	if cfg.Member == nil {
		return nil
	}
	res, err := r.cli.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("list the members of etcd: %w", Explain(err))
	}
	others := 0
	for _, h := range r.agent.Hosts() {
		if h.ID != cfg.Host {
			others++
		}
	}
	if len(res.Members) == 1 && others > 0 {
		return fmt.Errorf("the only member of etcd runs here, and %d other hosts need it: have another host join with --member first, or leave with --force and end their cluster", others)
	}
	return nil
}

func (c *Cluster) retireForGood(ctx context.Context, cfg *config, r *running, a *Agent) error {
	if cfg.Member == nil {
		return c.retire(ctx, cfg, a)
	}
	leaving := *cfg
	member := *cfg.Member
	leaving.Member, member.ID = &member, 0 // the last one ends with its data
	res, err := r.cli.MemberList(ctx)
	if err != nil {
		return fmt.Errorf("list the members of etcd: %w", Explain(err))
	}
	var others []string
	for _, m := range res.Members {
		switch {
		case m.Name == member.Name && len(res.Members) > 1:
			member.ID = m.ID
		case len(m.ClientURLs) > 0 && !m.IsLearner:
			others = append(others, m.ClientURLs[0])
		}
	}
	if len(others) > 0 { // the own one ends when it is removed
		r.cli.SetEndpoints(others...)
	}
	return c.retire(ctx, &leaving, a)
}

// retire takes the host out of etcd: its keys, then its member.
func (c *Cluster) retire(ctx context.Context, cfg *config, a *Agent) error {
	c.stopAgent()
	if err := a.Leave(ctx); err != nil {
		return err
	}
	if cfg.Member == nil || cfg.Member.ID == 0 {
		return nil
	}
	if err := patiently(ctx, func() error { _, err := a.cli.MemberRemove(ctx, cfg.Member.ID); return err }); err != nil {
		return fmt.Errorf("take the host's member out of etcd: %w", Explain(err))
	}
	return nil
}

// patiently asks etcd for a change of its members again while it is not ready for one: it wants all of them to have been connected for
// some seconds.
func patiently(ctx context.Context, change func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := change()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrTooManyLearners),
			errors.Is(err, rpctypes.ErrMemberLearnerNotReady):
		default:
			return err
		}
		if !sleep(ctx, 300*time.Millisecond) {
			return err
		}
	}
}

// stopAgent ends all parts but keeps the client open. It is called before the host's keys are removed, lest the agent write them again.
func (c *Cluster) stopAgent() {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r != nil {
		r.cancel()
		r.wg.Wait()
	}
}
