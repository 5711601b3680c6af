package plan

import (
	"net/netip"
)

// Action is what a rule does with a packet that it matches.
type Action uint8

// The actions. The numbers are those of enum action in bpf/lib/structs.h.
const (
	Allow Action = iota + 1
	Block
	// Pass ends the tier: evaluation goes on at the rule's Next.
	Pass
)

// Layer says which document a rule comes from.
type Layer uint8

// The layers in the order in which they are evaluated (design.md, "Layers").
const (
	// LayerHost holds the ACL rules of RuleType Host. What they allow still has to pass
	// the layers below.
	LayerHost Layer = iota + 1
	// LayerTier holds the TierAcl policies, by ascending Order.
	LayerTier
	// LayerNetwork holds the NetworkACL policies of the network.
	LayerNetwork
	// LayerEndpoint holds the endpoint's own ACL policies of RuleType Switch.
	LayerEndpoint
)

// Policy is what the switch decides at a port besides the source guard. The zero value
// allows everything.
type Policy struct {
	// Out judges what the vNIC sends, In what it receives; nil allows all.
	Out, In *RuleList
	// Isolated ports exchange nothing with other endpoints of their network
	// (DisableInterComputeCommunication).
	Isolated bool
	// RateOut and RateIn bound what the vNIC sends and receives, in bytes per second;
	// 0 is no bound.
	RateOut, RateIn uint64
}

// RuleList is an ordered list of rules: the first one that matches decides, except that
// a Pass goes on at its Next. What nothing matches gets Default.
type RuleList struct {
	Rules   []Rule
	Default Action // Allow or Block
	// Hash identifies the content: lists that are equal are one in the kernel.
	Hash [16]byte
}

// Rule matches packets of one direction. Local is the endpoint's side, Remote the peer's,
// before source NAT on the way out and after destination NAT on the way in. An empty
// field matches everything.
type Rule struct {
	// Number names the rule in counters and events. It follows from the rule's content
	// and place of definition, so it survives a change of other rules; it is unique in
	// its list and never 0.
	Number uint32
	Action Action
	// Next is the index at which evaluation goes on after Pass, len(Rules) for the
	// list's default.
	Next int
	// Protocols by number.
	Protocols     []uint8
	Local, Remote Addresses
	LocalPorts    []PortRange
	RemotePorts   []PortRange
	Source        RuleSource
}

// Addresses match an address that lies in one of the prefixes or sets. With neither it
// matches any address.
type Addresses struct {
	Prefixes []netip.Prefix // masked
	// Sets name address sets of the switch: [Switch.Sets].
	Sets []string
}

// Any tells whether every address matches.
func (a Addresses) Any() bool { return len(a.Prefixes) == 0 && len(a.Sets) == 0 }

// PortRange holds both ends.
type PortRange struct{ First, Last uint16 }

// RuleSource says where a rule was written, for people: it is no part of the verdict.
type RuleSource struct {
	Layer Layer
	// Tier is the name of a LayerTier rule's tier.
	Tier string
	// ID as its author gave it; may be empty, and need not be unique.
	ID       string
	Priority uint16
	// Text is the rule in one line.
	Text string
	// Implied rules are written by nobody: they stand for the default of their layer.
	Implied bool
}
