package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// Options of a Host; empty fields have the defaults said.
type Options struct {
	// Self is this program, which is the shim when it is called with the first of ShimVerb and the second of ExecVerb.
	Self               string
	ShimVerb, ExecVerb string
	MemberVerb         string   // with ShimDir: it is the shim of a container in another's VM
	Dir                string   // where the files that VMs are started from are kept
	KernelRoots        []string // "/": see FindKernel
	Agent              string   // see FindAgent
	Accel              string   // auto, kvm or tcg
	Files              string   // how VMs have files: auto, virtiofs or disk
	Templates          int      // how many VMs are kept saved for others to be restored from; 0: each is booted
	Logger             *slog.Logger
}

// Host makes utility VMs.
type Host struct {
	opt       Options
	store     *Store
	templates *templates
	log       *slog.Logger
	warn      sync.Once
	virtiofsd virtiofsds
}

// NewHost looks at nothing yet: what VMs need may be installed later.
func NewHost(opt Options) *Host {
	if len(opt.KernelRoots) == 0 {
		opt.KernelRoots = []string{"/"}
	}
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	h := &Host{opt: opt, store: NewStore(opt.Dir), log: opt.Logger}
	h.templates = newTemplates(h, opt.Templates)
	return h
}

// Close ends what is done in the background. VMs that run are of containers, and go on.
func (h *Host) Close() { h.templates.close() }

// tools are what a VM needs of this host.
type tools struct {
	qemu    string
	agent   string
	runtime string
	kernel  Kernel
	accel   Accel
}

// tools finds them; image is the directory of a guest kernel's image, "": the kernel that is installed here.
func (h *Host) tools(ctx context.Context, image string) (t tools, err error) {
	if runtime.GOARCH != "amd64" {
		return t, fmt.Errorf("%w: it is made for x86-64 hosts, this one is %s", ErrUnavailable, runtime.GOARCH)
	}
	if t.qemu, err = FindQEMU(); err != nil {
		return t, err
	}
	if t.kernel, err = h.Kernel(image); err != nil {
		return t, err
	}
	if t.runtime, err = FindRuntime(); err != nil {
		return t, err
	}
	if t.agent, err = h.opt.agent(); err != nil {
		return t, err
	}
	t.accel, err = Accelerators(ctx, h.opt.Accel)
	return t, err
}

// Kernel finds the kernel in the directory of an image's layer, or with "" the one that is installed here.
func (h *Host) Kernel(image string) (Kernel, error) {
	if image != "" {
		return KernelOfImage(image)
	}
	return FindKernel(h.opt.KernelRoots...)
}

// Check tells what is missing on this host beside what serves files (see Serving), and what VMs on it are with the kernel of an image, or
// the installed one.
func (h *Host) Check(ctx context.Context, image string) (description, warning string, err error) {
	t, err := h.tools(ctx, image)
	if err != nil {
		return "", "", err
	}
	description = fmt.Sprintf("guest kernel %s, %s", t.kernel.Version, strings.ToUpper(t.accel.Name))
	switch n := h.templates.ready(); n {
	case 0:
	case 1:
		description += ", 1 template"
	default:
		description += fmt.Sprintf(", %d templates", n)
	}
	return description, t.accel.warning(), nil
}

// warning is what users of an emulated VM should know.
func (a Accel) warning() string {
	if a.Name != AccelTCG {
		return ""
	}
	return fmt.Sprintf("the VM is emulated (%s): it is slower, and no security boundary", a.Reason)
}

// Container is a container that is to run in a VM.
type Container struct {
	Kernel string          // the directory of a guest kernel's image; "": the installed one
	InUse  func() []string // see Sources
	Dir    string          // shared with the shim: see ShimDir
	Root   string          // an empty directory, for the shim's own root file system
	Rootfs string          // the container's, mounted
	Netns  string          // the path of its compartment; "": it has none
	Spec   *specs.Spec     // for the guest, but with the paths of this host
	TTY    bool
	Stdin  bool
	CPUs   float64 // the limit; 0: none
	Memory int64   // the limit in bytes; 0: none
	Limits *specs.LinuxResources
	Cgroup string
	Disk   string // the file of the disk of a host of containers; "": it is none
	// RootDisk is the file of the disk with the container's files, which have the root file system and OnDisk's directories, by their
	// names there; "": they are shared.
	RootDisk string
	OnDisk   map[string]string
	Etc      string // the directory of the daemon's files for it
	OOM      *int   // oom_score_adj of the shim, and so of QEMU
	// Capabilities that we have to give.
	Capabilities []string
}

