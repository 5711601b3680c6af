package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm/proto"
)

// execProcess is what a client of the shim calls its only process.
const execProcess = "exec"

// Exec is a further process of a container on the host: it has the shim start it in the guest, carries its streams and signals, and
// returns its exit code. The document is read from execDir, by its name there.
func Exec(ctx context.Context, dir, name string) int {
	code, err := execIn(ctx, dir, name)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bulkhead:", err)
	}
	return code
}

// The exit codes of shells for commands that cannot be run.
const (
	codeCannotRun = 126
	codeNotFound  = 127
)

func execIn(ctx context.Context, dir, name string) (int, error) {
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	path := filepath.Join(dir, execDir, filepath.Base(name))
	data, err := os.ReadFile(path)
	if err != nil {
		return codeCannotRun, err
	}
	_ = os.Remove(path)
	var e proto.Exec
	if err := json.Unmarshal(data, &e); err != nil {
		return codeCannotRun, fmt.Errorf("read what to run: %w", err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join(dir, controlFile))
	if err != nil {
		return codeCannotRun, fmt.Errorf("reach the VM: %w", err)
	}
	client, err := proto.NewClient(conn)
	if err != nil {
		return codeCannotRun, err
	}
	defer client.Close()
	e.Process, e.Container = execProcess, mainProcess
	if e.TTY {
		e.Size = sizeOf(os.Stdin)
	}
	return execBy(ctx, client, e, signals)
}

// execBy has a guest start a process, which one that never answers does not.
func execBy(ctx context.Context, g guest, e proto.Exec, signals <-chan os.Signal) (int, error) {
	limited, done := within(ctx, startWait)
	err := g.Call(limited, proto.OpExec, e, nil)
	done()
	if err != nil {
		return codeOf(err), err
	}
	go forwardSignals(ctx, g, execProcess, signals, e.TTY, os.Stdin)
	exit, err := carryProcess(ctx, g, execProcess, e.TTY, e.Stdin, os.Stdin, os.Stdout, os.Stderr)
	if err != nil {
		return lostCode, err
	}
	return exit.Code, nil
}

// codeOf is the code of a shell for a command that the guest's OCI runtime could not run.
func codeOf(err error) int {
	text := strings.ToLower(err.Error())
	if strings.Contains(text, "executable file") && strings.Contains(text, "not found") || strings.Contains(text, "no such file or directory") {
		return codeNotFound
	}
	return codeCannotRun
}
