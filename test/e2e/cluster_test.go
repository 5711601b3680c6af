package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// node is one of the hosts of a cluster: a daemon with its standard directories, on a LAN with the others.
//
//	node1 192.0.2.1, 2001:db8::1 ┐
//	node2 192.0.2.2, 2001:db8::2 ┼ a switch
//	node3 192.0.2.3, 2001:db8::3 ┘
type node struct {
	*testhost.Host
	t      *testing.T
	name   string
	log    string
	port   string // of the LAN
	daemon *testhost.Cmd
}

func newNode(t *testing.T, lan *testhost.LAN, n int) *node {
	t.Helper()
	name := fmt.Sprintf("node%d", n)
	nd := &node{Host: testhost.New(t, testhost.WithName(name)), t: t, name: name, log: filepath.Join(t.TempDir(), "log")}
	nd.port = lan.Plug(nd.Host, "eth0", fmt.Sprintf("192.0.2.%d/24", n), fmt.Sprintf("2001:db8::%d/64", n))
	nd.Run(t, "sh", "-c", "rm -f /etc/resolv.conf && : >/etc/resolv.conf")
	nd.start()
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(nd.log)
			t.Logf("%s: %s", name, b[max(0, len(b)-6000):])
		}
	})
	return nd
}

// start runs the daemon until stop.
func (n *node) start() {
	n.t.Helper()
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	c := n.Command(context.WithoutCancel(n.t.Context()), made.binary, "daemon", "--cgroup-parent", n.CgroupParent())
	c.Env = append(os.Environ(), "PATH="+made.dir+":"+os.Getenv("PATH"))
	c.Dir, c.Stdout, c.Stderr = "/", log, log
	if err := c.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.daemon = c
	n.until("the daemon answers", func() error { _, err := n.try("info"); return err })
}

// stop ends the daemon by a signal.
func (n *node) stop(s syscall.Signal) {
	n.t.Helper()
	_ = n.daemon.Process.Signal(s)
	timer := time.AfterFunc(patience, func() { _ = n.daemon.Process.Kill() })
	_ = n.daemon.Wait()
	if !timer.Stop() {
		n.t.Errorf("%s: the daemon did not end", n.name)
	}
}

// try runs bulkhead there.
func (n *node) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(n.t.Context()), 2*time.Minute)
	defer cancel()
	c := n.Command(ctx, made.binary, args...)
	c.Env = append(os.Environ(), "NO_COLOR=1", "LC_ALL=C.UTF-8")
	c.WaitDelay = time.Second
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: bulkhead %s: %w: %s", n.name, strings.Join(args, " "), err, errOut.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (n *node) do(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n *node) refused(want string, args ...string) {
	n.t.Helper()
	if _, err := n.try(args...); err == nil || !strings.Contains(err.Error(), want) {
		n.t.Errorf("%s: bulkhead %s: %v, want %q", n.name, strings.Join(args, " "), err, want)
	}
}

func (n *node) until(what string, cond func() error) {
	n.t.Helper()
	testhost.Eventually(n.t, patience, func() error {
		if err := cond(); err != nil {
			return fmt.Errorf("%s: %s: %w", n.name, what, err)
		}
		return nil
	})
}

func (n *node) cluster() (api.Cluster, error) {
	out, err := n.try("cluster", "status", "-o", "json")
	var c api.Cluster
	if jsonErr := json.Unmarshal([]byte(out), &c); jsonErr != nil {
		return c, errors.Join(err, jsonErr)
	}
	return c, nil
}

// sees waits until the cluster is as wanted from there.
func (n *node) sees(what string, cond func(api.Cluster) bool) {
	n.t.Helper()
	n.until(what, func() error {
		c, err := n.cluster()
		if err == nil && !cond(c) {
			err = fmt.Errorf("it sees %+v", c)
		}
		return err
	})
}

func alive(c api.Cluster) (n int) {
	for _, h := range c.Hosts {
		if h.Alive {
			n++
		}
	}
	return n
}

