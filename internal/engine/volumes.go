package engine

import (
	"context"
	"slices"

	"github.com/bulkhead-net/bulkhead/api"
)

// Volumes lists the named volumes, and who mounts them.
func (e *Engine) Volumes() ([]api.Volume, error) {
	all, err := e.opt.Sandbox.Volumes()
	e.mu.RLock()
	defer e.mu.RUnlock()
	for i := range all {
		all[i].Containers = e.st.mounting(all[i].Name)
	}
	return all, err
}

// mounting names the containers that mount a volume. One that is still to be
// started counts: it may hold the volume's only copy of something.
func (s *state) mounting(volume string) []string {
	names := []string{}
	for _, c := range s.containers {
		if slices.ContainsFunc(c.Doc.Spec.Mounts, func(m api.Mount) bool { return m.Type == "volume" && m.Source == volume }) {
			names = append(names, c.Doc.Name)
		}
	}
	slices.Sort(names)
	return names
}

// RemoveVolume removes a volume that no container mounts.
func (e *Engine) RemoveVolume(_ context.Context, name string) error {
	var finish func() error
	// As a transaction, though it stores nothing: no container that mounts the
	// volume is made between the look and the removal, and the slow part comes after.
	_, err := e.commit(func(t *txn) (err error) {
		if users := t.st.mounting(name); len(users) > 0 {
			return api.Errorf(api.KindConflict, "volume %s is mounted by container %s", name, users[0]).Hint("bulkhead rm %s", users[0])
		}
		finish, err = e.opt.Sandbox.RemoveVolume(name)
		return err
	})
	if err != nil {
		return err
	}
	if err := finish(); err != nil {
		return api.Errorf(api.KindInternal, "remove volume %s: %w", name, err)
	}
	e.event("volume", "remove", "", name, nil)
	return nil
}
