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
};

/* A port, found by the interface index of its switch side. */
struct port {
	__u32 sw;
	__u8 mac[ETH_ALEN]; /* of the vNIC behind it */
	__u8 kind;	    /* enum port_kind */
	__u8 pad;
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

/* Who has an address. The source guard asks it about senders, ARP and ND about
 * targets: one table, so the two cannot differ. */
struct owner {
	__u32 port;
	__u8 mac[ETH_ALEN];
	__u8 flags; /* OWNER_* */
	__u8 pad;
};

/* A switch: how many slots of its member list are filled, and its resolver's port
 * (0: none). */
struct vswitch {
	__u32 members;
	__u32 resolver;
};

/* A place in the list of ports that get broadcast. */
struct member_key {
	__u32 sw;
	__u32 slot;
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
};

struct report {
	enum outcome outcome;
	enum drop_reason reason;
	__u32 port;   /* that receives it */
	__u32 copies; /* to how many ports it was replicated */
	__u32 rule;
};

#endif
