/* The one list of reasons why the switch drops a frame. Go gets it by bpf2go; the
 * words for people are in reason.go. Numbers go out in events and metrics: append,
 * never renumber. */
#ifndef BULKHEAD_REASONS_H
#define BULKHEAD_REASONS_H

enum drop_reason {
	DROP_NONE = 0,
	DROP_UNKNOWN_PORT = 1,	   /* the device is no port of any switch */
	DROP_MALFORMED = 2,	   /* headers that contradict the frame's length */
	DROP_VLAN = 3,		   /* tagged */
	DROP_ETHERTYPE = 4,	   /* neither IPv4, IPv6 nor ARP */
	DROP_SOURCE_MAC = 5,	   /* not the port's MAC */
	DROP_SOURCE_ADDRESS = 6,   /* not the port's address */
	DROP_MARTIAN = 7,	   /* an address that may not be on a wire */
	DROP_ARP_SPOOF = 8,	   /* an ARP sender that is not the port */
	DROP_ND_SPOOF = 9,	   /* a neighbour message that speaks for another */
	DROP_ND_INVALID = 10,	   /* a neighbour message no stack would accept */
	DROP_ROUTER_ADVERT = 11,   /* a container playing router */
	DROP_REDIRECT = 12,	   /* an ICMP redirect from a container */
	DROP_DHCP_SERVER = 13,	   /* a container playing DHCP server */
	DROP_EXTENSION_HEADERS = 14, /* a chain too long to read */
	DROP_FRAGMENT = 15,	   /* fragments that hide what they are */
	DROP_RESOLVER = 16,	   /* the resolver's port sends more than answers */
	DROP_UNKNOWN_ADDRESS = 17, /* ARP or ND for an address nobody has */
	DROP_UNKNOWN_MAC = 18,	   /* unicast to a MAC nobody has */
	DROP_TO_SELF = 19,	   /* addressed to its sender */
	DROP_GROUP_UNICAST = 20,   /* a unicast packet in a group frame */
	DROP_KERNEL = 21,	   /* the kernel refused a change to the frame */
	DROP_POLICY_OUT = 22,	   /* the sender's rules say no */
	DROP_POLICY_IN = 23,	   /* the receiver's rules say no */
	DROP_ISOLATED = 24,	   /* one of the ports talks to no container */
	DROP_FLOW_TABLE = 25,	   /* the port's share of the flow table is used up */
	DROP_RATE_OUT = 26,	   /* the sender's rate is used up */
	DROP_RATE_IN = 27,	   /* the receiver's rate is used up */
	DROP_REFLECTED = 28,	   /* from the wire, with the MAC of a port of this switch */
	DROP_NO_UPLINK = 29,	   /* for the wire, and the NIC is gone */
	DROP_UNCONFIRMED = 30,	   /* nobody confirmed the network in time */
	DROP_UNKNOWN_VTEP = 31,	   /* a tunnel's packet from a host that has nothing of the network */
	DROP_UNKNOWN_VNI = 32,	   /* a tunnel's packet for a virtual network that is not here */
	DROP_INNER_SOURCE = 33,	   /* a sender inside a tunnel who is not on the host it came from */
	DROP_NO_ROUTE = 34,	   /* an overlay knows no way to the destination */
	DROP_MTU = 35,		   /* larger than a tunnel carries */
	DROP_CONGESTED = 36,	   /* marked on its way in a tunnel, and the inner packet cannot say so (RFC 6040) */
	DROP_NO_KEY = 37,	   /* an encrypted network, and no key for it: its host's, or ours */
	DROP_CLEAR = 38,	   /* in clear text, for a network that is encrypted */
	DROP_GROUP_RATE = 40,	   /* more group frames than a port may have copied to other hosts */
	DROP_NO_BACKEND = 41,	   /* a load balancer has no back end for it: its sender is told, unless it answers itself */
	/* From here on: traffic every stack sends and this switch has no use for. It is
	 * counted, but as no loss and without an event. */
	DROP_QUIET = 64,
	DROP_ROUTER_SOLICIT = 64, /* no router advertises here */
	DROP_MEMBERSHIP = 65,	  /* MLD, IGMP: on a host groups are flooded, and for others the switch has noted it */
	DROP_DAD = 66,		  /* a port asking for its own address */
	DROP_FLOODED = 67,	  /* another host's broadcast or multicast, which the network does not carry */
	DROP_NO_MEMBER = 68,	  /* the same on one that does, and no port is in the group */
};

#endif
