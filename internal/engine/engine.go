// Package engine is the loop: it keeps what users want in the store, compiles
// it, and has the appliers make the kernel match.
//
// Every change is one store transaction and a wake of the loop. There is no
// undo: what fails is deleted from the store, and the loop runs again. The
// engine knows the kernel only through the interfaces below, so all of it is
// tested without one.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/hcn"
	"github.com/bulkhead-net/bulkhead/internal/plan"
	"github.com/bulkhead-net/bulkhead/internal/store"
)

// Applier makes one part of the kernel match the plan. It touches only what is
// ours, and deleting what is absent is success.
type Applier interface {
	// Sync lists what is ours, compares it with the plan and writes the
	// difference. It reports what somebody else had changed.
	Sync(ctx context.Context, p *plan.Plan) ([]plan.Drift, error)
	// Update writes only what the delta names. Errors of single objects are
	// *plan.ObjectError, joined.
	Update(ctx context.Context, p *plan.Plan, d *plan.Delta) error
}

// Cutter is an Applier that can cut off at once what a delta takes away, and leave
// the rest of the work to the Update that follows. When all have done so, the
// caller who took it away is answered.
type Cutter interface {
	Cut(ctx context.Context, d *plan.Delta) error
}

// Stage is a group of appliers that touch different parts of the kernel: their
// Updates run side by side.
type Stage []Applier

// Checker is an Applier that can tell cheaply whether a Sync is due.
type Checker interface {
	Check(ctx context.Context, p *plan.Plan) (bool, error)
}

// Reserver holds the host's ports that are published.
type Reserver interface {
	Reserve(f plan.Forward, owner string) error
	// Retake takes what was reserved before a restart.
	Retake(f plan.Forward, owner string) error
	Release(f plan.Forward, owner string)
	// HostPick finds one port that is free for all the forwards, and takes it.
	HostPick(owner string, fs ...plan.Forward) (uint16, error)
}

