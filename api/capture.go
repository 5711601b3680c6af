package api

import "time"

// The points of a packet's way where a capture can be.
const (
	PointVNIC    = "vnic"    // in the compartment: both directions, as the container sees them
	PointPort    = "port"    // the switch's end: what the container sends, before the switch judges it
	PointGateway = "gateway" // the host's vNIC on the network: what goes between containers and host
	PointUplink  = "uplink"  // the device of the default route, after translation; of something named the NIC of its LAN
)

// MaxSnaplen is the most that a capture keeps of a packet.
const MaxSnaplen = 256 << 10

// CaptureOptions say what is captured. The answer is a pcapng file.
type CaptureOptions struct {
	// Target is the name or ID of a container or an endpoint; at the gateway also of a network, at the uplink nothing.
	Target string
	Point  string // PointVNIC when empty
	// Protocol is "arp", "icmp" (both families), "ip", "ip6", "sctp", "tcp" or "udp".
	Protocol string
	// Hosts are addresses, prefixes, or names of containers or endpoints: packets from or to one of them.
	Hosts []string
	// Port of TCP, UDP or SCTP at either end.
	Port uint16
	// Packets, Snaplen and Duration bound the capture; 0: they do not, and Snaplen is MaxSnaplen.
	Packets  int
	Snaplen  int
	Duration time.Duration
}
