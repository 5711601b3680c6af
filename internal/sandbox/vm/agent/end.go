package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// endOf is what is done when the first process of a container has ended. The VM of a container ends with it, but for its members.
func (ps *processes) endOf(r proto.Run, bundle string) func(*proto.Exit) {
	group := groupOf(r.Spec)
	return func(exit *proto.Exit) {
		exit.OOM = outOfMemory(group)
		if r.Member {
			_ = ps.delete(r.Process)
			_ = os.RemoveAll(bundle)
		}
		if r.Root != "" { // before the end is told, for then the host takes its disk
			ps.handed.drop(r.Process)
			leavePlace(r.Place)
			return
		}
		if !r.Member {
			return
		}
		// What the kernel remembers of its files keeps them open on the host.
		_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
	}
}

// delete has the OCI runtime forget a container, whatever of it is left.
func (ps *processes) delete(name string) error {
	defer ps.reaper.launch()()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ends, err := ps.callRuntime([]string{"delete", "--force", name}, [3]*os.File{null, null, null})
	if err != nil {
		return err
	}
	<-ends
	return nil
}

// groupOf is the control group of a container.
func groupOf(spec []byte) string {
	var s struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(spec, &s) != nil || s.Linux.CgroupsPath == "" {
		return CgroupPath
	}
	return s.Linux.CgroupsPath
}

// outOfMemory tells whether the container's limit has ended a process of it.
func outOfMemory(group string) bool {
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", group, "memory.events"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			return n != "0"
		}
	}
	return false
}
