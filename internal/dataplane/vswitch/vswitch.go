// Package vswitch is the virtual switch: eBPF programs on the ports, and the maps
// they read.
//
// There is no Linux bridge. Every port's device carries one program on its ingress
// (bpf/port.bpf.c) that sees what the vNIC behind the port sends, checks who it claims
// to be, answers ARP and neighbour discovery, and hands the frame straight to the
// receiving port. The program ends every frame itself. With no program nothing is
// forwarded at all: a failure closes the switch and never opens it.
//
// # What lives where
//
// The maps hold what the plan says, keyed so that one port is a handful of entries and
// adding it touches no other port's. Programs, maps and (with TCX) the attachments are
// pinned in bpffs, so they work without the daemon. A daemon that starts finds them,
// compares, and writes only what differs, which after a restart is nothing.
//
// # Upgrades
//
// A pinned map's layout never changes under its name: a new layout is a new name
// (bh_ports_v2 → bh_ports_v3). A new daemon creates its maps, fills them from the plan,
// then moves each attachment to its program with one atomic link update, and last removes
// pins that it does not know. Between, the old program reads the old maps: no packet meets
// half of anything. Flows are carried over (carry.go), so connections go on. What else is
// not in the plan (counters) starts again at zero, unless its map kept its name.
package vswitch

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// The include directory comes by -I for the headers' sake only; sources name theirs by
// relative path, so the object does not depend on where the tree lies.
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -type drop_event -type drop_reason -type report -type outcome -type port_kind -type action -type flow_record -type vector -type __sk_buff bpf ../../../bpf/port.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -nostdinc -I../../../bpf/include

// DefaultBPFDir is where maps, programs and links are pinned.
const DefaultBPFDir = "/sys/fs/bpf/bulkhead"

// MaxMembers is how many ports of one switch can get broadcast: the bound of the
// replication loop (MAX_MEMBERS in bpf/lib/deliver.h).
const MaxMembers = 4096

// AttachMode is the way programs get onto devices.
type AttachMode string

// The attach modes.
const (
	// AttachAuto takes TCX where the kernel has it (6.6), else clsact.
	AttachAuto AttachMode = ""
	// AttachTCX uses BPF links: pinned, replaced atomically, not removable by tc.
	AttachTCX AttachMode = "tcx"
	// AttachClsact uses a filter on the clsact qdisc.
	AttachClsact AttachMode = "clsact"
)

// Options say where the switch keeps its objects.
type Options struct {
	// BPFDir holds the pins; "" is DefaultBPFDir. It must lie in a bpffs.
	BPFDir string
	// Attach forces a way to attach, for tests and for kernels that misbehave.
	Attach AttachMode
	// FlowsPerPort bounds how many connections of one port the flow table holds; 0 is
	// [DefaultFlowsPerPort].
	FlowsPerPort int
	// Offload carries flows across the host past its stack, where the kernel can.
	Offload bool
	Log     *slog.Logger

	firstRoom uint32 // 0: firstRoom
	// most bounds the entries of every table, 0 for what the object says: for tests, as a hash table's buckets are all made at once.
	most uint32
}

// DefaultFlowsPerPort is an eighth of the table.
const DefaultFlowsPerPort = 1 << 16

