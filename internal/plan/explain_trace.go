package plan

import "net/netip"

// HostFlow is a packet in the host's stack, for its tables to be traced.
type HostFlow struct {
	Src, Dst netip.Addr
	Protocol uint8 // ICMP stands for an echo, in either family
	// SrcPort is the identifier of an echo.
	SrcPort, DstPort uint16
}

// HostVerdict is what one rule, or the policy of a chain, said of a packet in the host's stack. The kernel tells it.
type HostVerdict struct {
	Table, Chain string // the table with its family
	// Tool is that of a table which nft does not show, as in [ForeignChain].
	Tool string
	// Counted is how many packets the rule has counted while this one was on its way; 0: the kernel told what it did to this one.
	Counted uint64
	// Keeper is the program that keeps the table's rules, where their chains show it: "ufw".
	Keeper  string
	Handle  uint64 // 0: the policy; for a Tool, the number of the rule in its chain
	Rule    string // its text, empty if it is gone already
	Verdict string // "accept", "drop", "queue" or "stolen"
	// Answer: the packet was the answer, on its way back.
	Answer bool
	// Src and Dst are those of the packet as the rule saw it; Dst with its port, where there is one.
	Src netip.Addr
	Dst netip.AddrPort
}

// Drops tells whether the packet ended there.
func (v *HostVerdict) Drops() bool { return v.Verdict == "drop" }

// Where names the chain as the steps of an explanation do.
func (v *HostVerdict) Where() string { return chainTitle(v.Tool, v.Table, v.Chain) }

// Own tells whether it is the table that Bulkhead writes: the explanation knows its rules.
func (v *HostVerdict) Own() bool { return v.Table == "inet bulkhead" }
