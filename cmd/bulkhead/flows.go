package main

import (
	"context"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// flows shows the switch's flow table in the engine's form.
func flows(sw *vswitch.Applier) engine.Flows {
	return engine.Flows{
		Each: func(port plan.PortID, each func(engine.FlowRecord) bool) error {
			return sw.EachFlow(port, func(f vswitch.Flow) bool { return each(flowRecord(f)) })
		},
		Ended: func(ctx context.Context, each func(engine.FlowRecord)) error {
			return sw.EndedFlows(ctx, func(f vswitch.Flow) { each(flowRecord(f)) })
		},
		Lost: sw.LostFlows,
		Rules: func(port plan.PortID) (map[uint32]engine.RuleCount, error) {
			counted, err := sw.RuleCounters(port)
			return ruleCounts(counted), err
		},
	}
}

func ruleCounts(counted map[uint32]vswitch.RuleCounters) map[uint32]engine.RuleCount {
	out := make(map[uint32]engine.RuleCount, len(counted))
	for n, c := range counted {
		out[n] = engine.RuleCount(c)
	}
	return out
}

func flowRecord(f vswitch.Flow) engine.FlowRecord {
	return engine.FlowRecord{
		Switch: f.Switch, Protocol: f.Protocol, Opener: engine.FlowEnd(f.Opener), Peer: engine.FlowEnd(f.Peer), State: string(f.State),
		Opened: f.Opened, Seen: f.Seen, Packets: f.Packets, Bytes: f.Bytes, RuleOut: f.RuleOut, RuleIn: f.RuleIn,
	}
}
