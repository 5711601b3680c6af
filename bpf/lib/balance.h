/* Load balancers: a packet for a service goes to one of its back ends. Which one is chosen once for a
 * connection, at its client's port. The connection is judged, counted and kept in the table of flows
 * between the two who really have it; the flow says under which address the client knows the other. */
#ifndef BULKHEAD_BALANCE_H
#define BULKHEAD_BALANCE_H

#include "choice.h"
#include "nat.h"
#include "owner.h"
#include "remote.h"
#include "steer.h"
#include "vips.h"

#define MAX_BACKENDS (1 << 20)

TABLE(bh_places_v1, HASH, MAX_BACKENDS, struct places_key, struct places);
TABLE(bh_backends_v1, HASH, MAX_BACKENDS, struct backend_key, struct backend);
TABLE(bh_standing_v1, HASH, MAX_BACKENDS, struct standing_key, __u32);

static __always_inline __u32 mix(__u32 h, __u32 word)
{
	h = (h ^ word) * 0x9e3779b1;
	return h ^ h >> 15;
}

/* A verification border. The place of a packet in a service's table: plan.Place. Places that are the same
 * for all of a client's connections are what affinity comes to. */
__noinline __u32 place(struct pkt *p, __u32 spread)
{
	const __u32 *src, *dst;
	__u32 h = 0;

	if (!p)
		return 0;
	src = words(p->src.ip);
	dst = words(p->dst.ip);
	h = mix(mix(mix(mix(h, src[0]), src[1]), src[2]), src[3]);
	if (spread != SPREAD_SOURCE)
		h = mix(h, p->proto);
	if (spread == SPREAD_FLOW)
		h = mix(mix(h, (__u32)p->sport << 16 | p->dport), dst[3]);
	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

static __always_inline const struct vip *vip_of(const struct pkt *p)
{
	struct vip_key key = {.sw = SWITCH_OF(p->src.sw), .port = p->dport, .proto = p->proto};
	const struct vip *v;

	if (p->flags & PKT_STEERED && !p->lan && !on_overlay(p) && steer_of(p))
		return 0; /* a proxy takes it, for what it is */
	__builtin_memcpy(key.ip, p->dst.ip, 16);
	v = bpf_map_lookup_elem(&bh_vips_v2, &key);
	return v && !(v->flags & VIP_HOST) == (p->kind == PORT_CONTAINER) ? v : 0;
}

/* Containers are served at their own ports, and whom the host sends for at that of its vNIC. A host on a LAN has none. */
static __always_inline int is_served(const struct pkt *p)
{
	return p->kind == PORT_CONTAINER || (p->kind == PORT_HOST && !p->lan);
}

/* Is the chosen back end still one of the service's? */
static __always_inline int stands(const struct vip *v, const struct choice *c)
{
	struct standing_key key = {.table = v->table, .port = c->port};

	__builtin_memcpy(key.ip, c->ip, 16);
	return bpf_map_lookup_elem(&bh_standing_v1, &key) != 0;
}

/* A verification border. Chooses a back end of the service in the scratch space: 0, or that there is none. */
__noinline int choose(struct pkt *p)
{
	struct scratch *room = scratch();
	struct places_key at = {};
	struct backend_key key = {};
	const struct places *places;
	const struct backend *b;
	__u32 h;

	if (!p || !room || !room->vip.table)
		return DROP_NO_BACKEND;
	h = place(p, room->vip.spread) & room->vip.mask;
	at.table = room->vip.table;
	at.piece = h / PLACES;
	places = bpf_map_lookup_elem(&bh_places_v1, &at);
	if (!places)
		return DROP_NO_BACKEND;
	key.table = at.table;
	key.backend = places->backend[h & (PLACES - 1)];
	b = bpf_map_lookup_elem(&bh_backends_v1, &key);
	if (!b)
		return DROP_NO_BACKEND;
	room->choice.table = at.table;
	__builtin_memcpy(room->choice.ip, b->ip, 16);
	room->choice.port = b->port;
	room->choice.sport = 0;
	return DROP_NONE;
}

/* Ports of a source are tried until one is free; those below are left to who is known by them. */
#define SOURCE_TRIES 16
#define SOURCE_PORTS 1024

/* A verification border. Has the source no connection with the chosen back end from a port? */
__noinline int is_free(struct pkt *p, __u32 port)
{
	struct scratch *room = scratch();

	if (!p || !room)
		return 0;
	room->key = (struct flow_key){};
	flow_key(&room->key, p->src.sw, p->proto, room->vip.source, port, room->choice.ip, room->choice.port);
	return !bpf_map_lookup_elem(&bh_flows_v4, &room->key);
}

/* A verification border. A back end that is on no port here would answer its client past this host: it sees a source of
 * ours instead. 0, with its port in the choice, or why that cannot be. */
__noinline int give_source(struct pkt *p)
{
	struct scratch *room = scratch();
	struct addr_key end = {};
	const struct owner *o;
	__u32 h, port;

	if (!p || !room || !(room->vip.flags & VIP_SOURCED))
		return DROP_NONE;
	end.sw = p->src.sw;
	__builtin_memcpy(end.ip, room->choice.ip, 16);
	o = owner_of(&end);
	if (o && !(o->flags & OWNER_GATEWAY))
		return DROP_NONE;
	h = place(p, SPREAD_FLOW);
	port = p->sport;
	for (int i = 0; i < SOURCE_TRIES; i++) {
		if (port >= SOURCE_PORTS && is_free(p, port)) {
			room->choice.sport = port;
			return DROP_NONE;
		}
		h = mix(h, i + 1);
		port = SOURCE_PORTS + h % (65536 - SOURCE_PORTS);
	}
	return DROP_FLOW_TABLE;
}

/* May a port meet itself by way of a service? Its packet is rewritten before the source guard. */
static __always_inline int is_own(const struct pkt *p)
{
	const struct owner *o = owner_of(&p->src);

	return p->kind == PORT_CONTAINER && same_mac(p->smac, p->port_mac) && o && o->port == p->ifindex;
}

/* A verification border. Sends a packet for the service in the scratch space to the back end there: BALANCED, or why
 * not. */
__noinline int turn_to(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	struct choice *c;

	if (!p || !room)
		return DROP_MALFORMED;
	c = &room->choice;
	if (room->vip.flags & VIP_KEEP) {
		p->turned = TURNED_KEPT;
		__builtin_memcpy(p->alias, c->ip, 16);
		note_turn(room, p);
		return BALANCED;
	}
	p->turned = TURNED;
	__builtin_memcpy(p->alias, p->dst.ip, 16);
	p->aport = p->dport;
	__builtin_memcpy(room->tuple.src, p->src.ip, 16);
	__builtin_memcpy(room->tuple.dst, c->ip, 16);
	room->tuple.sport = p->sport;
	room->tuple.dport = c->port;
	if (c->sport) {
		if (!(room->vip.flags & VIP_SOURCED))
			return DROP_NO_BACKEND;
		p->turned = TURNED | TURNED_SOURCED;
		room->tuple.sport = c->sport;
		__builtin_memcpy(room->tuple.src, room->vip.source, 16);
		__builtin_memcpy(p->smac, room->vip.smac, ETH_ALEN);
		if (bpf_skb_store_bytes(skb, ETH_ALEN, room->vip.smac, ETH_ALEN, 0))
			return DROP_KERNEL;
	} else if (same_ip(p->src.ip, c->ip)) {
		if (!is_own(p))
			return DROP_SOURCE_ADDRESS;
		p->turned = TURNED | TURNED_SELF;
		__builtin_memcpy(room->tuple.src, room->vip.self, 16);
	}
	return translate(skb, p) ? DROP_KERNEL : BALANCED;
}

/* The rest of a fragmented packet goes where its first part went. */
static __always_inline int turn_rest(struct __sk_buff *skb, struct pkt *p, struct scratch *room)
{
	const struct turn *t = turn_of(room, p);

	if (!t)
		return 0;
	p->turned = t->turned;
	__builtin_memcpy(p->alias, t->alias, 16);
	if (p->turned & (TURNED_ANSWER | TURNED_OWNED)) /* an answer is rewritten when it has been judged */
		return 0;
	if (p->turned & TURNED_KEPT)
		return BALANCED;
	__builtin_memcpy(room->tuple.src, t->src, 16);
	__builtin_memcpy(room->tuple.dst, t->dst, 16);
	return translate(skb, p) ? DROP_KERNEL : BALANCED;
}

/* A verification border. A packet that belongs to no flow as it is: BALANCED when it goes to the back end that its
 * connection has, 0 when that is still to be chosen or it is for no service, or why it goes nowhere. It has not met
 * the source guard. */
__noinline int balance(struct __sk_buff *skb, struct pkt *p)
{
	struct scratch *room = scratch();
	const struct vip *v;
	struct choice *c = 0;

	if (!p || !room || p->turned || p->flags & PKT_GROUP)
		return 0;
	if (p->ethertype != ETH_P_IP && p->ethertype != ETH_P_IPV6)
		return 0;
	if (p->flags & PKT_NO_L4)
		return turn_rest(skb, p, room);
	if (!is_served(p) || (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP))
		return 0;
	v = vip_of(p);
	if (!v)
		return 0;
	p->turned = TURNED_FIRST;
	room->vip = *v;
	choice_key(&room->choice_key, p);
	if (!(p->flags & PKT_TEST))
		c = bpf_map_lookup_elem(&bh_choices_v1, &room->choice_key);
	if (!c)
		return 0;
	if (c->table != room->vip.table) {
		if (!stands(&room->vip, c))
			return p->proto == IPPROTO_TCP && !(p->flags & PKT_OPENER) ? DROP_NO_BACKEND : 0;
		c->table = room->vip.table;
	}
	room->choice = *c;
	return turn_to(skb, p);
}

/* A verification border. The first packet of a connection to a service, which balance() has found: BALANCED, or why it
 * goes nowhere; 0 for others. */
__noinline int balance_first(struct __sk_buff *skb, struct pkt *p)
{
	int step;

	if (!p || p->turned != TURNED_FIRST)
		return 0;
	if (choose(p))
		return DROP_NO_BACKEND;
	step = give_source(p);
	return step ? step : turn_to(skb, p);
}

#endif
