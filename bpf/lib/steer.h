/* Detours: what a port sends to a proxy goes by the host, which translates it, wherever in
 * the switch it is for. What goes to the host anyway needs nothing of this. On a LAN it is what
 * a port sends to others there that the host translates or routes, whatever its protocol. On an
 * overlay it is what SDN routes say: to the host, or to another endpoint (route.h). */
#ifndef BULKHEAD_STEER_H
#define BULKHEAD_STEER_H

#include "flow.h"
#include "maps.h"
#include "parse.h"

#define PORT_STEERED 16 /* of struct port: it has detours */
#define PKT_STEERED 128 /* of struct pkt: from such a port */

/* Longest prefix match over the destinations of a port's flows. */
struct steer_key {
	__u32 bits;
	__u32 port;
	__u8 proto;
	__u8 pad[3];
	__u8 ip[16] __attribute__((aligned(4)));
};

/* The host's vNIC, or on a LAN the way up by the NIC. One that is no port is where no detour begins; or hop
 * is an address on the overlay: whoever has that gets the packet, on whichever host. */
struct steer {
	struct dest to;
	__u8 mac[ETH_ALEN];
	__u16 pad;
	__u8 hop[16] __attribute__((aligned(4)));
};

TABLE(bh_steer_v2, LPM_TRIE, MAX_PREFIXES, struct steer_key, struct steer);

/* What a port says of an address; of a protocol where detours are for proxies. */
static __always_inline const struct steer *steer_at(__u32 port, __u8 proto, const __u8 *ip)
{
	struct steer_key key = {.bits = 64 + 128, .port = port, .proto = proto};

	__builtin_memcpy(key.ip, ip, 16);
	return bpf_map_lookup_elem(&bh_steer_v2, &key);
}

static __always_inline const struct steer *steer_of(const struct pkt *p)
{
	const struct steer *s;

	if (!(p->flags & PKT_STEERED))
		return 0;
	s = steer_at(p->ifindex, p->lan || on_overlay(p) ? 0 : p->proto, p->dst.ip);
	return s && s->to.port ? s : 0;
}

/* A verification border: the MAC under which the port's own detour takes a packet, if it
 * is the one to that port. */
__noinline int steer_mac(struct pkt *p, __u32 port, struct mac_key *mac)
{
	const struct steer *s;

	if (!p || !mac)
		return 0;
	s = steer_of(p);
	if (!s || s->to.port != port)
		return 0;
	__builtin_memcpy(mac->mac, s->mac, ETH_ALEN);
	return 1;
}

/* Does the packet answer to a connection that the other end has opened? A packet in the
 * middle of nothing does not: else two containers that agree would do without an opening.
 * The rest of a fragmented packet goes where its first part went. */
static __always_inline int is_answer(struct scratch *room, const struct pkt *p, __u32 to)
{
	const struct flow *f;
	int end;

	if (p->flags & PKT_OPENER)
		return 0;
	room->key = (struct flow_key){};
	end = flow_key(&room->key, p->src.sw, p->proto, p->src.ip, p->sport, p->dst.ip, p->dport);
	room->key.sw |= half(p, end);
	f = bpf_map_lookup_elem(&bh_flows_v4, &room->key);
	return f && f->opener != end && !(f->state & FLOW_MIDWAY) && f->end[end & 1].port == p->ifindex &&
	       f->end[!(end & 1)].port == to;
}

/* How late the rest of a fragmented packet may come (RFC 791, RFC 8200). */
#define FRAGMENT_PATIENCE (60 * SECOND)

static __always_inline void fragment_key(struct fragment_key *k, const struct pkt *p)
{
	k->sw = p->src.sw | half(p, 1);
	k->id = p->frag;
	/* In IPv6 each fragment may name another next header, and the first one's counts. */
	k->proto = p->ethertype == ETH_P_IP ? p->proto : 0;
	__builtin_memcpy(k->src, p->src.ip, 16);
	__builtin_memcpy(k->dst, p->dst.ip, 16);
}

static __always_inline int is_rest(struct scratch *room, const struct pkt *p, __u32 to)
{
	const struct fragment *f;

	room->fragment = (struct fragment_key){};
	fragment_key(&room->fragment, p);
	f = bpf_map_lookup_elem(&bh_fragments_v1, &room->fragment);
	return f && f->to == to && bpf_ktime_get_ns() - f->time <= FRAGMENT_PATIENCE;
}

/* A verification border: turns a packet of a detour to the host. */
__noinline int steer(struct pkt *p, struct dest *to)
{
	struct scratch *room = scratch();
	const struct steer *s;

	if (!p || !to || !room)
		return 0;
	s = steer_of(p);
	if (!s || (s->to.port == to->port && s->to.kind == to->kind))
		return 0;
	if (p->flags & PKT_NO_L4 ? is_rest(room, p, to->port) : is_answer(room, p, to->port))
		return 0;
	*to = s->to;
	p->stale = 1; /* the frame bears a MAC that is not the host's */
	return 1;
}

#endif
