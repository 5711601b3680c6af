package testhost_test

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

func TestCable(t *testing.T) {
	t.Parallel()
	a, b := testhost.New(t, testhost.WithName("a")), testhost.New(t, testhost.WithName("b"))
	a.Connect(b, testhost.Cable{
		Dev: "left", Addrs: []string{"192.0.2.1/24", "2001:db8::1/64"},
		PeerDev: "right", PeerAddrs: []string{"192.0.2.2/24", "2001:db8::2/64"},
		MTU: 1400,
	})
	for _, dst := range []string{"192.0.2.2", "2001:db8::2"} {
		if err := a.Ping(netip.MustParseAddr(dst)); err != nil {
			t.Error(err)
		}
	}
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := b.Ping(netip.MustParseAddr(dst)); err != nil {
			t.Error(err)
		}
	}
	for _, dst := range []string{"192.0.2.77", "2001:db8::77"} {
		if err := b.Silent(netip.MustParseAddr(dst)); err != nil {
			t.Error(err)
		}
	}
	if err := b.Silent(netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("Silent about an address that answers")
	}
	if mtu := b.Link("right").Attrs().MTU; mtu != 1400 {
		t.Errorf("peer MTU %d, want 1400", mtu)
	}
}

// TestRoutedLAN has a router between two LANs; nothing passes until it forwards.
func TestRoutedLAN(t *testing.T) {
	t.Parallel()
	left, right := testhost.Switch(t), testhost.Switch(t)
	a, r, b := testhost.New(t), testhost.New(t), testhost.New(t)
	left.Plug(a, "eth0", "192.0.2.1/24", "2001:db8:1::1/64")
	left.Plug(r, "eth0", "192.0.2.254/24", "2001:db8:1::fe/64")
	right.Plug(r, "eth1", "198.51.100.254/24", "2001:db8:2::fe/64")
	right.Plug(b, "eth0", "198.51.100.1/24", "2001:db8:2::1/64")
	a.Route("default", "192.0.2.254")
	a.Route("default", "2001:db8:1::fe")
	b.Route("192.0.2.0/24", "198.51.100.254")
	b.Route("2001:db8:1::/64", "2001:db8:2::fe")
	dsts := []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:2::1")}
	for _, dst := range dsts {
		if err := a.Silent(dst); err != nil {
			t.Errorf("before forwarding: %v", err)
		}
	}
	r.Forwarding(true)
	for _, dst := range dsts {
		if err := a.Ping(dst); err != nil {
			t.Error(err)
		}
	}
}

func TestNamespaceInHost(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	c := h.NewNamespace("box")
	h.Connect(c, testhost.Cable{Dev: "veth0", Addrs: []string{"192.0.2.1/24"}, PeerAddrs: []string{"192.0.2.2/24"}})
	if err := c.Ping(netip.MustParseAddr("192.0.2.1")); err != nil {
		t.Error(err)
	}
	if got := c.Run(t, "ls", "/sys/class/net", "/run/netns"); !strings.Contains(got, "box") {
		t.Errorf("namespace does not see the host's /run/netns: %s", got)
	}
	if got := h.Run(t, "ip", "netns", "exec", "box", "cat", "/proc/net/dev"); !strings.Contains(got, "eth0") {
		t.Errorf("ip netns exec does not find eth0: %s", got)
	}
	if _, err := os.Stat("/run/netns/box"); err == nil {
		t.Error("the namespace shows on the real machine")
	}
}

func TestProcessesDieWithTheirHost(t *testing.T) {
	testhost.RequireRoot(t)
	t.Parallel()
	var direct *testhost.Cmd
	var detached int
	t.Run("host", func(t *testing.T) {
		h := testhost.New(t)
		direct = h.Command(t.Context(), "sleep", "1000.25")
		if err := direct.Start(); err != nil {
			t.Fatal(err)
		}
		marker := fmt.Sprintf("1000.%d", h.PID())
		h.Run(t, "bash", "-c", "setsid sleep "+marker+" >/dev/null 2>&1 </dev/null &")
		testhost.Eventually(t, 5*time.Second, func() error {
			detached = findProcess(marker)
			if detached == 0 {
				return fmt.Errorf("the detached sleep %s does not run", marker)
			}
			return nil
		})
	})
	if alive(direct.Process.Pid) {
		t.Error("a started command outlives its host")
	}
	if alive(detached) {
		t.Error("a detached process outlives its host")
	}
}

