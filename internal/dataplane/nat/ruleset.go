package nat

import (
	"fmt"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/bulkhead-net/bulkhead/internal/plan"
)

// TableName is the table's name; its family is inet.
const TableName = "bulkhead"

// The sets and maps of the table.
const (
	setNATVNICs    = "nat_vnics"
	setSameNetwork = "same_network"
	setPrefixes4   = "prefixes4"
	setPrefixes6   = "prefixes6"
	mapAddress4    = "ports_address4"
	mapAddress6    = "ports_address6"
	mapAll4        = "ports_all4"
	mapAll6        = "ports_all6"
	mapLAN4        = "ports_lan4"
	mapLAN6        = "ports_lan6"
	setLinkLocal   = "ports_link_local"
	setLoopback4   = "ports_loopback4"
	setKept4       = "outbound_kept4"
	setKept6       = "outbound_kept6"
	mapChosen4     = "outbound_chosen_as4"
	mapChosen6     = "outbound_chosen_as6"
	setChosen4     = "outbound_chosen4"
	setChosen6     = "outbound_chosen6"
	setOpen4       = "outbound_open4"
	setOpen6       = "outbound_open6"
	mapAs4         = "outbound_as4"
	mapAs6         = "outbound_as6"
	setOnLAN4      = "outbound_lan4"
	setOnLAN6      = "outbound_lan6"
	setHidden4     = "published_hidden4"
	setHidden6     = "published_hidden6"
	mapProxy4      = "proxy4"
	mapProxy6      = "proxy6"
	mapProxyPort4  = "proxy_same_port4"
	mapProxyPort6  = "proxy_same_port6"
	setProxyOpen4  = "proxy_open4"
	setProxyOpen6  = "proxy_open6"
	setSeal        = "seal"
)

// setSpec describes a set, or a map when value is given. The text of doc goes into docs/nftables.md.
type setSpec struct {
	name, key, value string
	interval         bool
	doc              string
}

