/* Keys and values of the maps. Go reads them through bpf2go; a change of one that is
 * pinned needs a new map name (see lib/maps.h). All padding is named, so that keys
 * are zeroed whole. */
#ifndef BULKHEAD_STRUCTS_H
#define BULKHEAD_STRUCTS_H

#include "../include/net.h"
#include "reasons.h"

/* What is behind a port: plan.PortKind. */
enum port_kind {
	PORT_CONTAINER = 1,
	PORT_HOST = 2,
	PORT_RESOLVER = 3,
	PORT_UPLINK = 4, /* a NIC: both the wire and the host's stack are behind it */
	PORT_GUEST = 5,	 /* only of a struct dest: a vNIC in the host's stack, on a switch with a NIC */
	PORT_REMOTE = 6, /* a VXLAN device: other hosts are behind it */
};

#define PORT_ISOLATED 1 /* exchanges nothing with other endpoints, wherever they are */
#define PORT_GUESTS 2	/* the host's, when endpoints of the switch are in the host's stack */
#define PORT_RATE_OUT 4 /* what it sends is bounded: see struct rate */
#define PORT_RATE_IN 8	/* the same of what it receives */
#define PORT_LAN 32	/* (16: steer.h) on a switch that has an uplink */
#define PORT_ONE_MAC 64 /* and whose ports all have the NIC's MAC on the wire */
#define PORT_TUNNEL 128 /* and send each other nothing but by the wire */

/* Ports of one network that are in different VLANs do not meet: each VLAN is a switch of its
 * own, whose number is that of the network's below the tag. Only the tables of the rules
 * are the network's. */
#define SWITCH_BITS 20
#define SWITCH_OF(segment) ((segment) & ((1u << SWITCH_BITS) - 1))
#define VLAN_OF(segment) ((segment) >> SWITCH_BITS)
#define SEGMENT(sw, vlan) ((sw) | (__u32)(vlan) << SWITCH_BITS)

/* No switch has a number with this bit. In the keys of flows and fragments it tells the two
 * halves of a way by the wire from one port to another apart: each is judged at its own port. */
#define HALF (1u << (SWITCH_BITS - 1))

/* A port, found by the interface index of its switch side. */
struct port {
	__u32 sw; /* with the VLAN of what is behind it, see SEGMENT */
	__u8 mac[ETH_ALEN]; /* of the vNIC behind it */
	__u8 kind;	    /* enum port_kind */
	__u8 flags;	    /* PORT_*; of a NIC those from PORT_LAN on, and PORT_SHARED */
	__u32 out;	    /* policy of what it sends; 0: everything passes */
	__u32 in;	    /* policy of what it receives */
	__u32 tunnel; /* on an overlay: its VXLAN device; of that one itself: its UDP port */
};

/* An endpoint on another host, or a prefix behind another host's router. */
struct remote {
	__u8 host[16] __attribute__((aligned(4))); /* that host, in the underlay */
	__u32 vni;
	__u8 mac[ETH_ALEN];
	__u16 router; /* the MAC is a router's: a frame for the prefix is sent to it */
};

/* Longest prefix match over the prefixes of an overlay that are behind routers. */
struct route_key {
	__u32 bits;
	__u32 sw;
	__u8 ip[16] __attribute__((aligned(4)));
};

/* Whose virtual network is it that a tunnel's packet is for? */
struct vni_key {
	__u32 vni;
	__u32 port;				/* UDP */
	__u8 to[16] __attribute__((aligned(4))); /* the address that it came to */
};

#define NO_TUNNEL 0xffffffff /* the NIC of an overlay is gone */

#define OVERLAY_HOST 1	/* the host reaches the ports, and they the host */
#define OVERLAY_ROUTES 2 /* some prefixes are behind routers */
#define OVERLAY_SEALED 4 /* encrypted: the tunnel's socket is where WireGuard alone leads out */
#define OVERLAY_KEYLESS 8 /* but cannot be now */
#define OVERLAY_MULTICAST 16 /* group frames go to the other hosts (group.h) */

/* What a switch needs to reach other hosts. */
struct overlay {
	__u32 nic;
	__u32 tunnel; /* the VXLAN device */
	__u32 flags;  /* OVERLAY_* */
	__u32 mtu;    /* of the NIC */
	__u8 from[16] __attribute__((aligned(4))); /* the host's own address in the underlay */
	__u8 router[ETH_ALEN]; /* MAC of the host's router there */
	__u16 port;	       /* UDP */
};

/* Networks on one NIC: each has a switch. That of the first is in the NIC's struct port, which
 * has this flag when there are others, in slots from 1 on. */
#define PORT_SHARED 1
#define MAX_SHARED 8

struct lan_key {
	__u32 nic; /* interface index */
	__u32 slot;
};

