package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/cluster"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/nat"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/wireguard"
	"github.com/bulkhead-net/bulkhead/internal/dns"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/image"
	"github.com/bulkhead-net/bulkhead/internal/metrics"
	"github.com/bulkhead-net/bulkhead/internal/overlay"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/process"
	"github.com/bulkhead-net/bulkhead/internal/sandbox/vm"
	"github.com/bulkhead-net/bulkhead/internal/server"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// daemonConfig are the daemon's flags.
type daemonConfig struct {
	stateDir, runDir, bpfDir string
	socket, group            string
	cgroupParent             string
	runtime                  string
	attach                   string
	pools                    []string
	mirrors                  []string
	authFile                 string
	logLevel                 string
	namespacePool            int
	metricsListen            string
	listen, certs            string
	dnsForwardSingle         bool
	dockerPlugin, dockerAPI  string
	offload                  bool
	leaseWait, probe         time.Duration
	vmKernel, vmAgent        string
	vmAccel                  string
	vmFiles                  string
	vmTemplates              int
	isolation                string
	wireguard                string
}

func newDaemonCmd() *cobra.Command {
	c := daemonConfig{}
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon",
		Long: `Run the daemon in the foreground: it answers the API on a unix socket and keeps the kernel
as the stored networks, endpoints and containers want it.

Containers do not depend on it: stopping or restarting it cuts no connection.`,
		Example: `  bulkhead daemon
  bulkhead daemon --state-dir /srv/bulkhead --pool 10.99.0.0/16`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGINT, unix.SIGTERM)
			defer stop()
			return c.run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.stateDir, "state-dir", "/var/lib/bulkhead", "where state, images and writable layers are kept")
	f.StringVar(&c.runDir, "run-dir", "/run/bulkhead", "where the socket and running containers are")
	f.StringVar(&c.bpfDir, "bpf-dir", vswitch.DefaultBPFDir, "where maps and programs are pinned; in a bpffs")
	f.StringVar(&c.socket, "socket", "", "the API's unix socket (default RUN-DIR/bulkhead.sock)")
	f.StringVar(&c.group, "group", "bulkhead", "the group that may use the socket")
	f.StringVar(&c.cgroupParent, "cgroup-parent", "/bulkhead", "the cgroup that containers are in")
	f.StringVar(&c.runtime, "runtime", "", "the OCI runtime (default the first of runc and crun that works)")
	f.StringVar(&c.attach, "attach", "", "how programs are attached: tcx or clsact (default by probing)")
	f.BoolVar(&c.offload, "offload", true, "carry established flows across the host past its stack, once netfilter has accepted them")
	f.StringSliceVar(&c.pools, "pool", nil, "IPv4 prefixes that networks without a subnet take a /24 of")
	f.StringSliceVar(&c.mirrors, "registry-mirror", nil, "REGISTRY=MIRROR: ask MIRROR before REGISTRY")
	f.StringVar(&c.authFile, "auth-file", "", "registry credentials besides those of bulkhead login (default /etc/bulkhead/auth.json)")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&c.metricsListen, "metrics-listen", "", "ADDRESS:PORT: answer scrapes of /metrics there, without authentication (default nowhere)")
	f.StringVar(&c.listen, "listen", "", "ADDRESS:PORT: answer the API there too, for clients with a certificate; who has one may do what root may (default nowhere)")
	f.StringVar(&c.certs, "certs", "/etc/bulkhead/certs", "directory with ca.pem, cert.pem and key.pem, for --listen")
	f.DurationVar(&c.leaseWait, "lease-wait", engine.DefaultLeaseWait, "how long a container's start waits for addresses by DHCP or from routers")
	f.DurationVar(&c.probe, "probe", engine.DefaultProbe, "how long a LAN is asked whether somebody has a container's static address, before the container gets it; 0 to not ask")
	f.StringVar(&c.isolation, "isolation", "process", "what keeps containers apart that do not say it: process, or vm for a kernel of their own")
	f.StringVar(&c.vmKernel, "vm-kernel", "", "DIR: where the kernel of VMs is, as DIR/boot/vmlinuz-* and DIR/lib/modules (default /, which has Debian's linux-image-cloud-amd64 when it is installed)")
	f.StringVar(&c.vmAgent, "vm-agent", "", "FILE: the first process of VMs (default bulkhead-agent beside this program, or in ../lib/bulkhead)")
	f.StringVar(&c.vmAccel, "vm-accel", vm.AccelAuto, "what runs VMs: auto, kvm or tcg; auto takes KVM where it is of use, and emulation elsewhere")
	f.StringVar(&c.vmFiles, "vm-files", vm.FilesAuto, "how VMs have files: auto, virtiofs or disk; disk copies them to a disk of the container's own, which has no volumes; auto takes virtiofs where virtiofsd is installed, and disks elsewhere")
	f.IntVar(&c.vmTemplates, "vm-templates", 4, "how many VMs are kept saved on disk, one for each size and kernel, from which others are restored in a fraction of a boot; 0 boots each")
	f.StringVar(&c.wireguard, "wireguard", string(wireguard.Auto), "what encrypts what networks send to other hosts: auto, kernel or user-space; auto takes the kernel's WireGuard where it has one")
	f.IntVar(&c.namespacePool, "namespace-pool", 8, "compartments kept ready, to attach faster, and half as many with a vNIC")
	f.BoolVar(&c.dnsForwardSingle, "dns-forward-single-label", false, "ask the upstreams for unknown names of one label too, for LANs with such names")
	f.StringVar(&c.dockerPlugin, "docker-plugin", "", "unix socket to answer dockerd on, /run/docker/plugins/bulkhead.sock: docker network create -d bulkhead makes networks then (default nowhere)")
	f.StringVar(&c.dockerAPI, "docker-api", "/run/docker.sock", "dockerd's socket, which is asked for the names of its containers")
	return cmd
}

