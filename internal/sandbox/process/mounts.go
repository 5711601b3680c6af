package process

import (
	"bufio"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
)

// systemMounts are those that every container has.
func systemMounts(spec api.ContainerSpec) []specs.Mount {
	readOnly := "ro"
	if spec.Privileged {
		readOnly = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", readOnly}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", readOnly}},
	}
}

// etcMounts put the private files over the image's.
func etcMounts(spec api.ContainerSpec, f facts) []specs.Mount {
	var out []specs.Mount
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		target := "/etc/" + name
		if slices.ContainsFunc(f.mounts, func(m specs.Mount) bool { return m.Destination == target }) {
			continue // the user brings one along
		}
		options := []string{"bind", "rprivate"}
		if spec.ReadOnly {
			options = append(options, "ro")
		}
		out = append(out, specs.Mount{Destination: target, Type: "bind", Source: filepath.Join(f.etc, name), Options: options})
	}
	return out
}

// mountPlan is what the mounts of a spec come to.
type mountPlan struct {
	mounts      []specs.Mount
	propagation string
	// fill names volumes that may have to be made, by their directory, with the
	// place in the image whose content they begin with.
	fill []volumeFill
}

type volumeFill struct {
	dir    string // of the volume; its content is in _data
	target string
}

// planMounts resolves the mounts that were asked for, and the image's volumes
// where nothing else is mounted. It changes nothing.
func (r *Runtime) planMounts(cfg api.SandboxConfig) (mountPlan, error) {
	p := mountPlan{propagation: "rprivate"}
	seen := map[string]bool{}
	for i, m := range cfg.Spec.Mounts {
		target, err := mountTarget(m.Target)
		if err == nil && seen[target] {
			err = fmt.Errorf("%w: %s is mounted twice", ErrInvalid, target)
		}
		if err == nil {
			err = r.planMount(&p, m, target)
		}
		if err != nil {
			return mountPlan{}, fmt.Errorf("mounts[%d]: %w", i, err)
		}
		seen[target] = true
	}
	for _, v := range cfg.Image.Volumes {
		target, err := mountTarget(v)
		if err != nil {
			return mountPlan{}, fmt.Errorf("image volume: %w", err)
		}
		if seen[target] {
			continue
		}
		seen[target] = true
		dir := filepath.Join(r.storage(cfg.ID), "volumes", anonymousName(target))
		p.fill = append(p.fill, volumeFill{dir, target})
		p.mounts = append(p.mounts, specs.Mount{
			Destination: target, Type: "bind", Source: filepath.Join(dir, volumeData), Options: []string{"rbind", "rprivate", "nodev"},
		})
	}
	// A mount below another must come after it.
	slices.SortStableFunc(p.mounts, func(a, b specs.Mount) int {
		return strings.Count(a.Destination, "/") - strings.Count(b.Destination, "/")
	})
	return p, nil
}

func (r *Runtime) planMount(p *mountPlan, m api.Mount, target string) error {
	out := specs.Mount{Destination: target}
	options := m.Options
	if m.ReadOnly {
		options = append(slices.Clone(options), "ro")
	}
	var err error
	switch m.Type {
	case "bind":
		if !filepath.IsAbs(m.Source) {
			return fmt.Errorf("%w: bind source %q is not an absolute path", ErrInvalid, m.Source)
		}
		if _, err := os.Stat(m.Source); err != nil {
			return fmt.Errorf("%w: bind source: %w; make it first", ErrInvalid, err)
		}
		out.Type, out.Source = "bind", filepath.Clean(m.Source)
		out.Options, err = r.bindOptions(options, out.Source, &p.propagation)
	case "volume":
		if !api.IsName(m.Source) {
			return fmt.Errorf("%w: %q is not the name of a volume: letters, digits, and . _ - inside", ErrInvalid, m.Source)
		}
		dir := filepath.Join(r.volumeDir, m.Source)
		p.fill = append(p.fill, volumeFill{dir, target})
		out.Type, out.Source = "bind", filepath.Join(dir, volumeData)
		out.Options, err = r.bindOptions(options, "", &p.propagation)
	case "tmpfs":
		if m.Source != "" {
			return fmt.Errorf("%w: a tmpfs has no source", ErrInvalid)
		}
		out.Type, out.Source = "tmpfs", "tmpfs"
		out.Options, err = tmpfsOptions(options)
	default:
		return fmt.Errorf("%w: type %q is not bind, volume or tmpfs", ErrInvalid, m.Type)
	}
	p.mounts = append(p.mounts, out)
	return err
}

