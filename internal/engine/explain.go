package engine

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bulkhead-net/bulkhead/api"
	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// Explain is what an explanation asks of the kernel.
type Explain struct {
	// Host looks at the host's stack; the addresses in it are the engine's to fill in.
	Host func(ctx context.Context) (plan.HostView, error)
	// Run asks the loaded program about a frame that the vNIC behind a port sends.
	Run func(plan.Packet) (RunResult, error)
	// Dial connects from the compartment bound at path, "" for the host; from a port, unless it is 0.
	Dial func(ctx context.Context, path, network, address string, from uint16) (net.Conn, error)
	// Trace asks what the host's tables do with a packet that is sent next. The function that it gives
	// ends that, and is always called.
	Trace func(ctx context.Context, f plan.HostFlow) (func() ([]plan.HostVerdict, error), error)
}

// RunResult is what the loaded program does with a frame.
type RunResult struct {
	// Verdict in the plan's words: Delivered stands for ToHost too.
	Verdict       plan.Verdict
	To            plan.PortID
	Reason        string
	RuleOut, Rule uint32
}

// Explain follows a packet from end to end, in each family that both ends have. What is another host's of the cluster to say, that one is
// asked.
func (e *Engine) Explain(ctx context.Context, o api.ExplainOptions) (api.Explanation, error) {
	return e.explain(ctx, o, askAll)
}

func (e *Engine) explain(ctx context.Context, o api.ExplainOptions, ask asksOf) (api.Explanation, error) {
	x := api.Explanation{From: o.From, To: o.To, Port: o.Port, Paths: []api.ExplainPath{}}
	if e.opt.Explain.Host == nil {
		return x, api.Errorf(api.KindUnsupported, "explain a packet: there is no data plane").Hint("bulkhead doctor")
	}
	proto, err := explainProtocol(o)
	if err != nil {
		return x, err
	}
	x.Protocol = protocolWord(proto)
	p := e.view.plan()
	q := plan.Inquiry{Protocol: proto, Port: o.Port}
	if err := e.parties(p, &q, &o, ask); err != nil {
		return x, err
	}
	if there := e.startsThere(p, &q); there != nil && ask == askAll && q.To.Kind != plan.PartyPorts {
		return e.explainFrom(ctx, there, o, &q)
	}
	host, err := e.hostView(ctx)
	if err != nil {
		return x, fmt.Errorf("explain the way from %s to %s: %w", o.From, o.To, err)
	}
	x.Reachable = true
	for _, v6 := range e.explainFamilies(&q, o.Family, host) {
		q.V6 = v6
		q.From.Addr, q.To.Addr = ofFamily(&q.From, v6), ofFamily(&q.To, v6)
		way := p.Explain(q, host)
		doc := e.explainPath(&way, v6)
		e.confirm(&doc, &way)
		if ask != askNobody {
			e.askOthers(ctx, p, &doc, &way, &q, ask)
		}
		if o.Probe {
			e.addProbe(ctx, &doc, &q, &way)
		}
		x.Reachable = x.Reachable && doc.Reachable
		x.Paths = append(x.Paths, doc)
	}
	if len(x.Paths) == 0 {
		return x, api.Errorf(api.KindInvalid, "%s and %s have no family in common", o.From, o.To).Hint("bulkhead address ls")
	}
	return x, nil
}

func explainProtocol(o api.ExplainOptions) (uint8, error) {
	if o.Family != 0 && o.Family != 4 && o.Family != 6 {
		return 0, api.Errorf(api.KindInvalid, "%d is no family of addresses", o.Family).Hint("use 4 or 6")
	}
	known := map[string]uint8{"": 1, "icmp": 1, "icmpv6": 1, "echo": 1, "tcp": 6, "udp": 17, "sctp": 132}
	proto, ok := known[strings.ToLower(o.Protocol)]
	if !ok {
		n, err := strconv.ParseUint(o.Protocol, 10, 8)
		if err != nil {
			return 0, api.Errorf(api.KindInvalid, "protocol %.40q is not known", o.Protocol).Hint("use tcp/PORT, udp/PORT, icmp, sctp or a number")
		}
		proto = uint8(n)
	}
	if ported := proto == 6 || proto == 17; ported != (o.Port != 0) {
		return 0, api.Errorf(api.KindInvalid, "protocol %s with port %d: TCP and UDP need one, and no other has one", protocolWord(proto), o.Port).
			Hint("write tcp/80, udp/53 or icmp")
	}
	return proto, nil
}

// plan is a copy of the plan that the loop may change meanwhile; its entries never change.
func (v *view) plan() *plan.Plan {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return &plan.Plan{Ports: maps.Clone(v.ports), Switches: maps.Clone(v.switches), Remotes: maps.Clone(v.remotes), Balancers: maps.Clone(v.services)}
}

