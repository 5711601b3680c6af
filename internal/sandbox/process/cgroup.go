package process

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The three shapes of the cgroup file systems. Hybrid is version 1 with an empty
// version 2 tree beside it, for systemd.
const (
	cgroupV1     = "v1"
	cgroupV2     = "v2"
	cgroupHybrid = "hybrid"
)

// cgroups is where the controllers of this host are.
type cgroups struct {
	mode string
	// v1 maps a controller (or "name=systemd") to its mount point; unified is
	// the mount point of the version 2 tree, if any.
	v1      map[string]string
	unified string
	// v2 lists the controllers that the version 2 tree has.
	v2 []string
}

// wantedControllers are those whose absence a user would notice.
var wantedControllers = []string{"cpu", "cpuset", "memory", "pids", "devices", "freezer"}

func readCgroups() (cgroups, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return cgroups{}, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close()
	c := cgroups{v1: map[string]string{}}
	s := bufio.NewScanner(f)
	for s.Scan() {
		// ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS... - TYPE SOURCE SUPEROPTIONS
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 {
			continue
		}
		switch tail[0] {
		case "cgroup":
			for opt := range strings.SplitSeq(tail[2], ",") {
				if _, seen := c.v1[opt]; !seen && opt != "rw" && opt != "ro" {
					c.v1[opt] = fields[4]
				}
			}
		case "cgroup2":
			if c.unified == "" {
				c.unified = fields[4]
			}
		}
	}
	if err := s.Err(); err != nil {
		return cgroups{}, fmt.Errorf("find cgroups: %w", err)
	}
	c.settleMode()
	if c.mode == "" {
		return c, errors.New("find cgroups: neither a cgroup nor a cgroup2 file system is mounted")
	}
	return c, nil
}

func (c *cgroups) settleMode() {
	var st unix.Statfs_t
	whole := c.unified != "" && unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
	switch {
	case whole:
		c.mode, c.v1 = cgroupV2, map[string]string{}
	case len(c.v1) > 0 && c.unified != "":
		c.mode = cgroupHybrid
	case len(c.v1) > 0:
		c.mode = cgroupV1
	}
	if c.unified != "" {
		data, _ := os.ReadFile(filepath.Join(c.unified, "cgroup.controllers"))
		c.v2 = strings.Fields(string(data))
	}
}

// has tells whether limits of a controller can be set.
func (c *cgroups) has(controller string) bool {
	if c.mode == cgroupV2 {
		// Version 2 does these two without a controller of that name.
		return controller == "devices" || controller == "freezer" || slices.Contains(c.v2, controller)
	}
	return c.v1[controller] != ""
}

func (c *cgroups) missing() []string {
	var names []string
	for _, n := range wantedControllers {
		if !c.has(n) {
			names = append(names, n)
		}
	}
	return names
}

// file is the path of a control file: controller and name are those of version 1.
func (c *cgroups) file(controller, group, name string) string {
	if c.mode == cgroupV2 {
		return filepath.Join(c.unified, group, name)
	}
	return filepath.Join(c.v1[controller], group, name)
}

// dirs are the directories of a group in every tree.
func (c *cgroups) dirs(group string) []string {
	var out []string
	add := func(mount string) {
		if d := filepath.Join(mount, group); mount != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	for _, mount := range c.v1 {
		add(mount)
	}
	add(c.unified)
	slices.Sort(out)
	return out
}

// children names the groups directly under a group.
func (c *cgroups) children(group string) []string {
	var names []string
	for _, d := range c.dirs(group) {
		entries, _ := os.ReadDir(d)
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(names, e.Name()) {
				names = append(names, e.Name())
			}
		}
	}
	return names
}

// kill ends every process in a group and below.
func (c *cgroups) kill(group string) {
	for _, d := range c.dirs(group) {
		_ = filepath.WalkDir(d, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() != "cgroup.procs" {
				return nil
			}
			data, _ := os.ReadFile(path)
			for f := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
					_ = unix.Kill(pid, unix.SIGKILL)
				}
			}
			return nil
		})
	}
}

// thaw lets a group run that somebody froze; frozen processes do not die.
func (c *cgroups) thaw(group string) {
	if c.mode == cgroupV2 {
		_ = os.WriteFile(c.file("", group, "cgroup.freeze"), []byte("0"), 0)
	} else if c.has("freezer") {
		_ = os.WriteFile(c.file("freezer", group, "freezer.state"), []byte("THAWED"), 0)
	}
}

// remove takes away a group with everything below it. The kernel refuses while a
// dying process is still in it, so there are a few rounds.
func (c *cgroups) remove(group string) error {
	var last error
	for _, d := range c.dirs(group) {
		for range 100 {
			if last = removeGroup(d); last == nil {
				break
			}
			waitShortly()
		}
		if last != nil {
			return fmt.Errorf("remove cgroup %s: %w", d, last)
		}
	}
	return nil
}

func removeGroup(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			if err := removeGroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err = unix.Rmdir(dir); errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeIfEmpty takes away a group that holds neither process nor group.
func (c *cgroups) removeIfEmpty(group string) {
	for _, d := range c.dirs(group) {
		_ = unix.Rmdir(d)
	}
}

// waitShortly gives the kernel time where it offers nothing to wait for.
func waitShortly() {
	t := time.NewTimer(2 * time.Millisecond)
	<-t.C
}
