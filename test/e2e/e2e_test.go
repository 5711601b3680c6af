// Package e2e drives the real binary: each *.txtar here is a story, told by commands that run on a throwaway host.
//
//	┌ host ────────────────────────────────┐      ┌ lan ───────────────────────────────┐
//	│ bulkhead daemon, containers          │      │ web server on port 80: answers     │
//	│ eth0 192.0.2.10/24 2001:db8:1::10/64 ┼──────┼ "lan sees CLIENT-ADDRESS"          │
//	│ default route to lan                 │      │ eth0 192.0.2.20/24 2001:db8:1::20  │
//	└──────────────────────────────────────┘      │ lo   198.51.100.80 2001:db8:2::80  │
//	                                              │ name server on 198.51.100.80:53    │
//	                                              └────────────────────────────────────┘
//
// The commands beside those of testscript are in commands_test.go. When a story ends, the daemon is stopped and reset is
// run, and the host must look as it did before: so every story is a test of leaks too.
package e2e

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// binary and image are made once, by TestMain.
type built struct{ dir, binary, image, manifest string }

var made built //nolint:gochecknoglobals // TestMain has no other way to hand something to tests

func TestMain(m *testing.M) {
	if do := programs()[filepath.Base(os.Args[0])]; do != nil {
		if err := do(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// programs are those that this process is when it is called by such a name, and not the tests.
func programs() map[string]func(args []string) error {
	return map[string]func([]string) error{rogueName: rogue, criName: criMain, kubeName: kubeMain, kubeAPIName: kubeAPIMain, hnsName: hnsMain, guestName: guestMain}
}

func build(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return m.Run(), nil // every test skips, or fails with REQUIRE_ROOT
	}
	if err := moreAtOnce(); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "bulkhead-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	made = built{dir: dir, binary: filepath.Join(dir, "bulkhead"), image: filepath.Join(dir, "box.tar")}
	if made.manifest, err = filepath.Abs("../../packaging/kubernetes/bulkhead.yaml"); err != nil {
		return 1, err
	}
	if err := buildBinary(); err != nil {
		return 1, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return 1, err
	}
	for name, what := range map[string]string{"bulkhead-cni": "../../cmd/bulkhead-cni", "bulkhead-agent": "../../cmd/bulkhead-agent", "bulkhead-kube-proxy": "../../cmd/bulkhead-kube-proxy", "cnitool": "github.com/containernetworking/cni/cnitool"} {
		if err := goBuild(filepath.Join(dir, name), what); err != nil {
			return 1, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	for name := range programs() {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			return 1, err
		}
	}
	echo := filepath.Join(dir, "echo")
	if err := goBuild(echo, "testdata/echo.go"); err != nil {
		return 1, err
	}
	if err := writeBox(made.image, echo); err != nil {
		return 1, fmt.Errorf("make the image: %w", err)
	}
	return m.Run(), nil
}

// moreAtOnce has one story more at a time than there are CPUs, for stories wait half of their time. With two more, what asks a LAN and
// waits for some tenths of a second comes too late at times. An -parallel that is given holds.
func moreAtOnce() error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(runtime.NumCPU()+1))
}

// buildBinary builds what is in the tree, or takes the one that BULKHEAD_BINARY names: a package to be released, or one
// built for coverage.
func buildBinary() error {
	if given := os.Getenv("BULKHEAD_BINARY"); given != "" {
		return os.Symlink(given, made.binary)
	}
	return goBuild(made.binary, "../../cmd/bulkhead")
}

func goBuild(out, what string) error {
	cmd := exec.CommandContext(context.Background(), "go", "build", "-ldflags", "-s -w", "-o", out, what)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", what, err, text)
	}
	return nil
}

func TestStories(t *testing.T) {
	t.Parallel()
	tell(t, ".")
}

// tell runs the stories of a directory.
func tell(t *testing.T, dir string) {
	t.Helper()
	testhost.RequireRoot(t)
	testscript.Run(t, testscript.Params{
		Dir:   dir,
		Setup: setup,
		Cmds:  commands(),
		// A name that is misspelt would otherwise be an empty word.
		RequireUniqueNames: true,
		// What is said of VMs, and what they differ in: [vm] and [!vm].
		Condition: func(name string) (bool, error) {
			if name != "vm" {
				return false, fmt.Errorf("there is no condition %q", name)
			}
			return os.Getenv(isolationEnv) == "vm", nil
		},
	})
}

// world is what a story runs in.
type world struct {
	t         testing.TB
	host, lan *testhost.Host
	daemon    *testhost.Cmd
	log       string // the daemon's output, a file
	jobs      map[string]*job
	before    string
	snapshots map[string]string
	imported  bool
	machines  map[string]*machine
}

type worldKey struct{}

func setup(env *testscript.Env) error {
	t, ok := env.T().(testing.TB)
	if !ok {
		return fmt.Errorf("%T is no testing.TB", env.T())
	}
	w := &world{
		t: t, host: testhost.New(t, testhost.WithName("host")), lan: testhost.New(t, testhost.WithName("lan")),
		log: filepath.Join(env.WorkDir, "daemon.log"), jobs: map[string]*job{}, snapshots: map[string]string{}, machines: map[string]*machine{},
	}
	w.host.Connect(w.lan, testhost.Cable{
		Addrs:     []string{"192.0.2.10/24", "2001:db8:1::10/64"},
		PeerAddrs: []string{"192.0.2.20/24", "2001:db8:1::20/64"},
	})
	w.host.Route("default", "192.0.2.20")
	w.host.Route("default", "2001:db8:1::20")
	w.lan.Addr("lo", "198.51.100.80/32", "2001:db8:2::80/128")
	w.lan.ListenHTTP(netip.MustParseAddrPort("[::]:80"), nil) // IPv4 too
	if err := serveNames(w.lan, t.Cleanup); err != nil {
		return err
	}
	w.host.Run(t, "sh", "-c", "rm -f /etc/resolv.conf && : >/etc/resolv.conf")
	// The first namespace that ip makes turns /run/netns into a mount, for good: that is the machine's, not what a story left.
	w.host.Run(t, "sh", "-c", "ip netns add first && ip netns del first")
	env.Values[worldKey{}] = w
	env.Setenv("IMAGE", made.image)
	env.Setenv("BIN", made.dir)
	guest, err := filepath.Abs("../../.cache/vm") // a kernel for VMs, which scripts/deps.sh unpacks
	if err != nil {
		return err
	}
	env.Setenv("KUBEIMAGE", os.Getenv("BULKHEAD_KUBE_IMAGE"))
	env.Setenv("VMKERNEL", guest)
	env.Setenv("VMLEAKS", cmp.Or(os.Getenv("BULKHEAD_VM_LEAKS"), "50"))
	env.Setenv("VMFILES", cmp.Or(os.Getenv("BULKHEAD_VM_FILES"), "auto"))
	hostImage, err := filepath.Abs("../../scripts/host-image.sh")
	if err != nil {
		return err
	}
	env.Setenv("HOSTIMAGE", hostImage)
	env.Setenv("CGROUP", w.host.CgroupParent())
	env.Setenv("STORM", cmp.Or(os.Getenv("BULKHEAD_STORM"), "5"))
	w.before = w.host.Snapshot(t)
	env.Defer(w.finish)
	return nil
}
