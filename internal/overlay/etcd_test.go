package overlay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/testhost"
)

// store is a real etcd with TLS, of one or more members on loopback.
type store struct {
	t       *testing.T
	dir     string
	ca      *authority
	cfg     Etcd
	members []*testMember
}

type testMember struct {
	name   string
	args   []string
	client string // host:port
	log    *bytes.Buffer
	cmd    *exec.Cmd
}

// startEtcd starts a cluster. Without etcd the test is skipped, unless REQUIRE_ROOT says that everything must run.
func startEtcd(t *testing.T, members int, args ...string) *store {
	t.Helper()
	binary, err := exec.LookPath("etcd")
	if err != nil {
		if os.Getenv("REQUIRE_ROOT") != "" {
			t.Fatal("etcd is not installed: make deps")
		}
		t.Skip("etcd is not installed: make deps")
	}
	dir := t.TempDir()
	s := &store{t: t, dir: dir}
	ca, caPEM, _, err := newAuthority(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.ca = ca
	write(t, filepath.Join(dir, "ca.pem"), caPEM)
	s.pair("server", time.Now(), netip.IPv6Loopback())
	s.cfg = s.client("client", time.Now())
	var initial []string
	peers := make([]string, members)
	for i := range members {
		peers[i] = freePort(t)
		initial = append(initial, fmt.Sprintf("m%d=https://%s", i, peers[i]))
		s.members = append(s.members, &testMember{name: fmt.Sprintf("m%d", i), client: freePort(t)})
	}
	for i, m := range s.members {
		m.args = append([]string{
			binary, "--name", m.name, "--data-dir", filepath.Join(dir, m.name), "--listen-client-urls", "https://" + m.client, "--advertise-client-urls", "https://" + m.client,
			"--listen-peer-urls", "https://" + peers[i], "--initial-advertise-peer-urls", "https://" + peers[i], "--initial-cluster", strings.Join(initial, ","),
			"--client-cert-auth", "--trusted-ca-file", dir + "/ca.pem", "--cert-file", dir + "/server.pem", "--key-file", dir + "/server.key",
			"--peer-client-cert-auth", "--peer-trusted-ca-file", dir + "/ca.pem", "--peer-cert-file", dir + "/server.pem", "--peer-key-file", dir + "/server.key",
			"--enable-grpc-gateway=false", "--log-level", "warn", "--unsafe-no-fsync",
		}, args...)
		if !strings.Contains(helpOf(binary), "unsafe-no-fsync") {
			m.args = m.args[:len(m.args)-1-len(args)]
			m.args = append(m.args, args...)
		}
		s.cfg.Endpoints = append(s.cfg.Endpoints, "https://"+m.client)
		m.start(t)
	}
	t.Cleanup(func() {
		for _, m := range s.members {
			m.kill()
			if t.Failed() {
				t.Logf("%s: %s", m.name, tail(m.log.String(), 2000))
			}
		}
	})
	return s
}

var helpOf = func() func(string) string {
	var once sync.Once
	var text string
	return func(binary string) string {
		once.Do(func() {
			b, _ := exec.Command(binary, "--help").CombinedOutput() //nolint:noctx,forbidigo // it prints and ends
			text = string(b)
		})
		return text
	}
}()

func tail(s string, n int) string { return s[max(0, len(s)-n):] }

func (m *testMember) start(t *testing.T) {
	t.Helper()
	if m.log == nil {
		m.log = new(bytes.Buffer)
	}
	m.cmd = exec.Command(m.args[0], m.args[1:]...) //nolint:noctx,forbidigo // it is killed by the test
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends a member as a power cut does.
func (m *testMember) kill() {
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		m.cmd = nil
	}
}

func (m *testMember) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := m.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// pair makes a certificate with its key, as if at a time.
func (s *store) pair(name string, at time.Time, addrs ...netip.Addr) (cert, key string) {
	s.t.Helper()
	csr, keyPEM, err := request(name)
	if err != nil {
		s.t.Fatal(err)
	}
	certPEM, err := s.ca.sign(csr, name, addrs, at)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, key = filepath.Join(s.dir, name+".pem"), filepath.Join(s.dir, name+".key")
	write(s.t, cert, certPEM)
	write(s.t, key, keyPEM)
	return cert, key
}

func (s *store) client(name string, at time.Time) Etcd {
	cert, key := s.pair(name, at)
	return Etcd{Prefix: "/test", CACert: filepath.Join(s.dir, "ca.pem"), Cert: cert, Key: key}
}

// dial gives a client of the test's own.
func (s *store) dial() *clientv3.Client {
	s.t.Helper()
	cli, err := Dial(s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cli.Close() })
	return cli
}

