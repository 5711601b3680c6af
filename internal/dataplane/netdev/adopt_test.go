package netdev

import (
	"errors"
	"strings"
	"testing"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TestAdoptedNamespace: the namespace of another runtime is a compartment as long as that runtime wants it, and nothing else in
// it is touched.
func TestAdoptedNamespace(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]string{
		"deleted": "ip netns del theirs", "another has its name": "umount /run/netns/theirs; rm /run/netns/theirs; ip netns add theirs",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, n := open(t)
			h.Run(t, "sh", "-c", "ip netns add theirs && ip -n theirs link add their0 type veth peer name their1 && ip -n theirs addr add 10.1.2.3/24 dev their0")
			inode, held, err := n.Identify("/run/netns/theirs")
			if err != nil || held != "" {
				t.Fatalf("held as %q, %v", held, err)
			}
			if again, _, err := n.Identify("/run/netns/../netns/theirs"); err != nil || again != inode {
				t.Errorf("by another name: %d, %v, want %d", again, err, inode)
			}
			p := onlyNetwork()
			ns, ep := addEndpoint(p, 1)
			ns.Adopted, ep.VNIC.Adopted = &plan.Adopted{Path: "/run/netns/theirs", Inode: inode}, true
			apply(t, n, &plan.Plan{}, p)
			quiet(t, n, p)
			if again, held, err := n.Identify("/run/netns/theirs"); err != nil || again != inode || held != ns.Path {
				t.Errorf("once it is ours, too: %d, held as %q, %v", again, held, err)
			}
			if got := h.Run(t, "ip", "-n", "theirs", "-br", "addr", "show", "eth0"); !strings.Contains(got, "10.77.1.1/16") {
				t.Errorf("in the runtime's namespace: %s", got)
			}
			if got := h.Run(t, "ip", "netns", "exec", "theirs", "sysctl", "-n", "net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.default.accept_ra", "net.ipv6.conf.their0.accept_ra"); strings.Fields(got)[0] != "0" ||
				strings.Fields(got)[1] != "1" || strings.Fields(got)[2] != "1" {
				t.Errorf("router advertisements of eth0, the default and their0: %s", got)
			}
			// The next daemon knows it, too.
			n.Close()
			n = openIn(t, h)
			quiet(t, n, p)
			h.Run(t, "sh", "-c", away)
			drift, err := resync(t, n, p)
			if err != nil || len(drift) != 1 || drift[0].Found != "vanished" || drift[0].ID != string(ns.ID) {
				t.Fatalf("after it went away: %+v, %v", drift, err)
			}
			bare := onlyNetwork()
			apply(t, n, p, bare)
			if got := h.Run(t, "ls", "/run/netns"); strings.Contains(got, strings.ToLower(string(ns.ID))) {
				t.Errorf("our mount of it is left: %s", got)
			}
			if err := tryApply(t, n, bare, p); !errors.Is(err, ErrVanished) {
				t.Errorf("taken although it is gone: %v", err)
			}
		})
	}
}

// TestIdentifyRefuses: what is no namespace for endpoints is neither taken nor opened.
func TestIdentifyRefuses(t *testing.T) {
	t.Parallel()
	h, n := open(t)
	p := onlyNetwork()
	ns, _ := addEndpoint(p, 1)
	apply(t, n, &plan.Plan{}, p)
	h.Run(t, "sh", "-c", "mkfifo /run/pipe; : >/run/file; ln -s /run/netns/none /run/dangling")
	for path, want := range map[string]string{
		"/run/none": "does not exist", "/run/dangling": "does not exist", "/run/file": "is no network namespace", "/run/pipe": "is no network namespace",
		"/run/file/x": "does not exist", "/proc/thread-self/ns/net": "the host's own", "/proc/thread-self/ns/mnt": "is no network namespace", "/proc/999999999/ns/net": "does not exist",
		"/run": "is no network namespace",
	} {
		if _, _, err := n.Identify(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	// Ours is told by whatever name it is asked for.
	h.Run(t, "sh", "-c", ": >/run/alias && mount --bind "+ns.Path+" /run/alias")
	for _, path := range []string{ns.Path, "/run/alias"} {
		if _, held, err := n.Identify(path); err != nil || held != ns.Path {
			t.Errorf("%s: held as %q, %v, want %s", path, held, err, ns.Path)
		}
	}
	h.Run(t, "umount", "/run/alias")
}
