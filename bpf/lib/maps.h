/* The maps. All are pinned by name and outlive the daemon; the version in a name
 * changes whenever its key, value or meaning does, so that an old and a new daemon
 * never read each other's bytes: the new one fills its own maps from the plan, moves the
 * programs over, then removes the old pins. */
#ifndef BULKHEAD_MAPS_H
#define BULKHEAD_MAPS_H

#include "../include/helpers.h"
#include "parse.h"
#include "structs.h"

#define PINNED(kind, entries) \
	__uint(type, BPF_MAP_TYPE_##kind); \
	__uint(max_entries, entries); \
	__uint(pinning, PIN_BY_NAME)
/* Of what is sized once and for all. */
#define FIXED(name, kind, entries, k, v) \
	struct { \
		PINNED(kind, entries); \
		__type(key, k); \
		__type(value, v); \
	} name SEC(".maps")
/* Its entries take their memory one by one. */
#define TABLE(name, kind, entries, k, v) \
	struct { \
		PINNED(kind, entries); \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, k); \
		__type(value, v); \
	} name SEC(".maps")
#define RING(name, bytes) \
	struct { \
		PINNED(RINGBUF, bytes); \
	} name SEC(".maps")

#define MAX_PORTS 16384
#define MAX_POLICIES (2 * MAX_PORTS)
#define MAX_PREFIXES (1 << 21)
#define MAX_FLOWS (1 << 19)

TABLE(bh_ports_v3, HASH, MAX_PORTS, __u32, struct port); /* by interface index */
TABLE(bh_macs_v1, HASH, MAX_PORTS, struct mac_key, struct dest);
TABLE(bh_addrs_v1, HASH, 4 * MAX_PORTS, struct addr_key, struct owner);
TABLE(bh_switches_v2, HASH, MAX_PORTS, __u32, struct vswitch); /* by switch number */
TABLE(bh_lans_v1, HASH, MAX_PORTS, struct lan_key, struct lan);

/* Overlays: the switches that have one, whose virtual networks are whose, the endpoints on other
 * hosts, prefixes behind routers there, and the hosts themselves. */
#define MAX_REMOTES (1 << 18)

TABLE(bh_overlays_v1, HASH, MAX_PORTS, __u32, struct overlay); /* by switch number */
TABLE(bh_vnis_v1, HASH, MAX_PORTS, struct vni_key, __u32); /* switch number */
TABLE(bh_remotes_v1, HASH, MAX_REMOTES, struct addr_key, struct remote);
TABLE(bh_routes_v2, LPM_TRIE, MAX_REMOTES, struct route_key, struct remote);

/* By switch and address in the underlay: the hosts that remotes or routes lead to. The value counts for
 * nothing. */
TABLE(bh_vteps_v1, HASH, MAX_REMOTES, struct addr_key, __u32);

/* Of a switch with multicast: the same that get its group frames, in slots from 0 on. */
TABLE(bh_floods_v1, HASH, MAX_REMOTES, struct member_key, struct flood_host);

/* Groups of a port that are told apart. One that is in more is in all: as at a switch whose table is full, too
 * much comes, and nothing is missed. */
#define MAX_PORT_GROUPS 15

/* Filled by the program: the groups of each port, whose index stands for the switch. Under no address is how many.
 * There is room for those of all ports, so that none can take another's. */
TABLE(bh_groups_v1, HASH, MAX_PORTS * (MAX_PORT_GROUPS + 1), struct addr_key, __u32);

/* The ports of each switch that get broadcast, in slots 0..members-1. */
TABLE(bh_members_v1, HASH, MAX_PORTS, struct member_key, struct dest);
TABLE(bh_stats_v1, PERCPU_HASH, MAX_PORTS, __u32, struct stats); /* by interface index of the port */

/* Of the ports that have a place at the low bits of their index (near.h). */
#define NEAR_PORTS 1024

FIXED(bh_near_v1, ARRAY, NEAR_PORTS, __u32, struct near);
FIXED(bh_traffic_v1, PERCPU_ARRAY, NEAR_PORTS, __u32, struct traffic);

/* Filled by the program: at most one entry per port and reason. */
TABLE(bh_drops_v1, HASH, 4 * MAX_PORTS, struct drop_key, struct drop_count);

RING(bh_events_v1, 256 * 1024);

