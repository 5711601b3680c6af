package e2e

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// tours are the documents whose commands are tried, with how many there are at least, and what has to be there before.
var tours = map[string]tourist{
	"README.md":       {least: 20},
	"docs/observe.md": {least: 14},
	"docs/explain.md": {least: 14},
	"docs/lan.md":     {least: 17, before: lanOfTour},
}

type tourist struct {
	least  int
	before string
	daemon []string      // flags
	limit  time.Duration // of a command, where it is not that of all
}

// lanOfTour is the LAN of docs/lan.md: three NICs of the host at one switch, with a router that gives out addresses and has that of 192.168.1.40.
const lanOfTour = `set -e
	bulkhead image import --cmd sh rootfs.tar box
	ip netns add router
	ip -n router link add br0 address 3c:52:82:11:22:33 type bridge
	ip -n router link set br0 up
	for i in 0 1 2; do
		ip link add eth$i type veth peer name p$i netns router
		ip -n router link set p$i master br0 up
		ip link set eth$i up
	done
	for a in 10.0.0 192.168.1 192.168.2 192.168.3; do ip -n router addr add $a.1/24 dev br0; done
	ip -n router addr add 192.168.1.40/24 dev br0
	ip addr add 10.0.0.5/24 dev eth0
	ip addr add 192.168.1.5/24 dev eth1
	ip route add default via 10.0.0.1
	ip netns exec router dnsmasq --conf-file=/dev/null --port=0 --interface=br0 --bind-interfaces --user=root --pid-file= --no-ping \
		--dhcp-authoritative --dhcp-leasefile=/run/leases --dhcp-range=192.168.1.100,192.168.1.109,1h --dhcp-option=option:router,192.168.1.1`

// TestTours runs the commands of the documents' tours, one after the other, on a host where the daemon has just been
// started and rootfs.tar lies in the directory, made as the README says. Each must succeed, but for those that are shown to be
// refused, and say what is shown.
func TestTours(t *testing.T) {
	t.Parallel()
	for file, about := range tours {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			runTour(t, "../../"+file, about)
		})
	}
}

func runTour(t *testing.T, file string, about tourist) {
	t.Helper()
	least, before := about.least, about.before
	if about.limit == 0 {
		about.limit = limit
	}
	h := testhost.New(t, testhost.WithName("host"))
	h.Run(t, "sh", "-c", "rm -f /etc/resolv.conf && : >/etc/resolv.conf")
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "../../scripts/rootfs.sh", dir+"/rootfs.tar").CombinedOutput(); err != nil {
		t.Fatalf("make the image of the tours: %v\n%s", err, out)
	}
	run := func(line string) (string, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), about.limit)
		defer cancel()
		c := h.Command(ctx, "bash", "-c", line)
		c.Dir = dir
		c.Env = append(os.Environ(), "PATH="+made.dir+":"+os.Getenv("PATH"))
		c.WaitDelay = time.Second
		out, err := c.CombinedOutput()
		return string(out), err
	}
	daemon := h.Command(context.WithoutCancel(t.Context()), made.binary, append([]string{"daemon", "--cgroup-parent", h.CgroupParent()}, about.daemon...)...)
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		daemon.Kill()
		if out, err := run("bulkhead reset --yes --cgroup-parent " + h.CgroupParent()); err != nil {
			t.Errorf("reset: %v\n%s", err, out)
		}
	})
	testhost.Eventually(t, patience, func() error { _, err := run("bulkhead info"); return err })
	if out, err := run(before); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	steps := tour(t, file)
	if len(steps) < least {
		t.Fatalf("%s has only %d commands in its tour", file, len(steps))
	}
	for _, s := range steps {
		out, err := run(s.command)
		if refused := strings.HasPrefix(s.shown, "bulkhead: "); (err != nil) != refused || !shows(out, s.shown) {
			t.Fatalf("%s: %v\n%s\nwant:\n%s", s.command, err, out, s.shown)
		}
	}
}

// shows tells whether what is printed is what is shown, where "…" stands for anything, and no number or MAC counts.
func shows(printed, shown string) bool {
	same := regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}|[0-9]+`)
	parts := strings.Split(same.ReplaceAllString(shown, "N"), "…")
	for i, p := range parts {
		parts[i] = regexp.QuoteMeta(p)
	}
	return shown == "" || regexp.MustCompile(`(?s)^`+strings.Join(parts, ".*")).MatchString(same.ReplaceAllString(printed, "N"))
}

// step is a command of a tour and what is shown of what it prints.
type step struct{ command, shown string }

// tour gives the commands of the blocks that follow a line "<!-- tour -->".
func tour(t *testing.T, file string) []step {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var steps []step
	for _, block := range strings.Split(string(text), "<!-- tour -->\n```console\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		block = strings.ReplaceAll(block, "\\\n", "")
		for line := range strings.Lines(block) {
			command, ok := strings.CutPrefix(line, "$ ")
			switch {
			case ok:
				steps = append(steps, step{command: strings.TrimSpace(command)})
			case len(steps) == 0:
				t.Fatalf("%s: a tour begins with no command: %q", file, line)
			default:
				steps[len(steps)-1].shown += line
			}
		}
	}
	return steps
}