struct lan {
	__u32 sw;
	__u32 flags; /* PORT_*, from PORT_LAN on */
};

/* A vNIC's address on a switch. */
struct mac_key {
	__u32 sw;
	__u8 mac[ETH_ALEN];
	__u16 pad;
};

/* How a frame gets to a vNIC. */
struct dest {
	__u32 port;   /* switch side of the port: statistics, policy */
	__u32 device; /* host port: the host's vNIC; others: as port */
	__u8 kind;    /* enum port_kind */
	__u8 pad[3];
};

/* A network address on a switch; IPv4 as ::ffff:a.b.c.d. */
struct addr_key {
	__u32 sw;
	__u8 ip[16] __attribute__((aligned(4)));
};

#define OWNER_GATEWAY 1	 /* the host answers here: it routes */
#define OWNER_RESOLVER 2 /* port 53 of this address is the resolver's */
#define OWNER_GUEST 4	 /* an endpoint's in the host's stack, which sends by the host's port */

/* Who has an address. The source guard asks it about senders, ARP and ND about
 * targets: one table, so the two cannot differ. */
struct owner {
	__u32 port;
	__u8 mac[ETH_ALEN];
	__u8 flags; /* OWNER_* */
	__u8 pad;
};

/* A switch: how many slots of its member list are filled, its resolver's port and the NIC
 * that is its uplink (0: none). */
struct vswitch {
	__u32 members;
	__u32 resolver;
	__u32 uplink;
};

/* A place in the list of ports that get broadcast. */
struct member_key {
	__u32 sw;
	__u32 slot;
};

/* A host that gets group frames. The first one says how many there are. */
struct flood_host {
	__u8 host[16] __attribute__((aligned(4)));
	__u32 vni;
	__u32 hosts;
};

/* The network, or the one port, that waits to be confirmed: see pending.h. */
struct pending {
	__u64 until; /* time since boot, ns; 0: none waits */
	__u32 sw;
	__u32 port; /* 0: all of the switch */
};

/* Counters of a port, seen from the vNIC: rx is what it received. */
struct stats {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 rx_dropped;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 tx_dropped;
};

/* A port's entry once more (see near.h). */
struct near {
	struct port port;
	__u32 index; /* whose it is; 0: nobody's */
};

/* What a port has received and sent (see near.h). A per-CPU value is written in the order of its fields: the port,
 * without which nobody counts here, comes last. */
struct traffic {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u32 port; /* whose place it is; 0: nobody's */
	__u32 pad;
};

struct drop_key {
	__u32 port; /* 0: a device that is no port */
	enum drop_reason reason;
};

struct drop_count {
	__u64 packets;
	__u64 bytes;
	__u64 last_event; /* when the last sampled event was written, ktime ns */
};

/* A sampled drop. */
struct drop_event {
	__u64 time; /* ktime ns */
	__u32 port;
	__u32 sw;
	enum drop_reason reason;
	__u32 rule; /* the rule that decided; 0: none */
	__u32 len;
	__u16 ethertype;
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 icmp_type;
	__u8 smac[ETH_ALEN];
	__u8 dmac[ETH_ALEN];
	__u8 src[16];
	__u8 dst[16];
};

/* What a rule says: plan.Action. */
enum action {
	ACTION_ALLOW = 1,
	ACTION_BLOCK = 2,
	ACTION_PASS = 3,
};

/* The two sides of a rule, in the keys below. */
#define SIDE_LOCAL 0
#define SIDE_REMOTE 1

/* Which look-ups a policy needs: without its flag, every packet matches every rule there. */
#define POLICY_LOCAL 1	       /* local addresses */
#define POLICY_REMOTE 2	       /* remote addresses */
#define POLICY_LOCAL_SETS 4    /* local addresses by set */
#define POLICY_REMOTE_SETS 8   /* remote addresses by set */
#define POLICY_SERVICE 16      /* protocols and local ports */
#define POLICY_REMOTE_PORTS 32 /* remote ports */

/* A list of rules, as tables: each look-up gives a vector with a bit for every rule that
 * the packet's field matches, and the lowest bit that all of them have is the rule. */
struct policy {
	__u32 rules;
	__u16 flags;	 /* POLICY_* */
	__u8 fallback;	 /* enum action when no rule matches */
	__u8 pad;
};

/* Longest prefix match over the addresses in a policy's rules; the value is a vector. */
struct prefix_key {
	__u32 bits;
	__u32 policy;
	__u8 side;
	__u8 pad[3];
	__u8 ip[16] __attribute__((aligned(4)));
};

/* The same over protocol and port. The ports of a policy's SIDE_REMOTE say nothing about
 * the protocol. */
struct service_key {
	__u32 bits;
	__u32 policy;
	__u8 side;
	__u8 proto;
	__be16 port;
};