func sets() []setSpec {
	return []setSpec{
		{setNATVNICs, "ifname", "", false, "The host's vNICs on NAT networks. A vNIC of ours that is not here belongs to an Internal network, or to none."},
		{setSameNetwork, "ifname . ifname", "", false, "A network's vNIC paired with itself: nftables cannot compare the two interface names of a packet."},
		{setPrefixes4, "ipv4_addr", "", true, "The IPv4 prefixes of all networks with a host vNIC, gateway addresses included."},
		{setPrefixes6, "ipv6_addr", "", true, "The IPv6 prefixes of all networks with a host vNIC."},
		{mapAddress4, "ipv4_addr . inet_proto . inet_service", "ipv4_addr . inet_service", false, "Ports published on one IPv4 address: address, protocol and port to container. Those of load balancers at their virtual addresses are here as well, and lead to an address that the switch of their network balances."},
		{mapAddress6, "ipv6_addr . inet_proto . inet_service", "ipv6_addr . inet_service", false, "Ports published on one IPv6 address."},
		{mapAll4, "inet_proto . inet_service", "ipv4_addr . inet_service", false, "Ports published on every IPv4 address of the host, loopback included, and those of load balancers without a virtual address."},
		{mapAll6, "inet_proto . inet_service", "ipv6_addr . inet_service", false, "Ports published on every IPv6 address of the host, loopback included."},
		{mapLAN4, "inet_proto . inet_service", "ipv4_addr . inet_service", false, "Ports published on every IPv4 address of the host except loopback."},
		{mapLAN6, "inet_proto . inet_service", "ipv6_addr . inet_service", false, "Ports published on every IPv6 address of the host except loopback."},
		{setLinkLocal, "inet_proto . inet_service", "", false, "Ports published in IPv6 on more than one address, which are refused at link-local addresses, and at ::1 where nothing of theirs is translated. A set of its own, because kernels before 6.5 do not look up a map for its keys alone."},
		{setLoopback4, "inet_proto . inet_service", "", false, "Ports published to the LAN alone in IPv4, which are refused at 127.0.0.0/8."},
		{setKept4, "ipv4_addr . ipv4_addr", "", true, "Container and destinations that see its own address (OutBoundNAT Exceptions)."},
		{setKept6, "ipv6_addr . ipv6_addr", "", true, "The same in IPv6."},
		{mapChosen4, "ipv4_addr . ipv4_addr", "ipv4_addr", true, "Container and destinations that see a certain address of the host (OutBoundNAT Destinations with VirtualIP)."},
		{mapChosen6, "ipv6_addr . ipv6_addr", "ipv6_addr", true, "The same in IPv6."},
		{setChosen4, "ipv4_addr . ipv4_addr", "", true, "Container and destinations that see the address of the outgoing device (OutBoundNAT Destinations)."},
		{setChosen6, "ipv6_addr . ipv6_addr", "", true, "The same in IPv6."},
		{setOpen4, "ipv4_addr", "", false, "Containers whose own address all other destinations see (OutBoundNAT with nothing but Destinations)."},
		{setOpen6, "ipv6_addr", "", false, "The same in IPv6."},
		{mapAs4, "ipv4_addr", "ipv4_addr", false, "Containers that hide behind a certain address of the host (OutBoundNAT VirtualIP)."},
		{mapAs6, "ipv6_addr", "ipv6_addr", false, "The same in IPv6."},
		{setOnLAN4, "ipv4_addr", "", false, "Containers on an L2Bridge or L2Tunnel network with an OutBoundNAT policy. The switch hands the host what is to be translated."},
		{setOnLAN6, "ipv6_addr", "", false, "The same in IPv6."},
		{setHidden4, "ipv4_addr", "", false, "Containers on an L2Bridge or L2Tunnel network with published ports: they see the host instead of the client."},
		{setHidden6, "ipv6_addr", "", false, "The same in IPv6."},
		{mapProxy4, "ipv4_addr . inet_proto . ipv4_addr", "ipv4_addr . inet_service", true, "Container, protocol and destinations whose flows go to a proxy (L4Proxy)."},
		{mapProxy6, "ipv6_addr . inet_proto . ipv6_addr", "ipv6_addr . inet_service", true, "The same in IPv6."},
		{mapProxyPort4, "ipv4_addr . inet_proto . ipv4_addr", "ipv4_addr", true, "The same where the flow keeps its port (L4Proxy without Port)."},
		{mapProxyPort6, "ipv6_addr . inet_proto . ipv6_addr", "ipv6_addr", true, "The same in IPv6."},
		{setProxyOpen4, "ipv4_addr . ipv4_addr", "", false, "Container and proxy that sees its own address (L4Proxy without OutboundNat)."},
		{setProxyOpen6, "ipv6_addr . ipv6_addr", "", false, "The same in IPv6."},
		{setSeal, "inet_service", "", false, "One element whose comment is a checksum over the table's chains, rules and sets as the kernel lists them. No rule uses it; a difference means that somebody changed the table, and it is written anew."},
	}
}

// The reasons for which the table drops, each a named counter.
const (
	DropPort      = "drop_port"
	DropLoopback  = "drop_loopback"
	DropSpoofed   = "drop_spoofed"
	DropDirect    = "drop_direct"
	DropIsolation = "drop_isolation"
	DropInternal  = "drop_internal"
	DropRedirect  = "drop_redirect"
)

type counterSpec struct{ name, doc string }

func counters() []counterSpec {
	return []counterSpec{
		{DropPort, "A frame came up into the host's stack from a switch port: only the port's program may touch those."},
		{DropLoopback, "To or from a loopback address, coming from a network or going to one, other than a host process's own."},
		{DropSpoofed, "From outside with a source address of one of our networks."},
		{DropDirect, "From outside to a container's or a gateway's own address instead of a published port, or from a network to an address by which the host alone reaches load balancers."},
		{DropIsolation, "From one network to another, not through a published port."},
		{DropInternal, "Forwarding to or from an Internal network."},
		{DropRedirect, "ICMP redirects that the host would send into a network because of hairpin traffic."},
	}
}

// chainSpec is a chain and its rules; a chain without a hook is jumped to.
type chainSpec struct {
	name, kind, hook string
	priority         string
	doc              string
	rules            []string
}

func drop(reason string) string { return " counter name " + reason + " drop" }