// party finds what a word means.
func (e *Engine) party(p *plan.Plan, ref string) (plan.Party, error) {
	party := plan.Party{Name: ref}
	switch ref {
	case "":
		return party, api.Errorf(api.KindInvalid, "one end of the way is not said").Hint("name a container, an endpoint, an address, host or outside")
	case "host":
		party.Kind = plan.PartyHost
		return party, nil
	case "outside":
		party.Kind = plan.PartyOutside
		return party, nil
	}
	if a, err := netip.ParseAddr(ref); err == nil {
		return e.addressParty(p, party, a.Unmap())
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	ports, err := e.attachedPorts(ref)
	if err != nil {
		return party, err
	}
	if i := slices.IndexFunc(ports, isMacvlan); i >= 0 {
		return party, e.noSwitch(ports[i], ref)
	}
	party.Kind, party.Ports, party.Compartment = plan.PartyPorts, ports, e.compartmentAlone(ports[0])
	if slices.ContainsFunc(ports, func(o *plan.Port) bool { return o.VNIC.Namespace != ports[0].VNIC.Namespace }) {
		return party, api.Errorf(api.KindConflict, "%s means endpoints in several compartments", ref).Hint("use an ID of bulkhead endpoint ls")
	}
	return party, nil
}

func (e *Engine) addressParty(p *plan.Plan, party plan.Party, a netip.Addr) (plan.Party, error) {
	if a.Is6() && a.IsLinkLocalUnicast() {
		return party, api.Errorf(api.KindInvalid, "the way to %s is not explained: a link-local address is one on each link", a).Hint("name the container or endpoint, whose other addresses the same rules see, but for rules with addresses")
	}
	if a.Zone() != "" || a.IsMulticast() || a.IsUnspecified() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return party, api.Errorf(api.KindInvalid, "the way to %s is not explained: it is no address of one host", a).Hint("name a container, an endpoint, a unicast address without a zone, host or outside")
	}
	party.Addr, party.Kind = a, plan.PartyOutside // one on another host is outside, too
	for _, o := range p.Ports {
		switch {
		case !slices.Contains(o.Addrs, a) && o.LinkLocal != a:
		case isMacvlan(o):
			return party, e.noSwitch(o, a.String())
		case o.Kind == plan.PortHost:
			party.Kind = plan.PartyHost
		case o.Kind == plan.PortContainer && party.Kind != plan.PartyPorts:
			party.Kind, party.Ports = plan.PartyPorts, []*plan.Port{o}
		case o.Kind == plan.PortContainer:
			return party, api.Errorf(api.KindConflict, "%s is an address on several networks", a).Hint("use the name")
		}
	}
	if party.Kind == plan.PartyPorts { // the whole compartment: its routes decide
		for _, o := range p.Ports {
			if o.Kind == plan.PortContainer && o != party.Ports[0] && o.VNIC.Namespace == party.Ports[0].VNIC.Namespace && o.VNIC.Namespace != "" {
				party.Ports = append(party.Ports, o)
			}
		}
	} else if e.hostAddress(a) || a.IsLoopback() {
		party.Kind = plan.PartyHost
	}
	return party, nil
}

func isMacvlan(o *plan.Port) bool { return o.Kind == plan.PortMacvlan }

// noSwitch says why nothing is known of what an endpoint sends and receives.
func (e *Engine) noSwitch(o *plan.Port, ref string) error {
	name := string(o.Network)
	if sw := e.view.network(o.Network); sw != nil {
		name = sw.Name
	}
	return api.Errorf(api.KindUnsupported, "%s is a macvlan device of %s on network %q, whose frames pass no switch: nothing here decides about them", ref, o.VNIC.Lower, name).
		Hint("bulkhead capture %s shows them", ref)
}

func (e *Engine) hostView(ctx context.Context) (*plan.HostView, error) {
	h, err := e.opt.Explain.Host(ctx)
	e.mu.RLock()
	h.Addrs = slices.Clone(e.facts.HostAddrs)
	e.mu.RUnlock()
	return &h, err
}

// explainFamilies are those that both ends have. The outside has what the host has a route for.
func (e *Engine) explainFamilies(q *plan.Inquiry, only int, host *plan.HostView) []bool {
	var out []bool
	for _, v6 := range []bool{false, true} {
		if only == 4 && v6 || only == 6 && !v6 {
			continue
		}
		if only != 0 || partyHas(&q.From, v6, host) && partyHas(&q.To, v6, host) {
			out = append(out, v6)
		}
	}
	return out
}