// Applier makes the switch's maps and attachments match a plan. It works in the
// network namespace of the thread that calls it, which must be the one that New was
// called in: the host's.
type Applier struct {
	log  *slog.Logger
	pins pins
	objs bpfObjects
	// settings are what the programs were told last, nil until it is known.
	settings *bpfConfig
	// firstRoom is how many entries a new table that grows has room for, most what others have at most; 0 for what the object says.
	firstRoom, most uint32
	// ids are the numbers of the attached programs, by name.
	ids map[string]ebpf.ProgramID
	att attacher
	dev devices
	// offload is nil when it is off or the kernel cannot, for the reason beside it.
	offload       *offload
	offloadReason string

	// eventsOpen is set while somebody reads drop events: the ring has one reader.
	eventsOpen chan struct{}
	// flowLogOpen is the same for the log of ended flows.
	flowLogOpen chan struct{}

	mu sync.Mutex
	// tables mirror what is in the kernel, once listed.
	tables   *tables
	groups   *groups
	remotes  *remotes
	balance  *balance
	policies *policies
	listed   bool
	// whole says that the maps hold all that programs which are attached look for: none was made anew in the place of one that is gone.
	whole bool
	// collecting counts the removals of old rules that wait for the packets at them.
	collecting sync.WaitGroup
	// dirty says that the kernel may not hold what was applied.
	dirty bool
	// applied holds what each port got in its last successful application by this
	// process; a difference from it is somebody else's doing.
	applied map[plan.PortID]*portState
	byIndex map[uint32]plan.PortID
	// guards are the attachments to devices that are no ports yet, by index.
	guards map[uint32]guard
	// carried says of other versions' flow tables up to when they have been read.
	carried map[string]uint64
	// sweepsAlone says that the kernel does not sweep the flow table by itself.
	sweepsAlone bool
	// writes counts changes to the kernel, for those who ask whether there were any.
	writes int
	// pending is which network waits to be confirmed, as the programs know it; nil before they were asked.
	pending *waiting
	// shadow is set in a preview (preview.go).
	shadow *recorder
}

