package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The states of a flow. Only TCP closes.
const (
	FlowOpening     = "opening"     // packets went one way only
	FlowEstablished = "established" // both ways
	FlowClosing     = "closing"     // one end has closed
	FlowClosed      = "closed"
	FlowReset       = "reset"
	FlowBlocked     = "blocked" // never came about: a packet was dropped by a policy
)

// FlowEnd is one end of a flow.
type FlowEnd struct {
	Endpoint hcn.GUID `json:"endpoint,omitempty"`
	// Name of the container or endpoint, "host", "resolver", or "" for an address outside.
	Name    string `json:"name,omitempty"`
	Address string `json:"address"`
	Port    uint16 `json:"port,omitempty"` // for an echo: its identifier, the same at both ends
}

// Flow is a connection over a switch: a live one, one that has ended, or one that was blocked.
type Flow struct {
	Network   string   `json:"network,omitempty"`
	NetworkID hcn.GUID `json:"networkId,omitempty"`
	Protocol  string   `json:"protocol"` // "tcp", "icmp", …, or a number
	// Source opened it.
	Source      FlowEnd `json:"source"`
	Destination FlowEnd `json:"destination"`
	State       string  `json:"state"`
	Live        bool    `json:"live"`
	// Opened and Seen are when its first and its last packet passed.
	Opened time.Time `json:"opened"`
	Seen   time.Time `json:"seen"`
	// Packets and bytes of the source, and back. They count since the rules below decided.
	PacketsSent     uint64 `json:"packetsSent"`
	BytesSent       uint64 `json:"bytesSent"`
	PacketsReceived uint64 `json:"packetsReceived"`
	BytesReceived   uint64 `json:"bytesReceived"`
	// RuleOut let it leave the source, RuleIn enter the destination; for a blocked one, the rule that blocked is the last of
	// them. Absent: none was asked, or the default decided.
	RuleOut *DropRule `json:"ruleOut,omitempty"`
	RuleIn  *DropRule `json:"ruleIn,omitempty"`
	// Reason of a blocked one, a word.
	Reason string `json:"reason,omitempty"`
}

// FlowLine is one line of an answer about flows: a flow, or how many are not told of.
type FlowLine struct {
	Flow     *Flow  `json:"flow,omitempty"`
	NotShown uint64 `json:"notShown,omitempty"`
	// Lost counts flows that ended and of which nothing more is known, whoever they were of: the kernel's buffer was full.
	Lost uint64 `json:"lost,omitempty"`
}

// The orders of flows.
const (
	SortBytes = "bytes" // the most first
	SortAge   = "age"   // the youngest first
)

// FlowOptions choose flows.
type FlowOptions struct {
	// Endpoints are names or IDs of containers or endpoints, addresses, or "host"; none: all.
	Endpoints []string
	Protocol  string // "" is all
	Port      uint16 // at either end; 0 is all
	// Recent adds those that have ended and those that were blocked.
	Recent bool
	// Follow goes on with what begins, ends and is blocked.
	Follow bool
	Sort   string // "" is SortBytes
	Limit  int    // 0 is 1000
}

// Rule is a rule of a port's list, in the order of evaluation: the first that matches decides.
type Rule struct {
	DropRule
	Direction string `json:"direction"` // DirectionIn or DirectionOut
	Action    string `json:"action"`    // "allow", "block", or "pass" on to the next layer
	// Matches counts the times it decided: once for a flow, once for each packet without one.
	Matches uint64 `json:"matches"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// EndpointRules are the lists of an endpoint's port as the switch evaluates them.
type EndpointRules struct {
	Endpoint hcn.GUID `json:"endpoint"`
	Name     string   `json:"name"`
	Network  string   `json:"network"`
	// Rules that go out and then those that come in. A direction without any allows everything.
	Rules []Rule `json:"rules"`
	// DefaultOut and DefaultIn are what happens when no rule matches: "allow" or "block".
	DefaultOut string `json:"defaultOut"`
	DefaultIn  string `json:"defaultIn"`
	// Isolated endpoints exchange nothing with other containers of their network.
	Isolated bool `json:"isolated,omitempty"`
	// RateOut and RateIn bound what it sends and receives, in bytes per second; 0 is no bound.
	RateOut uint64 `json:"rateOut,omitempty"`
	RateIn  uint64 `json:"rateIn,omitempty"`
}
