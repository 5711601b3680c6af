package vswitch

import "fmt"

// Reason says why the switch dropped a frame: enum drop_reason of bpf/lib/reasons.h.
type Reason uint32

// The reasons, in the words of the enum.
const (
	ReasonUnknownPort      = Reason(bpfDropReasonDROP_UNKNOWN_PORT)
	ReasonMalformed        = Reason(bpfDropReasonDROP_MALFORMED)
	ReasonVLAN             = Reason(bpfDropReasonDROP_VLAN)
	ReasonEtherType        = Reason(bpfDropReasonDROP_ETHERTYPE)
	ReasonSourceMAC        = Reason(bpfDropReasonDROP_SOURCE_MAC)
	ReasonSourceAddress    = Reason(bpfDropReasonDROP_SOURCE_ADDRESS)
	ReasonMartian          = Reason(bpfDropReasonDROP_MARTIAN)
	ReasonARPSpoof         = Reason(bpfDropReasonDROP_ARP_SPOOF)
	ReasonNDSpoof          = Reason(bpfDropReasonDROP_ND_SPOOF)
	ReasonNDInvalid        = Reason(bpfDropReasonDROP_ND_INVALID)
	ReasonRouterAdvert     = Reason(bpfDropReasonDROP_ROUTER_ADVERT)
	ReasonRedirect         = Reason(bpfDropReasonDROP_REDIRECT)
	ReasonDHCPServer       = Reason(bpfDropReasonDROP_DHCP_SERVER)
	ReasonExtensionHeaders = Reason(bpfDropReasonDROP_EXTENSION_HEADERS)
	ReasonFragment         = Reason(bpfDropReasonDROP_FRAGMENT)
	ReasonResolver         = Reason(bpfDropReasonDROP_RESOLVER)
	ReasonUnknownAddress   = Reason(bpfDropReasonDROP_UNKNOWN_ADDRESS)
	ReasonUnknownMAC       = Reason(bpfDropReasonDROP_UNKNOWN_MAC)
	ReasonToSelf           = Reason(bpfDropReasonDROP_TO_SELF)
	ReasonGroupUnicast     = Reason(bpfDropReasonDROP_GROUP_UNICAST)
	ReasonKernel           = Reason(bpfDropReasonDROP_KERNEL)
	ReasonPolicyOut        = Reason(bpfDropReasonDROP_POLICY_OUT)
	ReasonPolicyIn         = Reason(bpfDropReasonDROP_POLICY_IN)
	ReasonIsolated         = Reason(bpfDropReasonDROP_ISOLATED)
	ReasonFlowTable        = Reason(bpfDropReasonDROP_FLOW_TABLE)
	ReasonRateOut          = Reason(bpfDropReasonDROP_RATE_OUT)
	ReasonRateIn           = Reason(bpfDropReasonDROP_RATE_IN)
	ReasonReflected        = Reason(bpfDropReasonDROP_REFLECTED)
	ReasonNoUplink         = Reason(bpfDropReasonDROP_NO_UPLINK)
	ReasonUnconfirmed      = Reason(bpfDropReasonDROP_UNCONFIRMED)
	ReasonUnknownVTEP      = Reason(bpfDropReasonDROP_UNKNOWN_VTEP)
	ReasonUnknownVNI       = Reason(bpfDropReasonDROP_UNKNOWN_VNI)
	ReasonInnerSource      = Reason(bpfDropReasonDROP_INNER_SOURCE)
	ReasonNoRoute          = Reason(bpfDropReasonDROP_NO_ROUTE)
	ReasonMTU              = Reason(bpfDropReasonDROP_MTU)
	ReasonCongested        = Reason(bpfDropReasonDROP_CONGESTED)
	ReasonGroupRate        = Reason(bpfDropReasonDROP_GROUP_RATE)
	ReasonNoBackend        = Reason(bpfDropReasonDROP_NO_BACKEND)
	ReasonNoKey            = Reason(bpfDropReasonDROP_NO_KEY)
	ReasonClear            = Reason(bpfDropReasonDROP_CLEAR)
	ReasonRouterSolicit    = Reason(bpfDropReasonDROP_ROUTER_SOLICIT)
	ReasonMembership       = Reason(bpfDropReasonDROP_MEMBERSHIP)
	ReasonDAD              = Reason(bpfDropReasonDROP_DAD)
	ReasonFlooded          = Reason(bpfDropReasonDROP_FLOODED)
	ReasonNoMember         = Reason(bpfDropReasonDROP_NO_MEMBER)
)