// Sandbox makes and watches containers.
type Sandbox interface {
	Check(cfg api.SandboxConfig) (warnings []string, err error)
	Create(ctx context.Context, cfg api.SandboxConfig) error
	Start(ctx context.Context, id string) error
	Kill(ctx context.Context, id, signal string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// RefreshEtc brings a container's /etc/hosts and /etc/resolv.conf up to date, unless it has changed them itself.
	RefreshEtc(id, hosts, resolvConf string) error
	State(ctx context.Context, id string) (api.SandboxState, error)
	List(ctx context.Context) ([]string, error)
	Exits(ctx context.Context) <-chan api.SandboxExit
	// Connect joins the streams of a container that is created and not started
	// yet, so that nothing it writes is missed.
	Connect(ctx context.Context, id string) (Attachment, error)
	Attach(ctx context.Context, id string, s api.Streams) error
	Exec(ctx context.Context, id string, spec api.ExecSpec, s api.Streams) (int, error)
	Logs(ctx context.Context, id string, o api.LogOptions, emit func(api.LogLine) error) error
	Stats(ctx context.Context, id string) (api.Stats, error)
	// Dial connects with a socket in the file system of a container that runs in a VM.
	Dial(ctx context.Context, id, path string) (net.Conn, error)
	// DialNet sends from the compartment inside the VM of a container, to a literal address, from a port unless that is 0.
	DialNet(ctx context.Context, id, network, address string, from uint16) (net.Conn, error)
	// GuestNICs tells what NICs a container's VM has been given.
	GuestNICs(ctx context.Context, id string, r api.GuestNICsRequest) (api.GuestNICs, error)
	// Volumes lists the named volumes. RemoveVolume takes one out of their list at
	// once; finish removes its content.
	Volumes() ([]api.Volume, error)
	RemoveVolume(name string) (finish func() error, err error)
}

// Attachment is a connection to a container's streams. Run carries them until the
// process or the client ends; Close is for one that is not run.
type Attachment interface {
	Run(ctx context.Context, s api.Streams) error
	Close() error
}

// Images is the image store.
type Images interface {
	Pull(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) (api.Image, error)
	Push(ctx context.Context, r api.PullRequest, progress func(api.ImageProgress)) error
	Import(ctx context.Context, r io.Reader, reference string, cfg api.ImageConfig) (api.Image, error)
	List() ([]api.Image, error)
	Inspect(ref string) (api.Image, error)
	Tag(ref, newRef string) error
	Remove(ref string, force bool, inUse []string) error
	Prune(inUse []string) ([]string, error)
	// Login checks credentials with their registry before it keeps them.
	Login(ctx context.Context, r api.LoginRequest) error
	Logout(registry string) error
	// Layers unpacks the image's layers where that is still to be done, and
	// returns their directories, topmost first. It refuses an image that cannot
	// run on this kernel.
	Layers(ctx context.Context, id string) ([]string, error)
}

// Kernels knows which kernels there are, and what images demand of one.
type Kernels interface {
	// Host says what the host's kernel lacks for an image.
	Host(imageID string) error
	// Guest picks the kernel of a VM for an image, which has what that demands: want, the name of a kernel's image, or when that is
	// empty the installed one, or else the newest of the images. It gives the ID of an image; "": the installed one.
	Guest(ctx context.Context, imageID, want string) (kernelID string, err error)
}

// Options are what an Engine needs of the world around it.
type Options struct {
	DB *store.DB
	// Passing keeps what ends with the run of the host, which is what a restart of
	// the daemon must find: on a file system in memory a sync costs nothing. Nil:
	// DB keeps it too.
	Passing *store.DB
	// Stages in the order of a pass. The first applier of the first one makes the
	// compartments and devices that the others need.
	Stages []Stage
	Facts  func(ctx context.Context) (plan.Facts, error)
	// Counters of a port; nil where there is no data plane.
	Counters func(*plan.Port) (api.NetworkStats, error)
	// Drops is empty where there is no data plane.
	Drops Drops
	// Flows is empty where there is no data plane.
	Flows Flows
	// Explain is what an explanation asks of the kernel; empty where there is no data plane.
	Explain Explain
	// Capture runs a capture; nil where there is no data plane.
	Capture func(ctx context.Context, r CaptureRequest, out CaptureOutput) error
	// Promise gives the ID of an endpoint that a compartment is kept ready for, which is to be given back when that does not come to be. Nil,
	// or none: any other will do, and takes longer.
	Promise func() (id hcn.GUID, giveBack func())
	// Isolation of containers that say none; "": process.
	Isolation string
	// Reach asks who can be reached; nil where nobody can be asked.
	Reach Reach
	// Netns is the number of the network namespace at a path, which is refused unless it is one that endpoints may be put into,
	// and the path of the compartment that it is, if it is one; nil where there is no kernel.
	Netns func(path string) (inode uint64, compartment string, err error)
	// Moved finds a vNIC by its switch side, and by the path of the network namespace that its runtime was to move it to: its name there,
	// "" while it is not.
	Moved   func(device, path string) (name string, inode uint64, err error)
	Ports   Reserver
	Sandbox Sandbox
	Images  Images
	Kernels Kernels
	// Leases is nil where nobody asks LANs for addresses; a container's start waits LeaseWait for them, or DefaultLeaseWait.
	Leases    Leases
	LeaseWait time.Duration
	// Probe is how long a LAN is asked who has an address before an endpoint gets it; 0: not at all.
	Probe time.Duration
	// Cluster is nil where there are no networks that span hosts.
	Cluster Cluster
	// Leftovers lists what is ours in the kernel and serves nothing of the plan;
	// nil where there is no kernel.
	Leftovers func(ctx context.Context, p *plan.Plan) ([]string, error)
	// Checks are further lines of the doctor's report.
	Checks func(ctx context.Context) []api.Check
	Info   api.Info
	// AskHost asks the daemon of a host of containers how it is, by connections of dial. Nil: nobody asks.
	AskHost func(ctx context.Context, dial func(context.Context) (net.Conn, error)) (api.Info, error)
	// Pools4 are where the daemon takes IPv4 prefixes from.
	Pools4 []netip.Prefix
	// Meter counts what happens; nil: nobody does.
	Meter Meter
	// Step is called before each step of an operation, by name. Tests cut the
	// daemon there; nil in production.
	Step func(name string)
	Log  *slog.Logger
}

// Engine is the daemon's heart. Its exported methods may be called from any
// goroutine; the loop is one goroutine of its own.
type Engine struct {
	opt Options
	log *slog.Logger

	mu sync.RWMutex // guards st and the row-derived indexes in it
	st *state

	wake    chan struct{}
	pending *pending
	status  *status
	hub     *hub
	view    *view
	leases  *leaser
	drops   *dropLog
	flows   *flowLog
	// capturing has a place for each capture that may run.
	capturing chan struct{}
	lookout   *lookout
	facts     plan.Facts // the loop's, and under mu for readers
	looking   sync.Mutex // held while the host is looked at
	// publishing is held while the cluster is told of load balancers.
	publishing sync.Mutex
	asking     map[subnetKey]*asking // under mu: the blocks of addresses that the cluster is asked for
	unstored   []*txn                // under mu: applied to the memory, not on the disk yet
	storing    bool                  // under mu: somebody writes them
	made       map[hcn.GUID]struct{} // under mu: made compartments whose rows do not say so yet

	plan      *plan.Plan          // the loop's alone
	announced map[object]struct{} // the loop's alone: what clients were told is there

	etc   sync.Mutex // held while containers' files are refreshed: the last to come has the newest
	ctrs  *supervisor
	ready chan struct{}
	// compared is closed when everything was compared with the kernel once, to the end.
	compared chan struct{}
	done     chan struct{} // closed when the loop ends
}

// DefaultPools4 is where IPv4 prefixes of networks come from, in this order, cut
// into /24s: parts that the usual tools of this field leave alone, one in each of
// the private blocks of RFC 1918, because a VPN often has a route to all of one.
func DefaultPools4() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("10.246.0.0/16"),
		netip.MustParsePrefix("172.31.128.0/17"),
		netip.MustParsePrefix("192.168.240.0/20"),
	}
}