// TestCluster: three hosts with three members of etcd come together by a token, and share a network; one leaves and comes back.
func TestCluster(t *testing.T) {
	t.Parallel()
	testhost.RequireRoot(t)
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Fatal("etcd is not installed: make deps")
	}
	lan := testhost.Switch(t)
	a, b, c := newNode(t, lan, 1), newNode(t, lan, 2), newNode(t, lan, 3)

	a.refused("this host is in no cluster", "cluster", "ls")
	a.refused("this host is in no cluster", "cluster", "token")
	b.refused("this is no token", "join", "hello")
	token := a.do("cluster", "init")
	if !strings.HasPrefix(token, "bulkhead1.") {
		t.Fatalf("token %q", token)
	}
	a.refused("already", "cluster", "init")
	b.refused("the token is damaged", "join", token[:len(token)-20])
	b.do("join", "--member", token)
	c.do("join", "--member", token)
	for _, n := range []*node{a, b, c} {
		n.sees("three hosts and members", func(c api.Cluster) bool { return alive(c) == 3 && len(c.Etcd) == 3 && c.Connected })
	}
	if out := a.do("cluster", "ls"); strings.Count(out, "etcd") != 3 {
		t.Errorf("ls: %s", out)
	}

	if out := a.do("cluster", "check"); strings.Count(out, " ok\n") != 6 {
		t.Errorf("check: %s", out)
	}
	sharedNetwork(t, lan, a, b, c)

	c.do("cluster", "leave")
	c.refused("this host is in no cluster", "cluster", "ls")
	if _, err := c.ReadFile("/var/lib/bulkhead/cluster/cluster.json"); err == nil {
		t.Error("its membership is left")
	}
	a.sees("two hosts and members", func(c api.Cluster) bool { return c.Connected && len(c.Hosts) == 2 && len(c.Etcd) == 2 })
	c.do("join", a.do("cluster", "token"))
	c.sees("it is back", func(c api.Cluster) bool { return c.Connected && alive(c) == 3 })
	movedHost(t, a, c)

	encryptedNetwork(t, a, b, c)

	for _, n := range []*node{a, b, c} {
		n.stop(syscall.SIGTERM)
		n.Run(t, made.binary, "reset", "--yes")
		if out := n.Run(t, "sh", "-c", "pgrep -l etcd || true; pgrep -f 'bulkhead [w]ireguard' || true; find /run/netns /run/wireguard -mindepth 1 2>/dev/null || true"); strings.TrimSpace(out) != "" {
			t.Errorf("%s: reset leaves %s", n.name, out)
		}
	}
}

