package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// State tells how a container is doing. The status is empty for one that is not
// there, or was only half made: Create makes it anew.
func (r *Runtime) State(ctx context.Context, id string) (api.SandboxState, error) {
	if err := checkID(id); err != nil {
		return api.SandboxState{}, fmt.Errorf("read state of container: %w", err)
	}
	st, err := r.state(ctx, id)
	if err == nil && st.Status == api.StatusCreated {
		st, err = r.askRuntime(ctx, id, st)
	}
	if err != nil {
		return api.SandboxState{}, fmt.Errorf("read state of container %.12s: %w", id, err)
	}
	return st, nil
}

// state reads the files only. A container that was started, but whose start was
// not noted because we died in between, looks created.
func (r *Runtime) state(_ context.Context, id string) (api.SandboxState, error) {
	// The monitor first: it writes the exit file before it ends.
	m, alive := r.monitorOf(id)
	if alive {
		m.close()
	}
	st := api.SandboxState{OOMKilled: exists(filepath.Join(r.bundle(id), oomFile)), VMFiles: r.vmFilesBy(id)}
	if text, err := os.ReadFile(filepath.Join(r.bundle(id), startedFile)); err == nil {
		if st.Started, err = time.Parse(time.RFC3339Nano, string(text)); err != nil {
			st.Started = time.Time{}
		}
	}
	code, finished, err := r.readExit(id)
	switch {
	case err == nil:
		st.Status, st.ExitCode, st.Finished = api.StatusExited, code, finished
		why, _ := os.ReadFile(filepath.Join(r.bundle(id), lostFile))
		st.Error = string(why)
		r.endOfVM(id, &st)
		return st, nil
	case !errors.Is(err, fs.ErrNotExist):
		return api.SandboxState{}, err
	}
	p, runs := r.initOf(id)
	if runs {
		st.PID = p.pid
		p.close()
	}
	switch {
	case !alive && st.Started.IsZero():
		return api.SandboxState{}, nil
	case !alive:
		// Its end was not written, and is settled by the watcher any moment.
		st.Status, st.ExitCode, st.PID = api.StatusExited, lostExitCode, 0
		st.Error, st.Finished = lostReason, time.Now().UTC()
	case !st.Started.IsZero():
		st.Status, st.Paused = api.StatusRunning, r.cgroups.frozen(r.group(id))
	default:
		st.Status = api.StatusCreated
	}
	return st, nil
}

// askRuntime decides between created and running where we noted no start.
func (r *Runtime) askRuntime(ctx context.Context, id string, st api.SandboxState) (api.SandboxState, error) {
	c, err := r.oci.State(ctx, id)
	if err != nil {
		// Half created, or just ending: the files will say more.
		return r.state(ctx, id)
	}
	switch c.Status {
	case "running", "paused":
		st.Status, st.Started = api.StatusRunning, c.Created
	case "stopped":
		return r.state(ctx, id)
	}
	return st, nil
}

func (r *Runtime) readExit(id string) (code int, finished time.Time, err error) {
	if !exists(r.bundle(id)) {
		return 0, time.Time{}, fs.ErrNotExist
	}
	text, err := os.ReadFile(r.exitFile(id))
	if err != nil {
		return 0, time.Time{}, err
	}
	code, err = strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("read exit file: %w", err)
	}
	if st, err := os.Stat(r.exitFile(id)); err == nil {
		finished = st.ModTime().UTC()
	}
	return code, finished, nil
}

// lostExitCode is that of a container whose monitor died: its process is killed,
// as nobody reads its output any more and its own code cannot be known.
const (
	lostExitCode = 128 + int(unix.SIGKILL)
	lostReason   = "the container's monitor (conmon) was killed, so the container was ended"
)

// settle ends what is left of a container whose monitor has died without writing
// an exit code. The caller holds the container's lock.
func (r *Runtime) settle(id string) {
	if !exists(r.bundle(id)) || exists(r.exitFile(id)) {
		return
	}
	if m, ok := r.monitorOf(id); ok {
		m.close()
		return
	}
	if p, ok := r.initOf(id); ok {
		_ = p.signal(unix.SIGKILL)
		p.wait(context.Background(), killWait)
		p.close()
	}
	r.cgroups.kill(r.group(id))
	if !exists(filepath.Join(r.bundle(id), startedFile)) {
		return
	}
	r.log.Warn("the monitor of a container ended before the container; the container was killed", "container", id)
	if err := errors.Join(
		writeFile(filepath.Join(r.bundle(id), lostFile), []byte(lostReason)),
		writeFile(r.exitFile(id), []byte(strconv.Itoa(lostExitCode))),
	); err != nil {
		r.log.Warn("exit of container not recorded", "container", id, "error", err)
	}
}

// List names every container of which anything is there: directories, mounts,
// cgroups, or the OCI runtime's own record.
func (r *Runtime) List(context.Context) ([]string, error) {
	var all []string
	for _, dir := range []string{r.runDir, r.stateDir, r.runtimeRoot(), r.exitDir()} {
		ids, err := listIDs(dir)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	for _, name := range r.cgroups.children(r.cgroupParent) {
		if isID(name) {
			all = append(all, name)
		}
	}
	mounts, err := mountsBelow(r.runDir)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, m := range mounts {
		rel, _ := filepath.Rel(r.runDir, m)
		if id := firstElement(rel); isID(id) {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
