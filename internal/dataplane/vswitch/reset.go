package vswitch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Reset detaches everything of ours and removes all pins below dir ("" for the default
// one). It needs no working switch: it is the way out when the pins are from another
// version. Frames stop at once, for nothing but the programs forwards them.
func Reset(ctx context.Context, dir string) error {
	if dir == "" {
		dir = DefaultBPFDir
	}
	errs := []error{removeFilters(ctx)}
	if err := os.RemoveAll(dir); err != nil {
		errs = append(errs, fmt.Errorf("remove pins: %w", err))
	}
	return errors.Join(errs...)
}

// Reset is the function of that name for this applier's pins. The applier is of no use
// afterwards.
func (a *Applier) Reset(ctx context.Context) error {
	return errors.Join(Reset(ctx, a.pins.dir), a.Close())
}

// removeFilters takes our clsact filters off every device: a NIC does not show by its name
// that it has one.
func removeFilters(ctx context.Context) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	// An interrupted dump is a complete answer to "where are ours": what came or went
	// meanwhile is seen next time.
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("list devices: %w", err)
	}
	c := &clsact{nl: h}
	errs := []error{removeAllOffloadFilters(h)}
	for _, l := range links {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, c.removeBoth(uint32(l.Attrs().Index)), c.removeFilter(uint32(l.Attrs().Index), netlink.HANDLE_MIN_INGRESS, underlayHandle))
	}
	return errors.Join(errs...)
}

// PreviewReset says what Reset would take away: pins, and programs that a NIC has without one. Those of our own devices go with them.
func PreviewReset(ctx context.Context, dir string) ([]plan.Write, error) {
	if dir == "" {
		dir = DefaultBPFDir
	}
	paths, err := Leftovers(dir, &plan.Plan{})
	if err != nil {
		return nil, err
	}
	var out []plan.Write
	for _, path := range paths {
		out = append(out, plan.Write{Object: "pins below " + dir, Sign: plan.Removes, Text: strings.TrimPrefix(path, dir+"/")})
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return out, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return out, fmt.Errorf("list devices: %w", err)
	}
	c := &clsact{nl: h}
	for _, l := range links {
		name, index := l.Attrs().Name, uint32(l.Attrs().Index)
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if strings.HasPrefix(name, plan.PortPrefix) {
			continue
		}
		for _, at := range []struct {
			parent, handle uint32
			side           string
		}{
			{netlink.HANDLE_MIN_INGRESS, filterHandle, "ingress"},
			{netlink.HANDLE_MIN_EGRESS, filterHandle, "egress"},
			{netlink.HANDLE_MIN_INGRESS, underlayHandle, "ingress"},
		} {
			f, err := c.find(index, at.parent, at.handle)
			if err != nil {
				return out, fmt.Errorf("list filters of %s: %w", name, err)
			}
			if f != nil {
				out = append(out, plan.Write{Object: "link " + name, Sign: plan.Removes, Text: fmt.Sprintf("program %s at tc %s", f.Name, at.side)})
			}
		}
	}
	return out, nil
}

// Leftovers lists pins below dir ("" for the default one) that serve no port of the plan:
// all of them for an empty plan.
func Leftovers(dir string, p *plan.Plan) ([]string, error) {
	if dir == "" {
		dir = DefaultBPFDir
	}
	keep := map[string]bool{}
	for _, port := range p.Ports {
		keep[filepath.Join(dir, "links", port.Device)] = true
		if port.Kind == plan.PortUplink {
			nic := filepath.Join(dir, "links", nicPin(port.Device))
			keep[nic+"-in"], keep[nic+"-out"] = true, true
		}
		for _, nic := range port.Underlays {
			keep[filepath.Join(dir, "links", underlayPin(nic))] = true
		}
	}
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		isLink := filepath.Dir(path) == filepath.Join(dir, "links")
		if !keep[path] && (isLink || len(p.Ports) == 0) {
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for pins: %w", err)
	}
	return out, nil
}
