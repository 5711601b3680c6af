/* What nearly every packet asks for, without a search: to look into a hash costs it more, with the CPU's caches as a real
 * packet finds them, than all that the program does with what is found. Most ports have a place in two arrays, by the low
 * bits of their index. Those of others, and all ports, are in the hashes. */
#ifndef BULKHEAD_NEAR_H
#define BULKHEAD_NEAR_H

#include "maps.h"

/* A port's entry. A place is given, and filled again, when no program can be at what it held before (places.go). */
static __always_inline const struct port *port_of(__u32 index)
{
	__u32 at = index & (NEAR_PORTS - 1);
	const struct near *n = bpf_map_lookup_elem(&bh_near_v1, &at);

	if (n && n->index == index)
		return &n->port;
	return bpf_map_lookup_elem(&bh_ports_v3, &index);
}

/* The place of a port's counters, if it has one. */
static __always_inline struct traffic *traffic(__u32 port)
{
	__u32 at = port & (NEAR_PORTS - 1);
	struct traffic *t = bpf_map_lookup_elem(&bh_traffic_v1, &at);

	return t && t->port == port ? t : 0;
}

#endif