// New opens or creates the pinned maps and the program. It attaches nothing.
func New(opts Options) (*Applier, error) {
	if opts.BPFDir == "" {
		opts.BPFDir = DefaultBPFDir
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if err := require(requirements()); err != nil {
		return nil, err
	}
	a := &Applier{
		firstRoom:   cmp.Or(opts.firstRoom, firstRoom),
		most:        opts.most,
		log:         opts.Log,
		pins:        pins{dir: opts.BPFDir},
		ids:         map[string]ebpf.ProgramID{},
		eventsOpen:  make(chan struct{}, 1),
		flowLogOpen: make(chan struct{}, 1),
		applied:     map[plan.PortID]*portState{},
		byIndex:     map[uint32]plan.PortID{},
		guards:      map[uint32]guard{},
		carried:     map[string]uint64{},
	}
	if opts.FlowsPerPort == 0 {
		opts.FlowsPerPort = DefaultFlowsPerPort
	}
	if err := a.open(opts); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (a *Applier) open(opts Options) error {
	if err := a.pins.prepare(); err != nil {
		return err
	}
	if err := a.load(); err != nil {
		return err
	}
	a.mirror()
	if err := a.configure(opts.FlowsPerPort); err != nil {
		return err
	}
	if err := a.takeOver(); err != nil {
		return err
	}
	var err error
	if a.dev, err = newDeviceIndex(); err != nil {
		return err
	}
	if a.att, err = newAttacher(opts.Attach, a.pins); err != nil {
		return err
	}
	return a.openOffload(opts.Offload)
}

// mirror begins with tables of which nothing is known.
func (a *Applier) mirror() {
	a.tables = newTables(&a.objs, &a.writes)
	a.policies = newPolicies(newPolicyTables(&a.objs, &a.writes))
	a.remotes = newRemotes(newRemoteTables(&a.objs, &a.writes))
	a.balance = newBalance(newBalanceTables(&a.objs, &a.writes))
}

// openOffload starts with an empty slot: whoever filled it does not watch any more.
func (a *Applier) openOffload(on bool) error {
	if err := emptySlot(a.objs.BhOffloadCallsV1); err != nil {
		return err
	}
	if !on {
		a.offloadReason = "it is turned off"
		return nil
	}
	var err error
	if a.offload, err = newOffload(a); err != nil {
		a.offloadReason = err.Error()
		a.log.Warn("flows across the host go through its stack", "err", err)
	}
	return nil
}

// Close lets go of the kernel objects. Pins stay, and so do the attachments.
func (a *Applier) Close() error {
	a.collecting.Wait()
	errs := []error{a.dropGuards()}
	if a.offload != nil {
		errs = append(errs, a.offload.close())
	}
	if a.att != nil {
		errs = append(errs, a.att.close())
	}
	if a.dev != nil {
		errs = append(errs, a.dev.close())
	}
	errs = append(errs, closeObjects(&a.objs))
	return errors.Join(errs...)
}

// Mode tells how programs are attached.
func (a *Applier) Mode() AttachMode { return a.att.mode() }

// Writes counts the changes made to the kernel by this applier.
func (a *Applier) Writes() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.writes
}

// closeObjects is Close of the generated type, for objects of which some may be nil.
func closeObjects(o *bpfObjects) error {
	var errs []error
	for _, m := range mapsOf(o) {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, p := range []*ebpf.Program{o.BhFromPort, o.BhFromWire, o.BhFromHost, o.BhFromUnderlay, o.BhFromTunnel, o.BhSweep} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// mapsOf lists the maps by their pinned names.
func mapsOf(o *bpfObjects) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		bpfMapBhPortsV3: o.BhPortsV3, bpfMapBhMacsV1: o.BhMacsV1, bpfMapBhAddrsV1: o.BhAddrsV1,
		bpfMapBhSwitchesV2: o.BhSwitchesV2, bpfMapBhMembersV1: o.BhMembersV1, bpfMapBhStatsV1: o.BhStatsV1, bpfMapBhTrafficV1: o.BhTrafficV1, bpfMapBhNearV1: o.BhNearV1,
		bpfMapBhPoliciesV1: o.BhPoliciesV1, bpfMapBhPrefixesV1: o.BhPrefixesV1, bpfMapBhServicesV1: o.BhServicesV1,
		bpfMapBhSetsV1: o.BhSetsV1, bpfMapBhClassesV1: o.BhClassesV1, bpfMapBhVectorsV1: o.BhVectorsV1,
		bpfMapBhRulesV1: o.BhRulesV1, bpfMapBhRulestatsV1: o.BhRulestatsV1, bpfMapBhConfigV1: o.BhConfigV1, bpfMapBhPendingV1: o.BhPendingV1, bpfMapBhUnsettledV1: o.BhUnsettledV1,
		bpfMapBhFlowsV4: o.BhFlowsV4, bpfMapBhSweeperV1: o.BhSweeperV1, bpfMapBhSharesV4: o.BhSharesV4, bpfMapBhFragmentsV1: o.BhFragmentsV1,
		bpfMapBhOffloadCallsV1: o.BhOffloadCallsV1, bpfMapBhRatesV1: o.BhRatesV1, bpfMapBhSteerV2: o.BhSteerV2, bpfMapBhLansV1: o.BhLansV1, bpfMapBhBucketsV1: o.BhBucketsV1,
		bpfMapBhFlowlogV1: o.BhFlowlogV1, bpfMapBhLostV1: o.BhLostV1, bpfMapBhScratchV7: o.BhScratchV7,
		bpfMapBhOverlaysV1: o.BhOverlaysV1, bpfMapBhVnisV1: o.BhVnisV1, bpfMapBhRemotesV1: o.BhRemotesV1, bpfMapBhRoutesV2: o.BhRoutesV2, bpfMapBhVtepsV1: o.BhVtepsV1,
		bpfMapBhFloodsV1: o.BhFloodsV1, bpfMapBhGroupsV1: o.BhGroupsV1,
		bpfMapBhVipsV2: o.BhVipsV2, bpfMapBhPlacesV1: o.BhPlacesV1, bpfMapBhBackendsV1: o.BhBackendsV1, bpfMapBhStandingV1: o.BhStandingV1,
		bpfMapBhChoicesV1: o.BhChoicesV1, bpfMapBhClientsV1: o.BhClientsV1, bpfMapBhTurnsV2: o.BhTurnsV2,
		bpfMapBhDropsV1: o.BhDropsV1, bpfMapBhEventsV1: o.BhEventsV1, bpfMapBhBudgetV1: o.BhBudgetV1,
	}
}

// portError ties an error to a port.
func portError(id plan.PortID, format string, args ...any) error {
	return &plan.ObjectError{Kind: "port", ID: string(id), Err: fmt.Errorf(format, args...)}
}