// sharedNetwork: a network that is made on one host is on all. Containers reach each other by name; those of a host that is cut off, or
// dies, vanish for the others, while it goes on making some; and all is well after.
func sharedNetwork(t *testing.T, lan *testhost.LAN, a, b, c *node) {
	t.Helper()
	told := func(n *node, want string, args ...string) {
		t.Helper()
		if out := n.do(append(args, "--dry-run")...); !strings.Contains(out, want) {
			t.Errorf("bulkhead %s would do %s; want %s", strings.Join(args, " "), out, want)
		}
	}
	told(a, "(network blue)", "network", "create", "-d", "overlay", "blue")
	a.refused("blue", "network", "inspect", "blue")
	id := a.do("network", "create", "-d", "overlay", "blue")
	for i, n := range []*node{a, b, c} {
		n.until("the network is there", func() error {
			out, err := n.try("network", "ls", "-o", "json")
			if err == nil && !strings.Contains(out, id) {
				err = fmt.Errorf("no %s in %s", id, out)
			}
			return err
		})
		if i == 2 {
			told(n, "- switch", "cluster", "leave")
			told(n, "- switch", "network", "rm", "blue")
		}
		n.do("image", "import", "--cmd", "sh", made.image, "box")
		n.do("run", "-d", "--name", fmt.Sprintf("web%d", i+1), "--network", "blue", "box", "httpd", "-f", "-h", "/www")
	}
	c.refused("endpoints of this host are on networks of the cluster", "cluster", "leave", "--dry-run")
	reaches := func(n *node, from, to string) {
		t.Helper()
		n.until(from+" reaches "+to, func() error {
			_, err := n.try("exec", from, "timeout", "5", "wget", "-qO-", "http://"+to+"/")
			return err
		})
	}
	knows := func(n *node, from, name string, want bool) {
		t.Helper()
		n.until(fmt.Sprintf("%s knows %s: %v", from, name, want), func() error {
			out, err := n.try("exec", from, "nslookup", name)
			switch known := err == nil; {
			case known == want:
				return nil
			case known:
				return fmt.Errorf("it is answered: %s", out)
			default:
				return fmt.Errorf("%w: %s", err, out)
			}
		})
	}
	for _, way := range []struct {
		n        *node
		from, to string
	}{{a, "web1", "web2"}, {a, "web1", "web3"}, {b, "web2", "web1"}, {c, "web3", "web2"}} {
		reaches(way.n, way.from, way.to)
	}
	b.refused("network blue has 1 endpoint: web2", "network", "rm", "blue")
	smallerPath(t, lan, a, b)

	// A load balancer of one host balances on all, over back ends of all; what it has, it has alone.
	b.do("loadbalancer", "create", "--name", "site", "--vip", "10.96.0.10", "--vip", "fd00:96::10", "--port", "8080:80", "web1", "web2")
	balanced := func(want bool) {
		t.Helper()
		for _, n := range []*node{a, c} {
			n.sees(fmt.Sprintf("the load balancer: %v", want), func(c api.Cluster) bool { return len(c.LoadBalancers) == 1 == want })
		}
		if want {
			reaches(a, "web1", "10.96.0.10:8080") // itself, or the one over there
			reaches(c, "web3", "[fd00:96::10]:8080")
			reaches(c, "web3", "10.96.0.10:8080")
		}
	}
	balanced(true)
	c.refused("is a service of load balancer site", "loadbalancer", "create", "--name", "other", "--vip", "10.96.0.10", "--port", "8080:80", "web3")
	if out := c.do("explain", "web3", "10.96.0.10", "tcp/8080", "-4"); !strings.Contains(out, `load balancer "site" of host node2`) || !strings.Contains(out, "reachable") {
		t.Errorf("explain: %s", out)
	}

	explainedThere(a, b, c)

	// A host is cut off: it goes on, and the others hear of its end. Back, it has what it made meanwhile.
	b.Run(t, "ip", "link", "set", "eth0", "down")
	knows(a, "web1", "web2", false)
	balanced(false)
	b.do("run", "-d", "--name", "late", "--network", "blue", "box", "httpd", "-f", "-h", "/www")
	b.Run(t, "ip", "link", "set", "eth0", "up")
	b.Run(t, "ip", "address", "add", "2001:db8::2/64", "dev", "eth0", "nodad") // the kernel took it away
	reaches(a, "web1", "late")
	reaches(a, "web1", "web2")
	reaches(b, "late", "web1")
	balanced(true)

	// The daemon's restart is no event, not even while etcd is away. What changes meanwhile is made known when it is back.
	c.do("run", "-d", "--name", "short", "--network", "blue", "box", "sleep", "1000")
	knows(b, "late", "short", true)
	knows(a, "web1", "short", true)
	freeze(a, b, c)
	a.do("exec", "web1", "sh", "-c", "ping -i 0.1 web2 >/pings & echo $! >/pinging")
	b.stop(syscall.SIGKILL)
	b.start()
	reaches(b, "late", "web1")
	reaches(b, "late", "web3")
	reaches(a, "web1", "late")
	a.do("exec", "web1", "sh", "-c", "kill -INT $(cat /pinging)")
	// All were answered up to the last answer: one may have been on its way when ping was told to end.
	answers := strings.Split(strings.TrimSpace(a.do("exec", "web1", "grep", "seq=", "/pings")), "\n")
	if n := len(answers); n < 10 || !strings.Contains(answers[n-1], fmt.Sprintf(" seq=%d ", n-1)) {
		t.Errorf("while the daemon was restarted without etcd: %d answers: %q", n, answers)
	}
	c.do("rm", "-f", "short")
	knows(b, "late", "short", true)
	thaw(a, b, c)
	knows(b, "late", "short", false)
	knows(a, "web1", "short", false)
	b.sees("it is back", func(c api.Cluster) bool { return c.Connected && alive(c) == 3 })
	reaches(a, "web1", "web2")

	// The end of its host is one: what was there is gone for the others, until the host is back.
	b.stop(syscall.SIGKILL)
	b.Run(t, "pkill", "-KILL", "etcd") // in the host's own PID namespace
	a.sees("the dead host is gone", func(c api.Cluster) bool { return c.Connected && alive(c) == 2 })
	knows(a, "web1", "web2", false)
	knows(c, "web3", "late", false)
	knows(a, "web1", "web3", true)
	b.start()
	b.sees("it is back", func(c api.Cluster) bool { return c.Connected && alive(c) == 3 && len(c.Etcd) == 3 })
	reaches(a, "web1", "web2")
	reaches(c, "web3", "late")

	balanced(true)
	b.do("loadbalancer", "rm", "site")
	balanced(false)
	b.do("rm", "-f", "web2", "late")
	b.refused("has endpoints on other hosts", "network", "rm", "blue")
	c.do("rm", "-f", "web3")
	knows(a, "web1", "web3", false)
	a.do("rm", "-f", "web1")
	a.until("the network is removed", func() error { _, err := a.try("network", "rm", "blue"); return err })
	for _, n := range []*node{a, b, c} {
		n.until("it is gone", func() error {
			out, err := n.try("network", "ls", "-o", "json")
			if err == nil && strings.Contains(out, id) {
				err = errors.New(out)
			}
			return err
		})
	}
}

