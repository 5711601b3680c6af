/* SDN routes on an overlay: what a port sends to a prefix goes to a next hop, whoever has the destination and
 * whatever its compartment's routes say. The next hop is an address of an endpoint, which is looked up for each packet:
 * what moved is found where it is now. */
#ifndef BULKHEAD_ROUTE_H
#define BULKHEAD_ROUTE_H

#include "owner.h"
#include "remote.h"
#include "steer.h"
#include "vips.h"

/* The next hop that an entry names, and who has it here, if anybody. None is the gateway: that goes by the destination. */
static __always_inline int hop_of(const struct steer *s, __u32 sw, struct addr_key *hop, const struct owner **own)
{
	if (!s || s->to.port || is_unspecified(s->hop))
		return 0;
	hop->sw = sw;
	__builtin_memcpy(hop->ip, s->hop, 16);
	*own = owner_of(hop);
	return !*own || !((*own)->flags & OWNER_GATEWAY);
}

/* The next hop of what a port sends to an address. */
static __always_inline int hop_at(const struct addr_key *dst, __u32 port, struct addr_key *hop, const struct owner **own)
{
	return hop_of(steer_at(port, 0, dst->ip), dst->sw, hop, own);
}

/* A verification border. The address by which the host is found that a packet goes to. */
__noinline int target(struct pkt *p, struct addr_key *to)
{
	const struct owner *own;

	if (!p || !to)
		return 0;
	if (p->routed && hop_at(&p->dst, p->ifindex, to, &own))
		return 1;
	*to = p->dst;
	return 0;
}

/* A verification border: is that end of a packet a service's? Its answers come from the ends of its connections alone. */
__noinline int is_service(struct pkt *p)
{
	struct vip_key key = {};

	if (!p)
		return 0;
	key.sw = SWITCH_OF(p->src.sw);
	key.port = p->sport;
	key.proto = p->proto;
	__builtin_memcpy(key.ip, p->src.ip, 16);
	return bpf_map_lookup_elem(&bh_vips_v2, &key) != 0;
}

/* A verification border: the MAC of the next hop, if that is behind a port. */
__noinline int hop_mac(struct pkt *p, __u32 port, struct mac_key *mac)
{
	struct addr_key hop = {};
	const struct owner *o;

	if (!p || !mac || !target(p, &hop))
		return 0;
	o = owner_of(&hop);
	if (!o || o->port != port)
		return 0;
	__builtin_memcpy(mac->mac, o->mac, ETH_ALEN);
	return 1;
}

/* A verification border. Does the sender speak for an address that nobody has, to the one whose next hop for it he is? */
__noinline int speaks(struct pkt *p)
{
	struct scratch *room = scratch();
	struct addr_key hop = {};
	const struct remote *r;
	const struct owner *o;

	if (!p || !room || !on_overlay(p) || owner_of(&p->src) || endpoint_of(&p->src) || is_service(p))
		return 0;
	o = owner_of(&p->dst);
	if (!o || !hop_at(&p->src, o->port, &hop, &o))
		return 0;
	if (p->kind == PORT_REMOTE) {
		r = endpoint_of(&hop);
		return r && same_ip(r->host, room->arrival.host.ip);
	}
	return p->kind == PORT_CONTAINER && o && o->port == p->ifindex;
}

#define PLAIN -1

/* A verification border. Where the SDN routes of its port send a packet: 0, with the place in the scratch space, or why nowhere;
 * PLAIN when they say nothing of it. The gateway stays the gateway, and as a next hop it goes by the destination. */
__noinline int find_hop(struct pkt *p)
{
	struct scratch *room = scratch();
	struct addr_key hop = {};
	struct mac_key key = {};
	const struct overlay *o;
	const struct owner *own;
	const struct steer *s;
	const struct dest *d;

	if (!p || !room)
		return DROP_MALFORMED;
	room->hop = (struct dest){};
	own = owner_of(&p->dst);
	if (own && own->flags & OWNER_GATEWAY)
		return PLAIN;
	s = steer_at(p->ifindex, 0, p->dst.ip);
	if (s && s->to.port) {
		room->hop = s->to;
		return DROP_NONE;
	}
	if (!hop_of(s, p->src.sw, &hop, &own))
		return PLAIN;
	if (own) {
		key.sw = p->src.sw;
		__builtin_memcpy(key.mac, own->mac, ETH_ALEN);
		d = bpf_map_lookup_elem(&bh_macs_v1, &key);
		if (!d)
			return DROP_NO_ROUTE;
		room->hop = *d;
		return DROP_NONE;
	}
	o = overlay_of(p->src.sw);
	if (!o || !endpoint_of(&hop))
		return DROP_NO_ROUTE;
	if (p->tunnel == NO_TUNNEL)
		return DROP_NO_UPLINK;
	room->hop.port = p->tunnel;
	room->hop.device = p->tunnel;
	room->hop.kind = PORT_REMOTE;
	return DROP_NONE;
}

/* A verification border. Sends a packet where find_hop() says. plain is what became of it without: 0 and where it goes, or
 * a reason. Who opened a connection is answered. */
__noinline int route(struct pkt *p, struct dest *to, int plain, int step)
{
	struct scratch *room = scratch();

	if (!p || !to || !room)
		return DROP_MALFORMED;
	if (step == PLAIN)
		return plain;
	/* The first part of a fragmented packet may have gone by the same tunnel to another host. */
	if (!plain && (p->flags & PKT_NO_L4 ? room->hop.port != to->port && is_rest(room, p, to->port) : is_answer(room, p, to->port)))
		return plain;
	if (step)
		return step;
	if (room->hop.port == p->ifindex)
		return DROP_TO_SELF;
	*to = room->hop;
	p->routed = 1;
	p->stale = to->kind != PORT_REMOTE;
	return DROP_NONE;
}

#endif