// Where the shim finds the disk of a host of containers, and that with the container's files.
const (
	diskFile = "/disk"
	rootFile = "/root-disk"
)

// ownPlace is that of the container whose VM it is.
const ownPlace = "own"

// FilesDir is where the shim finds what its VM is started from.
const FilesDir = "/files"

const (
	// baseMemory is for the guest's kernel and the agent, beside what a container may use.
	baseMemory = 96 << 20
	// defaultMemory is what a container without a limit has.
	defaultMemory = 512 << 20
	// overhead is for QEMU, virtiofsd and the shim beside the guest's memory. Emulation keeps what it has translated.
	overhead = 384 << 20
)

// Prepare writes what the shim starts, and gives its own OCI document.
func (h *Host) Prepare(ctx context.Context, c Container) (*specs.Spec, error) {
	t, err := h.tools(ctx, c.Kernel)
	if err != nil {
		return nil, err
	}
	disks := c.RootDisk != ""
	var daemon Virtiofsd
	if !disks {
		if daemon, err = h.virtiofsd.find(ctx); err != nil {
			return nil, err
		}
	}
	files, err := h.store.Get(ctx, Sources{Kernel: t.kernel, Agent: t.agent, Runtime: t.runtime, Host: c.Disk != "", Disks: disks, InUse: c.InUse})
	if err != nil {
		return nil, err
	}
	if w := t.accel.warning(); w != "" {
		h.warn.Do(func() {
			h.log.Warn("containers with VM isolation are emulated: slower, and no security boundary", "reason", t.accel.Reason)
		})
	}
	start := Start{
		Machine: Config{
			QEMU: t.qemu, Virtiofsd: daemon, ShareDir: "/share", User: nobody, Groups: kvmGroups(t.accel),
			Hardware: Hardware{
				Accel: t.accel.Name, CPUs: processors(t.accel, c.CPUs), Memory: memoryOf(c.Memory),
				Kernel: FilesDir + "/kernel", Initrd: FilesDir + "/initrd", Share: !disks, Disk: c.Disk != "", Disks: disks,
			},
		},
		Run: proto.Run{TTY: c.TTY, Stdin: c.Stdin || c.TTY},
	}
	var shared []specs.Mount
	if disks {
		if start.Handed, err = c.onDisk(ownPlace); err != nil {
			return nil, err
		}
		start.Root, start.Run.Place = rootFile, ownPlace
		shared = []specs.Mount{diskMount(rootFile, c.RootDisk), c.handedMount()}
	} else {
		start.Run.Share = shareTag
		shared = c.shareAt("")
	}
	if c.Disk != "" {
		c.furnish()
		shared = append(shared, diskMount(diskFile, c.Disk))
	}
	if c.Disk != "" { // few, and each with a disk, which cannot be saved
		start.Machine.Disk, start.Run.Disk = diskFile, diskSerial
	} else if name := h.templates.of(start.Machine, files); name != "" {
		start.Machine.Template = filepath.Join(FilesDir, name)
	}
	if err := c.begin(start); err != nil {
		return nil, err
	}
	return h.shimSpec(c, filepath.Dir(files.Kernel), shared)
}

// begin writes what the shim starts.
func (c *Container) begin(start Start) error {
	for _, name := range []string{statusFile, reasonFile, oomFile, controlFile} {
		if err := os.Remove(filepath.Join(c.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, execDir), 0o700); err != nil {
		return err
	}
	var err error
	if start.Run.Spec, err = json.Marshal(c.Spec); err != nil {
		return fmt.Errorf("encode OCI spec: %w", err)
	}
	data, err := json.Marshal(start)
	if err != nil {
		return fmt.Errorf("encode the VM: %w", err)
	}
	return replaceFile(filepath.Join(c.Dir, configFile), data)
}

// memoryOf is the guest's, in whole mebibytes.
func memoryOf(limit int64) int64 {
	if limit <= 0 {
		return defaultMemory
	}
	return (limit + baseMemory + 1<<20 - 1) &^ (1<<20 - 1)
}

// processors: emulation gains nothing by a second.
func processors(a Accel, limit float64) int {
	if a.Name == AccelTCG {
		return 1
	}
	if limit > 0 {
		return min(int(math.Ceil(limit)), runtime.NumCPU())
	}
	return runtime.NumCPU()
}

// kvmGroups lets QEMU open /dev/kvm.
func kvmGroups(a Accel) []uint32 {
	var st unix.Stat_t
	if a.Name != AccelKVM || unix.Stat("/dev/kvm", &st) != nil {
		return nil
	}
	return []uint32{st.Gid}
}

// shareAt moves what the container's document mounts of the host below a directory of the share, and the document's paths with it.
func (c *Container) shareAt(dir string) []specs.Mount {
	out := []specs.Mount{
		{Destination: filepath.Join("/share", dir, "rootfs"), Type: "bind", Source: c.Rootfs, Options: []string{"rbind", "rprivate"}},
	}
	c.Spec.Root.Path = filepath.Join(agent.ShareDir, dir, "rootfs")
	for i := range c.Spec.Mounts {
		m := &c.Spec.Mounts[i]
		if m.Type != "bind" {
			continue
		}
		// The daemon's files one by one: in their directory a guest could put others in their place, which the daemon would write to.
		place := filepath.Join(dir, "mounts", fmt.Sprint(i))
		options := []string{"rbind", "rprivate"}
		for _, o := range []string{"ro", "rro"} {
			if slices.Contains(m.Options, o) {
				options = append(options, o) // the host's word, whatever the guest's kernel is made to say
			}
		}
		m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "rro" }) // a word of this host's runtime
		out = append(out, specs.Mount{Destination: filepath.Join("/share", place), Type: "bind", Source: m.Source, Options: options})
		m.Source = filepath.Join(agent.ShareDir, place)
	}
	return out
}

