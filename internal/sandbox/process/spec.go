package process

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/api"
)

// facts is what the OCI spec depends on besides the configuration. With it the
// spec is a pure function, which golden tests hold.
type facts struct {
	rootfs       string
	etc          string // directory of the private hosts, resolv.conf and hostname
	cgroupsPath  string
	cgroups      *cgroups
	user         account
	mounts       []specs.Mount // bind mounts, volumes and tmpfs that were asked for
	propagation  string        // of the root file system
	hardLimits   map[string]uint64
	raiseLimits  bool     // may set a hard limit above the present one
	capabilities []string // that we have to give
	devices      []specs.LinuxDevice
	swapLimit    bool // the host can limit swap
	oomScore     *int // oom_score_adj to set; nil: as the daemon's
	// noSeccomp leaves out the default profile, which depends on the kernel.
	noSeccomp bool
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// buildSpec makes the OCI runtime's document. The warnings are for the user.
func buildSpec(cfg api.SandboxConfig, f facts) (*specs.Spec, []string, error) {
	caps, err := capabilitySet(cfg.Spec, f.capabilities)
	if err != nil {
		return nil, nil, err
	}
	args, err := command(cfg.Spec, cfg.Image)
	if err != nil {
		return nil, nil, err
	}
	env, err := environment(cfg, f.user.home)
	if err != nil {
		return nil, nil, err
	}
	rlimits, warnings, err := ulimits(cfg.Spec.Ulimits, f)
	if err != nil {
		return nil, nil, err
	}
	sysctls, err := sysctls(cfg.Spec)
	if err != nil {
		return nil, nil, err
	}
	resources, err := resources(cfg.Spec, f)
	if err != nil {
		return nil, nil, err
	}
	s := &specs.Spec{
		Version: "1.0.2", // the oldest runtime we support knows no later one
		Root:    &specs.Root{Path: f.rootfs, Readonly: cfg.Spec.ReadOnly},
		Process: &specs.Process{
			Terminal:        cfg.Spec.TTY,
			User:            specs.User{UID: f.user.uid, GID: f.user.gid, AdditionalGids: f.user.groups},
			Args:            args,
			Env:             env,
			Cwd:             workingDir(cfg),
			Capabilities:    processCapabilities(caps, f.user.uid),
			Rlimits:         rlimits,
			OOMScoreAdj:     f.oomScore,
			NoNewPrivileges: cfg.Spec.NoNewPrivileges,
		},
		Hostname:    strings.TrimSpace(cfg.Hostname),
		Mounts:      slices.Concat(systemMounts(cfg.Spec), etcMounts(cfg.Spec, f), f.mounts),
		Annotations: cfg.Spec.Annotations,
		Linux: &specs.Linux{
			Namespaces:        namespaces(cfg, f),
			CgroupsPath:       f.cgroupsPath,
			Resources:         resources,
			Sysctl:            sysctls,
			RootfsPropagation: f.propagation,
		},
	}
	if cfg.Spec.Privileged {
		s.Linux.Devices = f.devices
	} else {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = maskedPaths(), readonlyPaths()
	}
	if s.Linux.Seccomp, err = seccompProfile(cfg.Spec, s, f); err != nil {
		return nil, nil, err
	}
	return s, warnings, nil
}

// command joins entrypoint and arguments. An entrypoint of the user's own comes
// without the image's arguments, which were not written for it.
func command(spec api.ContainerSpec, image api.ImageConfig) ([]string, error) {
	entrypoint, args := image.Entrypoint, image.Cmd
	if spec.Entrypoint != nil {
		entrypoint, args = spec.Entrypoint, nil
		if len(entrypoint) == 1 && entrypoint[0] == "" {
			entrypoint = nil
		}
	}
	if len(spec.Args) > 0 {
		args = spec.Args
	}
	all := slices.Concat(entrypoint, args)
	if len(all) == 0 || all[0] == "" {
		return nil, fmt.Errorf("%w: no command: the image has none, give one", ErrInvalid)
	}
	return all, checkArgs("command", all)
}

// checkArgs refuses what execve would: a string with a NUL, or more than fits.
func checkArgs(what string, args []string) error {
	const maxOne, maxAll = 128 << 10, 1 << 20
	total := 0
	for i, a := range args {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("%w: %s[%d] contains a NUL byte", ErrInvalid, what, i)
		}
		if len(a) >= maxOne {
			return fmt.Errorf("%w: %s[%d] is longer than %d bytes", ErrInvalid, what, i, maxOne)
		}
		total += len(a) + 9 // the pointer and the final NUL count
	}
	if total > maxAll {
		return fmt.Errorf("%w: %s is larger than %d bytes", ErrInvalid, what, maxAll)
	}
	return nil
}

// environment merges, later ones winning: what we set, the image's, the user's.
func environment(cfg api.SandboxConfig, home string) ([]string, error) {
	base := []string{defaultPath, "HOSTNAME=" + strings.TrimSpace(cfg.Hostname)}
	if cfg.Spec.TTY {
		base = append(base, "TERM=xterm")
	}
	env := mergeEnv(mergeEnv(base, cfg.Image.Env), cfg.Spec.Env)
	env = defaultEnv(env, "HOME", home)
	for i, e := range cfg.Spec.Env {
		if !validEnv(e) {
			return nil, fmt.Errorf("%w: env[%d]: %q is not NAME=VALUE", ErrInvalid, i, e)
		}
	}
	return env, checkArgs("env", env)
}

func validEnv(e string) bool {
	name, _, ok := strings.Cut(e, "=")
	return ok && name != ""
}

// mergeEnv keeps the place of a variable that is set anew.
func mergeEnv(env, over []string) []string {
	env = slices.Clone(env)
	for _, e := range over {
		if !validEnv(e) {
			continue // an image's; the user's are refused
		}
		name, _, _ := strings.Cut(e, "=")
		if i := slices.IndexFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") }); i >= 0 {
			env[i] = e
		} else {
			env = append(env, e)
		}
	}
	return env
}

func defaultEnv(env []string, name, value string) []string {
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, name+"=") }) {
		return env
	}
	return append(env, name+"="+value)
}

func workingDir(cfg api.SandboxConfig) string {
	dir := cfg.Spec.WorkingDir
	if dir == "" {
		dir = cfg.Image.WorkingDir
	}
	return path.Join("/", dir)
}

func namespaces(cfg api.SandboxConfig, f facts) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.NetworkNamespace, Path: cfg.NetnsPath},
	}
	// Version 1 shows the container its own groups by bind mounts instead.
	if f.cgroups.mode == cgroupV2 {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

func seccompProfile(spec api.ContainerSpec, s *specs.Spec, f facts) (*specs.LinuxSeccomp, error) {
	switch {
	case spec.Seccomp == "unconfined", spec.Seccomp == "" && (spec.Privileged || f.noSeccomp):
		return nil, nil
	case spec.Seccomp == "":
		p, err := seccomp.GetDefaultProfile(s)
		if err != nil {
			return nil, fmt.Errorf("make seccomp profile: %w", err)
		}
		return p, nil
	}
	if !json.Valid([]byte(spec.Seccomp)) {
		return nil, fmt.Errorf("%w: seccomp is neither \"unconfined\" nor a profile in JSON", ErrInvalid)
	}
	p, err := seccomp.LoadProfile(spec.Seccomp, s)
	if err != nil {
		return nil, fmt.Errorf("%w: seccomp: %w", ErrInvalid, err)
	}
	if p == nil {
		return nil, fmt.Errorf("%w: the seccomp profile says nothing; use \"unconfined\" to go without", ErrInvalid)
	}
	return p, nil
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
