package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// roleEnv makes this binary a helper process instead of a test; see RunRole.
const roleEnv = "BULKHEAD_BENCH_ROLE"

// RunRole does the work of a helper process and tells whether it was one.
func RunRole() (code int, ok bool) {
	role := os.Getenv(roleEnv)
	if role == "" {
		return 0, false
	}
	var err error
	switch role {
	case "worker":
		runtime.LockOSThread()
		err = (&worker{}).serve(os.Stdin, os.Stdout)
	case "serve":
		err = serveTraffic(os.Args[1:], os.Stdout)
	case "ask":
		err = askTraffic(os.Args[1:], os.Stdout)
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		return 1, true
	}
	return 0, true
}

// order is what the test process asks of a worker, as a line of JSON.
type order struct {
	// Op is attach, detach, or exec.
	Op string
	// Kind names an attacher, for attach and detach.
	Kind  string
	Index int
	// Argv is for exec.
	Argv []string
}

// answer is what comes back, as a line of JSON.
type answer struct {
	Took   time.Duration
	Err    string
	Output string
}

// attacher makes and removes endpoint number i with a compartment of its own.
type attacher interface {
	attach(i int) error
	detach(i int) error
}

// worker lives in a throwaway host and does what it is told, by its own clock.
type worker struct {
	kinds map[string]attacher
}

func (w *worker) serve(in io.Reader, out io.Writer) error {
	lines, enc := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		if err := enc.Encode(w.do(o)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return lines.Err()
}

func (w *worker) do(o order) answer {
	if o.Op == "exec" {
		start := time.Now()
		out, err := exec.CommandContext(context.Background(), o.Argv[0], o.Argv[1:]...).CombinedOutput()
		took := time.Since(start)
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", strings.Join(o.Argv, " "), err, out)
		}
		return result(took, string(out), err)
	}
	a, err := w.kind(o.Kind)
	if err != nil {
		return result(0, "", err)
	}
	start := time.Now()
	if o.Op == "attach" {
		err = a.attach(o.Index)
	} else {
		err = a.detach(o.Index)
	}
	return result(time.Since(start), "", err)
}

func result(took time.Duration, out string, err error) answer {
	a := answer{Took: took, Output: out}
	if err != nil {
		a.Err = err.Error()
	}
	return a
}

// kind gives the attacher of that name, made at its first use.
func (w *worker) kind(name string) (attacher, error) {
	if a := w.kinds[name]; a != nil {
		return a, nil
	}
	var a attacher
	var err error
	switch name {
	case "raw":
		a, err = newRaw()
	case "cni":
		a, err = newCNI("bridge", "portmap")
	case "cni, firewall":
		a, err = newCNI("bridge", "portmap", "firewall")
	case ourPlugin:
		a, err = newCNI(ourPlugin)
	case "netavark":
		a, err = newNetavark()
	default:
		err = errors.New("no such kind")
	}
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", name, err)
	}
	if w.kinds == nil {
		w.kinds = map[string]attacher{}
	}
	w.kinds[name] = a
	return a, nil
}