// movedHost: a host gets another address, and what it has is reached there; nobody sends anything to where it was.
func movedHost(t *testing.T, a, c *node) {
	t.Helper()
	id := a.do("network", "create", "-d", "overlay", "green")
	c.until("the network is there", func() error { _, err := c.try("network", "inspect", id); return err })
	c.do("run", "-d", "--name", "server", "--network", "green", "box", "httpd", "-f", "-h", "/www")
	a.do("run", "-d", "--name", "client", "--network", "green", "box", "sleep", "1000")
	reached := func() {
		t.Helper()
		a.until("the server is reached", func() error {
			_, err := a.try("exec", "client", "timeout", "2", "wget", "-qO-", "http://server/")
			return err
		})
	}
	reached()
	c.Run(t, "sh", "-c", "ip address del 192.0.2.3/24 dev eth0 && ip address add 192.0.2.33/24 dev eth0")
	a.sees("its new address", func(c api.Cluster) bool {
		return slices.ContainsFunc(c.Hosts, func(h api.ClusterHost) bool { return h.Name == "node3" && slices.Contains(h.Addresses, "192.0.2.33") })
	})
	reached()
	seen := a.Capture("eth0", "")
	reached()
	c.sees("it is connected", func(c api.Cluster) bool { return c.Connected && alive(c) == 3 })
	to, old := 0, 0
	for _, f := range seen.Stop() {
		if text := testhost.Describe(f.Data); f.Outgoing && strings.Contains(text, "> 4789") {
			if to++; strings.Contains(text, "192.0.2.3 ") || !strings.Contains(text, "192.0.2.33") {
				old++
				t.Log(text)
			}
		}
	}
	if to == 0 || old > 0 {
		t.Errorf("%d tunnel packets, %d of them to where it was", to, old)
	}
	if out := c.do("network", "inspect", id); !strings.Contains(out, "192.0.2.33") || strings.Contains(out, `"192.0.2.3"`) {
		t.Errorf("its document: %s", out)
	}
	a.do("rm", "-f", "client")
	c.do("rm", "-f", "server")
	a.until("the network is removed", func() error { _, err := a.try("network", "rm", "green"); return err })
}