func chains() []chainSpec {
	return append(translationChains(), filterChains()...)
}

func translationChains() []chainSpec {
	loop4, loop6 := "ip daddr 127.0.0.0/8 ", "ip6 daddr ::1 "
	tuple := "meta l4proto . th dport map @"
	return []chainSpec{
		{name: "publish", doc: "Turns a published address and port of the host into the container's. An exact address goes before all addresses. IPv6 link-local destinations are left out: their clients' source addresses cannot be forwarded.", rules: []string{
			"dnat ip to ip daddr . " + tuple + mapAddress4,
			"dnat ip6 to ip6 daddr . " + tuple + mapAddress6,
			"ip6 daddr fe80::/10 return",
			"fib daddr type != local return",
			"meta nfproto ipv4 dnat ip to " + tuple + mapAll4,
			"meta nfproto ipv6 dnat ip6 to " + tuple + mapAll6,
			loop4 + "return",
			loop6 + "return",
			"meta nfproto ipv4 dnat ip to " + tuple + mapLAN4,
			"meta nfproto ipv6 dnat ip6 to " + tuple + mapLAN6,
		}},
		{name: "prerouting", kind: "nat", hook: "prerouting", priority: "-100", doc: "Published ports for what arrives from networks and from outside; never for a loopback destination.", rules: []string{
			loop4 + "return",
			loop6 + "return",
			`iifname "bhh*" jump proxy`,
			"goto publish",
		}},
		{name: "proxy", doc: "Flows of containers that go to a proxy, whatever they are for. Those between two containers of a network are here because the switch sends them to the host.", rules: []string{
			"meta l4proto { tcp, udp } dnat ip to ip saddr . meta l4proto . ip daddr map @" + mapProxy4,
			"meta l4proto { tcp, udp } dnat ip6 to ip6 saddr . meta l4proto . ip6 daddr map @" + mapProxy6,
			"dnat ip to ip saddr . meta l4proto . ip daddr map @" + mapProxyPort4,
			"dnat ip6 to ip6 saddr . meta l4proto . ip6 daddr map @" + mapProxyPort6,
		}},
		{name: "output", kind: "nat", hook: "output", priority: "-100", doc: "Published ports for the host's own processes, loopback included.", rules: []string{
			"goto publish",
		}},
		{name: "to_network_source", doc: "Sources that a container could not answer: loopback, and a container of the same network, which would be answered past the host. Both become the gateway's address. A client's address is otherwise kept.", rules: []string{
			"ip saddr 127.0.0.0/8 masquerade fully-random",
			"ip6 saddr ::1 masquerade fully-random",
			"iifname . oifname @" + setSameNetwork + " ct status dnat masquerade fully-random",
		}},
		{name: "postrouting", kind: "nat", hook: "postrouting", priority: "100", doc: "What leaves a NAT network by a device that is not ours, what the switch hands over of containers on a LAN, and what goes to a published port of one: it would be answered past the host, and so gets the host's address.", rules: []string{
			`oifname "bhh*" goto to_network_source`,
			"ip daddr @" + setHidden4 + " ct status dnat masquerade fully-random",
			"ip6 daddr @" + setHidden6 + " ct status dnat masquerade fully-random",
			"iifname @" + setNATVNICs + " goto outbound",
			"ip saddr @" + setOnLAN4 + " goto outbound",
			"ip6 saddr @" + setOnLAN6 + " goto outbound",
		}},
		{name: "outbound", doc: "It gets the address of that device, at a random port, unless the container's OutBoundNAT policies say something else. A proxy may see the container's.", rules: []string{
			"ct status dnat ip saddr . ip daddr @" + setProxyOpen4 + " return",
			"ct status dnat ip6 saddr . ip6 daddr @" + setProxyOpen6 + " return",
			"snat ip to ip saddr . ip daddr map @" + mapChosen4 + " fully-random",
			"snat ip6 to ip6 saddr . ip6 daddr map @" + mapChosen6 + " fully-random",
			"ip saddr . ip daddr @" + setChosen4 + " masquerade fully-random",
			"ip6 saddr . ip6 daddr @" + setChosen6 + " masquerade fully-random",
			"ip saddr . ip daddr @" + setKept4 + " return",
			"ip6 saddr . ip6 daddr @" + setKept6 + " return",
			"ip saddr @" + setOpen4 + " return",
			"ip6 saddr @" + setOpen6 + " return",
			"snat ip to ip saddr map @" + mapAs4 + " fully-random",
			"snat ip6 to ip6 saddr map @" + mapAs6 + " fully-random",
			"masquerade fully-random",
		}},
	}
}

