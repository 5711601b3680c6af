package wireguard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// DefaultSocketDir is where wg(8) looks for devices outside the kernel.
const DefaultSocketDir = "/run/wireguard"

// Options of New.
type Options struct {
	// Open opens a compartment by its path; the descriptor is closed here.
	Open func(path string) (int, error)
	// Mode says what is to encrypt; Auto if empty.
	Mode Mode
	// SocketDir is DefaultSocketDir if empty. LogDir has the logs of the processes.
	SocketDir, LogDir string
	// Command runs Serve, as the options that are added to it say.
	Command []string
	// Home runs a function in the host; nil: the process is there.
	Home func(fn func() error) error
	// Wake has everything compared, when a process has ended.
	Wake func(cause string)
	// Changed is called when Status has changed.
	Changed func()
	Log     *slog.Logger
}

// Applier makes the WireGuard devices of a plan. Sync, Update and Check are called by one goroutine.
type Applier struct {
	opt Options
	log *slog.Logger

	procs map[string]*process // by device
	// held is the compartment that devices of the kernel's were made in, -1 if none: they are in there for as long as anybody is, also when
	// it was deleted.
	held int
	// ways are the devices that hosts are sent to by.
	ways  map[netip.Addr]string
	looks int
	choice

	mu     sync.Mutex
	status plan.SecureStatus
	closed bool
}

// New makes the applier.
func New(o Options) *Applier {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.SocketDir, o.Mode = cmp.Or(o.SocketDir, DefaultSocketDir), cmp.Or(o.Mode, Auto)
	if o.Home == nil {
		o.Home = func(fn func() error) error { return fn() }
	}
	if o.Wake == nil {
		o.Wake = func(string) {}
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Applier{opt: o, log: o.Log, procs: map[string]*process{}, held: -1, ways: map[netip.Addr]string{}, choice: newChoice(o.Mode, ProbeKernel)}
}

// Close lets go of the devices, which go on.
func (a *Applier) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	for _, p := range a.procs {
		p.cl.close()
	}
	if a.held >= 0 {
		unix.Close(a.held)
		a.held = -1
	}
	return nil
}

// Status says how it is now.
func (a *Applier) Status() plan.SecureStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

func (a *Applier) note(s plan.SecureStatus) {
	a.mu.Lock()
	changed := a.status.Problem != s.Problem || !sameHosts(a.status.Devices, s.Devices)
	a.status = s
	a.mu.Unlock()
	if changed {
		a.opt.Changed()
	}
}

func sameHosts(a, b map[uint32]map[hcn.GUID]time.Time) bool {
	return maps.EqualFunc(a, b, func(x, y map[hcn.GUID]time.Time) bool {
		return maps.EqualFunc(x, y, func(time.Time, time.Time) bool { return true })
	})
}

func (a *Applier) socket(device string) string { return filepath.Join(a.opt.SocketDir, device+".sock") }

func (a *Applier) logFile(device string) string {
	return filepath.Join(a.opt.LogDir, "wireguard-"+device+".log")
}

// Sync compares devices, peers and routes with the plan and mends what differs.
func (a *Applier) Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error) {
	var drift []plan.Drift
	err := a.apply(ctx, p, func(object, what string) {
		drift = append(drift, plan.Drift{Object: object, ID: string(plan.SecureNamespace), Found: what})
	})
	if err != nil {
		drift = nil // it is not repaired
	}
	return drift, err
}

// Update does so when the keys have changed.
func (a *Applier) Update(ctx context.Context, p *plan.Plan, d *plan.Delta) error {
	if _, ok := d.Namespaces[plan.SecureNamespace]; !d.Secure && !ok {
		return nil
	}
	return a.apply(ctx, p, func(string, string) {})
}

// apply makes it so. Found is told what was not as the last call had left it.
func (a *Applier) apply(ctx context.Context, p *plan.Plan, found func(object, what string)) error {
	s := p.Secure
	if s == nil {
		a.note(plan.SecureStatus{})
		return a.opt.Home(func() error {
			return errors.Join(a.letGo(), a.sweep(plan.NamespacePath(plan.SecureNamespace)), a.prune(nil))
		})
	}
	if !s.Told {
		return nil // the last daemon's devices go on with what they have
	}
	var st plan.SecureStatus
	err := a.opt.Home(func() error {
		var err error
		st, err = a.make(ctx, s, found)
		return errors.Join(err, a.prune(s))
	})
	st.Silent = silent(s, &st, time.Now())
	if err == nil {
		a.note(st)
		return nil
	}
	st.Problem = strings.ReplaceAll(err.Error(), "\n", "; ")
	a.note(st)
	var errs []error
	for id, sw := range p.Switches {
		if sw.Overlay != nil && sw.Overlay.Encrypted {
			errs = append(errs, &plan.ObjectError{Kind: "network", ID: string(id), Err: fmt.Errorf("encryption: %w", err)})
		}
	}
	return errors.Join(errs...)
}

