package vm

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/agent"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// kernelDir is where scripts/deps.sh unpacks a guest kernel for tests.
const kernelDir = "../../../.cache/vm"

// bench is a place for VMs, and what they are started from.
func bench(t *testing.T, disks bool) (Config, string) {
	t.Helper()
	if testing.Short() || os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_ROOT") == "1" {
			t.Fatal("needs root, and REQUIRE_ROOT is set")
		}
		t.Skip("starts a VM, as root")
	}
	dir, err := os.MkdirTemp("", "vm-") //nolint:usetesting // QEMU, as nobody, may not look into what TempDir makes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	agentFile := filepath.Join(dir, AgentName)
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w", "-o", agentFile, "../../../cmd/bulkhead-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	guestRuntime, err := FindRuntime()
	if err != nil {
		t.Fatal(err)
	}
	store := NewStore(filepath.Join(dir, "files"))
	kernel, err := FindKernel(kernelDir, "/")
	if err != nil {
		t.Fatal(err)
	}
	src := Sources{Kernel: kernel, Agent: agentFile, Runtime: guestRuntime, Disks: disks}
	files, err := store.Get(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := store.Get(t.Context(), src); err != nil || again != files {
		t.Errorf("the files were made anew: %+v, %v", again, err)
	}
	qemu, err := FindQEMU()
	if err != nil {
		t.Fatal(err)
	}
	daemon, err := new(virtiofsds).find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	share := filepath.Join(dir, "share")
	for _, d := range []string{"bin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(share, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	box, err := exec.LookPath("busybox")
	if err == nil {
		var data []byte
		if data, err = os.ReadFile(box); err == nil {
			err = os.WriteFile(filepath.Join(share, "rootfs/bin/busybox"), data, 0o755)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		QEMU: qemu, Virtiofsd: daemon, ShareDir: share, User: nobody,
		Hardware: Hardware{Accel: AccelTCG, CPUs: 1, Memory: 192 << 20, Kernel: files.Kernel, Initrd: files.Initrd, Share: !disks, Disks: disks},
	}, share
}

// guestSpec is a container in the guest.
func guestSpec(script, netns string) *specs.Spec {
	s := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: agent.ShareDir + "/rootfs"},
		Process: &specs.Process{Args: []string{"/bin/busybox", "sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
			},
			CgroupsPath: agent.CgroupPath,
		},
	}
	if netns != "" {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return s
}

// look runs a program outside the compartment, where all of the utility VM's own user space is, and tells the devices that it sees.
func look(ctx context.Context, t *testing.T, m *Machine, name string) string {
	t.Helper()
	raw := marshal(t, guestSpec("busybox ip -o link | busybox cut -d: -f2; busybox ls /sys/class/net", ""))
	if err := m.Guest.Call(ctx, proto.OpRun, proto.Run{Process: name, Share: shareTag, Spec: raw}, nil); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(stream(t, m, name, 1))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(strings.Fields(string(text)), " ")
}

// TestMachine starts one VM and asks all of it that needs a real one.
func TestMachine(t *testing.T) {
	t.Parallel()
	cfg, share := bench(t, false)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cfg.Template = filepath.Join(share, "missing") // so it is booted
	m, err := Boot(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.Spoiled == nil || !strings.Contains(m.Spoiled.Error(), "missing") {
		t.Errorf("that there is no template is said as %v", m.Spoiled)
	}
	if m.Kernel == "" {
		t.Error("the guest does not say what it runs")
	}

	// A NIC goes to the compartment, and there only.
	if err := m.QMP.Do(ctx, "netdev_add", map[string]any{"type": "hubport", "id": "n0", "hubid": 0}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.QMP.Do(ctx, "device_add", map[string]any{"driver": "virtio-net-pci", "id": "nic0", "netdev": "n0", "mac": "02:00:00:00:00:42", "bus": "slot0"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := look(ctx, t, m, "before"); got != "lo lo" {
		t.Errorf("with a NIC just plugged in, the utility VM sees %q", got)
	}
	nic := proto.NIC{
		MAC: "02:00:00:00:00:42", Name: "eth0", MTU: 1400,
		Addresses:  []proto.Address{{Prefix: netip.MustParsePrefix("192.0.2.7/24")}, {Prefix: netip.MustParsePrefix("2001:db8::7/64")}, {Prefix: netip.MustParsePrefix("fe80::7/64")}},
		Routes:     []proto.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.1")}, {Dst: netip.MustParsePrefix("::/0"), Via: netip.MustParseAddr("fe80::1")}},
		Neighbours: []proto.Neighbour{{Addr: netip.MustParseAddr("192.0.2.1"), MAC: "02:00:00:00:00:01"}},
	}
	first := nic
	first.Routes = []proto.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: netip.MustParseAddr("192.0.2.254")}, {Dst: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.1")}}
	first.Neighbours = append(first.Neighbours, proto.Neighbour{Addr: netip.MustParseAddr("192.0.2.99"), MAC: "02:00:00:00:00:99"})
	if err := m.Guest.Call(ctx, proto.OpNIC, first, nil); err != nil {
		t.Fatal(err)
	}
	nic.Addresses[1].Prefix = netip.MustParsePrefix("2001:db8::8/64") // it may be given others later
	if err := m.Guest.Call(ctx, proto.OpNIC, nic, nil); err != nil {
		t.Fatal(err)
	}
	missing := nic
	missing.MAC = "nonsense"
	if err := m.Guest.Call(ctx, proto.OpNIC, missing, nil); err == nil {
		t.Error("a NIC without a MAC was taken")
	}

	script := `set -- $(busybox ip -o link | busybox wc -l); echo links $1
busybox ip addr show dev eth0; busybox ip route; busybox ip -6 route; busybox ip neigh
echo share >/written; read line; echo got $line; echo oops >&2; exit 7`
	raw := marshal(t, guestSpec(script, agent.CompartmentPath))
	if err := m.Guest.Call(ctx, proto.OpRun, proto.Run{Process: "main", Share: shareTag, Spec: raw, Stdin: true}, nil); err != nil {
		t.Fatal(err)
	}
	if got := look(ctx, t, m, "while"); got != "lo lo" {
		t.Errorf("while the container runs, the utility VM sees %q", got)
	}
	in := stream(t, m, "main", 0)
	if _, err := io.WriteString(in, "a line\n"); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	out, errs := stream(t, m, "main", 1), stream(t, m, "main", 2)
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(errs)
	if err != nil || string(said) != "oops\n" {
		t.Errorf("on its stderr: %q, %v", said, err)
	}
	for _, want := range []string{
		"links 2\n", "mtu 1400", "inet 192.0.2.7/24", "inet6 2001:db8::8/64", "inet6 fe80::7/64", "default via 192.0.2.1", "default via fe80::1",
		"192.0.2.1 dev eth0 lladdr 02:00:00:00:00:01", "got a line\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the container does not say %q", want)
		}
	}
	for _, gone := range []string{"2001:db8::7", "192.0.2.254", "198.51.100.0", "192.0.2.99"} {
		if strings.Contains(string(text), gone) {
			t.Errorf("%s, which it is not to have any more, is still there", gone)
		}
	}
	if t.Failed() {
		t.Logf("it said:\n%s", text)
	}
	var exit proto.Exit
	if err := m.Guest.Call(ctx, proto.OpWait, proto.Process{Process: "main"}, &exit); err != nil || exit.Code != 7 {
		t.Errorf("its end: %+v, %v", exit, err)
	}
	if got := look(ctx, t, m, "after"); got != "lo lo" {
		t.Errorf("after the container's end, the utility VM sees %q", got)
	}
	if got, err := os.ReadFile(filepath.Join(share, "rootfs/written")); err != nil || string(got) != "share\n" {
		t.Errorf("what it wrote: %q, %v", got, err)
	}
	if err := m.Guest.Call(ctx, proto.OpSignal, proto.Signal{Process: "main", Signal: 9}, nil); err == nil {
		t.Error("a process that is gone was signalled")
	}

	// The end of QEMU ends everything that waits for the guest, with a reason.
	_ = m.qemu.cmd.Process.Kill()
	select {
	case <-m.Guest.Done():
	case <-ctx.Done():
		t.Fatal("the guest is still spoken with")
	}
	<-m.Ended()
	if why := m.Why(); !strings.Contains(why, "killed") {
		t.Errorf("why it ended: %s", why)
	}
}

// TestBootFails holds that a guest that does not come up is ended, tried once more, and said why.
func TestBootFails(t *testing.T) {
	t.Parallel()
	cfg, _ := bench(t, false)
	cfg.Patience = Patience{CPU: 200 * time.Millisecond, Time: time.Minute} // no guest is that fast
	m, err := Boot(t.Context(), cfg)
	if err == nil {
		m.Close()
		t.Fatal("it came up")
	}
	var silent *silentError
	if !errors.As(err, &silent) || !strings.Contains(err.Error(), "twice") || !strings.Contains(err.Error(), "TCG") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

func stream(t *testing.T, m *Machine, process string, fd int) io.ReadWriteCloser {
	t.Helper()
	s, err := m.Guest.Stream(t.Context(), proto.OpStdio, proto.Stdio{Process: process, FD: fd}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTemplate restores two VMs from one that was saved: each has its own time and entropy, its files on a disk and a NIC, and nothing of
// the other.
func TestTemplate(t *testing.T) {
	t.Parallel()
	cfg, files := bench(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "template-1")
	if err := Save(ctx, cfg, path); err != nil {
		t.Fatal(err)
	}
	cfg.Template = path
	said := map[string]bool{}
	var last *Machine
	for range 2 {
		began := time.Now()
		m, err := Boot(ctx, cfg)
		t.Logf("restored in %v", time.Since(began))
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if last = m; m.Spoiled != nil {
			t.Fatalf("it was booted: %v", m.Spoiled)
		}
		if err := m.QMP.Do(ctx, "netdev_add", map[string]any{"type": "hubport", "id": "n0", "hubid": 0}, nil); err != nil {
			t.Fatal(err)
		}
		if err := m.QMP.Do(ctx, "device_add", map[string]any{"driver": "virtio-net-pci", "id": "nic0", "netdev": "n0", "mac": "02:00:00:00:00:42", "bus": "slot0"}, nil); err != nil {
			t.Fatal(err)
		}
		nic := proto.NIC{MAC: "02:00:00:00:00:42", Name: "eth0", MTU: 1500, Addresses: []proto.Address{{Prefix: netip.MustParsePrefix("192.0.2.7/24")}}}
		if err := m.Guest.Call(ctx, proto.OpNIC, nic, nil); err != nil {
			t.Fatal(err)
		}
		script := `busybox date +%s; busybox cat /proc/sys/kernel/random/boot_id; busybox head -c 16 /dev/urandom | busybox od -An -tx1; busybox ip -o addr show dev eth0`
		d := newDisks(m.QMP)
		disk := filepath.Join(t.TempDir(), "root-disk")
		if err := MakeRootDisk(ctx, disk, files); err != nil {
			t.Fatal(err)
		}
		runOnDisk(ctx, t, m, d, "main", disk, script)
		text, err := io.ReadAll(stream(t, m, "main", 1))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		if len(lines) < 4 || !strings.Contains(lines[3], "192.0.2.7/24") {
			t.Fatalf("it said %q", text)
		}
		now, err := strconv.ParseInt(lines[0], 10, 64)
		if ago := time.Since(time.Unix(now, 0)); err != nil || ago < -2*time.Second || ago > time.Minute {
			t.Errorf("its clock is %v behind (%v)", ago, err)
		}
		for _, drawn := range lines[1:3] {
			if drawn == "" || said[drawn] {
				t.Errorf("both drew %q", drawn)
			}
			said[drawn] = true
		}
	}

	testMemberDisk(ctx, t, last, files)

	// What is no template is found out.
	if err := os.WriteFile(filepath.Join(path, stateFile), []byte("no VM at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := restore(ctx, cfg)
	if err == nil {
		m.Close()
		t.Error("a VM was restored from nothing")
	}
	t.Log(err)
	if left, _ := filepath.Glob(path + ".new"); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

// runOnDisk starts a container whose files are on a disk, and gives the disk's number.
func runOnDisk(ctx context.Context, t *testing.T, m *Machine, d *disks, name, disk, script string) string {
	t.Helper()
	serial, err := d.plug(ctx, disk)
	if err != nil {
		t.Fatal(err)
	}
	spec := guestSpec(script, agent.CompartmentPath)
	spec.Root.Path = filepath.Join(agent.RootsDir, name, RootOnDisk)
	spec.Linux.CgroupsPath = CgroupOf(name)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/hosts", Type: "bind", Source: filepath.Join(agent.HandedDir, name, "hosts"), Options: []string{"bind"}})
	run := proto.Run{
		Process: name, Root: serial, Place: name, Member: name != "main", Stdin: true, Spec: marshal(t, spec),
		Files: []proto.File{{Name: "hosts", Text: []byte("before")}},
	}
	if err := m.Guest.Call(ctx, proto.OpRun, run, nil); err != nil {
		t.Fatal(err)
	}
	return serial
}

// testMemberDisk plugs the disk of a further container into a VM that runs, and takes it out at the container's end, twice: what was
// written by the first is there for the second.
func testMemberDisk(ctx context.Context, t *testing.T, m *Machine, files string) {
	t.Helper()
	d := newDisks(m.QMP)
	d.count = 1 // beside the one of the container whose VM it is
	disk := filepath.Join(t.TempDir(), "root-disk")
	if err := MakeRootDisk(ctx, disk, files); err != nil {
		t.Fatal(err)
	}
	for round, want := range []string{"none: now after 0", "written: now after 0"} {
		script := `busybox printf '%s: ' "$(busybox cat /file 2>/dev/null || echo none)"; read word; busybox printf '%s ' $word $(busybox cat /hosts) 0; busybox printf written >/file`
		serial := runOnDisk(ctx, t, m, d, "member", disk, script)
		if err := m.Guest.Call(ctx, proto.OpFiles, proto.Files{Process: "member", Files: []proto.File{{Name: "hosts", Text: []byte("after")}}}, nil); err != nil {
			t.Error(err)
		}
		c, err := m.Guest.Stream(ctx, proto.OpRead, proto.Read{Process: "member", Path: "/hosts"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); err != nil || string(text) != "after" {
			t.Errorf("a file of it holds %q, %v", text, err)
		}
		in := stream(t, m, "member", 0)
		_, _ = io.WriteString(in, "now\n")
		_ = in.Close()
		text, err := io.ReadAll(stream(t, m, "member", 1))
		if got := strings.TrimSpace(string(text)); err != nil || got != want {
			t.Errorf("round %d: it says %q, %v; want %q", round, got, err, want)
		}
		var exit proto.Exit
		if err := m.Guest.Call(ctx, proto.OpWait, proto.Process{Process: "member"}, &exit); err != nil || exit.Code != 0 {
			t.Errorf("its end: %+v, %v", exit, err)
		}
		if err := d.unplug(ctx, serial); err != nil {
			t.Error(err)
		}
	}
}

// TestRestoreKilled holds that a template is not blamed for a QEMU that somebody has killed.
func TestRestoreKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, script := range map[string]string{"killed": "kill -KILL $$", "failed": "exit 1", "silent": "exec sleep 60"} {
		qemu := filepath.Join(dir, name)
		if err := os.WriteFile(qemu, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{stateFile, memoryFile} {
			if err := os.WriteFile(filepath.Join(dir, file), make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		m, err := restore(ctx, Config{QEMU: qemu, Template: dir, Hardware: Hardware{Accel: AccelTCG, CPUs: 1, Memory: 1 << 20}})
		cancel()
		if err == nil {
			m.Close()
			t.Fatalf("%s: a script restores a VM", name)
		}
		if got := errors.Is(err, errKilled); got != (name == "killed") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