// New loads the state. Nothing is written to the kernel before Run.
func New(opt Options) (*Engine, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if len(opt.Pools4) == 0 {
		opt.Pools4 = DefaultPools4()
	}
	if opt.LeaseWait <= 0 {
		opt.LeaseWait = DefaultLeaseWait
	}
	if opt.Meter == nil {
		opt.Meter = noMeter{}
	}
	if opt.Step == nil {
		opt.Step = func(string) {}
	}
	if err := movePassing(opt.DB, opt.Passing); err != nil {
		return nil, fmt.Errorf("move namespaces to their own store: %w", err)
	}
	st, err := load(opt.DB, opt.Passing)
	if err != nil {
		return nil, fmt.Errorf("load the state: %w", err)
	}
	e := &Engine{
		opt: opt, log: opt.Log, st: st,
		wake: make(chan struct{}, 1), pending: newPending(st.rev), status: newStatus(),
		hub: newHub(), view: newView(), leases: newLeaser(), lookout: newLookout(), drops: newDropLog(), flows: newFlowLog(), capturing: make(chan struct{}, maxCaptures), made: map[hcn.GUID]struct{}{}, asking: map[subnetKey]*asking{}, plan: plan.New(), announced: st.announced(),
		ready: make(chan struct{}), compared: make(chan struct{}), done: make(chan struct{}),
	}
	e.logAside()
	e.ctrs = newSupervisor(e)
	return e, nil
}

// Ready is closed when the first pass is over: until then the API answers that
// it is starting, because clients take "not found" as licence to forget.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

// Compared is closed when everything was compared with the kernel once. The first
// pass may run out of its time on a machine that is overloaded; the API answers
// then, so that one can look, and the comparison is made again.
func (e *Engine) Compared() <-chan struct{} { return e.compared }

