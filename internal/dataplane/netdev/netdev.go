// Package netdev makes the devices of a plan: compartments, veth pairs, addresses, routes, and the few settings of the
// host that they need. It also says what the host looks like (Facts) and wakes the engine when that changes (Watch).
//
// It acts twice in a pass. Devices runs first and leaves the switch side of every pair down; when the programs and
// tables are in place, Finish sets it up and takes away what the plan no longer holds. So no frame passes before its
// policy is there.
//
// Three facts of the kernel shape the code:
//   - Moving a device to another namespace waits for an RCU grace period, 15 to 30 ms. So the far end of a pair is born
//     in its compartment, by the message that makes the pair.
//   - Deleting a device waits as well, but deleting a group of them waits once. So a dying link only changes its group,
//     and one goroutine deletes the group (see reaper).
//   - A link's alias cannot be given at its birth, its group can. So a link is ours by its name and either of the two,
//     and a crash between the two messages leaves nothing that cannot be recognised.
//
// What is ours inside a compartment, where containers may add addresses and routes of their own, is marked with a
// protocol number (see protoOurs): only what carries it is ever removed.
package netdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// ErrVanished says that a compartment which has to exist does not: its file is gone, or is no network namespace.
var ErrVanished = errors.New("the compartment has vanished")

// Options of New. Only StateDir must be given.
type Options struct {
	// StateDir holds the record of host settings that were changed, so that they can be put back.
	StateDir string
	// NetnsDir is where compartments are bound; plan.NetnsDir if empty. A plan's paths must lie in it.
	NetnsDir string
	// ResolvConf and SystemdResolvConf are the host's resolver files; the second is read when the first only names the
	// local stub of systemd-resolved.
	ResolvConf, SystemdResolvConf string
	// Pool is how many namespaces are kept ready for an attach; 0 for none.
	Pool int
	// Guard puts the switch's program on a device that is to be a port one day, so that what it sends is dropped; release lets go of it, unless
	// the port has it by then. Nil: nothing does.
	Guard  func(index int) (release func(), err error)
	Logger *slog.Logger
}

// Netdev owns our devices in one host: the network and mount namespace in which New was called.
type Netdev struct {
	opts Options
	log  *slog.Logger
	home *home
	host *conn // in the host's network namespace
	// grim is the reaper's own socket there: a deletion must not hold up the others.
	grim *conn
	reap *reaper
	pool *pool
	// taken are the spares that became ports in this pass, or one that failed. Only the appliers use it.
	taken []*spare
	proc  procTree
	known registry
	watch watchState
	lobby lobby

	// writes counts changes made to the kernel.
	writes *atomic.Int64
	// bufs are the receive buffers of sockets that were closed: a Sync opens one in every compartment.
	bufs sync.Pool
	// settings guards the record of host settings.
	settings sync.Mutex
	// harmful are the offloads that no NIC with a network on it may do.
	harmful []string
	closing sync.Once
	// swept: there are no macvlan devices in compartments but those of the plan.
	swept atomic.Bool
}

// New opens the host. Close has to be called.
func New(opts Options) (*Netdev, error) {
	if opts.StateDir == "" {
		return nil, errors.New("netdev: no state directory given")
	}
	setDefault(&opts.NetnsDir, plan.NetnsDir)
	setDefault(&opts.ResolvConf, "/etc/resolv.conf")
	setDefault(&opts.SystemdResolvConf, "/run/systemd/resolve/resolv.conf")
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.NetnsDir = filepath.Clean(opts.NetnsDir)
	h, err := openHome()
	if err != nil {
		return nil, fmt.Errorf("open the host's namespaces: %w", err)
	}
	n := &Netdev{opts: opts, log: opts.Logger, home: h, writes: new(atomic.Int64), proc: procTree{fd: -1}, harmful: []string{lro}}
	if err := h.do(n.openSockets); err != nil {
		h.close()
		return nil, fmt.Errorf("open the host's netlink sockets: %w", err)
	}
	n.reap = newReaper(n)
	n.pool.start()
	return n, nil
}