// shimSpec is the container of the shim, QEMU and virtiofsd: it has their programs, what the container has, and nothing else.
func (h *Host) shimSpec(c Container, files string, shared []specs.Mount) (*specs.Spec, error) {
	system, err := systemMounts(c.Root)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"share", "files", "vm", "tmp", "proc", "dev", "handed"} {
		if err := os.MkdirAll(filepath.Join(c.Root, d), 0o755); err != nil {
			return nil, err
		}
	}
	devices, rules := shimDevices(c.RootDisk == "")
	caps := shimCapabilities(c.Capabilities, c.RootDisk == "")
	limits := c.Limits
	if limits == nil {
		limits = &specs.LinuxResources{}
	}
	limits.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, rules...)
	// The guest's memory is the container's limit; this one is for what a guest may have QEMU and us use.
	most := memoryOf(c.Memory) + overhead
	limits.Memory = &specs.LinuxMemory{Limit: &most}
	// QEMU and virtiofsd have a thread for each request that is under way.
	threads := int64(1024)
	limits.Pids = &specs.LinuxPids{Limit: &threads}
	nofile := openFiles()
	s := h.baseSpec(c, h.opt.ShimVerb, caps)
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: nofile, Hard: nofile}}
	s.Mounts = slices.Concat(s.Mounts, system, []specs.Mount{
		{Destination: FilesDir, Type: "bind", Source: files, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev", "noexec"}},
	}, shared)
	s.Linux.Resources, s.Linux.Devices = limits, devices
	return s, confine(s)
}

// diskMount shows the shim the file of a disk.
func diskMount(at, file string) specs.Mount {
	return specs.Mount{Destination: at, Type: "bind", Source: file, Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"}}
}

// baseSpec is the container of a shim, before it has anything but this program and the directory that it shares with the daemon.
func (h *Host) baseSpec(c Container, verb string, caps []string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: c.Root, Readonly: true},
		Process: &specs.Process{
			Terminal: c.TTY, Args: []string{"/bulkhead", verb, ShimDir}, Cwd: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GODEBUG=asyncpreemptoff=1"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			OOMScoreAdj:  c.OOM, NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=1024k"}},
			{Destination: "/bulkhead", Type: "bind", Source: h.opt.Self, Options: []string{"bind", "rprivate", "ro", "nosuid", "nodev"}},
			{Destination: ShimDir, Type: "bind", Source: c.Dir, Options: []string{"bind", "rprivate", "nosuid", "nodev", "noexec"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace, Path: c.Netns},
			},
			CgroupsPath: c.Cgroup, RootfsPropagation: "rprivate",
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"},
		},
	}
}

// systemMounts are the host's programs and libraries, as far as QEMU and virtiofsd are among them. Where a directory is a link to
// another, as in a merged /usr, the link is made.
func systemMounts(root string) ([]specs.Mount, error) {
	readOnly := []string{"rbind", "rprivate", "ro", "nosuid", "nodev"}
	var out []specs.Mount
	for _, dir := range []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives"} {
		st, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			out = append(out, specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: readOnly})
			continue
		}
		to, err := os.Readlink(dir)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(root, dir)), 0o755)
		}
		if err == nil {
			err = os.Symlink(to, filepath.Join(root, dir))
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return out, nil
}

