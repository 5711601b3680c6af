package testhost

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ours lists what the real machine shows of the product: devices by their prefix, mounts by their path. A test that
// adds to it has escaped from its host, for instance by a netlink call outside Do.
func ours() map[string]bool {
	found := map[string]bool{}
	links, _ := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, "bhh") || strings.HasPrefix(l.Name, "bhp") {
			found["device "+l.Name] = true
		}
	}
	for _, m := range mounts("/proc/self/mountinfo") {
		if strings.Contains(m.point, "/netns/hns-") || strings.Contains(m.point, "/bulkhead") {
			found["mount "+m.point] = true
		}
	}
	return found
}

type mount struct{ point, kind string }

func mounts(mountinfo string) []mount {
	f, err := os.Open(mountinfo)
	if err != nil {
		return nil
	}
	defer f.Close()
	var all []mount
	for s := bufio.NewScanner(f); s.Scan(); {
		left, right, ok := strings.Cut(s.Text(), " - ")
		fields, kind := strings.Fields(left), strings.Fields(right)
		if ok && len(fields) > 4 && len(kind) > 0 {
			all = append(all, mount{point: fields[4], kind: kind[0]})
		}
	}
	return all
}

// leftBehind removes the host's cgroups and reports everything of it that is still there.
func (h *Host) leftBehind(pidns string) []string {
	var problems []string
	for x := range ours() {
		if !h.before[x] {
			problems = append(problems, x)
		}
	}
	if pidns != "" {
		problems = append(problems, processesIn(pidns)...)
	}
	for _, dir := range h.cgroupDirs() {
		if err := removeCgroups(dir); err != nil {
			problems = append(problems, fmt.Sprintf("cgroup: %v", err))
		}
	}
	return problems
}

// processesIn lists the processes of a PID namespace, given as the text of its link in /proc.
func processesIn(pidns string) []string {
	var found []string
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil && target == pidns {
			pid := strings.Split(l, "/")[2]
			comm, _ := os.ReadFile("/proc/" + pid + "/comm")
			found = append(found, fmt.Sprintf("process %s %s", pid, strings.TrimSpace(string(comm))))
		}
	}
	return found
}

// cgroupDirs lists the directory of CgroupParent in every cgroup hierarchy that has it.
func (h *Host) cgroupDirs() []string {
	var dirs []string
	for _, m := range mounts("/proc/self/mountinfo") {
		// With cgroup v1 a tmpfs holds the mount points; what mistakes it for a hierarchy leaves directories there.
		if m.kind != "cgroup" && m.kind != "cgroup2" && m.point != "/sys/fs/cgroup" {
			continue
		}
		dir := filepath.Join(m.point, h.CgroupParent())
		if _, err := os.Stat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// removeCgroups removes a tree of cgroups, leaves first. A cgroup stays busy for a moment after its last process died.
func removeCgroups(root string) error {
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var dirs []string
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		var last error
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				last = fmt.Errorf("remove %s: %w", dir, err)
			}
		}
		if last == nil || time.Now().After(deadline) {
			return last
		}
		<-tick.C
	}
}