func (a *Applier) make(ctx context.Context, s *plan.Secure, found func(object, what string)) (plan.SecureStatus, error) {
	inKernel, err := a.kernel()
	st := newStatus(inKernel)
	if err != nil {
		return st, err
	}
	c, err := a.open(s.Namespace)
	if err != nil {
		return st, err
	}
	defer c.close()
	if err := a.hold(c, inKernel); err != nil {
		return st, err
	}
	what, err := c.address(s.Addr)
	if what != "" {
		found("compartment "+s.Namespace, what)
	}
	errs := []error{err}
	up, fresh := map[string]*made{}, false // a new device has no routes
	for i := range s.Devices {
		d := &s.Devices[i]
		m, err := a.device(ctx, c, s, d, inKernel, func(what string) { found("WireGuard device "+d.Device, what) })
		if err != nil {
			errs = append(errs, fmt.Errorf("WireGuard device %s: %w", d.Device, err))
			continue
		}
		up[d.Device], fresh = m, fresh || m.fresh
		report(&st, d, m.have)
	}
	errs = append(errs, c.removeOthers(s))
	wrong, err := c.routes(a.choose(s, up))
	for _, w := range wrong {
		if !fresh {
			found("compartment "+s.Namespace, w)
		}
	}
	return st, errors.Join(append(errs, err)...)
}

// made is a device as it is.
type made struct {
	index int
	have  *state
	heard map[hcn.GUID]time.Time // hosts that it has shaken hands with
	fresh bool                   // it was made just now
}

// device makes or mends one.
func (a *Applier) device(ctx context.Context, c *compartment, s *plan.Secure, d *plan.SecureDevice, inKernel bool, found func(string)) (*made, error) {
	get := a.byProcess
	if inKernel {
		get = a.byKernel
	}
	dev, err := get(ctx, c, s, d, found)
	if err != nil {
		return nil, err
	}
	defer dev.done()
	if dev.have.port != d.Port {
		if err := portIsFree(d.Port); err != nil {
			return nil, err
		}
	}
	if dev.fresh { // that it is, has been said
		found = func(string) {}
	}
	if diff := difference(d, dev.have, time.Now()); !diff.empty() {
		if err := dev.set(diff); err != nil {
			return nil, fmt.Errorf("configure it: %w", err)
		}
		for _, w := range diff.found {
			found(w)
		}
	}
	what, err := c.ready(dev.link, s.MTU)
	if what != "" {
		found(what)
	}
	return &made{dev.link.Attrs().Index, dev.have, heard(d, dev.have), dev.fresh}, err
}

// opened is a device to be compared with the plan.
type opened struct {
	link  netlink.Link
	have  *state
	set   func(*change) error
	done  func()
	fresh bool
}

// byProcess finds or starts the process that is a device.
func (a *Applier) byProcess(ctx context.Context, c *compartment, s *plan.Secure, d *plan.SecureDevice, found func(string)) (*opened, error) {
	p := a.procs[d.Device]
	if p == nil {
		if p = find(d.Device, a.socket(d.Device)); p != nil {
			a.adopt(p)
		}
	}
	l, err := c.link(d.Device)
	if err == nil && l != nil && l.Type() == kernelKind {
		found("the kernel's instead of a process")
		l, err = nil, c.remove(l)
	}
	if err != nil {
		return nil, err
	}
	var have *state
	if p != nil && p.alive() && l != nil {
		have, err = p.cl.get()
	}
	if p != nil && have == nil { // it is gone, or hangs, or its device is in a compartment that is no more
		if err != nil {
			a.log.Warn("WireGuard's process does not answer, and is ended", "device", d.Device, "error", err)
		}
		delete(a.procs, d.Device)
		if err := p.end(); err != nil {
			return nil, err
		}
		p, l = nil, nil
		found("missing")
	}
	fresh := p == nil
	if fresh {
		if p, err = start(ctx, a.opt.Command, ServeOptions{Device: d.Device, Namespace: s.Namespace, Socket: a.socket(d.Device), MTU: s.MTU}, a.logFile(d.Device)); err != nil {
			return nil, err
		}
		a.adopt(p)
		if have, err = p.cl.get(); err != nil {
			return nil, err
		}
		if l, err = c.link(d.Device); err != nil || l == nil {
			return nil, fmt.Errorf("find the new device: %w", cmp.Or(err, error(unix.ENODEV)))
		}
	}
	return &opened{l, have, p.cl.set, func() {}, fresh}, nil
}