FIXED(bh_budget_v1, PERCPU_ARRAY, 1, __u32, struct event_budget);

/* The rules (see struct policy). */
TABLE(bh_policies_v1, HASH, MAX_POLICIES, __u32, struct policy);
TABLE(bh_prefixes_v1, LPM_TRIE, MAX_PREFIXES, struct prefix_key, __u32);
TABLE(bh_services_v1, LPM_TRIE, MAX_PREFIXES, struct service_key, __u32);
TABLE(bh_sets_v1, LPM_TRIE, MAX_PREFIXES, struct set_key, __u32);
TABLE(bh_classes_v1, HASH, MAX_PREFIXES, struct class_key, __u32);
TABLE(bh_vectors_v1, HASH, MAX_PREFIXES, struct vector_key, struct vector);
TABLE(bh_rules_v1, HASH, MAX_PREFIXES, struct rule_key, struct rule);

/* Filled by the program. */
TABLE(bh_rulestats_v1, PERCPU_HASH, 1 << 18, struct rule_stat_key, struct rule_stats);
FIXED(bh_config_v1, ARRAY, 1, __u32, struct config);
FIXED(bh_pending_v1, ARRAY, 1, __u32, struct pending);

/* The daemon's own: not 0 while a change is going on, at whose end it raises the generation. One that finds it when it
 * starts raises it for the one that has not come to that. */
FIXED(bh_unsettled_v1, ARRAY, 1, __u32, __u32);

/* Connections. Not an LRU: a flood of new flows may not push out one that others rely
 * on, so each port has a share, and the silent ones are swept out. */
TABLE(bh_flows_v4, HASH, MAX_FLOWS, struct flow_key, struct flow);

/* How many of them each port has: the version goes with that of the flows, for those of
 * another version's table are counted anew. */
TABLE(bh_shares_v4, HASH, MAX_PORTS, __u32, struct share);

/* One timer for all: the kernel allocates each, and from a packet's path it may find no
 * memory for thousands. */
FIXED(bh_sweeper_v1, ARRAY, 1, __u32, struct sweeper);
TABLE(bh_rates_v1, HASH, MAX_POLICIES, struct rate_key, struct rate);

/* Filled by the program. Of a port that is gone nothing is missed: an entry's absence
 * is a full bucket. */
FIXED(bh_buckets_v1, LRU_HASH, MAX_POLICIES, struct rate_key, struct bucket);
FIXED(bh_fragments_v1, LRU_HASH, 8192, struct fragment_key, struct fragment);

RING(bh_flowlog_v1, 1024 * 1024);

/* Ended flows for which that had no room. */
FIXED(bh_lost_v1, PERCPU_ARRAY, 1, __u32, __u64);

/* A question about one packet and one list of rules, and the answer. */
struct question {
	__u32 policy;
	__u32 sw;
	__u8 local[16] __attribute__((aligned(4)));
	__u8 remote[16] __attribute__((aligned(4)));
	__u16 lport;
	__u16 rport;
	__u8 proto;
	__u8 pad[3];
	__u32 rule; /* out: the number of the one that decided, 0 for the fallback */
};

/* Vectors, 0 for the empty one. */
struct search {
	__u32 policy;
	__u32 rules;
	__u32 at; /* the first rule that may match */
	__u32 flags;
	__u32 local, local_set;
	__u32 remote, remote_set;
	__u32 service, remote_ports;
	__u32 found; /* its number */
	__u32 action;
};

/* A tunnel's packet: the host that it is from, the switch that it is for, and what it came in by. */
struct arrival {
	struct addr_key host;
	__u32 tunnel; /* the VXLAN device */
	__u32 test;   /* of a test run */
};

/* What does not fit on the stack of 512 bytes. A program runs to its end on its CPU before
 * another one of ours begins there. */
struct scratch {
	struct pkt pkt;
	struct question question;
	struct search search;
	struct flow_key key;
	struct flow flow;
	struct fragment_key fragment;
	struct arrival arrival;
	struct choice_key choice_key;
	struct vip vip;
	struct choice choice;
	struct client client;
	struct tuple tuple;
	struct turn turn;
	struct mend mend;
	struct inner inner;
	struct dest hop;
};

FIXED(bh_scratch_v7, PERCPU_ARRAY, 1, __u32, struct scratch);

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bh_scratch_v7, &zero);
}

#endif
