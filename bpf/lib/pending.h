/* A network on a NIC whose maker has still to say that the host can be reached. Past the time
 * for that, and with nobody there to take it away, its programs act as if it were not there:
 * those at the NIC let everything pass, and nothing leaves its ports. Of an endpoint that was
 * attached so, nothing leaves its port. */
#ifndef BULKHEAD_PENDING_H
#define BULKHEAD_PENDING_H

#include "maps.h"

static __always_inline int is_overdue(__u32 segment, __u32 port)
{
	__u32 first = 0;
	const struct pending *wait = bpf_map_lookup_elem(&bh_pending_v1, &first);

	return wait && wait->until && wait->sw == SWITCH_OF(segment) && (!wait->port || wait->port == port) && bpf_ktime_get_boot_ns() > wait->until;
}

#endif
