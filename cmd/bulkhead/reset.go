package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/nat"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
	"github.com/bulkhead-net/bulkhead/internal/durable"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

func newResetCmd() *cobra.Command {
	c := daemonConfig{}
	var keepImages, yes bool
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove everything that is ours from this host",
		Long: `Remove everything that is ours from this host: containers, networks, compartments, devices,
programs, the nftables table, and the state. Nothing of others is touched.

The daemon must be stopped. Images stay with --keep-images.`,
		Example: `  systemctl stop bulkhead && bulkhead reset --yes`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !yes {
				return errors.New("reset removes every container and network: say --yes to do it")
			}
			log, err := newLogger(c.logLevel)
			if err != nil {
				return err
			}
			claim, err := claimHost(cmd.Context(), log)
			if err != nil {
				return err
			}
			if claim != nil {
				defer claim.Close()
			}
			// The state's lock tells whether a daemon runs in another network namespace.
			db, err := store.Open(filepath.Join(c.stateDir, "state.db"))
			if err != nil && !errors.Is(err, store.ErrNewer) && !errors.Is(err, store.ErrDamaged) {
				return fmt.Errorf("%w: stop the daemon first: systemctl stop bulkhead, or end the process that runs `bulkhead daemon`", err)
			}
			ctx := cmd.Context()
			var errs []error
			rt, err := process.New(process.Options{
				StateDir: filepath.Join(c.stateDir, "containers"), RunDir: filepath.Join(c.runDir, "containers"),
				CgroupParent: c.cgroupParent, Logger: log,
			})
			if err == nil {
				err = errors.Join(rt.Reset(ctx), rt.Close())
			}
			errs = append(errs, err, resetNetwork(ctx, &c))
			if db != nil {
				errs = append(errs, db.Close())
			}
			overlay.EndMember(filepath.Join(c.stateDir, "cluster"), c.runDir)
			errs = append(errs, removeState(&c, keepImages))
			return errors.Join(errs...)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.stateDir, "state-dir", "/var/lib/bulkhead", "the daemon's state directory")
	f.StringVar(&c.runDir, "run-dir", "/run/bulkhead", "the daemon's run directory")
	f.StringVar(&c.bpfDir, "bpf-dir", vswitch.DefaultBPFDir, "where maps and programs are pinned")
	f.StringVar(&c.cgroupParent, "cgroup-parent", "/bulkhead", "the cgroup that containers are in")
	f.StringVar(&c.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.BoolVar(&keepImages, "keep-images", false, "keep the images")
	f.BoolVar(&yes, "yes", false, "really do it")
	return cmd
}

// resetNetwork cuts traffic off first and takes the devices away last.
func resetNetwork(ctx context.Context, c *daemonConfig) error {
	var errs []error
	dev, err := netdev.New(netdev.Options{StateDir: filepath.Join(c.stateDir, "netdev")})
	if err != nil {
		return err
	}
	errs = append(errs, dev.Reset(ctx), dev.Close())
	filter, err := nat.New(nat.Config{})
	if err == nil {
		err = errors.Join(filter.Reset(ctx), filter.Close())
	}
	return errors.Join(append(errs, err, vswitch.Reset(ctx, c.bpfDir), wireguard.Reset("", c.runDir))...)
}

// ours names what the daemon puts into its state directory, which may be a disk of its own with a lost+found.
func ours(name string) bool {
	return slices.Contains([]string{"state.db", "containers", "volumes", "images", "netdev", "vm", "auth.json", "cluster", "docker.json"}, name) ||
		strings.HasPrefix(name, ".auth-") || durable.IsTemporary(name) // half written
}

func removeState(c *daemonConfig, keepImages bool) error {
	entries, err := os.ReadDir(c.stateDir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove the state: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !ours(e.Name()) || keepImages && e.Name() == "images" {
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(c.stateDir, e.Name())))
	}
	_ = os.Remove(c.stateDir) // unless it is a disk, or holds what is not ours
	return errors.Join(append(errs, os.RemoveAll(c.runDir))...)
}