func (s *store) found() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	defer cancel()
	if _, err := Found(ctx, s.dial(), "/test"); err != nil {
		s.t.Fatal(err)
	}
}

// link is the way of one host to etcd, which can be cut: nothing is refused, nothing answers.
type link struct {
	mu    sync.Mutex
	cut   bool
	heal  chan struct{} // closed while the link is whole
	addrs []string
}

// connect makes a proxy for each member.
func (s *store) connect() *link {
	s.t.Helper()
	l := &link{heal: make(chan struct{})}
	close(l.heal)
	for _, m := range s.members {
		ln, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it does not block
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { ln.Close() })
		l.addrs = append(l.addrs, "https://"+ln.Addr().String())
		go l.serve(ln, m.client)
	}
	return l
}

func (l *link) serve(ln net.Listener, to string) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			l.whole()
			out, err := net.DialTimeout("tcp", to, 2*time.Second) //nolint:noctx // it has a timeout
			if err != nil {
				return
			}
			defer out.Close()
			done := make(chan struct{}, 2)
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(gate{l, way[0]}, way[1])
					done <- struct{}{}
				}()
			}
			<-done
		}()
	}
}

// gate holds what is written while its link is cut.
type gate struct {
	l  *link
	to net.Conn
}

func (g gate) Write(b []byte) (int, error) {
	g.l.whole()
	return g.to.Write(b)
}

func (l *link) whole() {
	l.mu.Lock()
	heal := l.heal
	l.mu.Unlock()
	<-heal
}

func (l *link) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.cut {
		l.cut, l.heal = true, make(chan struct{})
	}
}

func (l *link) Heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cut {
		l.cut = false
		close(l.heal)
	}
}

// testHost is an agent with its link and the facts that came out of it.
type testHost struct {
	*Agent
	t    *testing.T
	link *link
	name string
	id   hcn.GUID
	stop func()
	// prepare changes how its agents are made.
	prepare func(*Config)

	mu     sync.Mutex
	facts  map[EndpointKey]*Endpoint
	nets   map[hcn.GUID]*Network
	hosts  map[hcn.GUID]*Host
	lbs    map[BalancerKey]*Balancer
	blocks map[hcn.GUID][]netip.Prefix
	firsts int // how often it was told that it knows all
	losses int // of endpoints and hosts that were known
}

const testTTL = 3 * time.Second

// host starts a host of the cluster; n numbers it.
func (s *store) host(n int, prepare ...func(*Config)) *testHost {
	s.t.Helper()
	h := &testHost{t: s.t, name: fmt.Sprintf("h%d", n), link: s.connect(), id: guid(0xa, n)}
	for _, p := range prepare {
		h.prepare = p
	}
	h.start(s, fmt.Sprintf("boot %d", n))
	return h
}

func guid(kind, n int) hcn.GUID {
	g, err := hcn.ParseGUID(fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, n))
	if err != nil {
		panic(err)
	}
	return g
}

// remembers has a host's agents go on with what the last one knew, as Cluster does.
func remembers(t *testing.T) func(*Config) {
	path := filepath.Join(t.TempDir(), fileMemory)
	return func(cfg *Config) {
		cfg.Memory = path
		var err error
		if cfg.known, err = recall(path, cfg.Prefix, cfg.Host.ID, cfg.Host.Boot); err != nil {
			t.Error(err)
		}
	}
}

