package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
)

// isolationVM has the container run in a utility VM. The OCI document that is made of its configuration is then for a runtime in the
// guest; the one on the host gets a document for the shim.
const isolationVM = "vm"

// In a bundle of a container with VM isolation.
const (
	guestFile = "guest.json" // the document for the guest, with the host's paths
	vmDir     = "vm"         // what is shared with the shim
	vmRootDir = "vmroot"     // the shim's root file system
)

// disk is that of a host of containers, in its storage.
func (r *Runtime) disk(id string) string { return filepath.Join(r.storage(id), "disk") }

func isVM(cfg api.SandboxConfig) bool { return cfg.Spec.Isolation == isolationVM }

// inVM tells it of a container that is there.
func (r *Runtime) inVM(id string) bool { return exists(filepath.Join(r.bundle(id), guestFile)) }

// guestFacts are those of a guest, whose kernel is ours and has all that can be asked for.
func guestFacts(cfg api.SandboxConfig, f facts) facts {
	f.capabilities = capabilityNames()
	f.cgroups = &cgroups{mode: cgroupV2, v2: wantedControllers}
	f.cgroupsPath = agent.CgroupPath
	if isMember(cfg) {
		f.cgroupsPath = vm.CgroupOf(cfg.ID)
	}
	f.hardLimits, f.raiseLimits = nil, true
	f.swapLimit = false // a guest has no swap
	f.devices = nil     // those of the host are not there
	f.oomScore = nil
	return f
}

// buildSpec makes the document that an OCI runtime gets, here or in the guest.
func (r *Runtime) buildSpec(cfg api.SandboxConfig, f facts) (*specs.Spec, []string, error) {
	if isVM(cfg) {
		cfg.NetnsPath = agent.CompartmentPath
		if !isMember(cfg) {
			// The host keeps these, for all of the VM.
			cfg.Spec.Resources.CPUs, cfg.Spec.Resources.CPUShares, cfg.Spec.Resources.CPUSet = 0, 0, ""
		}
	}
	return buildSpec(cfg, f)
}

// checkVM is Check for a container that is to run in a VM.
func (r *Runtime) checkVM(cfg api.SandboxConfig, plan mountPlan) (warnings []string, err error) {
	if r.vm == nil {
		return nil, fmt.Errorf("%w: isolation: this daemon makes no VMs", ErrInvalid)
	}
	if cfg.Spec.Resources.MemorySwap != 0 {
		return nil, fmt.Errorf("%w: resources.memorySwap: a VM has no swap: leave --memory-swap out, or use --isolation process", ErrInvalid)
	}
	for i, m := range cfg.Spec.Mounts {
		for _, o := range m.Options {
			if strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") {
				return nil, fmt.Errorf("%w: mounts[%d]: option %s: mounts do not spread into a VM: leave it out, or use --isolation process", ErrInvalid, i, o)
			}
		}
	}
	if cfg.Spec.Host != nil {
		if _, err := vm.FindMkfs(); err != nil {
			return nil, err
		}
	}
	f, err := r.facts(cfg, plan)
	if err != nil {
		return nil, err
	}
	if _, err := resources(hostPart(cfg.Spec), f); err != nil {
		return nil, err
	}
	if _, warnings, err = r.buildSpec(cfg, guestFacts(cfg, f)); err != nil {
		return nil, err
	}
	_, warning, err := r.vm.Check(context.Background(), cfg.GuestKernel)
	if warning != "" {
		warnings = append(warnings, warning)
	}
	if err != nil {
		return warnings, err
	}
	serving, err := r.serving(context.Background(), cfg)
	if err != nil {
		return warnings, err
	}
	if serving.Disk {
		if err := diskServes(cfg, serving.Reason); err != nil {
			return warnings, err
		}
		if !vm.DiskInUse(r.rootDisk(cfg.ID)) {
			warnings = append(warnings, fmt.Sprintf("its files will be copied to a disk of its own at its first start, and stay there (%s)", serving.Reason))
		}
	}
	return warnings, nil
}

