package overlay

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// inside is set in the process that has a network of its own.
const inside = "BULKHEAD_OVERLAY_TEST_INSIDE"

// TestMain runs the tests in a network of their own, where loopback has the addresses of many hosts. Without root they run as they
// are, and those that need the addresses are skipped.
func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		for _, args := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", "192.0.2.1/24", "dev", "lo"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil { //nolint:noctx,forbidigo // before any test
				fmt.Fprintf(os.Stderr, "ip %v: %v: %s\n", args, err, out)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx,forbidigo // it is the test
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(max(1, exit.ExitCode()))
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
