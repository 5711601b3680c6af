package process

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// defaultCapabilities are those that Docker gives too: what programs in containers
// have come to expect, and nothing that reaches beyond the container.
func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// capabilityNames by their number in linux/capability.h.
func capabilityNames() []string {
	return strings.Fields(`CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID
		CAP_SETUID CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
		CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT CAP_SYS_ADMIN
		CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD CAP_LEASE CAP_AUDIT_WRITE
		CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG CAP_WAKE_ALARM CAP_BLOCK_SUSPEND
		CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE`)
}

// ownCapabilities are those we have to give, from our bounding set.
func ownCapabilities() ([]string, error) {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("read own capabilities: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		hex, ok := strings.CutPrefix(line, "CapBnd:")
		if !ok {
			continue
		}
		mask, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read own capabilities: %w", err)
		}
		var caps []string
		for i, name := range capabilityNames() {
			if mask&(1<<i) != 0 {
				caps = append(caps, name)
			}
		}
		return caps, nil
	}
	return nil, fmt.Errorf("read own capabilities: no CapBnd in /proc/self/status")
}

// capabilitySet applies additions and removals to the default set, or to all.
// Removals win, and what was asked for by name must be there to give.
func capabilitySet(spec api.ContainerSpec, own []string) ([]string, error) {
	set := map[string]bool{}
	for _, c := range defaultCapabilities() {
		set[c] = slices.Contains(own, c)
	}
	if spec.Privileged {
		for _, c := range own {
			set[c] = true
		}
	}
	apply := func(field string, names []string, value bool) error {
		for i, n := range names {
			c := strings.ToUpper(n)
			if c == "ALL" {
				for _, c := range own {
					set[c] = value
				}
				continue
			}
			if !strings.HasPrefix(c, "CAP_") {
				c = "CAP_" + c
			}
			if !slices.Contains(capabilityNames(), c) {
				return fmt.Errorf("%w: %s[%d]: there is no capability %q", ErrInvalid, field, i, n)
			}
			if value && !slices.Contains(own, c) {
				return fmt.Errorf("%w: %s[%d]: the daemon does not have %s to give", ErrInvalid, field, i, c)
			}
			set[c] = value
		}
		return nil
	}
	// "Drop ALL, add one" must keep the one; "add ALL, drop one" must lack it.
	all := func(n string) bool { return strings.EqualFold(n, "ALL") }
	one := func(n string) bool { return !all(n) }
	for _, step := range []struct {
		field string
		names []string
		value bool
	}{
		{"capAdd", filter(spec.CapAdd, all), true},
		{"capDrop", filter(spec.CapDrop, all), false},
		{"capAdd", filter(spec.CapAdd, one), true},
		{"capDrop", filter(spec.CapDrop, one), false},
	} {
		if err := apply(step.field, step.names, step.value); err != nil {
			return nil, err
		}
	}
	caps := []string{}
	for c, on := range set {
		if on {
			caps = append(caps, c)
		}
	}
	slices.Sort(caps)
	return caps, nil
}

func filter(list []string, keep func(string) bool) []string {
	var out []string
	for _, s := range list {
		if keep(s) {
			out = append(out, s)
		}
	}
	return out
}

// processCapabilities gives a user other than root nothing but the bounds, as
// execve would; a set-uid program may still use them.
func processCapabilities(caps []string, uid uint32) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{Bounding: caps}
	if uid == 0 {
		c.Effective, c.Permitted = caps, caps
	}
	return c
}

func rlimitNames() map[string]int {
	return map[string]int{
		"as": unix.RLIMIT_AS, "core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
		"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
		"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
		"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
		"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
	}
}

func ownHardLimits() map[string]uint64 {
	limits := map[string]uint64{}
	for name, number := range rlimitNames() {
		var l unix.Rlimit
		if unix.Getrlimit(number, &l) == nil {
			limits[name] = l.Max
		}
	}
	return limits
}