// hostPart are the limits that the host keeps for all of the VM.
func hostPart(spec api.ContainerSpec) api.ContainerSpec {
	in := spec.Resources
	spec.Resources = api.Resources{CPUs: in.CPUs, CPUShares: in.CPUShares, CPUSet: in.CPUSet}
	return spec
}

// prepareVM gives the document of the shim for that of the guest.
func (r *Runtime) prepareVM(ctx context.Context, cfg api.SandboxConfig, plan mountPlan, guest *specs.Spec) (*specs.Spec, error) {
	if r.vm == nil {
		return nil, fmt.Errorf("%w: isolation: this daemon makes no VMs", ErrInvalid)
	}
	guest.Linux.RootfsPropagation = "" // a share cannot spread anything
	if err := r.encodeSpec(cfg.ID, guestFile, guest); err != nil {
		return nil, err
	}
	dir, root := filepath.Join(r.bundle(cfg.ID), vmDir), filepath.Join(r.bundle(cfg.ID), vmRootDir)
	for _, d := range []string{dir, root} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	hostFacts, err := r.facts(cfg, mountPlan{})
	if err != nil {
		return nil, err
	}
	c := vm.Container{
		Dir: dir, Root: root, Rootfs: r.rootfs(cfg.ID), Netns: cfg.NetnsPath, Spec: guest, TTY: cfg.Spec.TTY, Stdin: cfg.Spec.OpenStdin,
		Cgroup: r.group(cfg.ID), OOM: hostFacts.oomScore, Etc: hostFacts.etc,
	}
	if err := r.giveDisk(ctx, cfg, plan, &c); err != nil {
		return nil, err
	}
	if isMember(cfg) {
		spec, err := r.prepareMember(cfg, c)
		if err != nil {
			return nil, err
		}
		r.dropLimits(spec)
		return spec, nil
	}
	if c.Capabilities, err = ownCapabilities(); err != nil {
		return nil, err
	}
	limits, err := resources(hostPart(cfg.Spec), hostFacts)
	if err != nil {
		return nil, err
	}
	if h := cfg.Spec.Host; h != nil {
		c.Disk = r.disk(cfg.ID)
		if err := vm.MakeDisk(ctx, c.Disk, h.Disk); err != nil {
			return nil, err
		}
	}
	c.Kernel, c.InUse, c.CPUs, c.Memory, c.Limits = cfg.GuestKernel, r.vmFiles, cfg.Spec.Resources.CPUs, cfg.Spec.Resources.Memory, limits
	spec, err := r.vm.Prepare(ctx, c)
	if err != nil {
		return nil, err
	}
	r.dropLimits(spec)
	return spec, nil
}

// dropLimits leaves out what no control group of this host holds.
func (r *Runtime) dropLimits(spec *specs.Spec) {
	if !r.cgroups.has("memory") {
		spec.Linux.Resources.Memory = nil
	}
	if !r.cgroups.has("pids") {
		spec.Linux.Resources.Pids = nil
	}
}

// Dial connects with a socket in the file system of a container that runs in a VM.
func (r *Runtime) Dial(ctx context.Context, id, path string) (net.Conn, error) {
	dir, err := r.shimOf(id)
	if err != nil {
		return nil, err
	}
	return vm.Dial(ctx, dir, path)
}

// DialNet sends from the compartment inside the VM of a container, as [vm.DialNet] does.
func (r *Runtime) DialNet(ctx context.Context, id, network, address string, from uint16) (net.Conn, error) {
	dir, err := r.shimOf(id)
	if err != nil {
		return nil, err
	}
	return vm.DialNet(ctx, dir, network, address, from)
}

// shimOf is what the daemon shares with the shim of a container in a VM.
func (r *Runtime) shimOf(id string) (dir string, err error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	if !r.inVM(id) {
		return "", fmt.Errorf("container %.12s: %w", id, ErrNotRunning)
	}
	return filepath.Join(r.bundle(id), vmDir), nil
}

