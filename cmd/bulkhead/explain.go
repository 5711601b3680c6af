package main

import (
	"context"
	"errors"

	"github.com/bulkhead-net/bulkhead/internal/dataplane/nat"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/netdev"
	"github.com/bulkhead-net/bulkhead/internal/dataplane/vswitch"
	"github.com/bulkhead-net/bulkhead/internal/engine"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// explain shows the kernel to explanations.
func explain(dev *netdev.Netdev, sw *vswitch.Applier, filter *nat.Applier) engine.Explain {
	return engine.Explain{
		Host: func(ctx context.Context) (plan.HostView, error) {
			f, err := filter.ForeignFilters(ctx)
			return plan.HostView{Route: dev.HostRoute, Forwards: dev.HostForwards, Chains: f.Chains, Unread: f.Unread, BridgeFilter: f.BridgeFilter}, err
		},
		Run:  func(k plan.Packet) (engine.RunResult, error) { return runFrame(sw, k) },
		Dial: dev.Dial, Trace: filter.Trace,
	}
}

func runFrame(sw *vswitch.Applier, k plan.Packet) (engine.RunResult, error) {
	r, err := sw.RunAt(vswitch.Place{Port: k.From, Host: k.Host}, k.Frame())
	if err != nil {
		return engine.RunResult{}, err
	}
	out := engine.RunResult{To: r.To, RuleOut: r.RuleOut, Rule: r.Rule}
	switch r.Outcome {
	case vswitch.Dropped:
		out.Verdict, out.Reason = plan.Dropped, r.Reason.String()
	case vswitch.Delivered:
		out.Verdict = plan.Delivered
	case vswitch.ToWire:
		out.Verdict = plan.ToWire
	case vswitch.Passed:
		out.Verdict = plan.Passed
	case vswitch.Replicated:
		out.Verdict, out.RuleOut, out.Rule = plan.Flooded, 0, 0
	default:
		return out, errors.New("the loaded program answers the packet itself")
	}
	return out, nil
}
