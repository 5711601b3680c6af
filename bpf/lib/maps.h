/* The maps. All are pinned by name and outlive the daemon; the version in a name
 * changes whenever its key, value or meaning does, so that an old and a new daemon
 * never read each other's bytes: the new one fills its own maps from the plan, moves the
 * programs over, then removes the old pins. */
#ifndef BULKHEAD_MAPS_H
#define BULKHEAD_MAPS_H

#include "../include/helpers.h"
#include "parse.h"
#include "structs.h"

#define MAX_PORTS 16384
#define MAX_POLICIES (2 * MAX_PORTS)
#define MAX_PREFIXES (1 << 21)
#define MAX_FLOWS (1 << 19)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32); /* interface index */
	__type(value, struct port);
} bh_ports_v3 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct mac_key);
	__type(value, struct dest);
} bh_macs_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4 * MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct addr_key);
	__type(value, struct owner);
} bh_addrs_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32); /* switch number */
	__type(value, struct vswitch);
} bh_switches_v2 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct lan_key);
	__type(value, struct lan);
} bh_lans_v1 SEC(".maps");

/* Overlays: the switches that have one, whose virtual networks are whose, the endpoints on other
 * hosts, prefixes behind routers there, and the hosts themselves. */
#define MAX_REMOTES (1 << 18)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32); /* switch number */
	__type(value, struct overlay);
} bh_overlays_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct vni_key);
	__type(value, __u32); /* switch number */
} bh_vnis_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_REMOTES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct addr_key);
	__type(value, struct remote);
} bh_remotes_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_REMOTES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct route_key);
	__type(value, struct remote);
} bh_routes_v1 SEC(".maps");

/* By switch and address in the underlay: how many remotes and routes lead there. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_REMOTES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct addr_key);
	__type(value, __u32);
} bh_vteps_v1 SEC(".maps");

/* The ports of each switch that get broadcast, in slots 0..members-1. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct member_key);
	__type(value, struct dest);
} bh_members_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32); /* interface index of the port */
	__type(value, struct stats);
} bh_stats_v1 SEC(".maps");

/* Filled by the program: at most one entry per port and reason. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4 * MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct drop_key);
	__type(value, struct drop_count);
} bh_drops_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
	__uint(pinning, PIN_BY_NAME);
} bh_events_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct event_budget);
} bh_budget_v1 SEC(".maps");

/* The rules (see struct policy). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_POLICIES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct policy);
} bh_policies_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct prefix_key);
	__type(value, __u32);
} bh_prefixes_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct service_key);
	__type(value, __u32);
} bh_services_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct set_key);
	__type(value, __u32);
} bh_sets_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct class_key);
	__type(value, __u32);
} bh_classes_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct vector_key);
	__type(value, struct vector);
} bh_vectors_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PREFIXES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct rule_key);
	__type(value, struct rule);
} bh_rules_v1 SEC(".maps");

/* Filled by the program. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct rule_stat_key);
	__type(value, struct rule_stats);
} bh_rulestats_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct config);
} bh_config_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct pending);
} bh_pending_v1 SEC(".maps");

/* Connections. Not an LRU: a flood of new flows may not push out one that others rely
 * on, so each port has a share, and the silent ones are swept out. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_FLOWS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct flow_key);
	__type(value, struct flow);
} bh_flows_v3 SEC(".maps");

/* How many of them each port has: the version goes with that of the flows, for those of
 * another version's table are counted anew. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct share);
} bh_shares_v3 SEC(".maps");

/* One timer for all: the kernel allocates each, and from a packet's path it may find no
 * memory for thousands. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct sweeper);
} bh_sweeper_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_POLICIES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct rate_key);
	__type(value, struct rate);
} bh_rates_v1 SEC(".maps");

/* Filled by the program. Of a port that is gone nothing is missed: an entry's absence
 * is a full bucket. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_POLICIES);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct rate_key);
	__type(value, struct bucket);
} bh_buckets_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__uint(pinning, PIN_BY_NAME);
	__type(key, struct fragment_key);
	__type(value, struct fragment);
} bh_fragments_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
	__uint(pinning, PIN_BY_NAME);
} bh_flowlog_v1 SEC(".maps");

/* Ended flows for which that had no room. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, __u64);
} bh_lost_v1 SEC(".maps");

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
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32);
	__type(value, struct scratch);
} bh_scratch_v3 SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&bh_scratch_v3, &zero);
}

#endif