// words are a short name, stable for metrics and filters, and an explanation.
var words = map[Reason][2]string{
	ReasonUnknownPort:      {"unknown-port", "the device is no port of any switch (cut off, or not set up yet)"},
	ReasonMalformed:        {"malformed", "the headers contradict the length of the frame"},
	ReasonVLAN:             {"vlan-tag", "tagged frames do not enter this switch"},
	ReasonEtherType:        {"ethertype", "neither IPv4, IPv6 nor ARP"},
	ReasonSourceMAC:        {"source-mac", "the source MAC is not the endpoint's"},
	ReasonSourceAddress:    {"source-address", "the source address is not the endpoint's"},
	ReasonMartian:          {"martian", "an address that may not appear on a network"},
	ReasonARPSpoof:         {"arp-spoof", "ARP speaks for a MAC or address that is not the endpoint's"},
	ReasonNDSpoof:          {"nd-spoof", "neighbour discovery speaks for a MAC or address that is not the endpoint's"},
	ReasonNDInvalid:        {"nd-invalid", "a neighbour discovery message that no stack would accept"},
	ReasonRouterAdvert:     {"router-advert", "an endpoint advertises itself as router"},
	ReasonRedirect:         {"redirect", "an endpoint sends ICMP redirects"},
	ReasonDHCPServer:       {"dhcp-server", "an endpoint answers as DHCP server"},
	ReasonExtensionHeaders: {"extension-headers", "more IPv6 extension headers than are read"},
	ReasonFragment:         {"fragment", "a fragment that hides its transport header, or part of a name query"},
	ReasonResolver:         {"resolver", "the resolver's port may only answer from port 53"},
	ReasonUnknownAddress:   {"unknown-address", "ARP or neighbour discovery for an address that no endpoint has"},
	ReasonUnknownMAC:       {"unknown-mac", "addressed to a MAC that no endpoint has"},
	ReasonToSelf:           {"to-self", "addressed to its own sender"},
	ReasonGroupUnicast:     {"group-unicast", "a unicast packet in a broadcast or multicast frame"},
	ReasonKernel:           {"kernel", "the kernel refused to change the frame"},
	ReasonPolicyOut:        {"policy-out", "the sender's rules do not let it out"},
	ReasonPolicyIn:         {"policy-in", "the receiver's rules do not let it in"},
	ReasonIsolated:         {"isolated", "one of the two endpoints talks to no other endpoint (DisableInterComputeCommunication)"},
	ReasonFlowTable:        {"flow-table", "the endpoint's share of the flow table is used up"},
	ReasonRateOut:          {"rate-out", "the sender's bandwidth is used up (QOS)"},
	ReasonRateIn:           {"rate-in", "the receiver's bandwidth is used up (Bulkhead.IncomingQOS)"},
	ReasonReflected:        {"reflected", "it came in from the wire with the MAC of a port of this switch"},
	ReasonNoUplink:         {"no-uplink", "it is for the LAN, and the NIC of the network is gone"},
	ReasonUnconfirmed:      {"unconfirmed", "nobody confirmed the network in time, and the daemon is not there to take it away"},
	ReasonUnknownVTEP:      {"unknown-vtep", "a tunnel's packet from a host that has no endpoint of this network"},
	ReasonUnknownVNI:       {"unknown-vni", "a tunnel's packet for a virtual network that this host does not have"},
	ReasonInnerSource:      {"inner-source", "the sender inside a tunnel is not an endpoint of the host that the packet came from"},
	ReasonNoRoute:          {"no-route", "the overlay knows no way to the destination: no endpoint, no remote subnet, and no way to the host"},
	ReasonMTU:              {"mtu", "larger than a tunnel carries"},
	ReasonCongested:        {"congested", "marked as congested in a tunnel, and the packet inside cannot carry the mark"},
	ReasonGroupRate:        {"group-rate", "more broadcast and multicast than an endpoint may have copied to other hosts; those on this host have it"},
	ReasonNoBackend:        {"no-backend", "a load balancer has no back end for it (then the sender was told, by a reset or as unreachable), or a back end answers a connection that has ended"},
	ReasonNoKey:            {"no-key", "the network is encrypted, and the other host has told no key, or this one cannot encrypt now"},
	ReasonClear:            {"clear-text", "a tunnel's packet in clear text, for a network that is encrypted"},
	ReasonRouterSolicit:    {"router-solicit", "asks for a router advertisement; addresses are assigned"},
	ReasonMembership:       {"membership", "group membership report, which is noted and goes to nobody"},
	ReasonDAD:              {"dad", "asks whether another has its own address; none has"},
	ReasonFlooded:          {"flooded", "another host's broadcast or multicast, which the network does not carry (--multicast)"},
	ReasonNoMember:         {"no-member", "another host's multicast, for a group that no endpoint here is in"},
}

// Reasons lists all of them in the order of their numbers.
func Reasons() []Reason {
	var out []Reason
	for r := Reason(1); r <= ReasonNoMember; r++ {
		if _, ok := words[r]; ok {
			out = append(out, r)
		}
	}
	return out
}

// String is the reason's short name.
func (r Reason) String() string {
	if w, ok := words[r]; ok {
		return w[0]
	}
	if r == 0 {
		return "none"
	}
	return fmt.Sprintf("reason-%d", uint32(r))
}

// Explain says it in a sentence.
func (r Reason) Explain() string { return words[r][1] }

// Quiet tells traffic that every stack sends and the switch has no use for: it is
// counted by reason but is no loss.
func (r Reason) Quiet() bool { return r >= Reason(bpfDropReasonDROP_QUIET) }

func (r Reason) enum() bpfDropReason { return bpfDropReason(r) }
