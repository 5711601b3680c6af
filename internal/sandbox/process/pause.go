package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
)

// Pause freezes the processes of a running container; one that is frozen stays so.
func (r *Runtime) Pause(ctx context.Context, id string) error { return r.freeze(ctx, id, true) }

// Resume lets the processes of a container go on; one that is not frozen goes on.
func (r *Runtime) Resume(ctx context.Context, id string) error { return r.freeze(ctx, id, false) }

func (r *Runtime) freeze(ctx context.Context, id string, freeze bool) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("freeze container: %w", err)
	}
	defer r.lock(id)()
	st, err := r.state(ctx, id)
	if err == nil {
		err = r.checkMember(id, "pause")
	}
	switch {
	case err != nil:
	case st.Status == "":
		err = ErrNotFound
	case st.Status != api.StatusRunning:
		err = ErrNotRunning
	case st.Paused == freeze:
	case !r.cgroups.has("freezer"):
		err = errors.New("the kernel has no cgroup freezer")
	case freeze:
		err = r.oci.Pause(ctx, id)
	default:
		err = r.oci.Resume(ctx, id)
	}
	if err != nil {
		what := "let its processes go on"
		if freeze {
			what = "freeze its processes"
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// frozen tells whether a group is frozen, or about to be.
func (c *cgroups) frozen(group string) bool {
	var text []byte
	switch {
	case c.mode == cgroupV2:
		text, _ = os.ReadFile(c.file("", group, "cgroup.freeze")) // no such file: nothing is frozen
		return strings.TrimSpace(string(text)) == "1"
	case c.has("freezer"):
		text, _ = os.ReadFile(c.file("freezer", group, "freezer.state"))
		state := strings.TrimSpace(string(text))
		return state == "FROZEN" || state == "FREEZING"
	}
	return false
}
