package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The layout of the run directory. Names that are no container's start with a dot.
func (r *Runtime) bundle(id string) string   { return filepath.Join(r.runDir, id) }
func (r *Runtime) rootfs(id string) string   { return filepath.Join(r.runDir, id, "rootfs") }
func (r *Runtime) exitDir() string           { return filepath.Join(r.runDir, ".exits") }
func (r *Runtime) exitFile(id string) string { return filepath.Join(r.runDir, ".exits", id) }
func (r *Runtime) runtimeRoot() string       { return filepath.Join(r.runDir, ".runtime") }

// In a bundle.
const (
	configFile  = "config.json"
	initPidFile = "pidfile"    // the container's first process, written by the OCI runtime
	monPidFile  = "conmon.pid" // written by conmon before it creates anything
	startedFile = "started"    // made by us after the start; its time is the time of the start
	lostFile    = "lost"       // why we settled the container ourselves
	oomFile     = "oom"        // made by conmon in its working directory
	etcDir      = "etc"
	execDir     = "exec"
)

// The layout of the state directory.
func (r *Runtime) storage(id string) string { return filepath.Join(r.stateDir, id) }
func (r *Runtime) logDir(id string) string  { return filepath.Join(r.stateDir, id, "log") }

// checkID refuses what is not a container's id, so that an id may be a path
// element and an argument.
func checkID(id string) error {
	if !isID(id) {
		return fmt.Errorf("%w: %q is not 64 hexadecimal digits", ErrInvalid, id)
	}
	return nil
}

func isID(s string) bool {
	if len(s) != 64 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// listIDs names the containers that have an entry in a directory.
func listIDs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if isID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writeFile replaces a file as a whole.
func writeFile(path string, data []byte) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