/* Which address sets of a switch hold an address: the value is a class, the number of a
 * combination of sets. */
struct set_key {
	__u32 bits;
	__u32 sw;
	__u8 ip[16] __attribute__((aligned(4)));
};

/* The vector of the rules that refer to a set of a class. */
struct class_key {
	__u32 policy;
	__u32 class;
	__u32 side;
};

#define VECTOR_WORDS 64
#define VECTOR_BITS (64 * VECTOR_WORDS)

/* A vector lies in pieces; one that is not there has no bit set. Number 0 is such a one. */
struct vector_key {
	__u32 vector;
	__u32 piece;
};

struct vector {
	__u64 some; /* bit n: words[n] is not zero */
	__u64 words[VECTOR_WORDS];
};

struct rule_key {
	__u32 policy;
	__u32 index;
};

struct rule {
	__u32 number; /* for counters and events */
	__u32 next;   /* where ACTION_PASS goes on */
	__u32 action; /* enum action */
};

struct rule_stat_key {
	__u32 port; /* whose rule it is */
	__u32 rule;
};

/* Packets and bytes of ended flows, and of packets that belong to none. */
struct rule_stats {
	__u64 matches; /* times the rule decided */
	__u64 packets;
	__u64 bytes;
};

/* What all ports share. */
struct config {
	__u32 generation; /* flows judged under another one are judged again */
	__u32 flows_per_port;
};

/* A connection, the same for both directions: a is the lower end. */
struct flow_key {
	__u32 sw;
	__u8 a[16] __attribute__((aligned(4)));
	__u8 b[16] __attribute__((aligned(4)));
	__u16 aport;
	__u16 bport;
	__u8 proto;
	__u8 pad[3];
};

/* One end of a connection: the port it is behind. */
struct flow_end {
	__u32 port;
	__u32 device; /* as in struct dest */
	__u8 mac[ETH_ALEN];
	__u8 kind;
	__u8 flags; /* PORT_RATE_IN of the port */
};

/* A new version takes the flows of the last one over, by the names of their fields: these
 * numbers stay what they are, and so does what a field means. */
#define FLOW_FIN_A 1   /* end a has closed */
#define FLOW_FIN_B 2   /* end b has closed */
#define FLOW_RESET 4   /* a reset was seen, and since then no packets from both ends */
#define FLOW_REPLIED 8 /* packets went both ways */
#define FLOW_STALE_A 16 /* frames for end a bear a MAC that it does not have */
#define FLOW_STALE_B 32 /* the same for end b */
#define FLOW_MIDWAY 64  /* taken up in its middle: who opened it, nobody knows */
#define FLOW_CUT 128  /* the rules say no by now; they may say yes again */
#define FLOW_CARRIED 256 /* from another version's table: no share has it yet */
#define FLOW_TURNED 512 /* the opener asked alias and aport; a load balancer chose the other end */
#define FLOW_SELF 1024  /* that is the opener itself: see TURNED_SELF */
#define FLOW_KEPT 2048  /* chosen as well, but not rewritten: alias is the receiver's own address */
#define FLOW_SINCE_A 4096 /* end a has sent since a reset */
#define FLOW_SINCE_B 8192 /* the same for end b */
#define FLOW_SOURCED 16384 /* the opener has a source of ours here: its own is in a struct client */

struct flow {
	__u64 opened; /* ktime ns */
	__u64 seen;   /* the same, a few milliseconds coarse */
	__u64 packets[2]; /* by opener, and back */
	__u64 bytes[2];
	struct flow_end end[2];
	__u32 generation; /* under which it was judged */
	__u32 rule_out;	  /* of the opener's port */
	__u32 rule_in;	  /* of the other one */
	__u32 charged;	  /* the port whose share of the table it takes */
	__u32 state;	  /* FLOW_*, changed by several CPUs at once */
	__u8 opener;	  /* 0: end a, 1: end b */
	__u8 pad;
	__u16 aport;
	__u8 alias[16] __attribute__((aligned(4))); /* see FLOW_TURNED and FLOW_KEPT */
};

/* How many flows a port has in the table. */
struct share {
	__u64 flows;
};

/* What sweeps the table of flows. */
struct sweeper {
	struct bpf_timer timer;
	__u64 turn;
};

/* A flow that ended, for the log. */
struct flow_record {
	struct flow_key key;
	__u32 rule_out;
	__u64 opened;
	__u64 seen;
	__u64 packets[2];
	__u64 bytes[2];
	__u32 port[2]; /* of ends a and b */
	__u32 rule_in;
	__u8 opener;
	__u8 state;
	__u16 pad;
};