// parts are what the daemon is wired from, in the order they are closed.
type parts struct {
	claim   *net.UnixListener
	db      *store.DB
	passing *store.DB
	dev     *netdev.Netdev
	sw      *vswitch.Applier
	filter  *nat.Applier
	cars    *nat.SideCars
	names   *dns.Resolver
	images  *image.Store
	runtime *process.Runtime
	vms     *vm.Host
	engine  *engine.Engine
	meter   *metrics.Metrics
	scrapes net.Listener // nil without --metrics-listen
	remote  net.Listener // nil without --listen
	cluster *cluster.Host
	wg      *wireguard.Applier
	docker  *dockerDoor // nil without --docker-plugin
}

func (c *daemonConfig) run(ctx context.Context) (err error) {
	log, err := newLogger(c.logLevel)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the daemon needs root: it makes namespaces, devices and programs")
	}
	if err := c.check(); err != nil {
		return err
	}
	notify, err := takeNotifySocket()
	if err != nil {
		return err
	}
	p := &parts{}
	defer func() { err = errors.Join(err, p.close()) }()
	if p.claim, err = claimHost(ctx, log); err != nil {
		return err
	}
	if err := c.wire(ctx, p, log); err != nil {
		return err
	}
	listener, err := server.Listen(c.socketPath(), c.group)
	if err != nil {
		return err
	}
	if c.dockerPlugin != "" {
		if p.docker, err = c.newDockerDoor(log); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	return serve(ctx, p, listener, notify, log)
}

