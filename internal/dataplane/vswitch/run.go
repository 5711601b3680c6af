package vswitch

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Outcome is what the program did with a frame.
type Outcome uint32

// The outcomes (enum outcome in bpf/lib/structs.h).
const (
	Dropped    = Outcome(bpfOutcomeOUTCOME_DROP)
	Delivered  = Outcome(bpfOutcomeOUTCOME_DELIVER)
	Answered   = Outcome(bpfOutcomeOUTCOME_ANSWER)
	Replicated = Outcome(bpfOutcomeOUTCOME_REPLICATE)
	// ToWire is a delivery out of a NIC, Passed what the programs at a NIC leave alone.
	ToWire = Outcome(bpfOutcomeOUTCOME_WIRE)
	Passed = Outcome(bpfOutcomeOUTCOME_PASS)
)

func (o Outcome) String() string {
	switch o {
	case Dropped:
		return "dropped"
	case Delivered:
		return "delivered"
	case Answered:
		return "answered"
	case Replicated:
		return "replicated"
	case ToWire:
		return "to wire"
	case Passed:
		return "passed"
	}
	return fmt.Sprintf("outcome-%d", uint32(o))
}

// Result of a run.
type Result struct {
	Outcome Outcome
	Reason  Reason
	// To is the receiving port when Delivered.
	To plan.PortID
	// Copies says how many ports got it when Replicated.
	Copies int
	// RuleOut let it leave its port, Rule decided last: the receiver's, or the one that
	// dropped it. 0: none.
	RuleOut, Rule uint32
	// Frame as it leaves the program; the answer when Answered.
	Frame []byte
}

// Run asks the loaded program, with the maps as they are, what becomes of a frame that
// the vNIC behind a port sends, or that comes in from the wire at an uplink. Nothing is
// sent and nothing is counted.
func (a *Applier) Run(port plan.PortID, frame []byte) (Result, error) {
	return a.RunAt(Place{Port: port}, frame)
}

// Place is where a frame meets the switch.
type Place struct {
	Port plan.PortID
	// Host: at an uplink, sent by the host's own stack.
	Host bool
}

// RunAt is Run at any place.
func (a *Applier) RunAt(at Place, frame []byte) (Result, error) {
	a.mu.Lock()
	s := a.applied[at.Port]
	if s == nil {
		a.mu.Unlock()
		return Result{}, fmt.Errorf("run a frame from port %s: the port is not on any switch", at.Port)
	}
	in, name := bpfSkBuff{Ifindex: s.index}, bpfProgBhFromPort
	switch {
	case s.kind == plan.PortTunnel: // as the NIC gets it
		name = bpfProgBhFromUnderlay
	case s.kind == plan.PortUplink && at.Host:
		name, in.Tstamp = bpfProgBhFromHost, testTime
	case s.kind == plan.PortUplink:
		name = bpfProgBhFromWire
	}
	// No NIC may have brought a tunnel's yet.
	err := a.loadFor([]spot{{hook: hook{name: name}}})
	prog := *programsOf(&a.objs)[name]
	a.mu.Unlock()
	if err != nil {
		return Result{}, fmt.Errorf("run a frame from port %s: %w", at.Port, err)
	}
	r, err := a.run(prog, in, frame)
	if s.kind == plan.PortTunnel && r.Outcome == 0 {
		// Left to the stack: it is nobody's here, or this kernel does not let the program unpack it (before 6.3).
		r.Outcome = Passed
	}
	return r, err
}

// testTime is TEST_TIME in bpf/lib/nic.h.
const testTime = 0xb01cb01cb01cb01c

// run leaves ingress_ifindex zero, which no received frame has: that is how the program
// knows.
func (a *Applier) run(prog *ebpf.Program, in bpfSkBuff, frame []byte) (Result, error) {
	var out bpfSkBuff
	buf := make([]byte, len(frame)+256) // an answer may be longer
	opts := &ebpf.RunOptions{Data: frame, DataOut: buf, Context: in, ContextOut: &out}
	if _, err := prog.Run(opts); err != nil {
		return Result{}, fmt.Errorf("run the switch program: %w", err)
	}
	r := Result{
		Outcome: Outcome(out.Cb[0]), Reason: Reason(out.Cb[1]), Rule: out.Cb[4],
		Frame: opts.DataOut,
	}
	if r.Outcome == Replicated {
		r.Copies = int(out.Cb[3])
	} else {
		r.RuleOut = out.Cb[3]
	}
	if r.Outcome == Delivered || r.Outcome == ToWire {
		r.Copies = 1
		a.mu.Lock()
		r.To = a.byIndex[out.Cb[2]]
		a.mu.Unlock()
	}
	return r, nil
}
