/* Keys, values and maps of the offload. None is pinned: with the daemon's end the programs
 * are detached, and a new daemon starts with nothing learnt. */
#ifndef BULKHEAD_OFFLOAD_STRUCTS_H
#define BULKHEAD_OFFLOAD_STRUCTS_H

#include "../include/helpers.h"
#include "structs.h"

#define MAX_OFFLOADS (1 << 16)
#define MAX_OFFLOAD_LINKS 4096

/* One direction of a flow, as it comes in. */
struct offload_key {
	__u32 scope; /* number of the switch; or SCOPE_NIC and the index of an uplink */
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u16 sport;
	__u16 dport;
	__u8 proto;
	__u8 pad[3];
};

#define SCOPE_NIC 0x80000000U

#define OFFLOAD_WANTED 1  /* the other direction is learnt, this one is not */
#define OFFLOAD_LEARNT 2  /* this one is */
#define OFFLOAD_LIVE 3	  /* both are */

/* How netfilter and the routes sent its last packet that they saw. */
struct offload {
	__u64 stamp; /* of the ruleset that let it pass */
	__u64 until; /* ktime ns: afterwards netfilter has to see one again */
	__u64 asked; /* ktime ns: when the daemon was last asked to prepare the connection */
	__u64 carried; /* bytes since the daemon did so */
	__u32 generation;
	__u32 device; /* the uplink, or the container's port */
	__u32 peer;   /* scope of the other direction's key */
	__u32 mtu;    /* of that side */
	__u32 priority;
	__u32 pad;
	__u8 src[16] __attribute__((aligned(4)));
	__u8 dst[16] __attribute__((aligned(4)));
	__u16 sport;
	__u16 dport;
	__u8 smac[ETH_ALEN];
	__u8 dmac[ETH_ALEN];
	__u8 tos;
	__u8 state; /* OFFLOAD_* */
	__u8 pad2[2];
};

enum offload_role {
	OFFLOAD_UPLINK = 1,
	OFFLOAD_HOST = 2, /* the host's vNIC on a switch */
};

/* A device between which flows are carried. */
struct offload_link {
	enum offload_role role;
	__u32 sw; /* OFFLOAD_HOST */
	__u32 mtu; /* of what is behind it */
};

struct offload_config {
	__u64 until; /* ktime ns: the daemon watches at least as long */
	__u32 generation;
	__u32 pad;
};

/* A connection that may be carried once conntrack is told that it will not see each of
 * its segments. */
struct offload_ask {
	__u8 src[16];
	__u8 dst[16];
	__u16 sport;
	__u16 dport;
	__u8 v6;
	__u8 pad[3];
};

enum offload_stat {
	OFFLOAD_OUT = 0,  /* packets carried from a container to an uplink */
	OFFLOAD_IN = 1,	  /* the other way */
	OFFLOAD_RENEWED = 2, /* packets that netfilter saw, of flows that are or will be carried */
	OFFLOAD_ENDED = 3,
	OFFLOAD_ASKED = 4,
	OFFLOAD_STATS = 5,
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OFFLOADS);
	__type(key, struct offload_key);
	__type(value, struct offload);
} bh_offload_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_OFFLOAD_LINKS);
	__type(key, __u32); /* interface index */
	__type(value, struct offload_link);
} bh_offload_links_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct offload_config);
} bh_offload_config_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OFFLOAD_STATS);
	__type(key, __u32);
	__type(value, __u64);
} bh_offload_stats_v1 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} bh_offload_asks_v1 SEC(".maps");

#endif
