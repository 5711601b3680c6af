package bench

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where a run was made: figures of two machines must not be compared, only their ratios.
type Machine struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	Kernel    string `json:"kernel"`
	OS        string `json:"os"`
	Load      string `json:"load"`
	LoadAfter string `json:"load_after"`
	StateDisk string `json:"state_disk"`
}

func (m Machine) String() string {
	return fmt.Sprintf("machine: %d CPUs %s, kernel %s, %s; load %s before and %s after; state on %s", m.CPUs, m.CPU, m.Kernel, m.OS, m.Load, m.LoadAfter, m.StateDisk)
}

// thisMachine describes the machine; dir is where the daemon's state will be.
func thisMachine(dir string) Machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid buffer (uname(2))
	name, _ := strings.CutPrefix(firstLine("/etc/os-release", "PRETTY_NAME="), "PRETTY_NAME=")
	_, cpu, _ := strings.Cut(firstLine("/proc/cpuinfo", "model name"), ": ")
	return Machine{
		CPU: cpu, CPUs: runtime.NumCPU(), Kernel: unix.ByteSliceToString(u.Release[:]), OS: strings.Trim(name, `"`), Load: load(),
		StateDisk: fileSystem(dir),
	}
}

// load is the number of programs that have wanted a CPU in the last minute.
func load() string {
	l, _, _ := strings.Cut(firstLine("/proc/loadavg", ""), " ")
	return l
}

// firstLine is the first line of a file that begins with prefix.
func firstLine(path, prefix string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), prefix) {
			return s.Text()
		}
	}
	return ""
}

// fileSystem names the file system of a directory: on one in memory every change of the state costs nothing.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err.Error()
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	}
	if n, ok := names[st.Type]; ok {
		return n
	}
	return fmt.Sprintf("file system %#x", st.Type)
}
