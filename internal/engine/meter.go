package engine

import (
	"time"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Meter is told what happens, for metrics. Its methods return at once.
type Meter interface {
	// Pass is one pass of the loop that did something: of a change, or a comparison of
	// everything.
	Pass(resync bool, took time.Duration)
	// Commit is one write of the store.
	Commit(took time.Duration, err error)
	// Repair is of what kind the thing was that somebody else had changed.
	Repair(object string)
	// Pull is an image brought from a registry, or not.
	Pull(err error)
}

// noMeter is where nobody counts.
type noMeter struct{}

func (noMeter) Pass(bool, time.Duration)    {}
func (noMeter) Commit(time.Duration, error) {}
func (noMeter) Repair(string)               {}
func (noMeter) Pull(error)                  {}

// Ports lists the ports of the plan, in order of their IDs, for those who read counters.
func (e *Engine) Ports() []*plan.Port { return e.view.all() }

// Switch is the switch of a port's network; nil when it is gone.
func (e *Engine) Switch(p *plan.Port) *plan.Switch { return e.view.network(p.Network) }

// PortName is what people call a port: the endpoint's name, "host" or "resolver".
func PortName(p *plan.Port) string { return portName(p) }
