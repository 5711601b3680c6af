package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
)

// Check tells what is wrong with a configuration as far as that shows without its
// root file system, and what of it will be done differently.
func (r *Runtime) Check(cfg api.SandboxConfig) (warnings []string, err error) {
	if err := checkConfig(cfg); err != nil {
		return nil, err
	}
	plan, err := r.planMounts(cfg)
	if err != nil {
		return nil, err
	}
	if isVM(cfg) {
		return r.checkVM(cfg, plan)
	}
	if err := r.leavesNoDisk(cfg); err != nil {
		return nil, err
	}
	f, err := r.facts(cfg, plan)
	if err != nil {
		return nil, err
	}
	_, warnings, err = buildSpec(cfg, f)
	return warnings, err
}

func checkConfig(cfg api.SandboxConfig) error {
	if err := checkID(cfg.ID); err != nil {
		return err
	}
	if iso := cfg.Spec.Isolation; iso != "" && iso != "process" && iso != isolationVM {
		return fmt.Errorf("%w: isolation %q is not known: use process or vm", ErrInvalid, iso)
	}
	if w := cfg.Spec.WorkingDir; w != "" && !filepath.IsAbs(w) {
		return fmt.Errorf("%w: workingDir %q is not an absolute path", ErrInvalid, w)
	}
	if strings.ContainsAny(cfg.Spec.WorkingDir+cfg.Image.WorkingDir, "\x00") {
		return fmt.Errorf("%w: workingDir contains a NUL byte", ErrInvalid)
	}
	if h := strings.TrimSpace(cfg.Hostname); len(h) > 64 || strings.ContainsAny(h, "\x00\n ") {
		return fmt.Errorf("%w: hostname %q is not one word of at most 64 bytes", ErrInvalid, h)
	}
	if s := cfg.Spec.StopSignal; s != "" {
		if _, err := parseSignal(s); err != nil {
			return fmt.Errorf("stopSignal: %w: use a name like SIGINT, or a number", err)
		}
	}
	if cfg.NetnsPath != "" && !filepath.IsAbs(cfg.NetnsPath) {
		return fmt.Errorf("%w: the namespace path %q is not absolute", ErrInvalid, cfg.NetnsPath)
	}
	for _, l := range cfg.Layers {
		if !filepath.IsAbs(l) {
			return fmt.Errorf("%w: the layer path %q is not absolute", ErrInvalid, l)
		}
	}
	return nil
}

// Create makes a container ready to start. What a Create of the same id left that
// was cut short, or a container that has ended, is cleared first; its writable
// layer stays.
func (r *Runtime) Create(ctx context.Context, cfg api.SandboxConfig) error {
	if err := checkConfig(cfg); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer r.lock(cfg.ID)()
	if err := r.create(ctx, cfg); err != nil {
		return fmt.Errorf("make the process: %w", err)
	}
	return nil
}

func (r *Runtime) create(ctx context.Context, cfg api.SandboxConfig) (err error) {
	id := cfg.ID
	if exists(r.bundle(id)) {
		if st, err := r.state(ctx, id); err == nil && st.Status == api.StatusRunning {
			return ErrRunning
		}
	}
	// Also when there is no bundle: a crash may have left anything.
	if err := r.clear(ctx, id); err != nil {
		return err
	}
	if err := r.leavesNoDisk(cfg); err != nil {
		return err
	}
	plan, err := r.planMounts(cfg)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			// The caller's context may be the reason.
			if cerr := r.clear(context.WithoutCancel(ctx), id); cerr != nil {
				err = errors.Join(err, cerr)
			}
		}
	}()
	for _, d := range []string{r.exitDir(), r.runtimeRoot(), r.bundle(id), filepath.Join(r.bundle(id), etcDir), filepath.Join(r.bundle(id), execDir), r.logDir(id)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := r.writeEtc(cfg); err != nil {
		return err
	}
	if err := r.mountRootfs(id, cfg.Layers); err != nil {
		return err
	}
	if err := checkMountPoints(r.rootfs(id)); err != nil {
		return err
	}
	if err := r.writeSpec(ctx, cfg, plan); err != nil {
		return err
	}
	if err := r.prepareLog(id); err != nil {
		return err
	}
	if err := r.startMonitor(ctx, id, cfg.Spec.TTY, cfg.Spec.OpenStdin); err != nil {
		return err
	}
	m, ok := r.monitorOf(id)
	if !ok {
		return errors.New("the container's monitor ended at once")
	}
	r.watch.add(id, m)
	return nil
}