/* A fragmented packet whose first fragment has passed. */
struct fragment_key {
	__u32 sw;
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct fragment {
	__u64 time; /* ktime ns */
	__u32 generation;
	__u32 to; /* the port that it went to */
};

/* A service of a load balancer: what clients on a switch ask for. */
struct vip_key {
	__u32 sw;
	__u8 ip[16] __attribute__((aligned(4)));
	__u16 port;
	__u8 proto;
	__u8 pad;
};

#define VIP_HOST 1 /* for what the host sends, its own and from outside; others: for containers */
#define VIP_KEEP 2 /* its packets are delivered as they are */
#define VIP_SOURCED 4 /* back ends that are on no port here see source, with which answers come back here */

/* What a back end is chosen by: plan.Spread. */
#define SPREAD_FLOW 0
#define SPREAD_SOURCE_PROTOCOL 1
#define SPREAD_SOURCE 2

struct vip {
	__u32 table; /* of back ends; 0: there is none */
	__u32 mask;  /* of a place in the table */
	__u8 self[16] __attribute__((aligned(4))); /* as whom a back end meets itself */
	__u8 source[16] __attribute__((aligned(4))); /* see VIP_SOURCED */
	__u8 smac[ETH_ALEN]; /* of the source */
	__u8 flags;  /* VIP_* */
	__u8 spread; /* SPREAD_* */
};

/* The places of a table, in pieces: each names a back end. Who has how many, and which stay theirs
 * when others come or go, is worked out by the daemon (Maglev: Eisenbud et al., NSDI 2016). */
#define PLACES 256

struct places_key {
	__u32 table;
	__u32 piece;
};

struct places {
	__u16 backend[PLACES];
};

struct backend_key {
	__u32 table;
	__u32 backend;
};

struct backend {
	__u8 ip[16] __attribute__((aligned(4)));
	__u16 port;
	__u16 pad;
};

/* Is a back end in the table? */
struct standing_key {
	__u32 table;
	__u8 ip[16] __attribute__((aligned(4)));
	__u16 port;
	__u16 pad;
};

/* A connection to a service, as its client sends it, and the back end that it has. It lives as long as
 * the flow. */
struct choice_key {
	__u32 sw;
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};

struct choice {
	__u32 table; /* that it was last seen in */
	__u8 ip[16] __attribute__((aligned(4)));
	__u16 port;
	__u16 sport; /* that the connection has at its source of ours (VIP_SOURCED); 0: it has none */
};

/* Who has opened a flow with FLOW_SOURCED. It lives as long as the flow, whose key it has. */
struct client {
	__u8 ip[16] __attribute__((aligned(4)));
	__u16 port;
	__u16 pad;
};

/* What was done with the first part of a fragmented packet. */
struct turn {
	__u64 time; /* ktime ns */
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u8 alias[16] __attribute__((aligned(4)));
	__u32 port;  /* that it came from: nobody else's rest has a part in it */
	__u8 turned; /* TURNED_* */
	__u8 pad[3];
};

/* Addresses and ports that a packet is given. */
struct tuple {
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u16 sport;
	__u16 dport;
};

/* The packet inside an error, as far as it is needed. */
struct inner {
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u16 sport;
	__u16 dport;
	__u16 l4; /* offset of its transport header in the frame */
	__u8 proto;
	__u8 pad;
};

/* What is rewritten in an ICMP error: an end of the quoted packet, and the one of the error that is the same. */
struct mend {
	__u8 from[16] __attribute__((aligned(4)));
	__u8 to[16] __attribute__((aligned(4)));
	__u16 port;
	__u16 to_port;
	__u8 dst;   /* the end is the quoted packet's destination */
	__u8 outer; /* and the error has it, too */
	__u8 pad[2];
};

/* The sides of a rate_key. */
#define RATE_OUT 0
#define RATE_IN 1

struct rate_key {
	__u32 port;
	__u32 side; /* RATE_* */
};

/* How much a port may send or receive. */
struct rate {
	__u64 bytes; /* per second */
	__u64 burst; /* how long a full bucket lasts at that rate, in ticks (rate.h) */
};

/* What is left of it now. */
struct bucket {
	__u64 full; /* when it is full again, in ticks of the monotonic clock */
};

/* How many events this CPU has written in the current window. */
struct event_budget {
	__u64 window;
	__u64 used;
	__u64 lost;
};

/* What a run on a built frame (BPF_PROG_TEST_RUN) reports in skb->cb. */
enum outcome {
	OUTCOME_DROP = 1,
	OUTCOME_DELIVER = 2,
	OUTCOME_ANSWER = 3,
	OUTCOME_REPLICATE = 4,
	OUTCOME_WIRE = 5, /* out of the uplink */
	OUTCOME_PASS = 6, /* not for the switch: it goes where it went without one */
};

struct report {
	enum outcome outcome;
	enum drop_reason reason;
	__u32 port;	/* that receives it */
	__u32 rule_out; /* replicated: to how many ports */
	__u32 rule;	/* that decided last */
};

#endif