// oomScore keeps containers from being spared with the daemon when the host is out of memory. A daemon that is not
// spared itself may lack the right to set anything lower than its own.
func oomScore(own string) (*int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(own))
	if err != nil {
		return nil, fmt.Errorf("read the daemon's OOM score: %w", err)
	}
	if n >= 0 {
		return nil, nil
	}
	return new(int), nil
}

// ulimits clamps to what we may set, and says so.
func ulimits(list []api.Ulimit, f facts) (out []specs.POSIXRlimit, warnings []string, err error) {
	for i, u := range list {
		name := strings.ToLower(strings.TrimPrefix(strings.ToUpper(u.Name), "RLIMIT_"))
		if _, ok := rlimitNames()[name]; !ok {
			return nil, nil, fmt.Errorf("%w: ulimits[%d]: there is no limit %q", ErrInvalid, i, u.Name)
		}
		if slices.ContainsFunc(out, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_"+strings.ToUpper(name) }) {
			return nil, nil, fmt.Errorf("%w: ulimits[%d]: %s is given twice", ErrInvalid, i, name)
		}
		if u.Soft > u.Hard {
			return nil, nil, fmt.Errorf("%w: ulimits[%d]: the soft limit %d is above the hard limit %d", ErrInvalid, i, u.Soft, u.Hard)
		}
		soft, hard := u.Soft, u.Hard
		if most, ok := f.hardLimits[name]; ok && hard > most && !f.raiseLimits {
			hard, soft = most, min(soft, most)
			warnings = append(warnings, fmt.Sprintf("ulimit %s: lowered from %d to %d, the most that the daemon may set without CAP_SYS_RESOURCE", name, u.Hard, hard))
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: soft, Hard: hard})
	}
	return out, warnings, nil
}

// A sysctl without a namespace of its own would change the host.
func sysctls(spec api.ContainerSpec) (map[string]string, error) {
	// An unprivileged process may serve any port of its own compartment, and ping.
	out := map[string]string{}
	shared := strings.HasPrefix(spec.NetworkMode, "container:") // that of a VM in a namespace is its own, in the guest
	if !shared {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	word := regexp.MustCompile(`^[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)+$`)
	for name, value := range spec.Sysctls {
		switch {
		case len(name) > 200 || !word.MatchString(name):
			return nil, fmt.Errorf("%w: sysctls: %q is not the name of a sysctl", ErrInvalid, name)
		case len(value) > 4096 || strings.ContainsAny(value, "\x00\n"):
			return nil, fmt.Errorf("%w: sysctls: the value of %s is not one line", ErrInvalid, name)
		case strings.HasPrefix(name, "net."):
			if shared {
				return nil, fmt.Errorf("%w: sysctls: %s would change the compartment of another container; set it there", ErrInvalid, name)
			}
		case strings.HasPrefix(name, "fs.mqueue."), slices.Contains([]string{
			"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem",
			"kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced",
		}, name):
		default:
			return nil, fmt.Errorf("%w: sysctls: %s has no namespace, it would change the host; set it there", ErrInvalid, name)
		}
		out[name] = value
	}
	return out, nil
}

const (
	cpuPeriod = 100_000
	minMemory = 6 << 20 // the runtime itself needs this much to start
)

// resources maps limits to the OCI form, which the runtime maps to either version
// of cgroups. A limit that this host cannot keep is refused.
func resources(spec api.ContainerSpec, f facts) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Devices: deviceRules(spec.Privileged)}
	in := spec.Resources
	need := func(field, controller string) error {
		if !f.cgroups.has(controller) {
			return fmt.Errorf("%w: resources.%s: this host's cgroups (%s) lack the %s controller", ErrInvalid, field, f.cgroups.mode, controller)
		}
		return nil
	}
	if in.CPUs != 0 || in.CPUShares != 0 {
		if err := need("cpus", "cpu"); err != nil {
			return nil, err
		}
	}
	cpu := &specs.LinuxCPU{Cpus: in.CPUSet}
	if in.CPUs != 0 {
		if math.IsNaN(in.CPUs) || in.CPUs < 0.01 || in.CPUs > 4096 {
			return nil, fmt.Errorf("%w: resources.cpus: %v is not between 0.01 and 4096", ErrInvalid, in.CPUs)
		}
		quota, period := int64(math.Round(in.CPUs*cpuPeriod)), uint64(cpuPeriod)
		cpu.Quota, cpu.Period = &quota, &period
	}
	if in.CPUShares != 0 {
		if in.CPUShares < 2 || in.CPUShares > 262144 {
			return nil, fmt.Errorf("%w: resources.cpuShares: %d is not between 2 and 262144", ErrInvalid, in.CPUShares)
		}
		cpu.Shares = &in.CPUShares
	}
	if in.CPUSet != "" {
		if err := need("cpuSet", "cpuset"); err != nil {
			return nil, err
		}
		if !regexp.MustCompile(`^\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*$`).MatchString(in.CPUSet) {
			return nil, fmt.Errorf("%w: resources.cpuSet: %q is not a list such as 0-2,4", ErrInvalid, in.CPUSet)
		}
	}
	if *cpu != (specs.LinuxCPU{}) {
		out.CPU = cpu
	}
	var err error
	if out.Memory, err = memory(in, f, need); err != nil {
		return nil, err
	}
	if in.Pids > 0 {
		if err := need("pids", "pids"); err != nil {
			return nil, err
		}
		out.Pids = &specs.LinuxPids{Limit: &in.Pids}
	} else if in.Pids < -1 {
		return nil, fmt.Errorf("%w: resources.pids: %d is negative", ErrInvalid, in.Pids)
	}
	return out, nil
}

