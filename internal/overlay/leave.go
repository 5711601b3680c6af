package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
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
	ctx, cancel := context.WithTimeout(ctx, 8*opTimeout)
	defer cancel()
	if err := c.mayLeave(ctx, cfg, r, a, force); err != nil {
		return err
	}
	if a != nil && r != nil {
		if err := c.retireForGood(ctx, cfg, r, a); err != nil && !force {
			c.comeBack()
			return fmt.Errorf("leave the cluster: %w", err)
		} else if err != nil {
			c.log.Warn("leave the cluster by force", "error", err)
		}
	}
	// Without this file the host is in no cluster, whatever cuts the rest short.
	if err := os.Remove(c.file(fileConfig)); err != nil {
		c.comeBack()
		return fmt.Errorf("forget the cluster: %w", err)
	}
	c.down()
	EndMember(c.opt.Dir, c.opt.RunDir)
	c.forgetMemory()
	c.mu.Lock()
	c.cfg, c.agent, c.known = nil, nil, nil
	c.mu.Unlock()
	c.opt.Changed()
	if err := os.RemoveAll(c.opt.Dir); err != nil {
		return fmt.Errorf("remove the cluster's files: %w", err)
	}
	return nil
}

// MayLeave is what Leave would be refused for.
func (c *Cluster) MayLeave(ctx context.Context, force bool) error {
	c.mu.Lock()
	cfg, r, a := c.cfg, c.run, c.agent
	c.mu.Unlock()
	return c.mayLeave(ctx, cfg, r, a, force)
}

func (c *Cluster) mayLeave(ctx context.Context, cfg *config, r *running, a *Agent, force bool) error {
	switch {
	case cfg == nil:
		return errNotJoined
	case force:
		return nil
	case r == nil || !a.Status().Connected:
		why := "it is not connected"
		if a != nil {
			why = a.Status().Problem
		}
		return fmt.Errorf("the cluster cannot be told that this host leaves (%s): wait until it is back, or leave with --force and `bulkhead cluster forget %s` on another host", why, cfg.Name)
	}
	return c.mayGo(ctx, cfg, r)
}

// comeBack starts the parts again after leaving has failed; Run tries again where it cannot. Locked: c.change.
func (c *Cluster) comeBack() {
	c.down()
	c.mu.Lock()
	cfg := c.cfg
	c.mu.Unlock()
	err := c.up(cfg)
	c.mu.Lock()
	if c.trouble = err; err != nil {
		c.agent = nil // the one that there was has ended
	}
	c.mu.Unlock()
	if err != nil {
		c.log.Error("be in the cluster again", "error", err)
		select {
		case c.again <- struct{}{}:
		default:
		}
	}
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

// retireForGood takes the host out of etcd: its keys, then its member. The last member ends with its data.
func (c *Cluster) retireForGood(ctx context.Context, cfg *config, r *running, a *Agent) error {
	c.stopAgent() // what follows the members would put the own one back among those that are asked
	var own uint64
	if cfg.Member != nil {
		res, err := r.cli.MemberList(ctx)
		if err != nil {
			return fmt.Errorf("list the members of etcd: %w", Explain(err))
		}
		var others []string
		for _, m := range res.Members {
			switch {
			case m.Name == cfg.Member.Name && len(res.Members) > 1:
				own = m.ID
			case len(m.ClientURLs) > 0 && !m.IsLearner:
				others = append(others, m.ClientURLs[0])
			}
		}
		if len(others) > 0 { // the own one ends when it is removed
			r.cli.SetEndpoints(others...)
		}
	}
	if err := c.retire(ctx, a); err != nil || own == 0 {
		return err
	}
	if err := removeMember(ctx, r.cli, own); err != nil {
		return fmt.Errorf("take the host's member out of etcd: %w", err)
	}
	return nil
}

// retire takes the host's keys out of etcd.
func (c *Cluster) retire(ctx context.Context, a *Agent) error {
	c.stopAgent()
	return a.Leave(ctx)
}

// Forget removes another host that will not come back, with its blocks, and its member of our own etcd. One that is alive takes force.
func (c *Cluster) Forget(ctx context.Context, id hcn.GUID, force bool) error {
	c.mu.Lock()
	cfg, r := c.cfg, c.run
	c.mu.Unlock()
	if cfg == nil || r == nil {
		return errNotJoined
	}
	ctx, cancel := context.WithTimeout(ctx, 6*opTimeout)
	defer cancel()
	var member uint64
	if cfg.Own {
		res, err := r.cli.MemberList(ctx)
		if err != nil {
			return fmt.Errorf("list the members of etcd: %w: %w", ErrAway, Explain(err))
		}
		for _, m := range res.Members {
			if m.Name == memberName(id) {
				member = m.ID
			}
		}
	}
	if err := r.agent.forget(ctx, id, force, member != 0); err != nil || member == 0 {
		return err
	}
	if err := removeMember(ctx, r.cli, member); err != nil {
		return fmt.Errorf("take the host's member out of etcd: %w: forget the host again when most members are there", err)
	}
	return nil
}

// takeBackMember removes the member of an attempt, by way of the others.
func takeBackMember(ctx context.Context, cfg *config) error {
	e := cfg.Etcd
	e.Endpoints = slices.DeleteFunc(slices.Clone(e.Endpoints), func(ep string) bool { return ep == cfg.Member.client() })
	cli, err := Dial(e)
	if err != nil {
		return err
	}
	defer cli.Close()
	return removeMember(ctx, cli, cfg.Member.ID)
}

// removeMember takes a member out of etcd; one that is not in it is no error.
func removeMember(ctx context.Context, cli *clientv3.Client, id uint64) error {
	err := patiently(ctx, func() error {
		tctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
		defer cancel()
		_, err := cli.MemberRemove(tctx, id)
		return err
	})
	if errors.Is(err, rpctypes.ErrMemberNotFound) {
		return nil
	}
	return Explain(err)
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
			errors.Is(err, rpctypes.ErrMemberLearnerNotReady), errors.Is(err, errSameSecond):
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
