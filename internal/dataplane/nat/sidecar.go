package nat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// SideCarTable is the name of the table that leads flows to a side-car, in the compartment that has one. It is not that of the
// host's table: a compartment may be the host of another Bulkhead.
const SideCarTable = "bulkhead_sidecar"

// SideCars applies the redirects of a plan (policy L4WFPPROXY): a table in each compartment that has any. The table is small and
// written as a whole, in one transaction, and vouches for itself with a seal like the host's. Connections that were redirected
// keep their way when it is written anew; when it goes they end, for nothing undoes their translation any more.
//
// Its methods may be called from several goroutines.
type SideCars struct {
	log *slog.Logger
	// open gives a descriptor of the compartment bound at a path.
	open func(path string) (int, error)

	mu sync.Mutex
	// held are the compartments that have the table, with what it should hold; nil before the first Sync.
	held map[string]*redirects
	// writes counts tables that were written or taken away.
	writes int
}

// NewSideCars makes the applier. Open opens a compartment by its path; the descriptor is closed here.
func NewSideCars(open func(path string) (int, error), log *slog.Logger) *SideCars {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &SideCars{log: log, open: open}
}

// redirects are those of one compartment.
type redirects struct {
	path  string
	ports []*plan.Port // that have any, sorted
}

// redirectsIn collects what the ports of a compartment want.
func redirectsIn(p *plan.Plan, path string) *redirects {
	r := &redirects{path: path}
	for _, port := range p.Ports {
		if port.VNIC.Namespace == path && len(port.Redirects) > 0 {
			r.ports = append(r.ports, port)
		}
	}
	slices.SortFunc(r.ports, func(a, b *plan.Port) int { return cmp.Compare(a.ID, b.ID) })
	return r
}

// wantedRedirects are the compartments with redirects.
func wantedRedirects(p *plan.Plan) map[string]*redirects {
	out := map[string]*redirects{}
	for _, port := range p.Ports {
		path := port.VNIC.Namespace
		if len(port.Redirects) > 0 && path != "" && out[path] == nil {
			out[path] = redirectsIn(p, path)
		}
	}
	return out
}

// Update writes the tables of the compartments whose redirects a change touches.
func (s *SideCars) Update(_ context.Context, p *plan.Plan, d *plan.Delta) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(redirectsTouched(d))) {
		want := redirectsIn(p, path)
		_, err := s.reconcile(want, true)
		errs = append(errs, want.errors(err)...)
	}
	return errors.Join(errs...)
}

// redirectsTouched are the compartments whose redirects a change touches.
func redirectsTouched(d *plan.Delta) map[string]bool {
	paths := map[string]bool{}
	for _, c := range d.Ports {
		for _, port := range []*plan.Port{c.Old, c.New} {
			if port != nil && len(port.Redirects) > 0 && port.VNIC.Namespace != "" {
				paths[port.VNIC.Namespace] = true
			}
		}
	}
	return paths
}

// Sync compares the tables with the plan and writes what differs. The first one looks into every compartment: what an earlier
// daemon could not take away is taken away now.
func (s *SideCars) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.held == nil
	want := wantedRedirects(p)
	paths := maps.Clone(s.held)
	if first {
		paths, s.held = map[string]*redirects{}, map[string]*redirects{}
		for _, ns := range p.Namespaces {
			paths[ns.Path] = nil
		}
	}
	maps.Copy(paths, want)
	var drift []plan.Drift
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		if err := ctx.Err(); err != nil {
			return drift, errors.Join(append(errs, err)...)
		}
		r := want[path]
		if r == nil {
			r = &redirects{path: path}
		}
		found, err := s.reconcile(r, false)
		if found != "" && err == nil && !first {
			drift = append(drift, plan.Drift{Object: "table inet " + SideCarTable + " in " + path, ID: r.owner(), Found: found})
		}
		errs = append(errs, r.errors(err)...)
	}
	return drift, errors.Join(errs...)
}

// intact tells that nobody has changed one of the tables.
func (s *SideCars) intact() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.held {
		found, err := s.look(r)
		if err == nil && found != "" {
			return false
		}
	}
	return true
}

// owner is the first port of the compartment, for a report.
func (r *redirects) owner() string {
	if len(r.ports) == 0 {
		return ""
	}
	return string(r.ports[0].ID)
}

// errors ties an error to the ports that have no redirects for it.
func (r *redirects) errors(err error) []error {
	switch {
	case err == nil:
		return nil
	case len(r.ports) == 0:
		return []error{err}
	}
	var errs []error
	for _, p := range r.ports {
		errs = append(errs, portError(p.ID, err))
	}
	return errs
}

// look tells what is wrong with a compartment's table, "" for nothing.
func (s *SideCars) look(r *redirects) (found string, err error) {
	err = s.inside(r.path, func(fd int) error {
		found, err = tableState(fd, r)
		return err
	})
	return found, err
}

// reconcile makes a compartment's table what is wanted, and tells what was wrong with it. A compartment that is gone needs none.
func (s *SideCars) reconcile(r *redirects, known bool) (found string, err error) {
	err = s.inside(r.path, func(fd int) error {
		if found, err = tableState(fd, r); err != nil || found == "" {
			return err
		}
		s.writes++
		if err := writeRedirects(fd, r); err != nil {
			return fmt.Errorf("lead flows to the side-car in %s: %w", r.path, err)
		}
		return nil
	})
	if err == nil && !known && found != "" {
		s.log.Debug("the redirects of a compartment were written", "path", r.path, "found", found)
	}
	if s.held != nil && err == nil {
		if len(r.ports) > 0 {
			s.held[r.path] = r
		} else {
			delete(s.held, r.path)
		}
	}
	return found, err
}

// inside opens a compartment for fn. One that has vanished is netdev's to report.
func (s *SideCars) inside(path string, fn func(fd int) error) error {
	fd, err := s.open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	return fn(fd)
}