func (n *Netdev) openSockets() (err error) {
	if n.host, err = n.openConn(); err != nil {
		return err
	}
	if n.grim, err = n.openConn(); err != nil {
		n.host.close()
		return err
	}
	c, err := n.openConn()
	if err != nil {
		n.host.close()
		n.grim.close()
	}
	n.pool = newPool(n, n.opts.Pool, c)
	return err
}

// Close ends the background work after what was asked for is done. A second Close does nothing.
func (n *Netdev) Close() error {
	n.closing.Do(func() {
		n.pool.close()
		n.lobby.close()
		n.reap.close()
		n.pool.conn.close()
		n.grim.close()
		n.host.close()
		n.proc.close()
		n.home.close()
	})
	return nil
}

func setDefault(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Devices is the applier that makes what is missing.
type Devices struct{ n *Netdev }

// Finish is the applier that sets ports up and removes what is left over.
type Finish struct{ n *Netdev }

// Devices gives the first applier.
func (n *Netdev) Devices() *Devices { return &Devices{n} }

// Finish gives the last applier.
func (n *Netdev) Finish() *Finish { return &Finish{n} }

// portError and namespaceError tie an error to its object; nil stays nil.
func portError(p *plan.Port, err error) error {
	if err == nil {
		return nil
	}
	return &plan.ObjectError{Kind: "port", ID: string(p.ID), Err: err}
}

func namespaceError(ns *plan.Namespace, err error) error {
	if err == nil {
		return nil
	}
	return &plan.ObjectError{Kind: "namespace", ID: string(ns.ID), Err: err}
}

// pass is one run of an applier: what it has looked up and opened so far.
type pass struct {
	n   *Netdev
	ctx context.Context
	// report is set in a Sync: differences that are found are drift.
	report bool
	drift  []plan.Drift
	// links of the host by name, once they were listed (nil before).
	links  map[string]link
	spaces map[string]*space
	// spares are those that become ports, by the compartments that they are to be.
	spares map[string]*spare
	// born are vNICs that this pass has made, or has emptied of neighbours.
	born map[plan.Interface]bool
	errs []error
	// dry is set in a preview (preview.go): what would be written is noted there.
	dry *preview
}

func (n *Netdev) newPass(ctx context.Context, report bool) *pass {
	return &pass{n: n, ctx: ctx, report: report, spaces: map[string]*space{}, spares: map[string]*spare{}, born: map[plan.Interface]bool{}}
}

func (ps *pass) close() {
	for _, s := range ps.spaces {
		s.close()
	}
}

// write changes the kernel for the object that owner has.
func (ps *pass) write(c *conn, owner, object string, ws ...write) error {
	if ps.dry != nil {
		ps.dry.note(owner, object, ws...)
		return nil
	}
	return c.write(ws...)
}

// found notes a difference that the pass is about to repair.
func (ps *pass) found(id, object, format string, args ...any) {
	if ps.report {
		ps.drift = append(ps.drift, plan.Drift{Object: object, ID: id, Found: fmt.Sprintf(format, args...)})
	}
}

// fail notes an error and goes on.
func (ps *pass) fail(err error) {
	if err != nil {
		ps.errs = append(ps.errs, err)
	}
}

// hostLink finds a link in the host's namespace.
func (ps *pass) hostLink(name string) (link, bool, error) {
	if ps.links != nil {
		l, ok := ps.links[name]
		return l, ok, nil
	}
	return ps.n.host.linkByName(name)
}

// linkIn finds a link in the host's namespace or in a compartment. One that only has name as a further name is another.
func (ps *pass) linkIn(s *space, name string) (link, bool, error) {
	if s.path == "" {
		return ps.hostLink(name)
	}
	l, ok, err := s.conn.linkByName(name)
	return l, ok && l.name == name, err
}

// listHost lists the host's links once, for a pass that will look at many.
func (ps *pass) listHost() error {
	links, err := ps.n.host.listLinks()
	if err != nil {
		return err
	}
	ps.links = make(map[string]link, len(links))
	for _, l := range links {
		ps.links[l.name] = l
	}
	return nil
}

// forget drops what is known of a host link after it was changed.
func (ps *pass) forget(name string) { delete(ps.links, name) }