func mountTarget(t string) (string, error) {
	clean := path.Clean(t)
	switch {
	case !path.IsAbs(t) || strings.ContainsAny(t, "\x00\n") || len(t) > 4095:
		return "", fmt.Errorf("%w: target %q is not an absolute path", ErrInvalid, t)
	case clean == "/":
		return "", fmt.Errorf("%w: target / would hide the image", ErrInvalid)
	case clean == "/proc" || strings.HasPrefix(clean, "/proc/"):
		return "", fmt.Errorf("%w: nothing can be mounted at %s", ErrInvalid, clean)
	}
	return clean, nil
}

var bindFlags = []string{"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "relatime"}

// bindOptions checks options and adds the defaults. A mount that passes later
// mounts on needs a root file system that lets them through.
func (r *Runtime) bindOptions(options []string, source string, propagation *string) ([]string, error) {
	kind, prop, readOnly := "rbind", "rprivate", false
	var flags []string
	for _, o := range options {
		switch o {
		case "bind", "rbind":
			kind = o
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			prop = o
		case "ro":
			readOnly = true
		default:
			if !slices.Contains(bindFlags, o) {
				return nil, fmt.Errorf("%w: unknown mount option %q", ErrInvalid, o)
			}
			flags = append(flags, o)
		}
	}
	if readOnly {
		flags = slices.DeleteFunc(flags, func(s string) bool { return s == "rw" })
		if r.recursiveReadOnly && kind == "rbind" {
			flags = append(flags, "rro") // what is mounted below the source as well
		}
		flags = append(flags, "ro")
	}
	if strings.HasSuffix(prop, "shared") || strings.HasSuffix(prop, "slave") {
		if source == "" {
			return nil, fmt.Errorf("%w: option %q is for bind mounts", ErrInvalid, prop)
		}
		shared := strings.HasSuffix(prop, "shared")
		if err := needPropagation(source, shared); err != nil {
			return nil, err
		}
		if shared {
			*propagation = "rshared"
		} else if *propagation != "rshared" {
			*propagation = "rslave"
		}
	}
	return append([]string{kind, prop}, flags...), nil
}

// needPropagation checks that a source lies on a mount that takes part.
func needPropagation(source string, shared bool) error {
	real, err := filepath.EvalSymlinks(source)
	if err != nil {
		return fmt.Errorf("%w: bind source: %w", ErrInvalid, err)
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	defer f.Close()
	best, peers := "", ""
	s := bufio.NewScanner(f)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 7 {
			continue
		}
		at := fields[4]
		if len(at) >= len(best) && (real == at || at == "/" || strings.HasPrefix(real, at+"/")) {
			best, peers = at, s.Text()
		}
	}
	if strings.Contains(peers, " shared:") || !shared && strings.Contains(peers, " master:") {
		return nil
	}
	return fmt.Errorf("%w: %s is on the mount %s, which is private: mount --make-shared %s", ErrInvalid, source, best, best)
}

func tmpfsOptions(options []string) ([]string, error) {
	value := regexp.MustCompile(`^(size=\d+[kmgKMG%]?|mode=[0-7]{3,4}|uid=\d+|gid=\d+|nr_inodes=\d+[kmgKMG]?)$`)
	out := []string{"nosuid", "nodev", "noexec"}
	for _, o := range options {
		base, off := strings.CutPrefix(o, "no")
		switch {
		case value.MatchString(o), o == "ro", o == "rw", o == "noatime":
		case base == "suid" || base == "dev" || base == "exec":
			if !off {
				out = slices.DeleteFunc(out, func(s string) bool { return s == "no"+base })
			} else if slices.Contains(out, o) {
				continue
			}
		default:
			return nil, fmt.Errorf("%w: unknown tmpfs option %q", ErrInvalid, o)
		}
		out = append(out, o)
	}
	return out, nil
}

// hostDevices are all device nodes of the host, for a privileged container.
func hostDevices() ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	own := []string{
		"/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/ptmx", "/dev/null", "/dev/zero",
		"/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
	}
	err := filepath.WalkDir("/dev", func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return nil // devices come and go
		}
		if slices.Contains(own, p) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		var st unix.Stat_t
		if e.Type()&os.ModeDevice == 0 || unix.Lstat(p, &st) != nil {
			return nil
		}
		typ := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			typ = "c"
		}
		mode := os.FileMode(st.Mode & 0o777)
		out = append(out, specs.LinuxDevice{
			Path: p, Type: typ, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list host devices: %w", err)
	}
	return out, nil
}