// linkLocal begins a rule that refuses what is published at link-local addresses. The answer is an ICMP error for TCP too: the
// kernel sends that on the link where the client is, and a reset to a link-local address on any link. Only the host's own
// processes get the reset: to them the ICMP error does not come back.
const linkLocal = "ip6 daddr fe80::/10" + notHere6

// clampSegments is in the chains that a packet passes anyway: a chain with a hook of its own costs each of them more.
const clampSegments = "tcp flags syn tcp option maxseg size set rt mtu"

const (
	notHere4 = " meta l4proto . th dport @" + setLoopback4 + " reject with "
	notHere6 = " meta l4proto . th dport @" + setLinkLocal + " reject with "
)

func filterChains() []chainSpec {
	inside := plan.InsidePrefixes()
	return []chainSpec{
		{name: "guard", kind: "filter", hook: "prerouting", priority: "-300", doc: "Before conntrack and before any translation: what arrives on the wrong device for its addresses. Other devices are judged only by addresses that are ours: most packets bear none, and are through after two look-ups. Who sees a container's own address may answer it: to_network lets nothing but answers pass.", rules: []string{
			`iifname "lo" accept`,
			`iifname "bhh*" goto guard_network`,
			`iifname "bhp*"` + drop(DropPort),
			"ip saddr @" + setPrefixes4 + drop(DropSpoofed),
			"ip6 saddr @" + setPrefixes6 + drop(DropSpoofed),
			"ip daddr != @" + setPrefixes4 + " accept",
			"ip6 daddr != @" + setPrefixes6 + " accept",
			"ip daddr . ip saddr @" + setKept4 + " accept",
			"ip6 daddr . ip6 saddr @" + setKept6 + " accept",
			"ip daddr @" + setOpen4 + " accept",
			"ip6 daddr @" + setOpen6 + " accept",
			"ip daddr . ip saddr @" + setProxyOpen4 + " accept",
			"ip6 daddr . ip6 saddr @" + setProxyOpen6 + " accept",
			"ip daddr @" + setPrefixes4 + drop(DropDirect),
			"ip6 daddr @" + setPrefixes6 + drop(DropDirect),
		}},
		{name: "guard_network", doc: "Loopback addresses never come out of a network, although its vNIC accepts them for translated answers. Nor do containers send to the addresses by which the host alone reaches load balancers.", rules: []string{
			"ip daddr 127.0.0.0/8" + drop(DropLoopback),
			"ip saddr 127.0.0.0/8" + drop(DropLoopback),
			"ip6 daddr ::1" + drop(DropLoopback),
			"ip6 saddr ::1" + drop(DropLoopback),
			"ip daddr " + inside[0].String() + drop(DropDirect),
			"ip6 daddr " + inside[1].String() + drop(DropDirect),
		}},
		{name: "link_local", kind: "filter", hook: "input", priority: "0", doc: "A published port at the host's IPv6 link-local addresses, which is not translated, or at the loopback of a host whose LAN alone it is published to: refused, where the socket that holds the port would let a client wait.", rules: []string{
			`iifname "lo" meta l4proto tcp ` + linkLocal + "tcp reset",
			linkLocal + "icmpv6 type port-unreachable",
			`iifname "lo" ip daddr 127.0.0.0/8 meta l4proto tcp` + notHere4 + "tcp reset",
			`iifname "lo" ip daddr 127.0.0.0/8` + notHere4 + "icmp type port-unreachable",
			`iifname "lo" ip6 daddr ::1 meta l4proto tcp` + notHere6 + "tcp reset",
			`iifname "lo" ip6 daddr ::1` + notHere6 + "icmpv6 type port-unreachable",
		}},
		{name: "forward", kind: "filter", hook: "forward", priority: "0", doc: "Sends what concerns a network to the two chains below; everything else passes untouched.", rules: []string{
			`oifname "bhh*" goto to_network`,
			`iifname "bhh*" goto from_network`,
		}},
		{name: "to_network", doc: "Into a network: to a proxy on it and back, answers, published ports, and subnets of the same network; the rest is dropped by reason. The segment size of TCP connections across its border is clamped to the path's MTU, both ways.", rules: []string{
			clampSegments,
			`iifname "bhh*" iifname . oifname @` + setSameNetwork + " ct status dnat accept",
			"oifname != @" + setNATVNICs + drop(DropInternal),
			"ip saddr 127.0.0.0/8" + drop(DropLoopback),
			`iifname "bhh*" iifname != @` + setNATVNICs + drop(DropInternal),
			"ct state established,related accept",
			"ct status dnat accept",
			"iifname . oifname @" + setSameNetwork + " accept",
			`iifname "bhh*"` + drop(DropIsolation),
			"counter name " + DropDirect + " drop",
		}},
		{name: "from_network", doc: "Out of a network by a device that is not ours: allowed from NAT networks only.", rules: []string{
			clampSegments,
			"iifname != @" + setNATVNICs + drop(DropInternal),
		}},
		{name: "redirects", kind: "filter", hook: "output", priority: "0", doc: "Hairpin traffic goes back where it came from, which makes the host advise a shorter path; following that would go around the translation.", rules: []string{
			`oifname "bhh*" icmp type redirect` + drop(DropRedirect),
			`oifname "bhh*" icmpv6 type nd-redirect` + drop(DropRedirect),
			"ip daddr @" + setOnLAN4 + " icmp type redirect" + drop(DropRedirect),
			"ip6 daddr @" + setOnLAN6 + " icmpv6 type nd-redirect" + drop(DropRedirect),
		}},
	}
}