// start runs the host's agent, with nothing known from before.
func (h *testHost) start(s *store, boot string) {
	h.t.Helper()
	cfg := s.cfg
	cfg.Endpoints = h.link.addrs
	cli, err := Dial(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	var n int
	_, _ = fmt.Sscanf(h.name, "h%d", &n)
	h.mu.Lock()
	h.facts, h.nets, h.hosts = map[EndpointKey]*Endpoint{}, map[hcn.GUID]*Network{}, map[hcn.GUID]*Host{}
	h.lbs, h.firsts = map[BalancerKey]*Balancer{}, 0
	h.mu.Unlock()
	agent := Config{
		Client: cli, Prefix: "/test", TTL: testTTL, Changed: h.take, Log: testLog(h.t, h.name),
		Host: Host{ID: h.id, Name: h.name, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})}, Version: "test", Boot: boot},
	}
	if h.prepare != nil {
		h.prepare(&agent)
	}
	h.Agent = New(agent)
	ctx, cancel := context.WithCancel(context.Background()) // it outlives the test's context, for the cleanup
	done := make(chan struct{})
	go func() { h.Run(ctx); close(done) }()
	var once sync.Once
	h.stop = func() {
		once.Do(func() {
			cancel()
			<-done
			cli.Close()
		})
	}
	h.t.Cleanup(h.stop)
}

// take does what an engine does with changes.
func (h *testHost) take() {
	h.mu.Lock()
	defer h.mu.Unlock()
	u, ok := h.Take()
	if !ok {
		return
	}
	if u.First {
		h.firsts++
	}
	for id, n := range u.Networks {
		if h.nets[id] = n; n == nil {
			delete(h.nets, id)
		}
	}
	for id, o := range u.Hosts {
		if h.hosts[id] != nil && o == nil && id != h.id {
			h.losses++
		}
		if h.hosts[id] = o; o == nil {
			delete(h.hosts, id)
		}
	}
	for id, ep := range u.Endpoints {
		if h.facts[id] != nil && ep == nil {
			h.losses++
		}
		if h.facts[id] = ep; ep == nil {
			delete(h.facts, id)
		}
	}
	for k, b := range u.Balancers {
		if h.lbs[k] = b; b == nil {
			delete(h.lbs, k)
		}
	}
	if u.Blocks != nil {
		h.blocks = u.Blocks
	}
}

func (h *testHost) fact(net, id hcn.GUID) *Endpoint {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.facts[EndpointKey{net, id}]
}

func (h *testHost) factCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.facts)
}

func (h *testHost) connected() {
	h.t.Helper()
	testhost.Eventually(h.t, 30*time.Second, func() error {
		if s := h.Status(); !s.Connected {
			return fmt.Errorf("%s is not in the cluster: %s", h.name, s.Problem)
		}
		return nil
	})
}

// network makes a network of the cluster with these prefixes.
func (h *testHost) network(name string, prefixes ...string) Network {
	h.t.Helper()
	n, err := h.CreateNetwork(h.t.Context(), func(t Taken) (Network, error) { return testNetwork(name, t.VNI, prefixes...), nil })
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

func testNetwork(name string, vni uint32, prefixes ...string) Network {
	id := hcn.NewGUID()
	doc := hcn.HostComputeNetwork{ID: id, Name: name, Type: hcn.Overlay, SchemaVersion: hcn.V2()}
	for _, p := range prefixes {
		doc.Ipams = append(doc.Ipams, hcn.Ipam{Subnets: []hcn.Subnet{{IpAddressPrefix: p}}})
	}
	return Network{ID: id, Name: name, VNI: vni, Doc: doc}
}

// block leases a block and gives its first address.
func (h *testHost) block(n Network, subnet string) netip.Prefix {
	h.t.Helper()
	p, err := h.LeaseBlock(h.t.Context(), n.ID, netip.MustParsePrefix(subnet), nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func endpoint(n Network, id hcn.GUID, name string, addrs ...netip.Addr) Endpoint {
	return Endpoint{ID: id, Network: n.ID, Name: name, Names: []string{name}, MAC: MAC{0, 0x15, 0x5d, 1, 2, addrs[0].AsSlice()[len(addrs[0].AsSlice())-1]}, Addrs: addrs}
}

func testLog(t *testing.T, name string) *slog.Logger {
	t.Helper()
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("host", name)
}