// writeSpec fills volumes, makes the working directory and writes the bundle's
// document, all with the root file system mounted.
func (r *Runtime) writeSpec(ctx context.Context, cfg api.SandboxConfig, plan mountPlan) error {
	f, err := r.facts(cfg, plan)
	if err != nil {
		return err
	}
	if isVM(cfg) {
		f = guestFacts(cfg, f)
	}
	name := cfg.Spec.User
	if name == "" {
		name = cfg.Image.User
	}
	if f.user, err = resolveUser(f.rootfs, name); err != nil {
		if isVM(cfg) && vm.DiskInUse(r.rootDisk(cfg.ID)) {
			err = fmt.Errorf("%w (looked for in the files that its disk was made of: give numbers)", err)
		}
		return err
	}
	spec, warnings, err := r.buildSpec(cfg, f)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		r.log.Warn("container setting changed", "container", cfg.ID, "reason", w)
	}
	for _, v := range plan.fill {
		if err := r.fillVolume(f.rootfs, v); err != nil {
			return err
		}
	}
	if err := modeMountPoints(f.rootfs, plan.mounts); err != nil {
		return err
	}
	// Below a mount it is the mount's, and the runtime's to make.
	if !slices.ContainsFunc(plan.fill, func(v volumeFill) bool { return strings.HasPrefix(spec.Process.Cwd+"/", v.target+"/") }) {
		if err := makeDirInRoot(f.rootfs, spec.Process.Cwd); err != nil {
			return fmt.Errorf("make working directory %s: %w", spec.Process.Cwd, err)
		}
	}
	if isVM(cfg) {
		if spec, err = r.prepareVM(ctx, cfg, plan, spec); err != nil {
			return err
		}
	}
	return r.encodeSpec(cfg.ID, configFile, spec)
}

func (r *Runtime) encodeSpec(id, name string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode OCI spec: %w", err)
	}
	return writeFile(filepath.Join(r.bundle(id), name), data)
}

func (r *Runtime) facts(cfg api.SandboxConfig, plan mountPlan) (facts, error) {
	f := facts{
		rootfs:      r.rootfs(cfg.ID),
		etc:         filepath.Join(r.bundle(cfg.ID), etcDir),
		cgroupsPath: r.group(cfg.ID),
		cgroups:     &r.cgroups,
		mounts:      plan.mounts,
		propagation: plan.propagation,
		hardLimits:  ownHardLimits(),
		swapLimit:   r.cgroups.swapLimit(),
	}
	own, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return f, fmt.Errorf("read the daemon's OOM score: %w", err)
	}
	if f.oomScore, err = oomScore(string(own)); err != nil {
		return f, err
	}
	if f.capabilities, err = ownCapabilities(); err != nil {
		return f, err
	}
	f.raiseLimits = slices.Contains(f.capabilities, "CAP_SYS_RESOURCE")
	if cfg.Spec.Privileged {
		f.devices, err = hostDevices()
	}
	return f, err
}

// swapLimit tells whether swap is accounted by group.
func (c *cgroups) swapLimit() bool {
	if c.mode == cgroupV2 {
		// Only groups below the root have the file; the controller says enough.
		return c.has("memory")
	}
	return exists(filepath.Join(c.v1["memory"], "memory.memsw.limit_in_bytes"))
}

// writeEtc writes the files that go over the image's.
func (r *Runtime) writeEtc(cfg api.SandboxConfig) error {
	hostname := strings.TrimSpace(cfg.Hostname) + "\n"
	written := map[string][]string{}
	for name, text := range map[string]string{"hosts": cfg.Hosts, "resolv.conf": cfg.ResolvConf, "hostname": hostname} {
		written[name] = []string{digest([]byte(text))}
		path := filepath.Join(r.bundle(cfg.ID), etcDir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
		// Whatever our umask is, the container's users read these.
		if err := os.Chmod(path, 0o644); err != nil {
			return err
		}
	}
	return r.noteEtc(cfg.ID, written)
}

// etcNote is the file that says what was written over the image's, by the digests of their contents: who else has changed one since
// keeps it.
const etcNote = "etc-written.json"

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func (r *Runtime) noteEtc(id string, written map[string][]string) error {
	b, err := json.Marshal(written)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.bundle(id), etcNote), b, 0o600)
}

