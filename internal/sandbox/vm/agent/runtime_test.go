package agent

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSealedRuntime: it runs from a file that nobody can write to, which is what runtimes look for before they copy themselves.
func TestSealedRuntime(t *testing.T) {
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	path, err := sealedRuntime(shell)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || got != all {
		t.Errorf("its seals are %#x, %v: want %#x", got, err, all)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	ps := newProcesses(path)
	ends, err := ps.callRuntime([]string{"unknown"}, [3]*os.File{null, null, null})
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); pause() {
		ps.collect()
		select {
		case st := <-ends:
			if st.ExitStatus() != 2 && st.ExitStatus() != 127 { // a shell's word on an option that it does not know
				t.Errorf("it ended with %d", st.ExitStatus())
			}
			return
		default:
		}
	}
	t.Error("its end was not told")
}
