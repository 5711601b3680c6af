/* Who has an address on a switch. */
#ifndef BULKHEAD_OWNER_H
#define BULKHEAD_OWNER_H

#include "maps.h"

/* The key is copied to the stack: until 6.3 a key may not lie in memory that a global
 * function was handed a pointer to. */
static __always_inline const struct owner *owner_of(const struct addr_key *addr)
{
	struct addr_key key = *addr;

	return bpf_map_lookup_elem(&bh_addrs_v1, &key);
}

#endif
