package e2e

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// machine is a further host of a story, with a daemon of its own.
type machine struct {
	host   *testhost.Host
	daemon *testhost.Cmd
	log    string
	before string
}

func (w *world) machine(ts *testscript.TestScript, name string) *machine {
	m := w.machines[name]
	if m == nil {
		ts.Fatalf("there is no machine %q: make it with machine %s ADDRESSES…", name, name)
	}
	return m
}

// cmdMachine is machine NAME ADDRESSES…: the LAN is its router, and has the first address of each prefix.
func cmdMachine(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	m := &machine{host: testhost.New(w.t, testhost.WithName(args[0])), log: filepath.Join(ts.Getenv("WORK"), "daemon-"+args[0]+".log")}
	c := testhost.Cable{Dev: "eth0", PeerDev: "to-" + args[0]}
	for _, a := range args[1:] {
		p := netip.MustParsePrefix(a)
		router := netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
		c.Addrs = append(c.Addrs, a)
		c.PeerAddrs = append(c.PeerAddrs, router.String())
	}
	m.host.Connect(w.lan, c)
	for _, a := range args[1:] {
		m.host.Route("default", netip.MustParsePrefix(a).Masked().Addr().Next().String())
	}
	w.lan.Forwarding(true)
	m.host.Run(w.t, "sh", "-c", "rm -f /etc/resolv.conf && : >/etc/resolv.conf; ip netns list")
	m.before = m.host.Snapshot(w.t)
	w.machines[args[0]] = m
}

func cmdOn(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if len(args) < 2 || args[1] != "daemon" {
		run("on")(ts, neg, args)
		return
	}
	m := w.machine(ts, args[0])
	switch args[2] {
	case "start":
		ts.Check(w.startOn(ts, args[0], m, args[3:]))
	case "kill":
		m.daemon.Kill()
	case "stop":
		_ = m.daemon.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(patience, m.daemon.Kill)
		_ = m.daemon.Wait()
		timer.Stop()
	default:
		ts.Fatalf("on %s daemon %s: want start, kill or stop", args[0], args[2])
	}
}

func (w *world) startOn(ts *testscript.TestScript, name string, m *machine, flags []string) error {
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	words := append([]string{"on", name, "bulkhead", "daemon", "--cgroup-parent", m.host.CgroupParent()}, flags...)
	c := w.prepare(context.WithoutCancel(w.t.Context()), ts, words)
	c.Dir = "/"
	c.Stdout, c.Stderr = log, log
	if err := c.Start(); err != nil {
		return err
	}
	m.daemon = c
	go func() { _ = c.Wait() }()
	until(ts, []string{"on", name, "bulkhead", "info"}, "the daemon of "+name+" answers", func(_ string, err error) bool { return err == nil })
	return nil
}

// finishMachines ends their daemons; the hosts must be as before.
func (w *world) finishMachines() {
	for name, m := range w.machines {
		if m.daemon == nil {
			continue
		}
		m.daemon.Kill()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), limit)
		out, err := m.host.Command(ctx, made.binary, "reset", "--yes", "--cgroup-parent", m.host.CgroupParent()).CombinedOutput()
		cancel()
		if err != nil {
			w.t.Errorf("reset of %s: %v\n%s", name, err, out)
		}
		if !w.t.Failed() {
			testhost.Eventually(w.t, 5*time.Second, func() error { return differs(m.before, m.host.Snapshot(w.t)) })
		}
		if w.t.Failed() {
			b, _ := os.ReadFile(m.log)
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			w.t.Logf("the end of %s:\n%s", filepath.Base(m.log), strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	}
}

func differs(want, got string) error {
	if want == got {
		return nil
	}
	return errors.New("the host differs (-before +now):\n" + cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
}
