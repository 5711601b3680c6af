/* The maps. All are pinned by name and outlive the daemon; the version in a name
 * changes whenever its key, value or meaning does, so that an old and a new daemon
 * never read each other's bytes: the new one fills its own maps from the plan, moves the
 * programs over, then removes the old pins. */
#ifndef BULKHEAD_MAPS_H
#define BULKHEAD_MAPS_H

#include "../include/helpers.h"
#include "structs.h"

#define MAX_PORTS 16384

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__uint(pinning, PIN_BY_NAME);
	__type(key, __u32); /* interface index */
	__type(value, struct port);
} bh_ports_v1 SEC(".maps");

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
} bh_switches_v1 SEC(".maps");

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

#endif