// buildTable fills a transaction with the whole table: dropping what is there, then counters, sets, chains, rules and
// elements. It is one transaction, so there is no moment without rules. kept holds values of drop counters to go on from.
func buildTable(tx *knftables.Transaction, want elements, kept map[string]Counter, existed bool) {
	table := &knftables.Table{}
	tx.Add(table)
	if existed {
		tx.Delete(table)
		tx.Add(table)
	}
	for _, c := range counters() {
		k := kept[c.name]
		tx.Add(&knftables.Counter{Name: c.name, Packets: &k.Packets, Bytes: &k.Bytes})
	}
	for _, s := range sets() {
		var flags []knftables.SetFlag
		if s.interval {
			flags = append(flags, knftables.IntervalFlag)
		}
		if s.value == "" {
			tx.Add(&knftables.Set{Name: s.name, Type: s.key, Flags: flags})
		} else {
			tx.Add(&knftables.Map{Name: s.name, Type: s.key + " : " + s.value, Flags: flags})
		}
	}
	for _, c := range chains() {
		tx.Add(c.object())
	}
	for _, c := range chains() {
		for _, r := range c.rules {
			tx.Add(&knftables.Rule{Chain: c.name, Rule: r})
		}
	}
	want.addText(tx)
}

func (c chainSpec) object() *knftables.Chain {
	chain := &knftables.Chain{Name: c.name}
	if c.hook != "" {
		chain.Type = new(knftables.BaseChainType(c.kind))
		chain.Hook = new(knftables.BaseChainHook(c.hook))
		chain.Priority = new(knftables.BaseChainPriority(c.priority))
	}
	return chain
}

// rulesetText is the static part of the table as text: what a new version of the program compares by, and what the
// reference document shows.
func rulesetText() string {
	var b strings.Builder
	for _, c := range counters() {
		fmt.Fprintf(&b, "counter %s\n", c.name)
	}
	for _, s := range sets() {
		fmt.Fprintf(&b, "set %s %s : %s %v\n", s.name, s.key, s.value, s.interval)
	}
	for _, c := range chains() {
		fmt.Fprintf(&b, "chain %s %s %s %s\n", c.name, c.kind, c.hook, c.priority)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "\t%s\n", r)
		}
	}
	return b.String()
}
