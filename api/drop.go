package api

import (
	"time"

	"github.com/bulkhead-net/bulkhead/hcn"
)

// The directions of a frame, seen from the endpoint.
const (
	DirectionOut = "out" // the endpoint sent it
	DirectionIn  = "in"  // it was on its way to the endpoint
)

// Drop is a frame that the switch dropped: a sample, for of a flood only some are told. The counters have them all.
type Drop struct {
	// Seq numbers what this run of the daemon saw.
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	// Endpoint at whose port it was dropped; empty for the host's and the resolver's port, and for a device that is no port.
	Endpoint  hcn.GUID `json:"endpoint,omitempty"`
	Name      string   `json:"name"` // the endpoint's, "host", "resolver", or "" for a device that is no port
	Network   string   `json:"network,omitempty"`
	NetworkID hcn.GUID `json:"networkId,omitempty"`
	Direction string   `json:"direction"` // DirectionOut or DirectionIn

	Protocol string `json:"protocol"` // "tcp", "arp", …, or a number
	// Source and Destination are addresses, with the port where there is one; MAC addresses of a frame without.
	Source         string `json:"source"`
	Destination    string `json:"destination"`
	SourceMAC      string `json:"sourceMac"`
	DestinationMAC string `json:"destinationMac"`
	ICMPType       *uint8 `json:"icmpType,omitempty"`
	Length         uint32 `json:"length"`

	Reason      string `json:"reason"`      // a word that stays the same, for filters
	Explanation string `json:"explanation"` // a sentence
	// Rule that decided, where one did.
	Rule *DropRule `json:"rule,omitempty"`
	// Next is a command that helps to understand or to change it.
	Next string `json:"next,omitempty"`
}

// DropRule is a rule of a policy. A rule that was removed since has only its number.
type DropRule struct {
	Number   uint32 `json:"number"`
	ID       string `json:"id,omitempty"` // as its author gave it
	Layer    string `json:"layer,omitempty"`
	Tier     string `json:"tier,omitempty"`
	Priority uint16 `json:"priority,omitempty"`
	Text     string `json:"text,omitempty"`
	// Default says that nobody wrote the rule: it is what its layer does when no other rule matches.
	Default bool `json:"default,omitempty"`
}

// DropLine is one line of an answer about drops: a drop, or how many frames were dropped of which no line tells.
type DropLine struct {
	Drop *Drop `json:"drop,omitempty"`
	// NotShown counts frames since the line of this kind before: those of which no sample was taken, and those too long ago.
	NotShown uint64 `json:"notShown,omitempty"`
	// NotShownAt says where and why they were dropped, the most first.
	NotShownAt []DropRest `json:"notShownAt,omitempty"`
}

// DropRest counts frames that were dropped at one port for one reason.
type DropRest struct {
	Endpoint hcn.GUID `json:"endpoint,omitempty"`
	Name     string   `json:"name"` // as in [Drop]
	Network  string   `json:"network,omitempty"`
	Reason   string   `json:"reason"`
	Packets  uint64   `json:"packets"`
}

// DropOptions choose drops.
type DropOptions struct {
	// Endpoints are names or IDs of endpoints or containers; none: all.
	Endpoints []string
	// Reasons by their words; none: all that are a loss.
	Reasons []string
	// Tail is how many of the past are told; negative: all that are kept.
	Tail   int
	Follow bool
}
