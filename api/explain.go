package api

// ExplainOptions ask what becomes of a packet.
type ExplainOptions struct {
	// From and To are names or IDs of containers or endpoints, addresses, "host" or "outside".
	From, To string
	Protocol string // "tcp", "udp", "icmp" (when empty), "sctp" or a number
	Port     uint16 // destination port of TCP and UDP
	Family   int    // 4 or 6; 0 is both
	// Probe sends a real packet.
	Probe bool
}

// Explanation is what becomes of the first packet of a flow, in each family.
type Explanation struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Protocol string `json:"protocol"`
	Port     uint16 `json:"port,omitempty"`
	// Reachable: in every family that is explained.
	Reachable bool          `json:"reachable"`
	Paths     []ExplainPath `json:"paths"`
}

// ExplainPath is the way in one family.
type ExplainPath struct {
	Family      int    `json:"family"`
	Source      string `json:"source,omitempty"`
	Destination string `json:"destination,omitempty"`
	Reachable   bool   `json:"reachable"`
	// Summary is the verdict in a sentence.
	Summary string        `json:"summary"`
	Steps   []ExplainStep `json:"steps"`
	// Reason of a drop by the switch, a word.
	Reason string `json:"reason,omitempty"`
	// Rule that decided a drop; absent: a default, or no rule of ours.
	Rule *Rule `json:"rule,omitempty"`
	// Doubts are what may stop the packet all the same: firewalls whose rules are not looked into.
	Doubts []string `json:"doubts,omitempty"`
	// Next is a command that changes or shows what stopped it.
	Next string `json:"next,omitempty"`
	// Host of the cluster on which the way ends, when it is another; Next is for that one.
	Host string `json:"host,omitempty"`
	// Unasked says why another host of the cluster, which has its part of the way, could not say what it does.
	Unasked string `json:"unasked,omitempty"`
	// Confirmed says how many parts of the way the loaded program was asked about, and agreed.
	Confirmed int `json:"confirmed"`
	// Disagreements are faults of ours: the loaded program does something else.
	Disagreements []string      `json:"disagreements,omitempty"`
	Probe         *ExplainProbe `json:"probe,omitempty"`
}

// ExplainStep is one layer's part.
type ExplainStep struct {
	// Layer is "name", "route", "source guard", "rules out", "isolation", "switching", "rules in", "host", "firewall", "nat" or "mtu".
	Layer string `json:"layer"`
	At    string `json:"at,omitempty"` // name of the endpoint whose layer it is
	// Host of the cluster that says so, when it is another.
	Host string `json:"host,omitempty"`
	Pass bool   `json:"pass"`
	Text string `json:"text"`
	Rule *Rule  `json:"rule,omitempty"`
}

// ExplainProbe is what a real packet met.
type ExplainProbe struct {
	Sent    bool `json:"sent"`
	Arrived bool `json:"arrived"`
	// Agrees with the explanation.
	Agrees bool   `json:"agrees"`
	Text   string `json:"text"`
	// Firewalls are the rules and policies of other tables of the host's stack that decided about it, in order.
	Firewalls []FirewallVerdict `json:"firewalls,omitempty"`
	// Untraced says why the tables could not be asked.
	Untraced string `json:"untraced,omitempty"`
}

// FirewallVerdict is what a rule, or a chain's policy, did to a probe, as the kernel tells it.
type FirewallVerdict struct {
	Table string `json:"table"` // with its family
	Chain string `json:"chain"`
	// Tool is "iptables-legacy" or "ip6tables-legacy" for a table of those, which has no family and whose handle is the number of
	// the rule in its chain.
	Tool string `json:"tool,omitempty"`
	// Counted, for such a table, is how many packets the rule has counted while the probe was on its way: no other sign is there.
	Counted uint64 `json:"counted,omitempty"`
	Handle  uint64 `json:"handle,omitempty"` // absent: the chain's policy
	Rule    string `json:"rule,omitempty"`   // its text
	// Verdict is "accept", "drop", "queue" or "stolen".
	Verdict string `json:"verdict"`
	// Answer: it is about the answer to the probe.
	Answer bool `json:"answer,omitempty"`
}
