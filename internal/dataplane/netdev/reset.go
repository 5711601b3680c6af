package netdev

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Reset removes everything of ours from the host, puts its settings back, and returns when all is gone.
func (n *Netdev) Reset(ctx context.Context) error {
	empty := &plan.Plan{}
	_, err := n.Finish().Sync(ctx, empty)
	errs := []error{err, n.reap.wait(ctx)}
	ps := n.newPass(ctx, false)
	defer ps.close()
	errs = append(errs, ps.applyHost(empty.Host), n.forgetAbsent(), n.dropDir())
	return errors.Join(errs...)
}

// dropDir takes the directory of namespaces away if it is our doing and nobody else uses it by now.
func (n *Netdev) dropDir() error {
	return n.home.do(func() error {
		r, err := n.readRecord()
		if err != nil || !r.NetnsDir {
			return err
		}
		boot, err := bootID()
		if err != nil {
			return err
		}
		forget := func() error {
			return n.updateRecord(func(r *record) { r.NetnsDir, r.NetnsBoot, r.NetnsKept = false, "", false })
		}
		if r.NetnsBoot != "" && r.NetnsBoot != boot {
			return forget()
		}
		dir := n.opts.NetnsDir
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look into %s: %w", dir, err)
		}
		if len(entries) == 0 {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("unmount %s: %w", dir, err)
			}
			// What was there before, or is not empty below the mount, belongs to somebody.
			if r.NetnsKept {
				return forget()
			}
			if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) &&
				!errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove %s: %w", dir, err)
			}
		}
		return forget()
	})
}

// Leftovers lists what is ours on the host and serves nothing of a plan (of an empty one after Reset): links, compartments, changed settings.
func (n *Netdev) Leftovers(ctx context.Context, p *plan.Plan) ([]string, error) {
	all, err := n.leftovers(ctx, p)
	out := make([]string, len(all))
	for i, l := range all {
		out[i] = l.text
	}
	slices.Sort(out)
	return out, err
}

// PreviewReset says what Reset would do. It writes nothing.
func (n *Netdev) PreviewReset(ctx context.Context) ([]plan.Write, error) {
	all, err := n.leftovers(ctx, &plan.Plan{})
	out := make([]plan.Write, len(all))
	for i, l := range all {
		out[i] = l.undo
	}
	return out, err
}

// leftover is something of ours, as it is told, and what takes it away.
type leftover struct {
	text string
	undo plan.Write
}

func (n *Netdev) leftovers(ctx context.Context, p *plan.Plan) (all []leftover, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	found := func(undo plan.Write, format string, args ...any) {
		all = append(all, leftover{fmt.Sprintf(format, args...), undo})
	}
	links, err := n.host.listLinks()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	used := map[string]bool{}
	for _, ns := range p.Namespaces {
		used[ns.Path] = true
	}
	for _, port := range p.Ports {
		used[port.Device] = true
		if port.VNIC.Home() == "" {
			used[port.VNIC.Device] = true
		}
	}
	for _, l := range links {
		if l.ours() && !used[l.name] && !n.pool.has(l.name) {
			found(plan.Write{Object: "link " + l.name, Sign: plan.Removes, Text: "link"}, "link %s", l.name)
		}
	}
	paths, err := n.listNamespaces()
	if err != nil {
		return all, err
	}
	for _, path := range paths {
		if !used[path] {
			found(plan.Write{Object: "netns " + path, Sign: plan.Removes, Text: "network namespace"}, "compartment %s", path)
		}
	}
	var r record
	err = n.home.do(func() (err error) {
		n.settings.Lock()
		defer n.settings.Unlock()
		r, err = n.readRecord()
		return err
	})
	for _, k := range slices.Sorted(maps.Keys(r.Sysctls)) {
		undo := plan.Write{Object: "sysctl in the host", Sign: plan.Changes, Text: strings.ReplaceAll(k, "/", ".") + " = " + r.Sysctls[k]}
		found(undo, "sysctl %s (was %s)", k, r.Sysctls[k])
	}
	all = append(all, r.filterNotes(p)...)
	all = append(all, r.tuningNotes(links, n.demandsOf(p))...)
	return all, err
}