// freeze has etcd answer nobody, until thaw.
func freeze(nodes ...*node) {
	for _, n := range nodes {
		n.Run(n.t, "sh", "-c", "pkill -STOP etcd || true") // in the host's own PID namespace; not each has one
	}
}

func thaw(nodes ...*node) {
	for _, n := range nodes {
		n.Run(n.t, "sh", "-c", "pkill -CONT etcd || true")
	}
}

// explainedThere: an explanation goes on where the packet does, and begins where that begins; the rule that decides is named wherever it is.
func explainedThere(a, b, c *node) {
	a.t.Helper()
	explain := func(n *node, reachable bool, want []string, args ...string) {
		n.t.Helper()
		out, err := n.try(append([]string{"explain"}, args...)...)
		if (err == nil) != reachable {
			n.t.Errorf("explain %v: %v\n%s", args, err, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				n.t.Errorf("explain %v lacks %q:\n%s", args, w, out)
			}
		}
	}
	answers, delivered := "the resolver of network blue answers web3", "delivered to web3, "
	explain(a, true, []string{answers, "web3 on node3", delivered, ", on host node3", "on 2 switch legs"}, "web1", "web3", "tcp/80")
	explain(c, true, []string{"web1 on node1", delivered, "on 2 switch legs"}, "web1", "web3", "tcp/80", "-4") // from over there
	explain(b, true, []string{"web1 on node1", "web3 on node3", delivered}, "web1", "web3", "tcp/80", "-6")    // neither here
	c.do("acl", "add", "web3", "--action", "block", "--proto", "tcp", "--ports", "80", "--id", "no-web", "--priority", "10")
	blocked := []string{"web3 on node3", "STOP", `ACL "no-web"`, "next on node3: bulkhead acl rm web3 no-web"}
	explain(a, false, blocked, "web1", "web3", "tcp/80", "-4")
	explain(b, false, blocked, "web1", "web3", "tcp/80", "-4")
	explain(a, false, []string{`"host": "node3"`, `"id": "no-web"`}, "web1", "web3", "tcp/80", "-4", "-o", "json")
	c.do("acl", "rm", "web3", "no-web")
	a.do("acl", "add", "web1", "--action", "block", "--direction", "out", "--proto", "tcp", "--ports", "80", "--id", "no-out", "--priority", "10")
	explain(c, false, []string{"web1 on node1", `ACL "no-out"`, "next on node1"}, "web1", "web3", "tcp/80", "-4")
	a.do("acl", "rm", "web1", "no-out")
}

// smallerPath: a check finds that the LAN carries less to one host than to the others, and the networks' MTU follows, in running
// containers too; when it is mended, the next check finds that.
func smallerPath(t *testing.T, lan *testhost.LAN, a, b *node) {
	t.Helper()
	checked := func(size int) {
		t.Helper()
		var c api.ClusterCheck
		if err := json.Unmarshal([]byte(a.do("cluster", "check", "-o", "json")), &c); err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Paths {
			least, most := 1500, 1500
			switch {
			case p.To == b.name:
				least, most = size, size
			case p.From == b.name: // on the way in the port takes four bytes more, for the tag of a VLAN
				least, most = size, min(size+4, 1500)
			}
			if p.Bytes < least || p.Bytes > most || !p.Arrives || len(p.Problems) > 0 {
				t.Errorf("%+v, want packets of %d to %d bytes", p, least, most)
			}
		}
		if !c.OK || len(c.Paths) != 6 || len(c.Hosts) != 3 {
			t.Errorf("the check says %+v", c)
		}
		a.until("the container's MTU follows", func() error {
			out, err := a.try("exec", "web1", "cat", "/sys/class/net/eth0/mtu")
			if err == nil && out != strconv.Itoa(size-50) {
				err = errors.New(out)
			}
			return err
		})
	}
	lan.Run(t, "ip", "link", "set", b.port, "mtu", "1400")
	checked(1400)
	lan.Run(t, "ip", "link", "set", b.port, "mtu", "1500")
	checked(1500)
}
