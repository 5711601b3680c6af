package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/client"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
)

// aloneTimeout is what containers get whose own --stop-timeout nobody is there to tell.
const aloneTimeout = 10 * time.Second

func newHaltCmd() *cobra.Command {
	c := daemonConfig{}
	var seconds int
	cmd := &cobra.Command{
		Use:   "halt",
		Short: "End all containers, as the host's shutdown does",
		Long: `End all containers, as the host's shutdown does: each is asked with its own stop signal, and
killed when it has not ended within its own --stop-timeout. Restart policies hold: what was not
stopped by a user comes back when the daemon starts next.

bulkhead-containers.service does this when the host goes down, before the daemon and the network do.
Left to the shutdown itself, containers that do not heed SIGTERM would hold it up for 90 seconds.
Without a daemon, all are asked with SIGTERM and get 10 seconds.`,
		Example: `  bulkhead halt
  bulkhead halt --timeout 20`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if seconds < 0 {
				return api.Errorf(api.KindInvalid, "--timeout %d is negative", seconds).Hint("use 0 to kill at once")
			}
			socket, err := cmd.Flags().GetString("host")
			if err != nil {
				return err
			}
			err = haltByDaemon(cmd.Context(), socket, seconds)
			if api.IsKind(err, api.KindUnavailable) {
				return c.haltAlone(cmd.Context(), min(aloneTimeout, time.Duration(seconds)*time.Second), err)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.IntVarP(&seconds, "timeout", "t", 300, "seconds that a container gets at most, whatever its own --stop-timeout is")
	f.StringVar(&c.stateDir, "state-dir", "/var/lib/bulkhead", "the daemon's state directory; as the next two, for when it is away")
	f.StringVar(&c.runDir, "run-dir", "/run/bulkhead", "the daemon's run directory")
	f.StringVar(&c.cgroupParent, "cgroup-parent", "/bulkhead", "the cgroup that containers are in")
	f.StringVar(&c.logLevel, "log-level", "warn", "debug, info, warn or error")
	return cmd
}

func haltByDaemon(ctx context.Context, socket string, most int) error {
	c, err := client.New(socket)
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.Containers(ctx)
	if err != nil {
		return err
	}
	return each(list, func(one api.Container) error {
		how := api.StopRequest{Halt: true}
		if own := one.Spec.StopTimeout; own != nil && (*own < 0 || *own > most) || own == nil && most < 10 {
			how.Timeout = &most
		}
		err := c.StopContainer(ctx, one.ID, how)
		if api.IsKind(err, api.KindNotFound) { // one with --rm that has ended
			return nil
		}
		return err
	})
}

// haltAlone ends the containers of a daemon that is away. It will find them ended, as after a loss of power.
func (c *daemonConfig) haltAlone(ctx context.Context, timeout time.Duration, why error) error {
	if _, err := os.Stat(filepath.Join(c.runDir, "containers")); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was started since the host was
	}
	log, err := newLogger(c.logLevel)
	if err != nil {
		return err
	}
	claim, err := claimHost(ctx, log)
	if err != nil {
		return errors.Join(why, err)
	}
	if claim != nil {
		defer claim.Close()
	}
	rt, err := process.New(process.Options{
		StateDir: filepath.Join(c.stateDir, "containers"), RunDir: filepath.Join(c.runDir, "containers"),
		CgroupParent: c.cgroupParent, Logger: log,
	})
	if err != nil {
		return err
	}
	ids, err := rt.List(ctx)
	if err == nil {
		err = each(ids, func(id string) error { return haltOne(ctx, rt, id, timeout) })
	}
	return errors.Join(err, rt.Close())
}

func haltOne(ctx context.Context, rt *process.Runtime, id string, timeout time.Duration) error {
	st, err := rt.State(ctx, id)
	if err != nil || st.Status != api.StatusRunning {
		return err
	}
	err = rt.Kill(ctx, id, "SIGTERM")
	if st.Paused {
		err = errors.Join(err, rt.Resume(ctx, id)) // the signal waits for it
	}
	for _, wait := range []time.Duration{timeout, aloneTimeout} {
		if endedIn(ctx, rt, id, wait) {
			return nil
		}
		err = errors.Join(err, rt.Kill(ctx, id, "SIGKILL"))
	}
	return errors.Join(fmt.Errorf("container %.12s does not end", id), err)
}

// endedIn looks every now and then: nobody tells of an end but the daemon.
func endedIn(ctx context.Context, rt *process.Runtime, id string, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err := rt.State(context.WithoutCancel(ctx), id); err == nil && st.Status != api.StatusRunning {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// each does something for all at once, and waits for all.
func each[T any](list []T, do func(T) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, one := range list {
		wg.Go(func() { errs[i] = do(one) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
