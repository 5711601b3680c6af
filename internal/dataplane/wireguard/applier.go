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
	// ways are the devices that hosts are sent to by.
	ways  map[netip.Addr]string
	looks int

	mu     sync.Mutex
	status plan.SecureStatus
	closed bool
}

// New makes the applier.
func New(o Options) *Applier {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.SocketDir = cmp.Or(o.SocketDir, DefaultSocketDir)
	if o.Home == nil {
		o.Home = func(fn func() error) error { return fn() }
	}
	if o.Wake == nil {
		o.Wake = func(string) {}
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	return &Applier{opt: o, log: o.Log, procs: map[string]*process{}, ways: map[netip.Addr]string{}}
}

// Close lets go of the processes, which go on.
func (a *Applier) Close() error {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	for _, p := range a.procs {
		p.cl.close()
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
		return a.opt.Home(func() error { return a.prune(nil) })
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
	st := plan.SecureStatus{Devices: map[uint32]map[hcn.GUID]time.Time{}}
	fd, err := a.opt.Open(s.Namespace)
	if err != nil {
		return st, err
	}
	c, err := openCompartment(fd)
	if err != nil {
		unix.Close(fd)
		return st, err
	}
	defer c.close()
	what, err := c.address(s.Addr)
	if what != "" {
		found("compartment "+s.Namespace, what)
	}
	errs := []error{err}
	up, fresh := map[string]*made{}, false // a new device has no routes
	for i := range s.Devices {
		d := &s.Devices[i]
		m, err := a.device(ctx, c, s, d, func(what string) { found("WireGuard device "+d.Device, what) })
		if err != nil {
			errs = append(errs, fmt.Errorf("WireGuard device %s: %w", d.Device, err))
			continue
		}
		up[d.Device], fresh = m, fresh || m.fresh
		st.Devices[d.Generation] = m.heard
	}
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
	heard map[hcn.GUID]time.Time // hosts that it has shaken hands with
	fresh bool                   // it was made just now
}

// device makes or mends one.
func (a *Applier) device(ctx context.Context, c *compartment, s *plan.Secure, d *plan.SecureDevice, found func(string)) (*made, error) {
	p := a.procs[d.Device]
	if p == nil {
		if p = find(d.Device, a.socket(d.Device)); p != nil {
			a.adopt(p)
		}
	}
	l, err := c.link(d.Device)
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
	if have.port != d.Port {
		if err := portIsFree(d.Port); err != nil {
			return nil, err
		}
	}
	if fresh { // that it is, has been said
		found = func(string) {}
	}
	lines, wrong := difference(d, have, time.Now())
	if len(lines) > 0 {
		if err := p.cl.set(lines); err != nil {
			return nil, fmt.Errorf("configure it: %w", err)
		}
		for _, w := range wrong {
			found(w)
		}
	}
	what, err := c.ready(l, s.MTU)
	if what != "" {
		found(what)
	}
	return &made{l.Attrs().Index, heard(d, have), fresh}, err
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
	keep := map[string]bool{}
	if s != nil {
		for i := range s.Devices {
			keep[s.Devices[i].Device] = true
		}
	}
	var errs []error
	for n := range uint32(2) {
		name := plan.SecureDeviceName(n)
		if keep[name] {
			continue
		}
		p := a.procs[name]
		delete(a.procs, name)
		if p == nil {
			p = find(name, a.socket(name))
		}
		if p != nil {
			errs = append(errs, p.end())
		}
		errs = append(errs, removeIfThere(a.socket(name)))
		if s == nil {
			errs = append(errs, removeIfThere(a.logFile(name)))
		}
	}
	if s == nil && a.opt.SocketDir == DefaultSocketDir {
		_ = os.Remove(DefaultSocketDir) // unless others have something there
	}
	return errors.Join(errs...)
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
	for i := range s.Devices {
		pr := a.procs[s.Devices[i].Device]
		if pr == nil || !pr.alive() {
			return a.Status().Problem != "", nil // what fails is tried again by the engine
		}
	}
	a.looks++
	if len(s.Devices) < 2 && a.looks%lookEvery != 0 {
		return true, nil
	}
	fine := true
	err := a.opt.Home(func() (err error) { fine, err = a.look(s); return err })
	if err != nil {
		return false, nil //nolint:nilerr // the comparison says it
	}
	return fine, nil
}

// look compares without mending, but for the ways: those follow handshakes.
func (a *Applier) look(s *plan.Secure) (bool, error) {
	st := plan.SecureStatus{Devices: map[uint32]map[hcn.GUID]time.Time{}}
	fd, err := a.opt.Open(s.Namespace)
	if err != nil {
		return false, err
	}
	c, err := openCompartment(fd)
	if err != nil {
		unix.Close(fd)
		return false, err
	}
	defer c.close()
	up := map[string]*made{}
	for i := range s.Devices {
		d := &s.Devices[i]
		have, err := a.procs[d.Device].cl.get()
		if err != nil {
			return false, err
		}
		l, err := c.link(d.Device)
		if err != nil || l == nil || l.Attrs().MTU != s.MTU {
			return false, err
		}
		if lines, _ := difference(d, have, time.Now()); len(lines) > 0 {
			return false, nil
		}
		up[d.Device] = &made{l.Attrs().Index, heard(d, have), false}
		st.Devices[d.Generation] = up[d.Device].heard
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

// Reset ends all processes of devices, and removes what they leave.
func Reset(socketDir, logDir string) error {
	a := New(Options{SocketDir: socketDir, LogDir: logDir})
	return a.prune(nil)
}

// Leftovers are sockets of devices, for a check after Reset.
func Leftovers(socketDir string) (out []string) {
	for n := range uint32(2) {
		path := filepath.Join(cmp.Or(socketDir, DefaultSocketDir), plan.SecureDeviceName(n)+".sock")
		if _, err := os.Stat(path); err == nil {
			out = append(out, "socket "+path)
		}
	}
	slices.Sort(out)
	return out
}