// byKernel finds or makes a device of the kernel's.
func (a *Applier) byKernel(_ context.Context, c *compartment, s *plan.Secure, d *plan.SecureDevice, found func(string)) (*opened, error) {
	was, err := a.endProcess(d.Device)
	if err == nil {
		err = a.forgetProcesses(d.Device)
	}
	if err != nil {
		return nil, err
	}
	l, err := c.link(d.Device)
	if err != nil {
		return nil, err
	}
	what := "missing"
	if was {
		what = "a process instead of the kernel's"
	}
	if l != nil && l.Type() == kernelKind {
		o, err := openKernel(c, l)
		if err != nil || leadsOut(l, o.have) {
			return o, err
		}
		o.done()
	}
	if l != nil {
		what = "another device of its name, which leads nowhere"
		if err := c.remove(l); err != nil {
			return nil, err
		}
	}
	found(what)
	if err := newInKernel(c.fd, d.Device, s.MTU); err != nil {
		return nil, fmt.Errorf("make it in the kernel: %w", err)
	}
	if l, err = c.link(d.Device); err != nil || l == nil {
		return nil, fmt.Errorf("find the new device: %w", cmp.Or(err, error(unix.ENODEV)))
	}
	o, err := openKernel(c, l)
	if err == nil {
		o.fresh = true
	}
	return o, err
}

func openKernel(c *compartment, l netlink.Link) (*opened, error) {
	k, err := openKernelDevice(c.fd, l.Attrs().Name)
	if err != nil {
		return nil, err
	}
	have, err := k.get()
	if err != nil {
		k.close()
		return nil, err
	}
	return &opened{link: l, have: have, set: k.set, done: k.close}, nil
}

// portIsFree asks before the device is told, which takes it only when it is up.
func portIsFree(port uint16) error {
	for _, family := range []string{"udp4", "udp6"} {
		c, err := net.ListenUDP(family, &net.UDPAddr{Port: int(port)})
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("UDP port %d: %w", port, errPortInUse)
		}
		if err == nil {
			err = c.Close()
		}
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("try UDP port %d: %w", port, err)
		}
	}
	return nil
}

func heard(d *plan.SecureDevice, have *state) map[hcn.GUID]time.Time {
	out := map[hcn.GUID]time.Time{}
	for i := range d.Peers {
		if h := have.peers[d.Peers[i].Key]; !h.handshake.IsZero() {
			out[d.Peers[i].Host] = h.handshake
		}
	}
	return out
}

func (a *Applier) adopt(p *process) {
	a.procs[p.device] = p
	p.watch(a.opt.Home, func() {
		a.mu.Lock()
		closed := a.closed
		a.mu.Unlock()
		if !closed {
			a.opt.Wake("WireGuard's process ended")
		}
	})
}

// choose says by which device each host is sent to: the newest one that has shaken hands with it. So a change of keys loses nothing:
// both ends receive by either device all the time.
func (a *Applier) choose(s *plan.Secure, up map[string]*made) map[netip.Addr]int {
	ways, out := map[netip.Addr]string{}, map[netip.Addr]int{}
	for i := range s.Devices {
		d := &s.Devices[i]
		m := up[d.Device]
		if m == nil {
			continue
		}
		for j := range d.Peers {
			p := &d.Peers[j]
			if _, other := ways[p.Addr]; other && m.heard[p.Host].IsZero() {
				continue
			}
			ways[p.Addr], out[p.Addr] = d.Device, m.index
		}
	}
	a.ways = ways
	return out
}

// prune ends the processes of devices that nobody wants.
func (a *Applier) prune(s *plan.Secure) error {
	var errs []error
	for n := range uint32(2) {
		name := plan.SecureDeviceName(n)
		if s != nil && s.Wants(name) {
			continue
		}
		_, err := a.endProcess(name)
		errs = append(errs, err)
		if s == nil {
			errs = append(errs, a.forgetProcesses(name))
		}
	}
	return errors.Join(errs...)
}