// TestHostsDieWithTheTestProcess kills another run of this test, which holds a host with a daemon in it.
func TestHostsDieWithTheTestProcess(t *testing.T) {
	testhost.RequireRoot(t)
	if os.Getenv("TESTHOST_HOLD") != "" {
		h := testhost.New(t)
		h.Run(t, "bash", "-c", "setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
		fmt.Fprintf(os.Stderr, "holding %s\n", h.Run(t, "readlink", "/proc/1/ns/pid"))
		<-t.Context().Done()
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	victim := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestHostsDieWithTheTestProcess$")
	victim.Env = append(os.Environ(), "TESTHOST_HOLD=1")
	stderr, err := victim.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(stderr).ReadString('\n')
	pidns, ok := strings.CutPrefix(strings.TrimSpace(line), "holding ")
	if !ok || processesIn(pidns) == 0 {
		t.Errorf("the other run made no host: %q", line)
	}
	defer hold(t, pidns)()
	_ = victim.Process.Kill()
	_ = victim.Wait()
	testhost.Eventually(t, 20*time.Second, func() error {
		if n := processesIn(pidns); n > 0 {
			return fmt.Errorf("%d processes live on after the test process was killed", n)
		}
		return nil
	})
}

// hold keeps the number of a PID namespace from being given to another one, of a test that runs beside this, until the
// function that it returns is called.
func hold(t *testing.T, pidns string) (release func()) {
	t.Helper()
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, l := range links {
		f, err := os.Open(l)
		if err != nil {
			continue // a process that ended meanwhile
		}
		if target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err == nil && target == pidns {
			return func() { _ = f.Close() }
		}
		_ = f.Close()
	}
	t.Errorf("no process is in %s", pidns)
	return func() {}
}

// processesIn counts the processes of a PID namespace.
func processesIn(pidns string) int {
	n := 0
	links, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, l := range links {
		if target, _ := os.Readlink(l); target == pidns {
			n++
		}
	}
	return n
}

// findProcess finds a process by its last argument.
func findProcess(arg string) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if strings.HasSuffix(string(cmdline), "\x00"+arg+"\x00") {
			pid, _ := strconv.Atoi(e.Name())
			return pid
		}
	}
	return 0
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestKillReachesTheProgram(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	c := h.Command(t.Context(), "sleep", "1000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.Kill()
	if got := h.Run(t, "bash", "-c", "cat /proc/[0-9]*/comm"); strings.Contains(got, "sleep") {
		t.Errorf("sleep lives on: %s", got)
	}
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, want SIGKILL", c.ProcessState)
	}
}

// TestDoMount makes a namespace and a mount in-process; both show in the host and not on the machine.
func TestDoMount(t *testing.T) {
	t.Parallel()
	h := testhost.New(t)
	var errs []error
	h.DoMount(func() {
		errs = append(errs,
			os.Mkdir("/run/bulkhead/m", 0o755),
			unix.Mount("tmpfs", "/run/bulkhead/m", "tmpfs", 0, ""),
			os.WriteFile("/run/bulkhead/m/file", []byte("here"), 0o644))
		_, err := os.Stat("/proc/self/ns/net")
		errs = append(errs, err)
	})
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if got := h.Run(t, "cat", "/run/bulkhead/m/file"); got != "here" {
		t.Errorf("in the host: %q", got)
	}
	if _, err := os.Stat("/run/bulkhead/m/file"); err == nil {
		t.Error("the mount shows on the real machine")
	}
	self, _ := os.Readlink("/proc/self/ns/mnt")
	one, _ := os.Readlink(fmt.Sprintf("/proc/%d/task/%d/ns/mnt", os.Getpid(), os.Getpid()))
	if self != one {
		t.Errorf("the first thread is in another mount namespace: %s, %s", self, one)
	}
}

// TestNothingIsLeft compares the machine before and after hosts with all sorts of things in them.
func TestNothingIsLeft(t *testing.T) {
	testhost.RequireRoot(t)
	const parent = "/sys/fs/cgroup"
	var group string
	var pidns string
	release := func() {}
	defer func() { release() }()
	t.Run("host", func(t *testing.T) {
		h := testhost.New(t)
		group = h.CgroupParent()
		pidns = strings.TrimSpace(h.Run(t, "readlink", "/proc/1/ns/pid"))
		release = hold(t, pidns)
		h.Run(t, "bash", "-c", `for d in /sys/fs/cgroup/memory /sys/fs/cgroup/unified /sys/fs/cgroup; do
			[ -e $d/cgroup.procs ] || continue
			mkdir -p $d`+group+`/leaf && echo $$ >$d`+group+`/leaf/cgroup.procs
			made=1
		done; [ "$made" ]; setsid sleep 1000 >/dev/null 2>&1 </dev/null &`)
		h.Run(t, "ip", "netns", "add", "left")
		h.Run(t, "mount", "-t", "tmpfs", "x", "/var/lib/bulkhead")
	})
	found, _ := exec.CommandContext(t.Context(), "find", parent, "-name", strings.TrimPrefix(group, "/")).Output()
	if len(found) != 0 {
		t.Errorf("cgroups left: %s", found)
	}
	links, _ := exec.CommandContext(t.Context(), "bash", "-c", "readlink /proc/[0-9]*/ns/pid").Output()
	if strings.Contains(string(links), pidns) {
		t.Error("the PID namespace still has processes")
	}
	if data, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(data), "testhost") {
		t.Errorf("mounts left:\n%s", data)
	}
}

func TestTwentyHosts(t *testing.T) {
	lan := testhost.Switch(t)
	lan.Addr("br0", "192.0.2.254/24", "2001:db8::fe/64")
	for i := range 20 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			h := testhost.New(t)
			lan.Plug(h, "eth0", fmt.Sprintf("192.0.2.%d/24", i+1), fmt.Sprintf("2001:db8::%x/64", i+1))
			for _, dst := range []string{"192.0.2.254", "2001:db8::fe"} {
				if err := h.Ping(netip.MustParseAddr(dst)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
