/* Who is on other hosts: what the switch of an overlay is told, for it learns nothing. */
#ifndef BULKHEAD_REMOTE_H
#define BULKHEAD_REMOTE_H

#include "maps.h"

static __always_inline const struct overlay *overlay_of(__u32 sw)
{
	__u32 key = sw;

	return bpf_map_lookup_elem(&bh_overlays_v1, &key);
}

/* The endpoint that has an address. */
static __always_inline const struct remote *endpoint_of(const struct addr_key *addr)
{
	struct addr_key key = *addr;

	return bpf_map_lookup_elem(&bh_remotes_v1, &key);
}

/* The router that an address is behind. */
static __always_inline const struct remote *router_of(const struct addr_key *addr)
{
	struct route_key key = {.bits = 32 + 128, .sw = addr->sw};

	__builtin_memcpy(key.ip, addr->ip, 16);
	return bpf_map_lookup_elem(&bh_routes_v2, &key);
}

static __always_inline const struct remote *remote_of(const struct addr_key *addr, const struct overlay *o)
{
	const struct remote *r = endpoint_of(addr);

	if (r || !(o->flags & OVERLAY_ROUTES))
		return r;
	return router_of(addr);
}

/* A verification border: the MAC by which a container reaches an address that is elsewhere. That
 * of a prefix behind a router is this host's router's, which sends it there. */
__noinline int elsewhere(struct pkt *p, struct mac_key *mac)
{
	const struct overlay *o;
	const struct remote *r;

	if (!p || !mac || !on_overlay(p))
		return 0;
	o = overlay_of(p->src.sw);
	if (!o)
		return 0;
	r = remote_of(&p->dst, o);
	if (!r)
		return 0;
	__builtin_memcpy(mac->mac, r->router ? o->router : r->mac, ETH_ALEN);
	return 1;
}

#endif
