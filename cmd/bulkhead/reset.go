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

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/cli"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/nat"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
	"github.com/bulkhead-net/bulkhead/internal/durable"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

func newResetCmd() *cobra.Command {
	c := daemonConfig{}
	var keepImages, yes bool
	var dry *bool
	var form *string
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Remove everything that is ours from this host",
		Long: `Remove everything that is ours from this host: containers, networks, compartments, devices,
programs, the nftables table, and the state. Nothing of others is touched.

The daemon must be stopped. Images stay with --keep-images. What it would remove is told by
--dry-run, also while the daemon runs.`,
		Example: `  bulkhead reset --dry-run
  systemctl stop bulkhead && bulkhead reset --yes`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if *dry {
				return previewReset(cmd, &c, keepImages, *form)
			}
			if cmd.Flags().Changed("output") {
				return errors.New("--output is for what --dry-run prints: add --dry-run, or drop it")
			}
			if !yes {
				return errors.New("reset removes every container and network: say --yes to do it, or --dry-run to see what it would remove")
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
			opts := runtimeOf(&c)
			opts.Logger = log
			rt, err := process.New(opts)
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
	dry, form = cli.PlanFlags(cmd)
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

func runtimeOf(c *daemonConfig) process.Options {
	return process.Options{
		StateDir: filepath.Join(c.stateDir, "containers"), RunDir: filepath.Join(c.runDir, "containers"), CgroupParent: c.cgroupParent,
	}
}

// previewReset says what reset would remove. It opens nothing that a daemon holds.
func previewReset(cmd *cobra.Command, c *daemonConfig, keepImages bool, form string) error {
	if err := cli.CheckPlanForm(form); err != nil {
		return err
	}
	log, err := newLogger(c.logLevel)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	p := api.Plan{Objects: []api.PlanObject{}}
	add := func(object, action, text string) {
		i := slices.IndexFunc(p.Objects, func(o api.PlanObject) bool { return o.Object == object })
		if i < 0 {
			i = len(p.Objects)
			p.Objects = append(p.Objects, api.PlanObject{Object: object})
		}
		p.Objects[i].Changes = append(p.Objects[i].Changes, api.PlanChange{Action: action, Text: text})
	}
	found, err := process.Leftovers(runtimeOf(c))
	errs := []error{err}
	for _, text := range found {
		add("containers", "remove", text)
	}
	if pid := overlay.MemberProcess(filepath.Join(c.stateDir, "cluster"), c.runDir); pid > 0 {
		add("cluster", "remove", fmt.Sprintf("process %d etcd", pid))
	}
	writes, err := previewNetwork(ctx, c)
	errs = append(errs, err)
	for _, w := range writes {
		add(w.Object, w.Sign.Action(), w.Text)
	}
	for _, name := range wireguard.Leftovers("", plan.NamespacePath(plan.SecureNamespace)) {
		add("devices that encrypt", "remove", name)
	}
	names, err := stateOf(c, keepImages)
	errs = append(errs, err)
	for _, name := range names {
		add("files", "remove", filepath.Join(c.stateDir, name))
	}
	if _, err := os.Lstat(c.runDir); err == nil {
		add("files", "remove", c.runDir)
	}
	claim, err := claimHost(ctx, log)
	switch {
	case err != nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "reset itself would be refused now: %v\n", err)
	case claim != nil:
		errs = append(errs, claim.Close())
	}
	return errors.Join(append(errs, cli.WritePlan(cmd.OutOrStdout(), form, p))...)
}

// previewNetwork is resetNetwork, without doing it.
func previewNetwork(ctx context.Context, c *daemonConfig) ([]plan.Write, error) {
	dev, err := netdev.New(netdev.Options{StateDir: filepath.Join(c.stateDir, "netdev")})
	if err != nil {
		return nil, err
	}
	out, err := dev.PreviewReset(ctx)
	errs := []error{err, dev.Close()}
	filter, err := nat.New(nat.Config{})
	if err == nil {
		var tables []string
		tables, err = filter.Leftovers(ctx)
		for _, t := range tables {
			out = append(out, plan.Write{Object: t, Sign: plan.Removes, Text: "table"})
		}
		err = errors.Join(err, filter.Close())
	}
	errs = append(errs, err)
	pins, err := vswitch.PreviewReset(ctx, c.bpfDir)
	return append(out, pins...), errors.Join(append(errs, err)...)
}

// resetNetwork cuts traffic off first and takes the devices away last.
func resetNetwork(ctx context.Context, c *daemonConfig) error {
	// While its compartment is there: devices of the kernel's are found in that alone.
	errs := []error{wireguard.Reset("", c.runDir, plan.NamespacePath(plan.SecureNamespace))}
	dev, err := netdev.New(netdev.Options{StateDir: filepath.Join(c.stateDir, "netdev")})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, dev.Reset(ctx), dev.Close())
	filter, err := nat.New(nat.Config{})
	if err == nil {
		err = errors.Join(filter.Reset(ctx), filter.Close())
	}
	return errors.Join(append(errs, err, vswitch.Reset(ctx, c.bpfDir))...)
}

// ours names what the daemon puts into its state directory, which may be a disk of its own with a lost+found.
func ours(name string) bool {
	return slices.Contains([]string{"state.db", "containers", "volumes", "images", "netdev", "vm", "auth.json", "cluster", "docker.json"}, name) ||
		strings.HasPrefix(name, ".auth-") || durable.IsTemporary(name) // half written
}

// stateOf names what reset removes from the state directory.
func stateOf(c *daemonConfig, keepImages bool) (out []string, err error) {
	entries, err := os.ReadDir(c.stateDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look into the state directory: %w", err)
	}
	for _, e := range entries {
		if ours(e.Name()) && (!keepImages || e.Name() != "images") {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

func removeState(c *daemonConfig, keepImages bool) error {
	names, err := stateOf(c, keepImages)
	if err != nil {
		return fmt.Errorf("remove the state: %w", err)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, os.RemoveAll(filepath.Join(c.stateDir, name)))
	}
	_ = os.Remove(c.stateDir) // unless it is a disk, or holds what is not ours
	return errors.Join(append(errs, os.RemoveAll(c.runDir))...)
}