// vmFiles are the directories that the VMs of containers are started from.
func (r *Runtime) vmFiles() (dirs []string) {
	bundles, err := filepath.Glob(filepath.Join(r.bundle("*"), guestFile))
	if err != nil {
		return nil // a pattern of ours
	}
	for _, guest := range bundles {
		if dir := vmFilesOf(filepath.Dir(guest)); dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// vmFilesOf is the directory that the VM of a bundle is started from; "" while the bundle is being made, or taken away.
func vmFilesOf(bundle string) string {
	var spec specs.Spec
	data, err := os.ReadFile(filepath.Join(bundle, configFile))
	if err != nil || json.Unmarshal(data, &spec) != nil {
		return ""
	}
	for _, m := range spec.Mounts {
		if m.Destination == vm.FilesDir {
			return m.Source
		}
	}
	return ""
}

// awaitVM waits until the container runs in its VM.
func (r *Runtime) awaitVM(ctx context.Context, id string) error {
	if !r.inVM(id) {
		return nil
	}
	dir := filepath.Join(r.bundle(id), vmDir)
	shim, alive := r.initOf(id)
	if alive {
		defer shim.close()
	}
	for {
		st, err := vm.ReadStatus(dir)
		switch {
		case err == nil && st.Error != "":
			return &RuntimeError{Message: tidy(st.Error)}
		case err == nil:
			if files := vmFilesOf(r.bundle(id)); st.Template != "" && files != "" {
				r.vm.Spoiled(files, st.Template, tidy(st.Spoiled))
			}
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case !alive:
			return errors.New("the VM's shim ended before the container ran: bulkhead logs shows what it said")
		case ctx.Err() != nil:
			return fmt.Errorf("its VM did not come up within the time of a start: %w", context.Cause(ctx))
		}
		alive = !shim.wait(ctx, statusWait)
	}
}

// statusWait is how often a shim is looked at that starts. A VM wants the processors meanwhile.
const statusWait = 5 * time.Millisecond

// checkSignal refuses what would act on the shim instead of the container.
func (r *Runtime) checkSignal(id string, sig unix.Signal) error {
	if !r.inVM(id) {
		return nil
	}
	switch sig {
	case unix.SIGSTOP, unix.SIGCONT:
		return fmt.Errorf("%w: %s does not reach into a VM: use bulkhead pause and unpause", ErrInvalid, unix.SignalName(sig))
	case unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE:
		return fmt.Errorf("%w: %s is not handed on into a VM: send it with bulkhead exec", ErrInvalid, unix.SignalName(sig))
	default:
		return nil
	}
}

// allCapabilities are those that a privileged process of a container can have.
func (r *Runtime) allCapabilities(id string) ([]string, error) {
	if r.inVM(id) {
		return capabilityNames(), nil
	}
	return ownCapabilities()
}

// execByShim gives the process on the host that starts another in the guest.
func (r *Runtime) execByShim(id, name string, p *specs.Process, e api.ExecSpec) (*specs.Process, error) {
	args, err := r.vm.WriteExec(filepath.Join(r.bundle(id), vmDir), name, p, e.TTY, e.OpenStdin)
	if err != nil {
		return nil, err
	}
	return &specs.Process{
		Terminal: e.TTY, Args: args, Cwd: "/", Env: []string{"PATH=/usr/bin:/bin"},
		Capabilities: &specs.LinuxCapabilities{}, NoNewPrivileges: true,
	}, nil
}

// endOfVM completes the state of a container whose VM ended.
func (r *Runtime) endOfVM(id string, st *api.SandboxState) {
	if !r.inVM(id) {
		return
	}
	reason, oom := vm.End(filepath.Join(r.bundle(id), vmDir))
	if st.Error == "" {
		st.Error = reason
	}
	st.OOMKilled = st.OOMKilled || oom
}
