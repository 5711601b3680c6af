package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
)

// Stats reads a running container's use of resources. Networks are the caller's.
func (r *Runtime) Stats(ctx context.Context, id string) (api.Stats, error) {
	if err := r.running(ctx, id); err != nil {
		return api.Stats{}, fmt.Errorf("read statistics of container %.12s: %w", id, err)
	}
	s, err := r.cgroups.stats(r.group(id))
	if err != nil {
		return api.Stats{}, fmt.Errorf("read statistics of container %.12s: %w", id, err)
	}
	s.ID, s.Time = id, time.Now().UTC()
	return s, nil
}

// PIDs are the container's processes as the host numbers them.
func (r *Runtime) PIDs(ctx context.Context, id string) ([]int, error) {
	if err := r.running(ctx, id); err != nil {
		return nil, fmt.Errorf("list processes of container %.12s: %w", id, err)
	}
	pids, err := r.processes(id)
	if err != nil {
		return nil, fmt.Errorf("list processes of container %.12s: %w", id, err)
	}
	return pids, nil
}

// processes are those in the container's cgroup.
func (r *Runtime) processes(id string) ([]int, error) {
	for _, d := range r.cgroups.dirs(r.group(id)) {
		data, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil {
			continue // not every tree has the group
		}
		var pids []int
		for f := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
		return pids, nil
	}
	return nil, ErrNotRunning
}

func (r *Runtime) group(id string) string { return filepath.Join(r.cgroupParent, id) }

func (r *Runtime) running(ctx context.Context, id string) error {
	st, err := r.State(ctx, id)
	if err != nil {
		return err
	}
	if st.Status != api.StatusRunning {
		return ErrNotRunning
	}
	return nil
}

func (c *cgroups) stats(group string) (api.Stats, error) {
	if c.mode == cgroupV2 {
		return c.statsV2(group)
	}
	return c.statsV1(group)
}

// A controller that the host lacks leaves its figures at zero.
func (c *cgroups) statsV1(group string) (s api.Stats, err error) {
	var errs []error
	number := func(controller, name string) uint64 {
		if !c.has(controller) {
			return 0
		}
		n, err := readNumber(c.file(controller, group, name))
		errs = append(errs, err)
		return n
	}
	s.CPUNanos = number("cpuacct", "cpuacct.usage")
	s.Pids = number("pids", "pids.current")
	s.PidsLimit = number("pids", "pids.max")
	if c.has("memory") {
		s.MemoryUsage = lessCache(number("memory", "memory.usage_in_bytes"), c.file("memory", group, "memory.stat"), "total_inactive_file")
		// "No limit" is the largest number of whole pages.
		if limit := number("memory", "memory.limit_in_bytes"); limit < math.MaxInt64/2 {
			s.MemoryLimit = limit
		}
	}
	if c.has("blkio") {
		for _, name := range []string{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"} {
			data, err := os.ReadFile(c.file("blkio", group, name))
			if err != nil {
				continue
			}
			s.BlockRead, s.BlockWrite = parseBlkio(string(data))
			break
		}
	}
	return s, errors.Join(errs...)
}

func (c *cgroups) statsV2(group string) (s api.Stats, err error) {
	dir := filepath.Join(c.unified, group)
	cpu, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return s, err
	}
	s.CPUNanos = keyed(string(cpu), "usage_usec") * 1000
	var errs []error
	number := func(name string) uint64 {
		n, err := readNumber(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return n
	}
	s.Pids, s.PidsLimit = number("pids.current"), number("pids.max")
	s.MemoryUsage = lessCache(number("memory.current"), filepath.Join(dir, "memory.stat"), "inactive_file")
	s.MemoryLimit = number("memory.max")
	if io, err := os.ReadFile(filepath.Join(dir, "io.stat")); err == nil {
		s.BlockRead, s.BlockWrite = parseIOStat(string(io))
	}
	return s, errors.Join(errs...)
}

// lessCache takes the page cache that the kernel may drop at once off the usage,
// so that reading a large file does not look like a leak.
func lessCache(usage uint64, statFile, key string) uint64 {
	data, err := os.ReadFile(statFile)
	if err != nil {
		return usage
	}
	if cache := keyed(string(data), key); cache < usage {
		return usage - cache
	}
	return 0
}

// readNumber reads a control file; "max" is 0, our word for no limit.
func readNumber(path string) (uint64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(data))
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", path, err)
	}
	return n, nil
}

func keyed(text, key string) uint64 {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}

// parseBlkio sums lines such as "254:0 Read 4096".
func parseBlkio(text string) (read, write uint64) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, _ := strconv.ParseUint(f[2], 10, 64)
		switch f[1] {
		case "Read":
			read += n
		case "Write":
			write += n
		}
	}
	return read, write
}

// parseIOStat sums lines such as "254:0 rbytes=4096 wbytes=0 rios=1 …".
func parseIOStat(text string) (read, write uint64) {
	for f := range strings.FieldsSeq(text) {
		k, v, _ := strings.Cut(f, "=")
		n, _ := strconv.ParseUint(v, 10, 64)
		switch k {
		case "rbytes":
			read += n
		case "wbytes":
			write += n
		}
	}
	return read, write
}