// Wake has the loop compare everything with the kernel. The cause is for the log.
func (e *Engine) Wake(cause string) {
	e.pending.resync(cause)
	e.kick()
}

func (e *Engine) kick() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run is the loop. It returns when ctx ends, leaving the kernel as it is:
// containers and their traffic do not depend on the daemon.
func (e *Engine) Run(ctx context.Context) error {
	defer close(e.done)
	defer e.status.close(errStopping)
	e.ctrs.begin(ctx)
	if err := e.start(ctx); err != nil {
		return err
	}
	exits := e.ctrs.adopt(ctx)
	e.refreshLeased() // the last daemon may have died between a lease and the files
	close(e.ready)
	var wg sync.WaitGroup
	wg.Go(func() { e.ctrs.run(ctx, exits) })
	wg.Go(func() { e.watchDrops(ctx) })
	wg.Go(func() { e.watchFlows(ctx) })
	wg.Go(func() { e.sayFarewells(ctx) })
	// The last daemon may have died before it told the LANs, and a NIC may have moved since.
	e.sayWhere(e.endpointsOn(func(string) bool { return true }))
	e.watchAgain()
	e.watchGuests()
	defer wg.Wait()
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	for {
		var due <-chan time.Time
		if after, asked := e.pending.next(time.Now()); asked {
			due = time.After(after)
		}
		select {
		case <-ctx.Done():
			e.keepMade()
			e.takeLeases(true)
			if e.opt.Leases != nil {
				e.opt.Leases.Close()
			}
			e.status.close(errStopping) // before the wait for what waits for it
			e.leases.close(errStopping)
			return nil
		case <-e.wake:
		case <-due:
		case <-check.C:
			e.check(ctx)
			e.keepMade()
		}
		e.pass(ctx)
	}
}

var errStopping = hcn.Errorf(hcn.ErrManagerStopped, "the daemon is stopping: try again when it runs")

// start drops what a restart of the host took away, makes the first pass and
// the default network.
func (e *Engine) start(ctx context.Context) error {
	f, err := e.opt.Facts(ctx)
	if err != nil {
		return fmt.Errorf("look at the host: %w", err)
	}
	e.setFacts(f)
	if err := e.afterBoot(f.BootID); err != nil {
		return fmt.Errorf("forget what the last run of the host held: %w", err)
	}
	if err := e.afterCrash(); err != nil {
		return fmt.Errorf("end what the last run of the daemon left half done: %w", err)
	}
	if err := e.unconfirmed(); err != nil {
		return fmt.Errorf("undo what was not confirmed: %w", err)
	}
	if err := e.reserveAll(); err != nil {
		e.log.Warn("published ports are held by others", "error", err)
	}
	e.pending.all(e.st.intent())
	e.pending.resync(causeStart)
	e.pass(ctx)
	if err := e.defaultNetwork(); err != nil {
		// A host whose routes leave no room can still be given a network.
		e.log.Warn("make the default network", "error", err)
	}
	e.pass(ctx)
	return nil
}

func (e *Engine) setFacts(f plan.Facts) {
	e.mu.Lock()
	e.facts = f
	e.mu.Unlock()
}

// reserveAll takes the host ports of every endpoint, attached or not. One that
// somebody took meanwhile is reported, not fatal.
func (e *Engine) reserveAll() error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	var errs []error
	for _, ep := range e.st.endpoints {
		for _, f := range plan.Forwards(ep) {
			if err := e.opt.Ports.Retake(f, ownerOf(ep)); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for _, b := range e.st.balancers {
		for _, f := range plan.BalancerForwards(b, e.st.networks[b.Network]) {
			if err := e.opt.Ports.Retake(f, balancerOwner(b)); err != nil && !errors.Is(err, plan.ErrNoHostAddress) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// ownerOf names an endpoint as holder of host ports.
func ownerOf(ep *plan.Endpoint) string {
	return plan.Owner(ep.Doc.Name, ep.Doc.ID)
}