func (c *daemonConfig) socketPath() string {
	if c.socket != "" {
		return c.socket
	}
	return filepath.Join(c.runDir, "bulkhead.sock")
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level: %w", err)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}

// wire makes the parts. Nothing is written to the kernel yet but the maps.
func (c *daemonConfig) wire(ctx context.Context, p *parts, log *slog.Logger) (err error) {
	if p.db, err = store.Open(filepath.Join(c.stateDir, "state.db")); err != nil {
		return err
	}
	// Everybody may look for the socket in there; the store is a file of root's.
	if err = os.MkdirAll(c.runDir, 0o755); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	if p.passing, err = store.Open(filepath.Join(c.runDir, "state.db")); err != nil {
		return err
	}
	if p.dev, err = netdev.New(netdev.Options{StateDir: filepath.Join(c.stateDir, "netdev"), Pool: c.namespacePool, Guard: func(i int) (func(), error) { return p.sw.Guard(i) }, Logger: log}); err != nil {
		return err
	}
	if p.sw, err = vswitch.New(vswitch.Options{BPFDir: c.bpfDir, Attach: vswitch.AttachMode(c.attach), Offload: c.offload, Log: log}); err != nil {
		return err
	}
	if p.filter, err = nat.New(nat.Config{Log: log}); err != nil {
		return err
	}
	p.cars = nat.NewSideCars(compartments(p.dev), log)
	p.images, err = image.Open(filepath.Join(c.stateDir, "images"), image.Options{
		Logger: log, AuthFile: c.authFile, LoginFile: filepath.Join(c.stateDir, "auth.json"), Registries: c.registries(),
	})
	if err != nil {
		return err
	}
	if p.vms, err = c.newVMs(log); err != nil {
		return err
	}
	p.runtime, err = process.New(process.Options{
		StateDir: filepath.Join(c.stateDir, "containers"), RunDir: filepath.Join(c.runDir, "containers"),
		CgroupParent: c.cgroupParent, RuntimeBinary: c.runtime, VM: p.vms, Logger: log,
	})
	if err != nil {
		return err
	}
	hosts := newHostResolvers(p.dev)
	p.names = dns.New(dns.Config{
		ListenUDP: func(ctx context.Context, ns, device string, addr netip.AddrPort) (net.PacketConn, error) {
			return p.dev.ListenPacket(ctx, ns, device, "udp", addr)
		},
		ListenTCP: func(ctx context.Context, ns, device string, addr netip.AddrPort) (net.Listener, error) {
			return p.dev.Listen(ctx, ns, device, "tcp", addr)
		},
		HostResolvers: hosts.get,
		DeviceIndex:   p.dev.DeviceIndex,
		Wake:          func() { p.engine.Wake("a resolver's socket broke") },
		Log:           log,

		ForwardSingleLabel: c.dnsForwardSingle,
	})
	p.meter = meters(p)
	if c.metricsListen != "" {
		if p.scrapes, err = listenMetrics(ctx, c.metricsListen); err != nil {
			return err
		}
	}
	if c.listen != "" {
		if p.remote, err = server.ListenTLS(ctx, c.listen, c.certs, log); err != nil {
			return err
		}
	}
	pools, err := parsePools(c.pools)
	if err != nil {
		return err
	}
	facts := func(ctx context.Context) (plan.Facts, error) {
		f, err := p.dev.Facts(ctx)
		hosts.set(f.Resolvers)
		p.cluster.Complete(&f)
		return f, err
	}
	if p.wg, err = c.newWireGuard(p, log); err != nil {
		return err
	}
	if p.cluster, err = c.newCluster(ctx, p, facts, log); err != nil {
		return err
	}
	p.engine, err = engine.New(engine.Options{
		DB: p.db, Passing: p.passing,
		Stages:    []engine.Stage{{p.dev.Devices(), p.filter}, {switchCheck{p.sw}, p.cars, p.wg}, {p.dev.Finish()}, {p.names}},
		Facts:     facts,
		Cluster:   p.cluster,
		Counters:  counters(p.sw, p.dev),
		Drops:     drops(p.sw),
		Meter:     p.meter,
		Flows:     flows(p.sw),
		Explain:   explain(p.dev, p.sw, p.filter),
		Capture:   capturer(p.dev),
		Promise:   p.dev.Promise,
		Reach:     p.dev,
		Isolation: c.isolation,
		Netns:     p.dev.Identify,
		Moved:     p.dev.Moved,
		Ports:     p.filter.Reservations(),
		Sandbox:   sandbox{p.runtime},
		Images:    imageStore{p.images},
		Kernels:   kernels{p.images, p.vms},
		Leftovers: leftovers(p.dev, c.bpfDir),
		Leases:    newLeases(p.dev, func() *engine.Engine { return p.engine }, log),
		LeaseWait: c.leaseWait,
		Probe:     c.probe,
		Checks:    p.checks,
		Info:      c.info(ctx, p),
		AskHost:   askHost,
		Pools4:    pools,
		Step:      crashStep(os.Getenv(crashEnv)),
		Log:       log,
	})
	if err == nil {
		p.cluster.Recall()
	}
	return err
}

// newCluster opens the host's membership in a cluster, if it has one.
func (c *daemonConfig) newCluster(ctx context.Context, p *parts, facts func(context.Context) (plan.Facts, error), log *slog.Logger) (*cluster.Host, error) {
	f, err := facts(ctx)
	if err != nil {
		return nil, fmt.Errorf("look at the host: %w", err)
	}
	return cluster.Open(overlay.Options{
		Dir: filepath.Join(c.stateDir, "cluster"), RunDir: c.runDir, Version: version, Boot: f.BootID, Log: log,
	}, func() cluster.Engine { return p.engine }, facts, p.wg.Status)
}

// newWireGuard makes the applier of encrypted networks. Their devices outside the kernel are in processes of this program.
func (c *daemonConfig) newWireGuard(p *parts, log *slog.Logger) (*wireguard.Applier, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	return wireguard.New(wireguard.Options{
		Open: compartments(p.dev), Mode: wireguard.Mode(c.wireguard), LogDir: c.runDir, Command: []string{self, wireguardVerb},
		Wake:    func(cause string) { p.engine.Wake(cause) },
		Changed: func() { p.cluster.Changed() },
		Log:     log,
	}), nil
}

// serve runs the loop, the watchers and the API until ctx ends or one of them
// fails.
func serve(ctx context.Context, p *parts, listener net.Listener, notify string, log *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	part := func(name string, fn func() error) {
		wg.Go(func() {
			if err := fn(); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("loop", func() error { return p.engine.Run(ctx) })
	open := make(chan struct{}) // closed when the API answers
	part("notify", func() error {
		select {
		case <-ctx.Done():
		case <-p.engine.Compared():
			select {
			case <-ctx.Done():
				return nil
			case <-open:
			}
			if err := notifyReady(ctx, notify); err != nil {
				log.Warn("systemd was not told", "error", err)
			}
		}
		return nil
	})
	part("detach what was noted", func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.engine.Ready():
		}
		dir := filepath.Join(filepath.Dir(listener.Addr().String()), "detach")
		first, done := context.WithTimeout(ctx, detachTime)
		err := detachNoted(first, dir, p.engine.Detach, log)
		done()
		if close(open); err != nil {
			return err
		}
		return detachNoted(ctx, dir, p.engine.Detach, log) // what was noted while the API did not answer yet, or took too long
	})
	part("watch devices", func() error { return p.dev.Watch(ctx, p.engine.Wake, p.engine.Moved, nil) })
	part("watch nftables", func() error { return p.filter.Watch(ctx, p.engine.Wake) })
	part("watch redirects", func() error { return p.cars.Watch(ctx, 0, p.engine.Wake, nil) })
	part("cluster", func() error {
		select {
		case <-ctx.Done():
		case <-p.engine.Ready():
			p.cluster.Run(ctx)
		}
		return nil
	})
	part("offload", func() error { return p.sw.RunOffload(ctx) })
	door := server.New(server.Options{
		Backend: p.engine, Cluster: p.cluster, Ready: open, Log: log, Version: version, Metrics: p.meter.Handler(),
		Observe: func(r *http.Request, pattern string, status int) { p.meter.Request(r.Method, routeOf(pattern), status) },
	})
	part("API", func() error { return door.Serve(ctx, listener) })
	if p.remote != nil {
		part("API for remote clients", func() error { return door.Serve(ctx, p.remote) })
	}
	if p.docker != nil {
		part("Docker", func() error { return p.docker.serve(ctx, p.engine.Ready()) })
	}
	if p.scrapes != nil {
		part("metrics", func() error { return serveMetrics(ctx, p.scrapes, p.meter, log) })
	}
	log.Info("daemon is up", "version", version, "socket", listener.Addr().String())
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	log.Info("daemon is down; containers go on")
	return nil
}

func (p *parts) close() error {
	var errs []error
	for _, ln := range []net.Listener{p.scrapes, p.remote} {
		if ln != nil {
			ln.Close()
		}
	}
	if p.names != nil {
		p.names.Close()
	}
	if p.runtime != nil {
		errs = append(errs, p.runtime.Close())
	}
	if p.vms != nil {
		p.vms.Close()
	}
	if p.images != nil {
		errs = append(errs, p.images.Close())
	}
	if p.filter != nil {
		errs = append(errs, p.filter.Close())
	}
	if p.wg != nil {
		errs = append(errs, p.wg.Close())
	}
	if p.sw != nil {
		errs = append(errs, p.sw.Close())
	}
	if p.dev != nil {
		errs = append(errs, p.dev.Close())
	}
	for _, db := range []*store.DB{p.db, p.passing} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if p.claim != nil {
		errs = append(errs, p.claim.Close())
	}
	return errors.Join(errs...)
}

// switchCheck lets the engine ask the switch cheaply whether something drifted.
type switchCheck struct{ *vswitch.Applier }

// compartments opens compartments for those who do not know netdev.
func compartments(dev *netdev.Netdev) func(path string) (int, error) {
	return func(path string) (int, error) {
		fd, err := dev.OpenNamespace(path)
		if errors.Is(err, netdev.ErrVanished) {
			return fd, fmt.Errorf("%w: %w", os.ErrNotExist, err)
		}
		return fd, err
	}
}

// portCounters are the switch's for a port, and the kernel's own for a device that is on none.
func portCounters(sw *vswitch.Applier, dev *netdev.Netdev, p *plan.Port) (vswitch.Counters, error) {
	if p.Kind != plan.PortMacvlan {
		return sw.Counters(p.ID)
	}
	t, err := dev.Traffic(p.VNIC.Namespace, p.VNIC.Device)
	return vswitch.Counters(t), err
}

// counters shows a port's counters in the API's form.
func counters(sw *vswitch.Applier, dev *netdev.Netdev) func(*plan.Port) (api.NetworkStats, error) {
	return func(p *plan.Port) (api.NetworkStats, error) {
		id := p.ID
		c, err := portCounters(sw, dev, p)
		if err != nil {
			return api.NetworkStats{}, err
		}
		s := api.NetworkStats{
			BytesReceived: c.RxBytes, BytesSent: c.TxBytes, PacketsReceived: c.RxPackets, PacketsSent: c.TxPackets,
			DroppedIncoming: c.RxDropped, DroppedOutgoing: c.TxDropped,
		}
		drops, err := sw.Drops()
		if err != nil {
			return s, err
		}
		for _, d := range drops {
			if d.Port != id {
				continue
			}
			if s.DropReasons == nil {
				s.DropReasons = map[string]uint64{}
			}
			s.DropReasons[d.Reason.String()] += d.Packets
		}
		return s, nil
	}
}

// hostResolvers holds the host's name servers for the resolver, which asks with
// every question; the loop renews them.
type hostResolvers struct {
	list atomic.Pointer[[]netip.AddrPort]
}

func newHostResolvers(*netdev.Netdev) *hostResolvers {
	h := &hostResolvers{}
	h.set(nil)
	return h
}

func (h *hostResolvers) set(addrs []netip.Addr) {
	out := make([]netip.AddrPort, len(addrs))
	for i, a := range addrs {
		out[i] = netip.AddrPortFrom(a, 53)
	}
	h.list.Store(&out)
}

func (h *hostResolvers) get() []netip.AddrPort { return *h.list.Load() }

func (c *daemonConfig) info(ctx context.Context, p *parts) api.Info {
	var u unix.Utsname
	_ = unix.Uname(&u) // cannot fail with a valid buffer (uname(2))
	probe := p.runtime.Probe(ctx)
	return api.Info{
		Version: version, Commit: commit, Kernel: unix.ByteSliceToString(u.Release[:]), OS: runtime.GOOS, Arch: runtime.GOARCH,
		StateDir: c.stateDir, Runtime: probe.RuntimeVersion, AttachMode: string(p.sw.Mode()), CgroupMode: probe.Cgroups,
	}
}

// crashEnv names a step of the engine ("launch", "apply-switch", …), with the
// count of passes through it before, at which the daemon kills itself: the tests
// cut every operation at every step with it.
const crashEnv = "BULKHEAD_CRASH_AT"

func crashStep(spec string) func(string) {
	if spec == "" {
		return nil
	}
	step, after, _ := strings.Cut(spec, ":")
	var left atomic.Int64
	var n int64
	_, _ = fmt.Sscan(after, &n) // none given: the first pass
	left.Store(n)
	return func(name string) {
		if name == step && left.Add(-1) < 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
}