func partyHas(p *plan.Party, v6 bool, host *plan.HostView) bool {
	switch {
	case p.Remote != nil:
		return slices.ContainsFunc(p.Remote.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
	case p.Addr.IsValid():
		return p.Addr.Is6() == v6
	case p.Kind == plan.PartyPorts:
		return slices.ContainsFunc(p.Ports, func(o *plan.Port) bool {
			return slices.ContainsFunc(o.Addrs, func(a netip.Addr) bool { return a.Is6() == v6 })
		})
	case p.Kind == plan.PartyOutside:
		_, err := host.Route(plan.Example(v6))
		return err == nil
	}
	return true
}

// explainPath adds names and counters to an explanation.
func (e *Engine) explainPath(way *plan.Explanation, v6 bool) api.ExplainPath {
	doc := api.ExplainPath{
		Family: 4, Reachable: way.Reachable, Summary: e.namePorts(way.Summary), Reason: way.Reason, Doubts: way.Doubts, Next: way.Next, Steps: []api.ExplainStep{},
	}
	if v6 {
		doc.Family = 6
	}
	if way.Src.IsValid() {
		doc.Source = way.Src.String()
	}
	if way.Dst.IsValid() {
		doc.Destination = way.Dst.String()
	}
	counts := map[plan.PortID]map[uint32]RuleCount{}
	for _, s := range way.Steps {
		step := api.ExplainStep{Layer: s.Layer, Pass: s.Pass, Text: e.namePorts(s.Text)}
		at := e.view.port(s.Port)
		if at != nil {
			step.At = portName(at)
		}
		if s.Rule != nil && at != nil {
			if counts[s.Port] == nil && e.opt.Flows.Rules != nil {
				counts[s.Port], _ = e.opt.Flows.Rules(s.Port) // zeros, if they cannot be read
			}
			step.Rule = countedRule(s.Rule, s.Layer, counts[s.Port])
		}
		doc.Steps = append(doc.Steps, step)
	}
	if way.Reason != "" {
		last := len(doc.Steps) - 1
		doc.Rule = doc.Steps[last].Rule
		doc.Next = cmp.Or(e.nextAfter(way), doc.Next)
	}
	return doc
}

// namePorts puts names in the place of the ports that a text names.
func (e *Engine) namePorts(text string) string {
	if !strings.Contains(text, "port ") {
		return text
	}
	for _, p := range e.view.all() {
		// The host's and the resolver's contain the network's ID, which no endpoint has.
		text = strings.ReplaceAll(text, "port "+string(p.ID), "the port of "+portName(p))
	}
	return text
}

func countedRule(r *plan.Rule, layer string, counts map[uint32]RuleCount) *api.Rule {
	c := counts[r.Number]
	direction := api.DirectionOut
	if layer == "rules in" {
		direction = api.DirectionIn
	}
	return &api.Rule{
		DropRule: *ruleDoc(r.Number, r), Direction: direction, Action: r.Action.String(), Matches: c.Matches, Packets: c.Packets, Bytes: c.Bytes,
	}
}

// confirm asks the loaded program about each leg. A difference is a fault of ours, unless
// the plan is being applied at this moment.
func (e *Engine) confirm(doc *api.ExplainPath, way *plan.Explanation) {
	if e.opt.Explain.Run == nil {
		return
	}
	for i := range way.Legs {
		leg := &way.Legs[i]
		if leg.Trace.Verdict == plan.NotTraced || !leg.Packet.Buildable() {
			continue
		}
		got, err := e.opt.Explain.Run(leg.Packet)
		if err != nil {
			doc.Disagreements = append(doc.Disagreements, err.Error())
			continue
		}
		if leg.Packet.VNI != 0 && got.Verdict == plan.Passed {
			continue // the VXLAN device has it, of which nothing can be asked
		}
		if want := tracedResult(&leg.Trace); got != want {
			doc.Disagreements = append(doc.Disagreements, fmt.Sprintf("the loaded program gives %+v for %+v, and the plan %+v", got, leg.Packet, want))
			continue
		}
		doc.Confirmed++
	}
}

// tracedResult is a trace as the program tells it.
func tracedResult(t *plan.Trace) RunResult {
	number := func(r *plan.Rule) uint32 {
		if r == nil {
			return 0
		}
		return r.Number
	}
	want := RunResult{Verdict: t.Verdict, To: t.To, Reason: t.Reason, RuleOut: number(t.Out), Rule: number(t.In)}
	switch {
	case t.Verdict == plan.ToHost, t.Verdict == plan.ToRemote:
		want.Verdict = plan.Delivered
	case t.Verdict == plan.Flooded:
		want.RuleOut, want.Rule = 0, 0
	case t.Reason == "policy-out":
		want.RuleOut, want.Rule = 0, number(t.Out)
	}
	return want
}