// forgetProcesses removes what the processes of a device have left that ended for good.
func (a *Applier) forgetProcesses(device string) error {
	if a.opt.SocketDir == DefaultSocketDir {
		_ = os.Remove(DefaultSocketDir) // unless others have something there
	}
	return removeIfThere(a.logFile(device))
}

// endProcess ends the process that is a device, and tells whether there was one.
func (a *Applier) endProcess(device string) (bool, error) {
	p := a.procs[device]
	delete(a.procs, device)
	if p == nil {
		p = find(device, a.socket(device))
	}
	var err error
	if p != nil {
		err = p.end()
	}
	return p != nil, errors.Join(err, removeIfThere(a.socket(device)))
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// lookEvery is how many cheap checks go by until the devices are asked for their peers.
const lookEvery = 5

// Check tells whether the devices are as the plan says. While keys are changed it looks each time: the new ones are used as soon as they
// can be.
func (a *Applier) Check(ctx context.Context, p *plan.Plan) (bool, error) {
	s := p.Secure
	if s == nil || !s.Told {
		return true, nil
	}
	inKernel, err := a.kernel()
	if err != nil {
		return a.Status().Problem != "", nil //nolint:nilerr // what fails is tried again by the engine
	}
	a.looks++
	thorough := len(s.Devices) > 1 || a.looks%lookEvery == 0
	fine := true
	if !inKernel {
		for i := range s.Devices {
			pr := a.procs[s.Devices[i].Device]
			if pr == nil || !pr.alive() {
				return a.Status().Problem != "", nil
			}
		}
		if !thorough {
			return true, nil
		}
	}
	err = a.opt.Home(func() (err error) { fine, err = a.look(s, inKernel, thorough); return err })
	// What fails is tried again by the engine.
	return err == nil && fine || a.Status().Problem != "", nil
}

// look compares without mending, but for the ways: those follow handshakes. One that is not thorough sees whether there are devices.
func (a *Applier) look(s *plan.Secure, inKernel, thorough bool) (bool, error) {
	st := newStatus(inKernel)
	c, err := a.open(s.Namespace)
	if err != nil {
		return false, err
	}
	defer c.close()
	up := map[string]*made{}
	for i := range s.Devices {
		d := &s.Devices[i]
		l, err := c.link(d.Device)
		if err != nil || l == nil || l.Attrs().MTU != s.MTU || l.Attrs().Flags&net.FlagUp == 0 || (l.Type() == kernelKind) != inKernel {
			return false, err
		}
		if !thorough {
			continue
		}
		have, err := a.stateOf(c, d.Device, inKernel)
		if err != nil {
			return false, err
		}
		if !difference(d, have, time.Now()).empty() || inKernel && !leadsOut(l, have) {
			return false, nil
		}
		up[d.Device] = &made{l.Attrs().Index, have, heard(d, have), false}
		report(&st, d, have)
	}
	if !thorough {
		return true, nil
	}
	st.Silent = silent(s, &st, time.Now())
	before := a.ways
	want := a.choose(s, up)
	if maps.Equal(before, a.ways) {
		a.note(st)
		return c.hasRoutes(want)
	}
	_, err = c.routes(want)
	a.note(st)
	return err == nil, err
}

// stateOf asks a device.
func (a *Applier) stateOf(c *compartment, device string, inKernel bool) (*state, error) {
	if !inKernel {
		return a.procs[device].cl.get()
	}
	k, err := openKernelDevice(c.fd, device)
	if err != nil {
		return nil, err
	}
	defer k.close()
	return k.get()
}

// Reset removes all devices, and what they leave. Namespace is where the kernel's are.
func Reset(socketDir, logDir, namespace string) error {
	a := New(Options{SocketDir: socketDir, LogDir: logDir, Open: openPath})
	return errors.Join(a.sweep(namespace), a.prune(nil))
}

func openPath(path string) (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) }

// Leftovers are devices, for a check after Reset: sockets of processes, and links of the kernel's.
func Leftovers(socketDir, namespace string) (out []string) {
	for n := range uint32(2) {
		path := filepath.Join(cmp.Or(socketDir, DefaultSocketDir), plan.SecureDeviceName(n)+".sock")
		if _, err := os.Stat(path); err == nil {
			out = append(out, "socket "+path)
		}
	}
	a := New(Options{Open: openPath})
	if c, err := a.open(namespace); err == nil {
		defer c.close()
		for _, l := range c.ofKernel() {
			out = append(out, "device "+l.Attrs().Name)
		}
	}
	slices.Sort(out)
	return out
}