// standardDevices are those that every container has.
func standardDevices() (rules []specs.LinuxDeviceCgroup) {
	for _, minor := range []int64{3, 5, 7, 8, 9} { // null, zero, full, random, urandom
		major := int64(1)
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"})
	}
	pts, tty := int64(136), int64(5)
	return append(rules,
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &pts, Access: "rwm"},
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &tty, Access: "rwm"},
	)
}

// shimDevices are those that the shim makes taps with and QEMU runs with.
func shimDevices(share bool) (devices []specs.LinuxDevice, rules []specs.LinuxDeviceCgroup) {
	rules = standardDevices()
	if share { // what the container makes for itself below the share, virtiofsd makes
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "m"}, specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"})
	}
	for _, path := range []string{"/dev/net/tun", "/dev/kvm"} {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		mode := fs.FileMode(st.Mode & 0o777)
		major, minor := int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
		devices = append(devices, specs.LinuxDevice{Path: path, Type: "c", Major: major, Minor: minor, FileMode: &mode, UID: &st.Uid, GID: &st.Gid})
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"})
	}
	return devices, rules
}

// shimCapabilities: the shim joins taps with vNICs and starts QEMU as another user, which has none of them; virtiofsd, where there is a
// share, does to files what the container's processes do, and gives up what it does not need. CAP_DAC_READ_SEARCH is not among them: with it, files are opened by
// handles, those outside the container's root, too.
func shimCapabilities(own []string, share bool) []string {
	caps := []string{"CAP_NET_ADMIN", "CAP_BPF", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"}
	if share {
		caps = append(caps, "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_MKNOD", "CAP_SETFCAP", "CAP_SYS_CHROOT", "CAP_SETPCAP")
	}
	return slices.DeleteFunc(caps, func(name string) bool { return !slices.Contains(own, name) })
}

// openFiles is how many virtiofsd may have open: as many as the container's processes have, and then some.
func openFiles() uint64 {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return 1024
	}
	return min(l.Max, 1<<16)
}

// confine gives the shim's container the default filter of system calls. virtiofsd's threads part from the working directory that they
// share (unshare with CLONE_FS), which makes no namespace.
func confine(s *specs.Spec) error {
	profile, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return fmt.Errorf("make seccomp profile: %w", err)
	}
	const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	profile.Syscalls = append(profile.Syscalls, specs.LinuxSyscall{
		Names: []string{"unshare"}, Action: specs.ActAllow,
		Args: []specs.LinuxSeccompArg{{Index: 0, Value: namespaces, ValueTwo: 0, Op: specs.OpMaskedEqual}},
	})
	s.Linux.Seccomp = profile
	return nil
}

// ReadStatus tells how a start went; fs.ErrNotExist while it is under way.
func ReadStatus(dir string) (Status, error) {
	var st Status
	data, err := readSmall(filepath.Join(dir, statusFile))
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return st, fmt.Errorf("read the VM's status: %w", err)
	}
	return st, nil
}

// End tells why a VM ended before its container, if it did, and whether the container's memory was not enough.
func End(dir string) (reason string, outOfMemory bool) {
	data, err := readSmall(filepath.Join(dir, reasonFile))
	if err == nil {
		reason = string(data)
	}
	_, err = os.Lstat(filepath.Join(dir, oomFile))
	return reason, err == nil
}

// readSmall reads a file that somebody else may have put there: not through a link, not from a pipe, and not for ever.
func readSmall(path string) ([]byte, error) {
	const most = 64 << 10
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return nil, fmt.Errorf("%s is not what the shim writes", path)
	}
	data := make([]byte, st.Size())
	n, err := f.Read(data)
	if err != nil && n == 0 && len(data) > 0 {
		return nil, err
	}
	return data[:n], nil
}

// WriteExec writes what a further process is to be, and gives the arguments of the process on the host that starts it.
func (h *Host) WriteExec(dir, name string, p *specs.Process, tty, stdin bool) ([]string, error) {
	spec, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	data, err := json.Marshal(proto.Exec{Spec: spec, TTY: tty, Stdin: stdin || tty})
	if err != nil {
		return nil, fmt.Errorf("encode process: %w", err)
	}
	// The shim has this directory, too, and whoever has taken it may have put links there.
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	path := filepath.Join(execDir, name)
	if err := root.WriteFile(path+".tmp", data, 0o600); err != nil {
		return nil, err
	}
	if err := root.Rename(path+".tmp", path); err != nil {
		return nil, err
	}
	return []string{"/bulkhead", h.opt.ExecVerb, ShimDir, name}, nil
}