// RefreshEtc brings the files of a container that is there up to what is true now. A file that the container has changed stays as it is.
func (r *Runtime) RefreshEtc(id, hosts, resolvConf string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("refresh the files of a container: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(r.bundle(id), etcNote))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it is gone, or from a version that noted nothing
		}
		return fmt.Errorf("refresh the files of container %.12s: %w", id, err)
	}
	written := map[string][]string{}
	if err := json.Unmarshal(b, &written); err != nil {
		return fmt.Errorf("refresh the files of container %.12s: read %s: %w", id, etcNote, err)
	}
	for name, text := range map[string]string{"hosts": hosts, "resolv.conf": resolvConf} {
		if err := r.refreshFile(id, name, []byte(text), written); err != nil {
			return fmt.Errorf("refresh the files of container %.12s: %w", id, err)
		}
	}
	return nil
}

// refreshFile writes in place: the container has the very file, and not its name. Its note holds what is there and what is to be
// until that is done, so that a death in between makes neither somebody else's.
func (r *Runtime) refreshFile(id, name string, text []byte, written map[string][]string) error {
	f, err := os.OpenFile(filepath.Join(r.bundle(id), etcDir, name), os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file of ours (%w)", name, err)
	}
	have, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return err
	}
	if bytes.Equal(have, text) || !slices.Contains(written[name], digest(have)) {
		return nil
	}
	written[name] = []string{digest(have), digest(text)}
	if err := r.noteEtc(id, written); err != nil {
		return err
	}
	if _, err := f.WriteAt(text, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(text)))
}

// Start lets the container's process run.
func (r *Runtime) Start(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	defer r.lock(id)()
	st, err := r.state(ctx, id)
	switch {
	case err != nil:
	case st.Status == api.StatusRunning:
		return nil
	case st.Status == "":
		err = ErrNotFound
	case st.Status != api.StatusCreated:
		err = fmt.Errorf("it is not created, but %s", st.Status)
	default:
		if err = r.oci.Start(ctx, id); err == nil {
			break
		}
		err = &RuntimeError{Message: tidy(err.Error())}
		// Started before, by a call that did not live to note it?
		if now, serr := r.askRuntime(ctx, id, st); serr == nil && now.Status == api.StatusRunning {
			err = nil
		}
	}
	if err == nil {
		err = r.awaitVM(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("start the process: %w", err)
	}
	return r.markStarted(id)
}

func (r *Runtime) markStarted(id string) error {
	path := filepath.Join(r.bundle(id), startedFile)
	if err := writeFile(path, []byte(time.Now().UTC().Format(time.RFC3339Nano))); err != nil {
		return fmt.Errorf("start the process: %w", err)
	}
	return nil
}

// Kill sends a signal, by name or number, to the container's first process.
func (r *Runtime) Kill(ctx context.Context, id, signal string) error {
	if err := checkID(id); err != nil {
		return fmt.Errorf("signal container: %w", err)
	}
	sig, err := parseSignal(signal)
	if err != nil {
		return fmt.Errorf("signal container %.12s: %w", id, err)
	}
	p, ok := r.initOf(id)
	if !ok {
		if !exists(r.bundle(id)) {
			return fmt.Errorf("signal container %.12s: %w", id, ErrNotFound)
		}
		return fmt.Errorf("signal container %.12s: %w", id, ErrNotRunning)
	}
	defer p.close()
	if err := r.checkSignal(id, sig); err != nil {
		return fmt.Errorf("signal container %.12s: %w", id, err)
	}
	if err := p.signal(sig); err != nil {
		return fmt.Errorf("signal container %.12s: %w", id, err)
	}
	return nil
}

// parseSignal reads "TERM", "SIGTERM", "15", "RTMIN+3".
func parseSignal(s string) (unix.Signal, error) {
	var n int
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	const rtmin, rtmax = 34, 64 // as the C library counts
	switch {
	case name == "RTMIN":
		return rtmin, nil
	case name == "RTMAX":
		return rtmax, nil
	case strings.HasPrefix(name, "RTMIN+"):
		if _, err := fmt.Sscanf(name, "RTMIN+%d", &n); err == nil && n >= 0 && n <= rtmax-rtmin {
			return unix.Signal(rtmin + n), nil
		}
	case strings.HasPrefix(name, "RTMAX-"):
		if _, err := fmt.Sscanf(name, "RTMAX-%d", &n); err == nil && n >= 0 && n <= rtmax-rtmin {
			return unix.Signal(rtmax - n), nil
		}
	default:
		if sig := unix.SignalNum("SIG" + name); sig != 0 {
			return sig, nil
		}
		if _, err := fmt.Sscanf(s, "%d", &n); err == nil && fmt.Sprint(n) == s && n > 0 && n <= rtmax {
			return syscall.Signal(n), nil
		}
	}
	return 0, fmt.Errorf("%w: there is no signal %q", ErrInvalid, s)
}