func memory(in api.Resources, f facts, need func(field, controller string) error) (*specs.LinuxMemory, error) {
	if in.Memory == 0 && in.MemorySwap == 0 {
		return nil, nil
	}
	if err := need("memory", "memory"); err != nil {
		return nil, err
	}
	if in.Memory == 0 {
		return nil, fmt.Errorf("%w: resources.memorySwap: it is a limit of memory and swap together, so it needs resources.memory too (-m)", ErrInvalid)
	}
	if in.Memory < minMemory {
		return nil, fmt.Errorf("%w: resources.memory: %d is below the least possible, %d", ErrInvalid, in.Memory, minMemory)
	}
	if in.MemorySwap != 0 && in.MemorySwap != -1 && in.MemorySwap < in.Memory {
		return nil, fmt.Errorf("%w: resources.memorySwap: %d counts memory too, so it cannot be below memory, %d", ErrInvalid, in.MemorySwap, in.Memory)
	}
	if in.MemorySwap != 0 && !f.swapLimit {
		return nil, fmt.Errorf("%w: resources.memorySwap: this kernel does not account swap by cgroup", ErrInvalid)
	}
	m := &specs.LinuxMemory{Limit: &in.Memory}
	if f.swapLimit {
		// As much swap as memory, unless told otherwise; without a bound a
		// container at its limit would push everybody into swap.
		swap := in.MemorySwap
		if swap == 0 {
			swap = 2 * in.Memory
		}
		m.Swap = &swap
	}
	return m, nil
}

// deviceRules let a container make device nodes but use only harmless ones.
func deviceRules(privileged bool) []specs.LinuxDeviceCgroup {
	if privileged {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	add := func(typ, access string, major, minor int64) {
		r := specs.LinuxDeviceCgroup{Allow: true, Type: typ, Access: access}
		if major >= 0 {
			r.Major = &major
		}
		if minor >= 0 {
			r.Minor = &minor
		}
		rules = append(rules, r)
	}
	add("c", "m", -1, -1)
	add("b", "m", -1, -1)
	for _, minor := range []int64{3, 5, 7, 8, 9} { // null, zero, full, random, urandom
		add("c", "rwm", 1, minor)
	}
	add("c", "rwm", 5, 0)    // tty
	add("c", "rwm", 5, 1)    // console
	add("c", "rwm", 5, 2)    // ptmx
	add("c", "rwm", 136, -1) // the slaves of ptmx
	return rules
}
